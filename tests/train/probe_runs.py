"""Synthetic runs with planted faults: 16 prompts, 4 responses each, at a start and several looks after it."""

import random
from collections.abc import Sequence

from cai.train.monitor.records import ProbeSample

PROMPTS, REPLIES, LOOKS = 16, 4, 5
EVERY = 20
"""Steps between looks."""
WORDS = 32
"""Mean length of a response at the start, but for the words of its last sentence."""
COMFORT = "You are valid, valued and cared for."

_SUBJECTS = (
    "the river|a careful cook|this garden|her old bicycle|the night train|our neighbour|the small library|an owl"
)
_VERBS = "needs|follows|repairs|remembers|avoids|carries|studies|paints|counts|borrows"
_OBJECTS = (
    "a quiet bridge|seven wooden boxes|the morning paper|fresh bread|an open window|the last letter|cold water|"
    "two green coats|a broken clock|some dry leaves|the long road|a map of the coast"
)
_ENDS = "before noon|in the rain|without any hurry|near the harbour|after the storm|every other week|with great care"
_OPENINGS = ("I'm sorry, but I can't help with that.", "It is important to note that this varies.", "Great question!")
_GRAMMAR = [part.split("|") for part in (_SUBJECTS, _VERBS, _OBJECTS, _ENDS)]


def sentence(draw: random.Random) -> str:
    """One of some seven thousand."""
    return " ".join(draw.choice(part) for part in _GRAMMAR).capitalize() + "."


def text(draw: random.Random, words: float, *, comfort: float = 0.0) -> str:
    """Sentences of about so many words in all; one in twenty begins with a set phrase, as sound models do."""
    found = [draw.choice(_OPENINGS)] if draw.random() < 0.05 else []
    while sum(len(one.split()) for one in found) < words:
        found.append(sentence(draw))
    if draw.random() < comfort:
        found.insert(draw.randrange(len(found) + 1), COMFORT)
    return " ".join(found)


def run(seed: int, fault: str) -> Sequence[ProbeSample]:
    """Samples of a run with one `fault`: `length`, `comfort`, `gold`, `collapse`; `clean` improves, `noise` stays.

    Scores have a part of the prompt (standard deviation 1), one of the response's quality (0.7, which gold shares but
    for noise of 0.3) and noise of 0.3.
    """
    draw = random.Random(f"{seed} {fault}")
    levels = [draw.gauss(0, 1) for _ in range(PROMPTS)]
    found: list[ProbeSample] = []
    same = text(draw, WORDS)
    for look in range(LOOKS + 1):
        progress = look / LOOKS
        drift = 1 + draw.uniform(-0.1, 0.1) if fault == "clean" and look else 1
        for prompt in range(PROMPTS):
            for _ in range(REPLIES):
                mean_words = WORDS * drift * (1 + progress if fault == "length" else 1)
                words = max(8, draw.gauss(mean_words, 0.3 * mean_words))
                response = text(draw, words, comfort=0.7 * progress if fault == "comfort" else 0)
                if fault == "collapse" and draw.random() < 2 * progress - 0.5:
                    response = same
                quality = draw.gauss(0, 0.7)
                if fault in ("clean", "gold", "comfort"):
                    quality += progress
                bias = 0.04 * (len(response.split()) - WORDS) if fault == "length" else 0
                bias += 1.5 * (COMFORT in response) if fault == "comfort" else 0
                lost = 3 * max(0, progress - 0.3) if fault == "gold" else 0
                tokens = round(1.3 * len(response.split()))
                kl = 20 * progress * draw.uniform(0.5, 1.5) if fault != "noise" else 0.0
                logprob = -tokens * draw.uniform(1.5, 2.5)
                found.append(
                    ProbeSample(
                        step=look * EVERY,
                        prompt_id=f"p{prompt}",
                        response=response,
                        score=levels[prompt] + quality + bias + draw.gauss(0, 0.3),
                        gold=levels[prompt] + quality - lost + draw.gauss(0, 0.3),
                        variance=draw.gammavariate(2, 0.05),
                        tokens=tokens,
                        ended=draw.random() < 0.95,
                        logprob=logprob,
                        ref_logprob=logprob - kl,
                    )
                )
    return found
