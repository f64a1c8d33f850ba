"""The engine for OpenAI-compatible servers: hosted services, `vllm serve`, llama.cpp and others, one or many.

A request goes to the healthy server with the fewest requests in flight. After 429, 5xx, a timeout, a lost connection
or a reply that cannot be read it is tried again, up to `max_retries` times; after any other 4xx it is not. What then
remains is an outcome of that one request (`RecordError`), unless it shows that no request can be served
(`EngineError`): no server answers, the key is refused, there is no such model.
"""

import asyncio
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import openai

from cai.config import EngineConfig
from cai.engines.base import ChoiceLogprobs, EngineInfo, ReplyLogprob
from cai.engines.options import refuse_options
from cai.engines.servers import LOST_ASIDE, Server, Timing, TryError, checked_url, healthy
from cai.engines.toplogprobs import read_choices, tokens_to_read
from cai.engines.wire import (
    CONNECT_SECONDS,
    ModelEntry,
    answers,
    error_words,
    list_models,
    no_logprobs,
    read_error,
    read_positions,
    read_reply,
    read_silence,
)
from cai.errors import CaiError, EngineError
from cai.prompting import TRANSCRIPT_STOP, transcript
from cai.records import Generation, Message, Sampling

OPENAI_URL = "https://api.openai.com/v1"
REQUESTS_PER_SERVER = 64
"""Requests in flight that keep one batching server busy."""

_ELSEWHERE = "set it where the server is started"
_UNUSED: Mapping[str, str] = {
    "adapter": "have the server load the adapter under a name of its own and give that name as `model`",
    "dtype": _ELSEWHERE,
    "device": _ELSEWHERE,
    "max_model_len": _ELSEWHERE,
    "batch_size": "use `concurrency`",
    "trust_remote_code": _ELSEWHERE,
    "script": "it belongs to the engine `scripted`",
}
_NO_TRUNCATION = {"top_k": -1, "min_p": 0}
_NEUTRAL: Mapping[str, Mapping[str, float]] = {
    "vllm": {**_NO_TRUNCATION, "repetition_penalty": 1},
    "sglang": {**_NO_TRUNCATION, "repetition_penalty": 1},
    "llamacpp": {**_NO_TRUNCATION, "repeat_penalty": 1},
}
"""Servers, by the owner in their list of models, that take further sampling parameters from the model's files or their
own defaults unless told otherwise. Temperature and top-p alone are to shape the sampling."""
_CONTINUATION: Mapping[str, Mapping[str, bool]] = {
    "vllm": {"continue_final_message": True, "add_generation_prompt": False},
    "llamacpp": {},
}
"""Servers, by the same owner, that go on with a last turn of the assistant's, and what has to be said for it."""
TOP_LOGPROBS = 20
"""Tokens listed for each position: as many as OpenAI and vLLM show."""

T = TypeVar("T")


