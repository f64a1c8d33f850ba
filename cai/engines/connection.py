"""How OpenAI-compatible servers, one or many, are asked.

A request goes to the healthy server with the fewest requests in flight. After 429, 5xx, a timeout, a lost connection
or a reply that cannot be read it is tried again, up to `max_retries` times; after any other 4xx it is not. What then
remains is an outcome of that one request (`RecordError`), unless it shows that no request can be served
(`EngineError`): no server answers, the key is refused, there is no such model.
"""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar
from urllib.parse import urlsplit

import openai

from cai.config import EngineConfig
from cai.engines.servers import LOST_ASIDE, Server, Timing, TryError, checked_url, healthy
from cai.engines.wire import (
    CONNECT_SECONDS,
    ModelEntry,
    answers,
    error_words,
    list_models,
    read_error,
    read_silence,
)
from cai.errors import CaiError, EngineError

OPENAI_URL = "https://api.openai.com/v1"

T = TypeVar("T")


class Connection:
    """Clients of some servers; see the module's docstring."""

    def __init__(self, config: EngineConfig, urls: Sequence[str], timing: Timing | None = None) -> None:
        """Make a client for each address; nothing is sent yet.

        Raises:
            ConfigError: an address is wrong.
            EngineError: the key is missing or cannot be one.
        """
        self._config = config
        self._timing = timing or Timing()
        self._closed = False
        self.servers = _servers([checked_url(url) for url in urls], config)

    async def models(self, server: Server) -> list[ModelEntry]:
        """Models that a server offers; none where it does not list them.

        Raises:
            EngineError: it cannot be reached, or refuses the key.
        """
        try:
            return await list_models(server)
        except openai.APIConnectionError:
            raise EngineError(f"no server answers at {server.url}; is it running?") from None
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise self._key_refused(server, error.status_code) from None
            return []

    async def served(self, send: Callable[[Server], Awaitable[bytes]], read: Callable[[Server, bytes], T]) -> T:
        """Have a server answer what `send` asks of it, and `read` the answer; tries again.

        Raises:
            RecordError: no try succeeded.
            EngineError: no request can be served.
        """
        tries = self._config.max_retries + 1
        for attempt in range(tries):
            try:
                return await self._try(send, read)
            except TryError as error:
                failed = error
            now, pause = self._timing.clock(), self._timing.pause(attempt, failed.retry_after, self._config.timeout)
            until = now + (max(LOST_ASIDE, pause) if failed.lost else pause)
            failed.server.aside_until = max(failed.server.aside_until, until)
            if attempt + 1 < tries and not healthy(self.servers, now):
                await self._timing.sleep(pause)
        if failed.lost:
            await self._check_reachable()
        raise failed.final(tries)

    async def aclose(self) -> None:
        """Close the connections. Calls in flight fail with `EngineError`."""
        self._closed = True
        await asyncio.gather(*(server.client.close() for server in self.servers))

    async def _try(self, send: Callable[[Server], Awaitable[bytes]], read: Callable[[Server, bytes], T]) -> T:
        """Ask the least busy healthy server; one that cannot be reached is set aside for the next.

        Raises:
            TryError: another try may succeed.
        """
        while True:
            now = self._timing.clock()
            ready = healthy(self.servers, now)
            server = ready[0] if ready else min(self.servers, key=lambda server: server.aside_until)
            try:
                return read(server, await self._ask(server, send))
            except TryError as error:
                if not error.unsent or len(ready) < 2:
                    raise
                server.aside_until = now + LOST_ASIDE

    async def _ask(self, server: Server, send: Callable[[Server], Awaitable[bytes]]) -> bytes:
        if self._closed:
            raise EngineError("the engine is closed")
        server.in_flight += 1
        try:
            # The client's own limit is for each read; a server that trickles its reply would keep within it for ever.
            async with asyncio.timeout(self._config.timeout):
                return await send(server)
        except (TimeoutError, openai.APIConnectionError) as error:
            if self._closed:
                raise EngineError("the engine was closed while it waited for a reply") from None
            raise read_silence(server, error, self._config.timeout) from None
        except openai.APIStatusError as error:
            raise await self._refused(server, error) from None
        finally:
            server.in_flight -= 1

    async def _refused(self, server: Server, error: openai.APIStatusError) -> TryError | CaiError:
        """What an answer with an error status means."""
        if error.status_code in (401, 403):
            return self._key_refused(server, error.status_code)
        if error.status_code != 404:
            return read_error(server, error)
        try:
            models = ", ".join(entry.id for entry in await list_models(server))
        except openai.APIError:
            models = ""
        return EngineError(
            f"{server.url} answered 404: {error_words(server, error)}; "
            + (f"it offers the models: {models}" if models else "it lists no models; does base_url end in /v1?")
        )

    async def _check_reachable(self) -> None:
        """After tries that brought no answer: do the servers answer anything at all?

        Raises:
            EngineError: none does.
        """
        if self._closed:
            raise EngineError("the engine is closed")
        if not any(await asyncio.gather(*map(answers, self.servers))):
            urls = ", ".join(server.url for server in self.servers)
            raise EngineError(f"no server answers any more at {urls}; start it again, then run the same command again")

    def _key_refused(self, server: Server, status: int) -> EngineError:
        name = self._config.api_key_env
        if server.key is None:
            return EngineError(f"{server.url} asks for a key ({status}); set the environment variable {name}")
        return EngineError(f"{server.url} refuses the key in the environment variable {name} ({status})")


def _servers(urls: Sequence[str], config: EngineConfig) -> list[Server]:
    key = os.environ.get(config.api_key_env, "").strip() or None
    if key and not re.fullmatch(r"[!-~]+", key):
        # The HTTP library would refuse it too, and quote it.
        raise EngineError(f"the key in the environment variable {config.api_key_env} has spaces or other odd signs")
    if key is None and any(urlsplit(url).hostname == urlsplit(OPENAI_URL).hostname for url in urls):
        raise EngineError(f"{OPENAI_URL} needs a key; set the environment variable {config.api_key_env}")
    limits = openai.Timeout(config.timeout, connect=min(CONNECT_SECONDS, config.timeout))
    # The client insists on some key; a server that wants none does not look at it.
    return [
        Server(url, openai.AsyncOpenAI(base_url=url, api_key=key or "none", max_retries=0, timeout=limits), key)
        for url in urls
    ]
