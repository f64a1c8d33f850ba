"""The engine for OpenAI-compatible servers: hosted services, `vllm serve`, llama.cpp and others, one or many.

`Connection` says which server a request goes to, and what becomes of one that fails.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import openai

from cai.config import EngineConfig
from cai.engines.base import ChoiceLogprobs, EngineInfo, ReplyLogprob
from cai.engines.connection import OPENAI_URL, Connection
from cai.engines.options import refuse_options
from cai.engines.servers import Server, Timing
from cai.engines.toplogprobs import read_choices, tokens_to_read
from cai.engines.wire import ModelEntry, error_words, no_logprobs, read_positions, read_reply
from cai.errors import EngineError
from cai.prompting import TRANSCRIPT_STOP, transcript
from cai.records import Generation, Message, Sampling

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

    def __init__(self, connection: Connection, info: EngineInfo, *, chat: bool) -> None:
        self._connection = connection
        self._info = info
        self._chat = chat

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
        await self._connection.aclose()

    async def _served(self, body: Callable[[Server], dict[str, Any]], read: Callable[[Server, bytes], T]) -> T:
        """Have a server answer the request whose `body` is made for it, and `read` the answer."""

        async def send(server: Server) -> bytes:
            completions = server.client.chat.completions if self._chat else server.client.completions
            asked = body(server)
            try:
                raw = await completions.with_raw_response.create(**asked)
            except openai.APIStatusError as error:
                words = error_words(server, error)
                if "logprobs" in asked and error.status_code in (400, 422) and "logprob" in words.lower():
                    raise no_logprobs(server, f"it answered {error.status_code}: {words}") from None
                raise
            content: bytes = raw.content
            return content

        return await self._connection.served(send, read)

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


async def open_openai(config: EngineConfig, timing: Timing | None = None) -> OpenAIEngine:
    """Connect to the servers of `config`.

    Raises:
        ConfigError: an option or a base URL is wrong.
        EngineError: a server cannot be reached, the key is missing or refused, or the model is left open.
    """
    refuse_options(config, _UNUSED)
    urls = config.base_url or (os.environ.get("OPENAI_BASE_URL") or OPENAI_URL,)
    connection = Connection(config, urls, timing)
    servers = connection.servers
    try:
        lists = [await connection.models(server) for server in servers]
        model = config.model or _only_model(servers, lists)
    except BaseException:
        await connection.aclose()
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
            "base_url": ", ".join(server.url for server in servers),
            "server": ", ".join(kinds),
            "format": "transcript" if config.format == "transcript" else "chat",
            "client": f"openai {openai.__version__}",
        },
        concurrency=config.concurrency or REQUESTS_PER_SERVER * len(servers),
        # Seeds are passed on, but whether a reply follows from its seed alone is up to the server.
        seeded=False,
        choice_logprobs=True,
    )
    return OpenAIEngine(connection, info, chat=config.format != "transcript")


def _only_model(servers: Sequence[Server], lists: Sequence[Sequence[ModelEntry]]) -> str:
    """The one model that the servers offer, for a user who named none."""
    for server, models in zip(servers, lists, strict=True):
        if not models:
            raise EngineError(f"{server.url} does not list its models; name one by `model`")
    names = sorted({entry.id for models in lists for entry in models})
    if len(names) > 1:
        raise EngineError(f"the servers offer several models; name one by `model`: {', '.join(names)}")
    return names[0]