class OpenAIEngine:
    """Servers that answer; see the module's docstring. Made by `open_openai`."""

    def __init__(self, config: EngineConfig, servers: Sequence[Server], info: EngineInfo, timing: Timing) -> None:
        self._config = config
        self._servers = servers
        self._info = info
        self._timing = timing
        self._chat = config.format != "transcript"
        self._closed = False

    @property
    def info(self) -> EngineInfo:
        """Provenance and capacity."""
        return self._info

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Generation:
        """Sample one reply; see `Engine.generate`."""
        return await self._served(lambda server: self._body(server, messages, sampling), read_reply)

    async def choice_logprobs(
        self, messages: Sequence[Message], prefill: str, choices: Sequence[str]
    ) -> ChoiceLogprobs:
        """Read the choices from the most likely tokens; see `Engine.choice_logprobs`.

        A chat is begun with `prefill` where the server is known to go on with it (vLLM, llama.cpp). Other servers
        would answer to it, so that there the model has to come to the choice by itself. That does for a few words
        before the choice, but not for a prefill of several lines, such as reasons that were written before.

        Raises:
            EngineError: also where the server cannot go on with a prefill of several lines.
        """

        def unsent(server: Server) -> str:
            return prefill if self._chat and server.continuation is None else ""

        def body(server: Server) -> dict[str, Any]:
            left_out = unsent(server)
            if "\n" in left_out:
                raise EngineError(
                    f"{server.url} is not known to go on with reasons that were written before the answer; judge "
                    "without them, or use a server of vLLM or llama.cpp"
                )
            sampling = Sampling(max_tokens=tokens_to_read(left_out), temperature=0.0)
            listed = {"logprobs": True, "top_logprobs": TOP_LOGPROBS} if self._chat else {"logprobs": TOP_LOGPROBS}
            return self._body(server, messages, sampling, "" if left_out else prefill) | listed

        def read(server: Server, content: bytes) -> ChoiceLogprobs:
            positions, usage = read_positions(server, content)
            logprobs, off_mass = read_choices(positions, unsent(server), choices)
            return ChoiceLogprobs(logprobs=logprobs, off_mass=off_mass, usage=usage)

        return await self._served(body, read)

    async def reply_logprob(self, messages: Sequence[Message], reply: str) -> ReplyLogprob:  # noqa: ARG002
        """Not offered: servers have no common way to tell how likely a given reply is.

        Raises:
            EngineError: always.
        """
        raise EngineError(
            "the engine `openai` cannot tell how likely a given reply is; use the engine `transformers` or `vllm`"
        )

    async def aclose(self) -> None:
        """Close the connections. Calls in flight fail with `EngineError`."""
        self._closed = True
        await _close(self._servers)

    async def _served(self, body: Callable[[Server], dict[str, Any]], read: Callable[[Server, bytes], T]) -> T:
        """Have a server answer the request whose `body` is made for it, and `read` the answer; tries again."""
        tries = self._config.max_retries + 1
        for attempt in range(tries):
            try:
                return await self._try(body, read)
            except TryError as error:
                failed = error
            now, pause = self._timing.clock(), self._timing.pause(attempt, failed.retry_after, self._config.timeout)
            until = now + (max(LOST_ASIDE, pause) if failed.lost else pause)
            failed.server.aside_until = max(failed.server.aside_until, until)
            if attempt + 1 < tries and not healthy(self._servers, now):
                await self._timing.sleep(pause)
        if failed.lost:
            await self._check_reachable()
        raise failed.final(tries)

    async def _try(self, body: Callable[[Server], dict[str, Any]], read: Callable[[Server, bytes], T]) -> T:
        """Ask the least busy healthy server; one that cannot be reached is set aside for the next.

        Raises:
            TryError: another try may succeed.
        """
        while True:
            now = self._timing.clock()
            ready = healthy(self._servers, now)
            server = ready[0] if ready else min(self._servers, key=lambda server: server.aside_until)
            try:
                return read(server, await self._ask(server, body(server)))
            except TryError as error:
                if not error.unsent or len(ready) < 2:
                    raise
                server.aside_until = now + LOST_ASIDE

    async def _ask(self, server: Server, body: Mapping[str, Any]) -> bytes:
        if self._closed:
            raise EngineError("the engine is closed")
        completions = server.client.chat.completions if self._chat else server.client.completions
        server.in_flight += 1
        try:
            # The client's own limit is for each read; a server that trickles its reply would keep within it for ever.
            async with asyncio.timeout(self._config.timeout):
                raw = await completions.with_raw_response.create(**body)
        except (TimeoutError, openai.APIConnectionError) as error:
            if self._closed:
                raise EngineError("the engine was closed while it waited for a reply") from None
            raise read_silence(server, error, self._config.timeout) from None
        except openai.APIStatusError as error:
            raise await self._refused(server, error, "logprobs" in body) from None
        finally:
            server.in_flight -= 1
        content: bytes = raw.content
        return content

    def _body(
        self, server: Server, messages: Sequence[Message], sampling: Sampling, prefill: str = ""
    ) -> dict[str, Any]:
        # OpenAI's newer models know the limit by another name only; other servers know the older one.
        limit = "max_completion_tokens" if self._chat and server.url == OPENAI_URL else "max_tokens"
        extra = dict(server.extra)
        body: dict[str, Any] = {
            "model": self._info.model,
            limit: sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if self._chat:
            turns = [{"role": message.role, "content": message.content} for message in messages]
            if prefill:
                turns.append({"role": "assistant", "content": prefill})
                extra |= server.continuation or {}
            body["messages"] = turns
        else:
            body["prompt"] = transcript(messages) + (f" {prefill}" if prefill else "")
        if stop := sampling.stop + (() if self._chat else TRANSCRIPT_STOP):
            body["stop"] = list(stop)
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if extra:
            body["extra_body"] = extra
        return body

    async def _refused(self, server: Server, error: openai.APIStatusError, logprobs: bool) -> TryError | CaiError:
        """What an answer with an error status means."""
        if error.status_code in (401, 403):
            return _key_refused(server, error.status_code, self._config)
        if logprobs and error.status_code in (400, 422) and "logprob" in error_words(server, error).lower():
            return no_logprobs(server, f"it answered {error.status_code}: {error_words(server, error)}")
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
        if not any(await asyncio.gather(*map(answers, self._servers))):
            urls = ", ".join(server.url for server in self._servers)
            raise EngineError(f"no server answers any more at {urls}; start it again, then run the same command again")


async def open_openai(config: EngineConfig, timing: Timing | None = None) -> OpenAIEngine:
    """Connect to the servers of `config`.

    Raises:
        ConfigError: an option or a base URL is wrong.
        EngineError: a server cannot be reached, the key is missing or refused, or the model is left open.
    """
    refuse_options(config, _UNUSED)
    urls = [checked_url(url) for url in config.base_url or (os.environ.get("OPENAI_BASE_URL") or OPENAI_URL,)]
    servers = _servers(urls, config)
    try:
        lists = [await _first_contact(server, config) for server in servers]
        model = config.model or _only_model(servers, lists)
    except BaseException:
        await _close(servers)
        raise
    kinds = []
    for server, models in zip(servers, lists, strict=True):
        owners = {entry.owned_by for entry in models if entry.owned_by}
        kinds.append(owners.pop() if len(owners) == 1 else "unknown")
        server.extra = _NEUTRAL.get(kinds[-1], {})
        server.continuation = _CONTINUATION.get(kinds[-1])
    info = EngineInfo(
        engine="openai",
        model=model,
        details={
            "base_url": ", ".join(urls),
            "server": ", ".join(kinds),
            "format": "transcript" if config.format == "transcript" else "chat",
            "client": f"openai {openai.__version__}",
        },
        concurrency=config.concurrency or REQUESTS_PER_SERVER * len(servers),
        # Seeds are passed on, but whether a reply follows from its seed alone is up to the server.
        seeded=False,
        choice_logprobs=True,
    )
    return OpenAIEngine(config, servers, info, timing or Timing())


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


async def _close(servers: Sequence[Server]) -> None:
    await asyncio.gather(*(server.client.close() for server in servers))


def _key_refused(server: Server, status: int, config: EngineConfig) -> EngineError:
    if server.key is None:
        return EngineError(f"{server.url} asks for a key ({status}); set the environment variable {config.api_key_env}")
    return EngineError(f"{server.url} refuses the key in the environment variable {config.api_key_env} ({status})")


async def _first_contact(server: Server, config: EngineConfig) -> list[ModelEntry]:
    """Models that the server offers; none where it does not list them."""
    try:
        return await list_models(server)
    except openai.APIConnectionError:
        raise EngineError(f"no server answers at {server.url}; is it running?") from None
    except openai.APIStatusError as error:
        if error.status_code in (401, 403):
            raise _key_refused(server, error.status_code, config) from None
        return []


def _only_model(servers: Sequence[Server], lists: Sequence[Sequence[ModelEntry]]) -> str:
    """The one model that the servers offer, for a user who named none."""
    for server, models in zip(servers, lists, strict=True):
        if not models:
            raise EngineError(f"{server.url} does not list its models; name one by `model`")
    names = sorted({entry.id for models in lists for entry in models})
    if len(names) > 1:
        raise EngineError(f"the servers offer several models; name one by `model`: {', '.join(names)}")
    return names[0]
