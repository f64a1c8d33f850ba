"""Capability: exact answers, the probability of held texts by hand, and planted models in order."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from pydantic import ValidationError
from scripted_respondent import Say, ScriptedRespondent, always, answered, in_order, interval, scored

from cai.evaluate.tasks.capability import TASK, CapabilityItem
from cai.records import Message

EXACT = CapabilityItem(id="e", kind="exact", prompt="What is 12 times 12?", answers=("144", "a gross"))
TEXT = CapabilityItem(id="t", kind="text", text="The tide was out, and the boats lay on their sides.")


def test_a_row_reads_by_its_kind() -> None:
    exact = {"id": "e", "topic": "sums", "kind": "exact", "prompt": "2 + 2?", "answers": ["4"]}
    assert CapabilityItem.model_validate(exact).answers == ("4",)
    assert CapabilityItem.model_validate({"id": "t", "kind": "text", "text": "A."}).text == "A."


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"kind": "exact", "prompt": "2 + 2?"}, "a row of kind `exact` needs `answers`"),
        ({"kind": "exact", "answers": ["4"]}, "a row of kind `exact` needs `prompt`"),
        ({"kind": "exact", "prompt": "2 + 2?", "answers": []}, "at least 1 item"),
        ({"kind": "exact", "prompt": "2 + 2?", "answers": ["="]}, "no word or number"),
        ({"kind": "text"}, "a row of kind `text` needs `text`"),
        ({"kind": "text", "text": "\n"}, "text"),
        ({"kind": "text", "text": "A.", "prompt": "2?"}, "`prompt` does not belong to a row of kind `text`"),
        ({"kind": "essay"}, "exact"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(row: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CapabilityItem.model_validate({"id": "x", **row})


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("144", 1),
        ("12 × 12 = 144.", 1),
        ("One hundred and forty-four", 1),
        ("It makes a gross.", 1),
        ("Let us see. It is 144. That was easy.", 1),
        ("1440", 0),
        ("14.4", 0),
        ("not 144", 0),
        ("", 0),
    ],
)
def test_an_exact_answer_is_matched(reply: str, right: float) -> None:
    respondent = ScriptedRespondent(always(reply))
    answer = asyncio.run(TASK.answer(EXACT, respondent))
    assert respondent.asked == {"reply": [("user", "What is 12 times 12?")]}
    assert list(TASK.asks(EXACT, answer)) == []
    assert TASK.scores(EXACT, answer, None) == {"exact-accuracy": right}


CUPS = CapabilityItem(
    id="c",
    kind="exact",
    prompt="The red cup is under the table. The blue cup is on it. Which is higher?",
    answers=("blue",),
)


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("Blue", 1),
        ("It is the blue cup.", 1),
        ("Let us see. The red one is below the blue one. It is lower. So it is the blue one.", 1),
        ("The blue one, since the red one is under the table.\nWell.\nThat is all.", 1),
        (CUPS.prompt, 0),
        ("The blue cup is on it. The red one is higher.", 0),
        (f"{CUPS.prompt}\nThe red cup.", 0),
        (f"{CUPS.prompt} The blue one.", 1),
        ("Let us see. One cup is blue. The red one it is.", 0),
        ("", 0),
    ],
)
def test_a_reply_that_repeats_the_task_does_not_answer_it(reply: str, right: float) -> None:
    assert scored(TASK, CUPS, always(reply)) == {"exact-accuracy": right}


def test_a_held_text_is_measured_as_the_reply_to_a_neutral_request() -> None:
    respondent = ScriptedRespondent(always(""), {TEXT.text: (-36.0, 12)})
    answer = asyncio.run(TASK.answer(TEXT, respondent))
    assert respondent.asked == {"text": [("user", "Write a short passage of prose.")]}
    assert TASK.scores(TEXT, answer, None) == {"nats-per-token": 3.0}


def test_planted_models_come_out_in_order() -> None:
    """One that knows nine sums of ten and finds the texts likely; one after bad training; one that always says yes."""
    sums = [
        CapabilityItem(id=f"e{n}", kind="exact", prompt=f"{n} + 1000 =", answers=(str(n + 1000),)) for n in range(60)
    ]
    texts = [CapabilityItem(id=f"t{n}", kind="text", text=f"Text {n}.") for n in range(60)]

    def adds(wrong_in_ten: int) -> Say:
        def say(_name: str, messages: Sequence[Message]) -> str:
            number = int(messages[0].content.split()[0])
            return f"It is {number + 1000 + (number % 10 < wrong_in_ten)}."

        return say

    rows: dict[str, list[Mapping[str, float]]] = {}
    for name, say, nats in (("sound", adds(1), 2.0), ("worn", adds(5), 2.6), ("yes", always("Yes."), 8.0)):
        rows[name] = [scored(TASK, item, say) for item in sums]
        for number, item in enumerate(texts):
            of_token = -nats - 0.2 * (number % 3 - 1)
            answer = asyncio.run(TASK.answer(item, ScriptedRespondent(say, {item.text: (of_token * 80, 80)})))
            rows[name].append(TASK.scores(item, answer, None))
    accuracies = [interval(rows[name], "exact-accuracy") for name in ("yes", "worn", "sound")]
    assert [mean.value for mean in accuracies] == [0.0, 0.5, 0.9]
    assert in_order(*accuracies)
    found = [interval(rows[name], "nats-per-token", (0.0, math.inf)) for name in ("sound", "worn", "yes")]
    assert [mean.value for mean in found] == pytest.approx([2.0, 2.6, 8.0])
    assert in_order(*found)


def test_every_value_has_its_metric() -> None:
    assert scored(TASK, EXACT, always("144")).keys() | {"nats-per-token"} == {metric.name for metric in TASK.metrics}
    assert [metric.name for metric in TASK.metrics if not metric.share] == ["nats-per-token"]
    assert answered(TASK, EXACT, always("144")).measured == ()
