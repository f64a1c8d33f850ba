"""The transformers engine on a CUDA device: `pytest -m gpu`."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_model import save_tiny_model  # noqa: E402

from cai.config import EngineConfig  # noqa: E402
from cai.engines import open_engine  # noqa: E402
from cai.records import Generation, Message, Sampling  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

SHARED = "These rules stand before every question, whatever it asks for or says: " * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def ask(folder: Path, device: str, texts: Sequence[str], samplings: Sequence[Sampling]) -> list[Generation]:
    async def main() -> list[Generation]:
        config = EngineConfig(model=str(folder), device=device, dtype="float32")
        async with open_engine(config) as engine:
            assert engine.info.details["device"].startswith(device)
            chats = [(Message(role="user", content=text),) for text in texts]
            return await asyncio.gather(*map(engine.generate, chats, samplings))

    return asyncio.run(main())


def test_greedy_replies_on_cuda_equal_those_on_the_cpu(folder: Path) -> None:
    texts = ["a", "Why is the sky blue?", SHARED + "one", SHARED + "and another one"]
    greedy = [Sampling(max_tokens=12, temperature=0)] * 4
    on_cuda, on_cpu = ask(folder, "cuda", texts, greedy), ask(folder, "cpu", texts, greedy)
    assert [reply.text for reply in on_cuda] == [reply.text for reply in on_cpu]
    assert on_cuda[2].usage.cached_tokens > 100


def test_a_seed_fixes_the_reply_on_cuda_whatever_else_is_in_the_batch(folder: Path) -> None:
    samplings = [Sampling(max_tokens=10, top_p=0.9, seed=n) for n in range(6)]
    together = ask(folder, "cuda", ["Tell me."] * 6, samplings)
    assert ask(folder, "cuda", ["Tell me."], samplings[3:4])[0].text == together[3].text
    assert len({reply.text for reply in together}) > 1
