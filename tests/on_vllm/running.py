"""A vLLM engine for tests, and the reference that its replies are compared with."""

import asyncio
import gc
import multiprocessing
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from cai.config import EngineConfig
from cai.engines.vllm import VllmEngine, open_vllm
from cai.records import Generation, Message, Sampling

T = TypeVar("T")


class Running:
    """An engine and the event loop it lives on."""

    def __init__(self, engine: VllmEngine, runner: asyncio.Runner) -> None:
        self.engine = engine
        self._runner = runner

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the engine's loop."""
        return self._runner.run(work)

    def ask(self, text: str, **sampling: Any) -> Generation:
        """One reply to a user's turn, greedy unless told otherwise."""
        return self.run(self.engine.generate(user(text), Sampling(**{"temperature": 0.0, **sampling})))


@contextmanager
def running(**options: Any) -> Iterator[Running]:
    """Open the vLLM engine with `options`, in float32 and with a context of 1,024 tokens."""
    with asyncio.Runner() as runner:
        engine = runner.run(open_vllm(EngineConfig(engine="vllm", dtype="float32", max_model_len=1024, **options)))
        try:
            yield Running(engine, runner)
        finally:
            runner.run(engine.aclose())
    gc.collect()  # here and not at the end of pytest, where the warning that conftest.py expects is not ignored


def user(text: str) -> tuple[Message, ...]:
    """A conversation of one user's turn."""
    return (Message(role="user", content=text),)


def greedy_text(model: Any, tokenizer: Any, text: str, count: int) -> str:
    """The first `count` tokens of transformers' own greedy reply: the reference."""
    rows = [{"role": "user", "content": text}]
    inputs = tokenizer.apply_chat_template(rows, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=count)
    found: str = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def opened_chat(tokenizer: Any, text: str, prefill: str = "") -> str:
    """A user's turn in the model's own template, with the beginning of the assistant's."""
    rows = [{"role": "user", "content": text}]
    found: str = tokenizer.apply_chat_template(rows, add_generation_prompt=True, tokenize=False)
    return found + prefill


def all_logprobs(model: Any, tokenizer: Any, text: str) -> Any:
    """Transformers' log-probabilities after each token of `text`, (T, V), from one forward pass: the reference."""
    import torch

    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return torch.log_softmax(model(ids).logits[0].float(), dim=-1)


def option_logprobs(model: Any, tokenizer: Any, text: str, top: int | None = None) -> list[float]:
    """Log-probabilities of A and B after `text`, each over the two tokens that the default model has for it.

    With `top`, only those count that are among the `top` most likely tokens.
    """
    last = all_logprobs(model, tokenizer, text)[-1]
    if top is not None:
        last = last.masked_fill(last < last.topk(top).values[-1], -float("inf"))
    ids = [[token for (token,) in tokenizer([name, f" {name}"])["input_ids"]] for name in ("A", "B")]
    return [float(last[spellings].logsumexp(0)) for spellings in ids]


def kill_processes() -> int:
    """Kill -9 the engine's processes, and return how many there were."""
    children = multiprocessing.active_children()
    for child in children:
        child.kill()
    return len(children)
