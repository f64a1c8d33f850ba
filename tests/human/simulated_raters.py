"""Raters whose faults are planted, on comparisons of clustered prompts, for tests of agreement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cai.human.records import Answer, Rating
from cai.records import Comparison, Message, Prompt, Response, Side

Habit = Literal["good", "first", "random", "careless", "hasty", "contrary"]
TEXT = "word " * 200
"""1,000 characters; each comparison has between 300 and 1,700 in both responses together."""
TOPICS = ("cooking", "travel", None)


@dataclass(frozen=True)
class Simulation:
    """What was rated, what is better, and what was said."""

    comparisons: tuple[Comparison, ...]
    better: Mapping[str, Side]
    ratings: tuple[Rating, ...]
    checks: tuple[Rating, ...]


def comparison(
    id: str, prompt: str | None = None, a: str = "Text A.", b: str = "Text B.!", topic: str | None = None
) -> Comparison:
    """A comparison with a prompt of its own where none is given."""
    text = f"Question {id}?" if prompt is None else prompt
    return Comparison(
        id=id,
        prompt=Prompt(id=f"p-{text}", messages=(Message(role="user", content=text),), topic=topic),
        a=Response(text=a, origin="one"),
        b=Response(text=b, origin="two"),
        source="file",
    )


def rating(
    id: str,
    rater: str,
    answer: Answer = "a",
    *,
    first: Side = "a",
    seconds: float = 30.0,
    check: Side | None = None,
    at: str = "2026-11-21T10:00:00+00:00",
) -> Rating:
    return Rating(
        comparison_id=id, rater=rater, answer=answer, first=first, seconds=seconds, at=at, check=check, comment=""
    )


def simulate(
    raters: Mapping[str, Habit],
    seed: int,
    *,
    comparisons: int = 200,
    per_prompt: int = 2,
    each: int = 3,
    checks: int = 20,
    right: float = 0.85,
) -> Simulation:
    """Have `each` of the raters answer each comparison, in turn; a good one is right with probability `right`."""
    random = np.random.default_rng(seed)
    shown = tuple(
        comparison(
            f"c{number}",
            f"Question {number // per_prompt}?",
            TEXT[: int(random.integers(150, 850))] + "a",
            TEXT[: int(random.integers(150, 850))] + "bb",
            TOPICS[number // per_prompt % len(TOPICS)],
        )
        for number in range(comparisons)
    )
    sides: tuple[Side, Side] = ("a", "b")
    better = {one.id: sides[int(random.integers(2))] for one in shown}
    names = list(raters)
    order: dict[str, list[Side]] = {name: [] for name in names}
    ratings, answers = [], []
    for place, one in enumerate(shown):
        for name in _some(names, place, each):
            side = _first(order[name], random)
            ratings.append(_answer(one, name, raters[name], better[one.id], side, right, random))
    for number in range(checks):
        known = comparison(f"check{number}", a=TEXT[:400], b=TEXT[:401])
        for name in names:
            side = sides[int(random.integers(2))]
            found = _answer(known, name, raters[name], "a", side, 0.98, random)
            answers.append(found.model_copy(update={"check": "a"}))
    return Simulation(shown, better, tuple(ratings), tuple(answers))


def _some(names: Sequence[str], place: int, each: int) -> list[str]:
    return [names[(place + step) % len(names)] for step in range(min(each, len(names)))]


def _first(given: list[Side], random: np.random.Generator) -> Side:
    """Balanced in blocks of two."""
    side: Side = ("a", "b")[int(random.integers(2))] if len(given) % 2 == 0 else "b" if given[-1] == "a" else "a"
    given.append(side)
    return side


def _answer(
    shown: Comparison, name: str, habit: Habit, better: Side, first: Side, right: float, random: np.random.Generator
) -> Rating:
    other: Side = "b" if better == "a" else "a"
    chance = {"random": 0.5, "careless": 0.55 if right > 0.9 else right, "contrary": 1 - right}.get(habit, right)
    side = first if habit == "first" else better if random.uniform() < chance else other
    length = len(shown.a.text) + len(shown.b.text)
    seconds = length / 25 * float(random.lognormal(0, 0.4))
    if habit == "hasty":
        seconds = 1.0 + float(random.uniform())
    slight = random.uniform() < 0.4
    answers: dict[tuple[Side, bool], Answer] = {
        ("a", True): "rather_a",
        ("b", True): "rather_b",
        ("a", False): "a",
        ("b", False): "b",
    }
    return rating(shown.id, name, answers[side, slight], first=first, seconds=round(seconds, 2))
