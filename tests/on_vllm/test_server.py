import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from running import greedy_text, opened_chat, option_logprobs, user
from vllm_server import NAME, VllmServer

from cai.config import EngineConfig
from cai.engines.base import ChoiceLogprobs
from cai.engines.openai import OpenAIEngine, open_openai
from cai.errors import EngineError, RecordError
from cai.records import Generation, Message, Sampling

QUESTION = "What is the capital of France?"
LONG = "Repeat after me: " + "the quick brown fox jumps over the lazy dog, " * 30


@pytest.fixture(scope="module")
def server(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    found = VllmServer(model, tmp_path_factory.mktemp("server") / "log")
    try:
        found.wait_until_ready()
        yield found
    finally:
        found.kill()


def run(server: VllmServer, use: Callable[[OpenAIEngine], Awaitable[Any]], **options: Any) -> Any:
    """Open the engine on the server, `use` it, close it."""

    async def main() -> Any:
        engine = await open_openai(EngineConfig(engine="openai", base_url=(server.url,), **options))
        try:
            return await use(engine)
        finally:
            await engine.aclose()

    return asyncio.run(main())


def ask(server: VllmServer, *chat: Message, **sampling: Any) -> Generation:
    """One reply, greedy unless told otherwise; options of the engine in `options`."""
    options = sampling.pop("options", {})
    found: Generation = run(
        server, lambda engine: engine.generate(chat, Sampling(**{"temperature": 0.0, **sampling})), **options
    )
    return found


def test_a_chat_through_the_server_equals_transformers(server: VllmServer, model: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    found = ask(server, *user(QUESTION), max_tokens=16)
    assert found.text == greedy_text(reference, tokenizer, QUESTION, 16)
    rows = [{"role": "user", "content": QUESTION}]
    assert found.usage.prompt_tokens == len(
        tokenizer.apply_chat_template(rows, add_generation_prompt=True)["input_ids"]
    )


def test_the_servers_kind_and_only_model_are_found(server: VllmServer) -> None:
    async def info(engine: OpenAIEngine) -> Any:
        return engine.info

    found = run(server, info)
    assert (found.model, found.details["server"]) == (NAME, "vllm")


def test_max_tokens_and_stop_strings_are_honoured(server: VllmServer) -> None:
    short = ask(server, *user(QUESTION), max_tokens=3)
    assert (short.finish_reason, short.usage.completion_tokens) == ("length", 3)
    whole = ask(server, *user(QUESTION), max_tokens=64).text
    mark = whole.split()[2]
    found = ask(server, *user(QUESTION), max_tokens=64, stop=(mark,))
    assert (found.text, found.finish_reason) == (whole[: whole.index(mark)], "stop")


def test_a_transcript_stops_before_the_next_turn(server: VllmServer) -> None:
    chat = (*user("Say A."), Message(role="assistant", content="A."), Message(role="user", content="Say B."))
    found = ask(server, *chat, max_tokens=200, options={"format": "transcript"})
    assert "\n\nHuman:" not in found.text
    assert found.usage.completion_tokens > 0


def test_seeded_sampling_is_accepted_and_differs_by_seed(server: VllmServer) -> None:
    async def use(engine: OpenAIEngine) -> list[Generation]:
        return await asyncio.gather(
            *(engine.generate(user("Tell me a story."), Sampling(max_tokens=16, seed=seed)) for seed in (1, 2**32 - 1))
        )

    first, second = run(server, use)
    assert first.text != second.text


def test_a_prompt_beyond_the_context_is_one_failed_record(server: VllmServer) -> None:
    with pytest.raises(RecordError) as caught:
        ask(server, *user("word " * 2200), max_tokens=8)
    assert caught.value.reason == "context_overflow"


def test_a_wrong_model_name_stops_the_run_and_lists_the_right_one(server: VllmServer) -> None:
    with pytest.raises(EngineError, match=r"404.*it offers the models: smol"):
        ask(server, *user(QUESTION), options={"model": "typo"})


def test_a_shared_prefix_is_served_from_the_cache(server: VllmServer) -> None:
    ask(server, *user(LONG), max_tokens=2)
    hits = server.metric("prefix_cache_hits_total")
    found = ask(server, *user(LONG + "And stop."), max_tokens=2)
    assert found.usage.cached_tokens >= 128
    assert server.metric("prefix_cache_hits_total") - hits == found.usage.cached_tokens


CHOOSE = "Which is the capital of France? (A) Paris (B) Rome. Answer by the letter."
PREFILL = "The answer is ("


def choose(server: VllmServer, text: str, prefill: str = PREFILL, **options: Any) -> ChoiceLogprobs:
    """The probabilities of A and B."""
    found: ChoiceLogprobs = run(
        server, lambda engine: engine.choice_logprobs(user(text), prefill, ("A", "B")), **options
    )
    return found


@pytest.mark.parametrize("format", ["chat", "transcript"])
@pytest.mark.parametrize("prefill", [PREFILL, "Paris is in France.\n\nAnswer: ("])
def test_choices_are_as_likely_as_with_transformers(server: VllmServer, model: str, format: str, prefill: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    plain = f"\n\nHuman: {CHOOSE}\n\nAssistant: {prefill}"
    text = opened_chat(tokenizer, CHOOSE, prefill) if format == "chat" else plain
    expected = option_logprobs(reference, tokenizer, text, top=20)
    found = choose(server, CHOOSE, prefill, format=format)
    assert found.logprobs == pytest.approx(expected, abs=1e-4)
    assert found.off_mass == pytest.approx(1 - math.fsum(map(math.exp, expected)), abs=1e-4)


def test_two_choices_about_one_text_read_it_once(server: VllmServer) -> None:
    choose(server, LONG + CHOOSE)
    hits = server.metric("prefix_cache_hits_total")
    found = choose(server, LONG + "Now choose. " + CHOOSE)
    assert found.usage.cached_tokens >= 128
    assert server.metric("prefix_cache_hits_total") - hits == found.usage.cached_tokens


def test_a_server_that_shows_shorter_lists_is_refused_with_its_words(
    server: VllmServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This one shows 20 tokens; one that was started to show fewer says the same of 20.
    monkeypatch.setattr("cai.engines.openai.TOP_LOGPROBS", 21)
    with pytest.raises(EngineError, match=r"offers no log-probabilities.*20.*--sample-verdicts"):
        choose(server, CHOOSE)


def test_a_server_killed_mid_run_stops_the_run_instead_of_hanging(server: VllmServer) -> None:
    # Last in this module: it ends the server.
    async def use(engine: OpenAIEngine) -> list[Any]:
        sampling = Sampling(max_tokens=600, stop=())
        calls = [asyncio.create_task(engine.generate(user(f"{n}. {LONG}"), sampling)) for n in range(4)]
        while await asyncio.to_thread(server.metric, "num_requests_running") < 4:
            pass
        server.kill()
        return await asyncio.gather(*calls, return_exceptions=True)

    found = run(server, use, max_retries=1)
    assert [type(error) for error in found] == [EngineError] * 4
    assert f"no server answers any more at {server.url}" in str(found[0])
    with pytest.raises(EngineError, match="is it running"):
        run(server, use)
