"""Tests against a real vLLM, marked `vllm`: run with the Python that `.ci/vllm-env` prints."""

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cai.config import EngineConfig
from cai.engines.vllm import VllmEngine, open_vllm
from cai.engines.weights import resolve_model
from cai.records import Generation, Message, Sampling

T = TypeVar("T")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if find_spec("vllm") is None:
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed; use the Python of .ci/vllm-env"))


@pytest.fixture(scope="session")
def model() -> str:
    """Directory of the default model."""
    return resolve_model(None)


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


def user(text: str) -> Sequence[Message]:
    """A conversation of one user's turn."""
    return (Message(role="user", content=text),)


@contextmanager
def running(**options: Any) -> Iterator[Running]:
    """Open the vLLM engine with `options`."""
    with asyncio.Runner() as runner:
        engine = runner.run(open_vllm(EngineConfig(engine="vllm", dtype="float32", max_model_len=1024, **options)))
        try:
            yield Running(engine, runner)
        finally:
            runner.run(engine.aclose())


def greedy_tokens(model: Any, tokenizer: Any, text: str, count: int) -> list[int]:
    """The first tokens of transformers' own greedy reply: the reference."""
    rows = [{"role": "user", "content": text}]
    inputs = tokenizer.apply_chat_template(rows, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=count)
    found: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return found
