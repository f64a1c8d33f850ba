import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cai.config import EngineConfig
from cai.engines.base import ChoiceLogprobs, Engine, ReplyLogprob
from cai.engines.scripted import open_scripted
from cai.errors import ConfigError, EngineError, RecordError
from cai.records import Message, Sampling, Usage

CHAT = (Message(role="system", content="Judge well."), Message(role="user", content="Is rain wet?"))
YES_NO = ("Yes", "No")


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Engine]:
    """Opens the engine on the answers of a script in YAML."""

    def opened(answers: str) -> Engine:
        path = tmp_path / "script.yaml"
        path.write_text(f"answers:\n{answers}\n", encoding="utf-8")
        return open_scripted(EngineConfig(engine="scripted", script=path))

    return opened


def choose(engine: Engine, choices: tuple[str, ...] = YES_NO) -> ChoiceLogprobs:
    return asyncio.run(engine.choice_logprobs(CHAT, "Answer: it", choices))


def rate(engine: Engine, reply: str = "It is.") -> ReplyLogprob:
    return asyncio.run(engine.reply_logprob(CHAT, reply))


def say(engine: Engine) -> str:
    return asyncio.run(engine.generate(CHAT, Sampling())).text


def test_the_probabilities_of_choices_are_given_in_the_order_asked_for(script: Callable[[str], Engine]) -> None:
    found = choose(script("- choices: {'No': 0.2, 'Yes': 0.7}"))
    assert found.logprobs == (math.log(0.7), math.log(0.2))
    assert found.off_mass == pytest.approx(0.1)
    # Two words, three words, and two of the prefill.
    assert found.usage == Usage(prompt_tokens=7)


def test_a_choice_that_is_not_named_has_probability_zero(script: Callable[[str], Engine]) -> None:
    engine = script("- choices: {'Yes': 0.75, Perhaps: 0.25}")
    assert choose(engine).logprobs == (math.log(0.75), -math.inf)
    assert choose(engine).off_mass == 0.25
    assert choose(engine, ("A", "B")).logprobs == (-math.inf, -math.inf)
    assert choose(engine, ("A", "B")).off_mass == 1.0


def test_rounding_may_lead_a_little_above_one(script: Callable[[str], Engine]) -> None:
    assert choose(script("- choices: {'Yes': 0.5, 'No': 0.5000000001}")).off_mass == 0.0


def test_a_rule_answers_requests_of_its_kind_only(script: Callable[[str], Engine]) -> None:
    engine = script("- choices: {'Yes': 1.0}\n- logprob: -2.5\n- say: Wet.\n  choices: {'No': 1.0}\n  logprob: -1")
    assert say(engine) == "Wet."
    assert choose(engine).logprobs == (0.0, -math.inf)
    assert rate(engine).logprob == -2.5


def test_a_rule_may_say_nothing_on_purpose(script: Callable[[str], Engine]) -> None:
    assert say(script("- choices: {'Yes': 1.0}\n- say: ''")) == ""


def test_a_pattern_is_searched_in_the_last_message_for_choices(script: Callable[[str], Engine]) -> None:
    engine = script("- {when: well, choices: {'No': 1.0}}\n- {when: 'rain.*wet', choices: {'Yes': 1.0}}")
    assert choose(engine).logprobs == (0.0, -math.inf)


def test_a_pattern_is_searched_in_all_messages_and_the_reply_for_a_reply(script: Callable[[str], Engine]) -> None:
    engine = script("- {when: 'Judge well.\\nIs rain wet\\?\\nIt is', logprob: -3}\n- {logprob: -4}")
    assert rate(engine) == ReplyLogprob(logprob=-3.0, tokens=2, usage=Usage(prompt_tokens=7))
    assert rate(engine, "No.").logprob == -4.0


def test_an_empty_reply_has_no_probability(script: Callable[[str], Engine]) -> None:
    with pytest.raises(RecordError) as caught:
        rate(script("- logprob: -1"), " ")
    assert caught.value.reason == "empty_reply"


ASKED: dict[str, Callable[[Engine], Any]] = {"say": say, "choices": choose, "logprob": rate}


@pytest.mark.parametrize("kind", ASKED)
def test_a_request_without_a_rule_is_refused_by_kind(script: Callable[[str], Engine], kind: str) -> None:
    others = {"say": "- say: Hm.", "choices": "- choices: {'Yes': 1.0}", "logprob": "- logprob: -1"}
    del others[kind]
    with pytest.raises(RecordError, match=f"no answer to this request.*`{kind}`") as caught:
        ASKED[kind](script("\n".join(others.values())))
    assert caught.value.reason == "request_refused"


@pytest.mark.parametrize("kind", ASKED)
def test_a_rule_that_fails_applies_to_every_kind(script: Callable[[str], Engine], kind: str) -> None:
    rest = "\n- say: Hm.\n- choices: {'Yes': 1.0}\n- logprob: -1"
    with pytest.raises(RecordError) as caught:
        ASKED[kind](script("- {when: rain, fail: timeout}" + rest))
    assert caught.value.reason == "timeout"
    with pytest.raises(EngineError, match="ends the engine"):
        ASKED[kind](script("- fail: engine" + rest))


def test_what_it_offers_is_declared(script: Callable[[str], Engine]) -> None:
    info = script("- say: Hm.").info
    assert (info.choice_logprobs, info.reply_logprob) == (True, True)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            "- choices: {'Yes': 0.7, 'No': 0.5}",
            r"script.yaml:2: answers\[0\]: .* add up to 1.2; they must not exceed 1",
        ),
        ("- choices: {'Yes': 1.5}", "less than or equal to 1"),
        ("- choices: {'Yes': -0.5}", "greater than or equal to 0"),
        ("- logprob: 0.5", "less than or equal to 0"),
        ("- when: rain", r"answers\[0\]: answers nothing; give it `say`, `choices`, `logprob` or `fail`"),
    ],
)
def test_a_wrong_rule_is_told_when_the_script_is_read(
    script: Callable[[str], Engine], answer: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        script(answer)
