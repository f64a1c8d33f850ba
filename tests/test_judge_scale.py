"""The scale that a certificate advises: what `--scale` with it would have made of the same labels."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from stub_engine import StubEngine

from cai.constitution import Constitution
from cai.feedback.judge import Judge
from cai.feedback.judge_config import JudgeConfig
from cai.feedback.prompts import JudgePrompts
from cai.feedback.scale import fitted_scale
from cai.principles import Principle
from cai.records import Comparison, Label, Message, Prompt, Response
from cai.statistics import log_loss

KIND = Principle(id="kind", comparison="Choose the kinder reply.", question="Is it unkind?", weight=3)
SHORT = Principle(id="short", comparison="Choose the shorter reply.", question="Is it long?")
PRINCIPLES = Constitution(name="test", version="1", principles=(KIND, SHORT))
LIKES = [0.9, -2.1, 1.4, 0.2, 0.7, -0.4, 1.1, 0.5]
"""For each comparison, how far the judge leans to its gold response, in log-odds."""


def odds(request: str, _: str) -> Mapping[str, float]:
    """A judge that likes the first place by 1, that by a principle likes all less, and that finds faults."""
    number = int(request.split("good ")[1].split()[0]) if "good " in request else 0
    leaning = LIKES[number] * (0.5 if "shorter" in request or "long" in request else 1)
    if "bad" not in request or "good" not in request:
        p = 1 / (1 + math.exp(-leaning if "good" in request else 0.3))
        return {"No": p, "Yes": 1 - p}
    p = 1 / (1 + math.exp(-(leaning if request.index("good") < request.index("bad") else -leaning) - 1))
    return {"A": p, "B": 1 - p}


def labels(config: JudgeConfig) -> list[Label]:
    judge = Judge(config, PRINCIPLES, JudgePrompts(), StubEngine(odds), seed=0, on_step=lambda _: None)
    found = []
    for n in range(len(LIKES)):
        prompt = Prompt(id=f"p{n}", messages=(Message(role="user", content=f"Question {n}?"),))
        texts = (f"good {n} text", f"bad {n} text")[:: 1 if n % 2 else -1]
        a, b = (Response(text=text) for text in texts)
        comparison = Comparison(id=f"c{n}", prompt=prompt, a=a, b=b, source="file", gold="a" if n % 2 else "b")
        verdict = asyncio.run(judge.verdict(comparison))
        hashes = {"constitution_sha256": "c", "templates_sha256": "t"}
        found.append(Label(id=f"c{n}", index=n, comparison=comparison, verdict=verdict, model="m", seed=0, **hashes))
    return found


def loss(found: Sequence[Label]) -> float:
    p, gold_a = [one.verdict.p_a for one in found], [one.comparison.gold == "a" for one in found]
    return log_loss(np.array(p), np.array(gold_a))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"principles": "all"},
        {"principles": 2},
        {"protocol": "pointwise", "principles": "all"},
        {"protocol": ["pairwise", "pointwise"], "principles": "all"},
        {"principles": "all", "scale": 3.0},
    ],
)
def test_no_scale_that_is_asked_for_beats_the_advised_one(settings: dict[str, Any]) -> None:
    given = JudgeConfig.model_validate(settings)
    advised = fitted_scale(labels(given), given, PRINCIPLES)
    assert advised is not None

    def at(scale: float) -> float:
        return loss(labels(JudgeConfig.model_validate(settings | {"scale": scale})))

    best = at(advised)
    assert all(best < at(advised * factor) for factor in (0.2, 0.8, 0.98, 1.02, 1.25, 5))


def test_no_scale_is_advised_where_it_would_do_nothing() -> None:
    clamped = JudgeConfig(clamp=(0.1, 0.9))
    assert fitted_scale(labels(clamped), clamped, PRINCIPLES) is None
    assert fitted_scale([], JudgeConfig(), PRINCIPLES) is None
