"""Log-probabilities asked of the transformers engine, and the same read off the untouched library."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_model import byte_tokenizer

from cai.config import EngineConfig
from cai.engines.transformers import open_transformers
from cai.records import Message

A, B = (byte_tokenizer().convert_tokens_to_ids(letter) for letter in "AB")
PREFIX = "Read these rules first, all of them, before you choose one of the two: " * 2


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def with_engine(
    folder: Path | None, work: Callable[[Any], Awaitable[Any]], share_prefixes: bool = True, **options: Any
) -> Any:
    config = EngineConfig(**{"model": folder and str(folder), "dtype": "float32", "device": "cpu", **options})

    async def main() -> Any:
        engine = await open_transformers(config, share_prefixes=share_prefixes)
        try:
            return await work(engine)
        finally:
            await engine.aclose()

    return asyncio.run(main())


def choices_of(texts: Iterable[str], prefill: str = "(") -> Callable[[Any], Awaitable[Any]]:
    """Ask for A or B after each of `texts`, all at once."""

    async def work(engine: Any) -> Any:
        return await asyncio.gather(*[engine.choice_logprobs(user(text), prefill, ("A", "B")) for text in texts])

    return work


def replies_of(pairs: Iterable[tuple[str, str]]) -> Callable[[Any], Awaitable[Any]]:
    async def work(engine: Any) -> Any:
        return await asyncio.gather(*[engine.reply_logprob(user(text), reply) for text, reply in pairs])

    return work


def alone(folder: Path | str, texts: Sequence[str], dtype: Any = torch.float32) -> list[Any]:
    """Log-softmax of the untouched library at each place of each text, (T, V), one text at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.inference_mode():
        encoded = [tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids for text in texts]
        return [model(input_ids=ids).logits[0].float().log_softmax(-1) for ids in encoded]


def tiny_prompt(text: str, opening: str = "") -> str:
    return f"<|user|>{text}<|end|><|assistant|>{opening}"


def reply_alone(folder: Path, text: str, reply: str) -> float:
    """The sum over the reply's bytes, each read off the place before it."""
    (logprobs,) = alone(folder, [tiny_prompt(text, reply)])
    ids = byte_tokenizer()(reply).input_ids
    begin = len(logprobs) - len(ids)
    return sum(float(logprobs[begin + n - 1, token]) for n, token in enumerate(ids))
