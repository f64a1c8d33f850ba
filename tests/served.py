"""The engine for servers, opened on the test servers of `servers.py`."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from servers import ChatServer

from cai.config import EngineConfig
from cai.engines.openai import OpenAIEngine, open_openai
from cai.engines.servers import Timing
from cai.records import Message, Sampling

HELLO = (Message(role="system", content="Be brief."), Message(role="user", content="Hello?"))


class Pauses:
    """Timing without waiting: notes the sleeps asked for; the jitter is `share` of its range; the clock moves on with
    the sleeps."""

    def __init__(self, share: float = 0.5) -> None:
        self.asked: list[float] = []
        self.ranges: list[tuple[float, float]] = []
        self._share = share

    @property
    def timing(self) -> Timing:
        return Timing(sleep=self._sleep, uniform=self._uniform, clock=lambda: sum(self.asked), now=lambda: 1_000_000.0)

    async def _sleep(self, seconds: float) -> None:
        self.asked.append(seconds)

    def _uniform(self, low: float, high: float) -> float:
        self.ranges.append((low, high))
        return low + self._share * (high - low)


def run(
    *servers: ChatServer,
    use: Callable[[OpenAIEngine], Awaitable[Any]] | None = None,
    sampling: Sampling | None = None,
    pauses: Pauses | None = None,
    **options: Any,
) -> Any:
    """Open the engine on `servers`, `use` it (by default: one request), close it."""

    async def main() -> Any:
        config = EngineConfig(engine="openai", base_url=tuple(server.url for server in servers), **options)
        engine = await open_openai(config, (pauses or Pauses()).timing)
        try:
            return await (use(engine) if use else engine.generate(HELLO, sampling or Sampling()))
        finally:
            await engine.aclose()

    return asyncio.run(main())
