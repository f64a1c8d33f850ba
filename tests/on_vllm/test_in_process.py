import asyncio
import os
from collections.abc import Iterator

import pytest
from running import Running, greedy_text, kill_processes, running, user

from cai.engines.base import EngineInfo
from cai.errors import EngineError, RecordError
from cai.records import Generation, Message, Sampling

QUESTIONS = ("What is the capital of France?", "Name three colours.", "Why is the sky blue? Answer in one sentence.")
LONG = "Repeat after me: " + "the quick brown fox jumps over the lazy dog, " * 30


@pytest.fixture(scope="module")
def vllm() -> Iterator[Running]:
    with running() as found:
        yield found


def test_greedy_replies_equal_those_of_transformers(vllm: Running, model: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    for question in QUESTIONS:
        # The same kernels do not run on both sides; 16 tokens are short enough that rounding decides none of them.
        assert vllm.ask(question, max_tokens=16).text == greedy_text(reference, tokenizer, question, 16)


def test_a_reply_is_cut_at_max_tokens(vllm: Running) -> None:
    found = vllm.ask(QUESTIONS[2], max_tokens=5)
    assert (found.finish_reason, found.usage.completion_tokens) == ("length", 5)


def test_a_reply_ends_before_a_stop_string(vllm: Running) -> None:
    whole = vllm.ask(QUESTIONS[0], max_tokens=64)
    assert whole.finish_reason == "stop"
    mark = whole.text.split()[2]
    found = vllm.ask(QUESTIONS[0], max_tokens=64, stop=(mark,))
    assert (found.text, found.finish_reason) == (whole.text[: whole.text.index(mark)], "stop")


def test_a_prompt_beyond_the_context_is_one_failed_record(vllm: Running) -> None:
    with pytest.raises(RecordError) as caught:
        vllm.ask("word " * 1100, max_tokens=8)
    assert caught.value.reason == "context_overflow"
    with pytest.raises(RecordError):
        vllm.ask(QUESTIONS[0], max_tokens=1020)
    assert vllm.ask(QUESTIONS[0], max_tokens=4).text


def test_a_prompt_read_before_is_served_from_the_prefix_cache(vllm: Running) -> None:
    first = vllm.ask(LONG, max_tokens=4)
    second = vllm.ask(LONG + "And stop.", max_tokens=4)
    assert first.usage.prompt_tokens > 256
    assert 128 <= second.usage.cached_tokens < second.usage.prompt_tokens


def test_many_requests_at_once_each_get_their_own_reply(vllm: Running) -> None:
    questions = [f"What is {number} plus one?" for number in range(16)]
    alone = [vllm.ask(question, max_tokens=12).text for question in questions]

    async def together() -> list[Generation]:
        sampling = Sampling(temperature=0.0, max_tokens=12)
        return await asyncio.gather(*(vllm.engine.generate(user(question), sampling) for question in questions))

    assert [found.text for found in vllm.run(together())] == alone
    assert len(set(alone)) > 8


def test_seeded_requests_in_many_pieces_do_not_kill_the_engine_on_a_cpu(vllm: Running) -> None:
    # 8 prompts of 330 tokens are more than vLLM reads in one step (2,048 tokens), so that one is read in pieces.
    async def flood() -> list[Generation]:
        chats = [user(f"{number}. {LONG}") for number in range(8)]
        return await asyncio.gather(
            *(vllm.engine.generate(chat, Sampling(max_tokens=4, seed=number)) for number, chat in enumerate(chats))
        )

    assert len(vllm.run(flood())) == 8


def test_a_system_prompt_changes_the_reply(vllm: Running) -> None:
    chat = (Message(role="system", content="Answer in French only."), *user(QUESTIONS[0]))
    found = vllm.run(vllm.engine.generate(chat, Sampling(temperature=0.0, max_tokens=24)))
    assert found.text != vllm.ask(QUESTIONS[0], max_tokens=24).text


def test_a_cancelled_request_leaves_the_engine_working(vllm: Running) -> None:
    async def cancel() -> None:
        call = asyncio.create_task(vllm.engine.generate(user(LONG), Sampling(max_tokens=500)))
        await vllm.engine.generate(user(QUESTIONS[0]), Sampling(max_tokens=2))
        assert not call.done()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    vllm.run(cancel())
    assert vllm.ask(QUESTIONS[0], max_tokens=4).text


def test_the_info_says_what_makes_the_run_repeatable(vllm: Running) -> None:
    info: EngineInfo = vllm.engine.info
    assert (info.engine, info.model, info.seeded) == ("vllm", "SmolLM2-135M-Instruct", False)
    assert (info.details["device"], info.details["dtype"], info.details["format"]) == ("cpu", "float32", "chat")
    assert info.concurrency >= 16
    assert not [name for name in os.environ if name == "VLLM_NO_USAGE_STATS"]


def test_an_engine_killed_mid_request_stops_the_run_instead_of_hanging(
    vllm: Running, capfd: pytest.CaptureFixture[str]
) -> None:
    # Last in this module: it ends the engine.
    async def kill() -> list[Generation | BaseException]:
        calls = [asyncio.create_task(vllm.engine.generate(user(LONG), Sampling(max_tokens=600))) for _ in range(4)]
        await vllm.engine.generate(user(QUESTIONS[0]), Sampling(max_tokens=2))
        assert kill_processes() >= 1
        return await asyncio.gather(*calls, return_exceptions=True)

    found = vllm.run(kill())
    assert [type(error) for error in found] == [EngineError] * 4
    assert "vLLM has stopped" in str(found[0])
    assert capfd.readouterr() == ("", "")
    with pytest.raises(EngineError):
        vllm.ask(QUESTIONS[0])
