"""Log-probabilities of vLLM in process, in an environment without a C++ compiler."""

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import pytest
from running import Running, all_logprobs, opened_chat, option_logprobs, running, user

from cai.engines.base import ChoiceLogprobs
from cai.engines.vllm import _scoring
from cai.errors import EngineError, RecordError
from cai.records import Generation, Message, Sampling

QUESTIONS = (
    "Which is the capital of France? (A) Paris (B) Rome. Answer by the letter.",
    "Which reply is kinder? (A) Go away! (B) I am glad to help you.",
    "Write a haiku about the sea.",
)
PREFILL = "The answer is ("
LONG = "Think of this first: " + "the quick brown fox jumps over the lazy dog, " * 30
TOLERANCE = 1e-4
"""Of log-probabilities: the two sides add float32 numbers in another order. Measured: below 2e-5."""


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", "no-compiler")
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        with running() as found:
            yield found


@pytest.fixture(scope="module")
def tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


@pytest.fixture(scope="module")
def reference(model: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype="float32")


def choose(vllm: Running, text: str, prefill: str = PREFILL, choices: tuple[str, ...] = ("A", "B")) -> ChoiceLogprobs:
    return vllm.run(vllm.engine.choice_logprobs(user(text), prefill, choices))


@pytest.mark.parametrize("prefill", [PREFILL, "Answer:", ""])
def test_choices_are_as_likely_as_with_transformers(
    vllm: Running, reference: Any, tokenizer: Any, prefill: str
) -> None:
    for question in QUESTIONS:
        expected = option_logprobs(reference, tokenizer, opened_chat(tokenizer, question, prefill))
        found = choose(vllm, question, prefill)
        assert found.logprobs == pytest.approx(expected, abs=TOLERANCE)
        assert found.off_mass == pytest.approx(1 - math.fsum(map(math.exp, expected)), abs=TOLERANCE)


def test_choices_far_from_the_most_likely_tokens_are_read_too(vllm: Running, reference: Any, tokenizer: Any) -> None:
    row = all_logprobs(reference, tokenizer, opened_chat(tokenizer, QUESTIONS[2]))[-1]
    choices = (" zebra", " Tuesday")
    ids = [tokenizer(choice, add_special_tokens=False)["input_ids"] for choice in choices]
    assert [len(found) for found in ids] == [1, 1]
    assert min(int((row > row[token]).sum()) for (token,) in ids) > 1000
    found = choose(vllm, QUESTIONS[2], "", tuple(choice.strip() for choice in choices))
    # Other spellings of the word, such as in capitals, come on top.
    for logprob, (token,) in zip(found.logprobs, ids, strict=True):
        assert float(row[token]) - TOLERANCE < logprob < float(row[token]) + 3


def test_a_choice_that_begins_with_another_one_has_no_token(vllm: Running) -> None:
    found = choose(vllm, "Rate this from 1 to 10.", choices=tuple(map(str, range(1, 11))))
    assert all(math.isfinite(logprob) for logprob in found.logprobs[:9])
    assert found.logprobs[9] == -math.inf


def test_a_choice_that_the_vocabulary_splits_stops_the_run(vllm: Running) -> None:
    with pytest.raises(EngineError, match="splits the option 'harmfulest'"):
        choose(vllm, QUESTIONS[0], choices=("A", "harmfulest"))


def test_unlike_requests_at_once_each_get_their_own_answer(vllm: Running) -> None:
    asked = [(f"{n}. {QUESTIONS[n % 3]}", ("A", "B") if n % 2 else tuple("123456789")) for n in range(12)]
    alone = [choose(vllm, text, PREFILL, choices) for text, choices in asked]
    reply = vllm.ask(QUESTIONS[2], max_tokens=12)
    rating = vllm.run(vllm.engine.reply_logprob(user(QUESTIONS[2]), reply.text))

    async def together() -> tuple[list[ChoiceLogprobs], Any, Generation]:
        engine = vllm.engine
        calls = [engine.choice_logprobs(user(text), PREFILL, choices) for text, choices in asked]
        rated = engine.reply_logprob(user(QUESTIONS[2]), reply.text)
        written = engine.generate(user(QUESTIONS[2]), Sampling(temperature=0.0, max_tokens=12))
        *found, rate, text = await asyncio.gather(*calls, rated, written)
        return found, rate, text

    found, rate, text = vllm.run(together())
    for one, other in zip(found, alone, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=TOLERANCE)
    assert rate.logprob == pytest.approx(rating.logprob, abs=TOLERANCE)
    assert text.text == reply.text


def test_a_shared_beginning_is_served_from_the_prefix_cache(vllm: Running) -> None:
    first = choose(vllm, LONG + QUESTIONS[0])
    second = choose(vllm, LONG + QUESTIONS[1])
    again = choose(vllm, LONG + QUESTIONS[0])
    assert first.usage.prompt_tokens > 256
    assert 128 <= second.usage.cached_tokens < second.usage.prompt_tokens
    assert again.usage.prompt_tokens == first.usage.prompt_tokens
    assert again.logprobs == pytest.approx(first.logprobs, abs=TOLERANCE)


@pytest.mark.parametrize("reply", ["Waves roll in.\n\nThe sea is calm.", " I", "Yes"])
def test_a_reply_is_as_likely_as_with_transformers(vllm: Running, reference: Any, tokenizer: Any, reply: str) -> None:
    for question in QUESTIONS:
        opened = opened_chat(tokenizer, question)
        ids = tokenizer(opened + reply, add_special_tokens=False)["input_ids"]
        begin = len(tokenizer(opened, add_special_tokens=False)["input_ids"])
        rows = all_logprobs(reference, tokenizer, opened + reply)
        expected = math.fsum(float(rows[place - 1][ids[place]]) for place in range(begin, len(ids)))
        for _ in range(2):  # the second time the prefix cache knows the prompt, and must not be read
            found = vllm.run(vllm.engine.reply_logprob(user(question), reply))
            assert found.logprob == pytest.approx(expected, abs=TOLERANCE)
            assert found.tokens == len(ids) - begin
            assert found.usage.prompt_tokens == len(ids)


def test_a_reply_without_a_token_is_one_failed_record(vllm: Running) -> None:
    with pytest.raises(RecordError) as caught:
        vllm.run(vllm.engine.reply_logprob(user(QUESTIONS[0]), ""))
    assert caught.value.reason == "empty_reply"


def test_a_prompt_that_leaves_no_place_for_a_choice_is_one_failed_record(vllm: Running) -> None:
    with pytest.raises(RecordError) as caught:
        choose(vllm, "word " * 1100)
    assert caught.value.reason == "context_overflow"


def test_a_system_turn_counts(vllm: Running) -> None:
    chat = (Message(role="system", content="The answer is always (B)."), *user(QUESTIONS[0]))
    found = vllm.run(vllm.engine.choice_logprobs(chat, PREFILL, ("A", "B")))
    assert found.logprobs != pytest.approx(choose(vllm, QUESTIONS[0]).logprobs, abs=0.01)


def test_a_version_that_does_not_know_the_parameter_is_told() -> None:
    with pytest.raises(EngineError, match="pip install --upgrade vllm"):
        _scoring(unheard_of=1)


def test_what_it_offers_is_declared(vllm: Running) -> None:
    info = vllm.engine.info
    assert (info.choice_logprobs, info.reply_logprob) == (True, True)


def test_an_engine_that_is_closed_says_so(vllm: Running) -> None:
    # Last in this module: it closes the engine.
    vllm.run(vllm.engine.aclose())
    with pytest.raises(EngineError, match="the engine is closed"):
        choose(vllm, QUESTIONS[0])
