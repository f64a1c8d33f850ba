"""What OpenAI-compatible servers say: lists of models, replies and errors, read leniently and independently of the
client library's version."""

import re
from collections.abc import Mapping
from typing import Annotated

import openai
from pydantic import BaseModel, Field, ValidationError

from cai.engines.servers import Server, TryError
from cai.engines.toplogprobs import Position
from cai.errors import EngineError, RecordError
from cai.records import FinishReason, Generation, Usage

CONNECT_SECONDS = 10.0
"""Limit for reaching a server, and for the short requests that ask whether it is there."""

_OVERFLOW = re.compile(
    r"context.?(length|size|window)|(maximum|max).{0,20}context|prompt is too long|too many tokens|max_new_tokens",
    re.IGNORECASE,
)
"""Words in which servers say that prompt and reply do not fit the context."""


class ModelEntry(BaseModel):
    """One model in a server's list."""

    id: str
    owned_by: str | None = None
    """Local servers put their own kind here: `vllm`, `llamacpp`, `sglang`."""
    root: str | None = None
    """Where vLLM loaded it from."""
    parent: str | None = None
    """The model that an adapter of vLLM's belongs to."""
    max_model_len: int | None = None
    """Context in tokens, where a server tells."""


class _Models(BaseModel):
    data: list[ModelEntry]


class _Said(BaseModel):
    content: str | None = None
    refusal: str | None = None


_Logprob = Annotated[float, Field(le=1e-3)]
"""Rounding may lead a little above 0. For minus infinity most servers write a number such as -9999."""


class _Token(BaseModel):
    token: str
    bytes: list[int] | None = None
    """The token's text in UTF-8. Some servers write the vocabulary's own spelling in `token`."""
    logprob: _Logprob

    @property
    def text(self) -> str:
        return bytes(self.bytes).decode(errors="replace") if self.bytes else self.token


class _ListedToken(_Token):
    top_logprobs: list[_Token] = []


class _Logprobs(BaseModel):
    content: list[_ListedToken] | None = None
    """In chat completions; llama.cpp has it in plain completions too."""
    tokens: list[str] = []
    """In plain completions, with `top_logprobs`."""
    top_logprobs: list[Mapping[str, _Logprob] | None] | None = None

    def positions(self) -> tuple[Position, ...]:
        """The tokens with what is listed for each.

        Raises:
            ValueError: there are more or fewer lists than tokens, or a byte is none.
        """
        if self.content is not None:
            return tuple(
                Position(token.text, tuple((other.text, other.logprob) for other in token.top_logprobs))
                for token in self.content
            )
        lists = [{}] * len(self.tokens) if self.top_logprobs is None else self.top_logprobs
        return tuple(
            Position(text, tuple((listed or {}).items())) for text, listed in zip(self.tokens, lists, strict=True)
        )


class _Choice(BaseModel):
    message: _Said | None = None
    text: str | None = None
    logprobs: object = None
    """Read by `read_positions` alone: nobody else's reply is to fail by its form."""
    finish_reason: str | None = None

    @property
    def written(self) -> str | None:
        """The reply's text."""
        return self.message.content if self.message else self.text


class _Cached(BaseModel):
    cached_tokens: int | None = None


class _Counts(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Cached | None = None


class _Reply(BaseModel):
    choices: list[_Choice]
    usage: _Counts | None = None


async def list_models(server: Server) -> list[ModelEntry]:
    """Models that the server offers; none where its answer is no such list.

    Raises:
        openai.APIError: it answers with an error, or not at all.
    """
    raw = await server.client.models.with_raw_response.list(timeout=CONNECT_SECONDS)
    try:
        return _Models.model_validate_json(raw.content).data
    except ValidationError:
        return []


async def answers(server: Server) -> bool:
    """Whether the server answers anything at all."""
    try:
        await list_models(server)
    except openai.APIConnectionError:
        return False
    except openai.APIStatusError:
        return True
    return True


def read_reply(server: Server, content: bytes) -> Generation:
    """Read a completion of either kind. Token counts that the server leaves out are 0.

    Raises:
        TryError: it is not a completion.
        RecordError: the server withheld the text.
    """
    choice, usage = _first_choice(server, content)
    if choice.written is None:
        raise TryError(server, "malformed_response", "sent a reply without text")
    finish: FinishReason = "stop" if choice.finish_reason == "stop" else "length"
    return Generation(text=choice.written, finish_reason=finish, usage=usage)


def read_positions(server: Server, content: bytes) -> tuple[tuple[Position, ...], Usage]:
    """Read the most likely tokens at each position of a completion of either kind; none where the reply is empty.

    Raises:
        TryError: it is not a completion, or its log-probabilities cannot be read.
        RecordError: the server withheld the text.
        EngineError: it came without log-probabilities.
    """
    choice, usage = _first_choice(server, content)
    try:
        logprobs = _Logprobs.model_validate(choice.logprobs or {})
        positions = logprobs.positions()
    except ValueError:  # pydantic's errors among them
        text = server.quote(str(choice.logprobs))
        raise TryError(server, "malformed_response", f"sent log-probabilities that cannot be read: {text}") from None
    lists = [bool(position.top) for position in positions]
    if not any(lists) and (lists or choice.written):
        raise no_logprobs(server, "its reply came without them")
    if not all(lists):
        raise TryError(server, "malformed_response", "sent log-probabilities of some tokens only")
    return positions, usage


def no_logprobs(server: Server, words: str) -> EngineError:
    """What it means that a server does not give the most likely tokens."""
    return EngineError(f"{server.url} offers no log-probabilities ({words}); use --sample-verdicts N or another server")


def _first_choice(server: Server, content: bytes) -> tuple[_Choice, Usage]:
    try:
        reply = _Reply.model_validate_json(content)
    except ValidationError:
        text = server.quote(content.decode(errors="replace"))
        raise TryError(server, "malformed_response", f"sent something that is not a completion: {text}") from None
    if not reply.choices:
        raise TryError(server, "malformed_response", "sent a reply without choices")
    choice = reply.choices[0]
    refusal = choice.message.refusal if choice.message else None
    if choice.finish_reason == "content_filter" or refusal:
        reason = server.quote(refusal or "its content filter stopped it")
        raise RecordError("request_refused", f"{server.url} withheld the reply: {reason}")
    if choice.finish_reason not in ("stop", "length"):
        reason = f"sent a reply with the unknown finish reason {choice.finish_reason}"
        raise TryError(server, "malformed_response", reason)
    return choice, _usage(reply.usage or _Counts())


def read_error(server: Server, error: openai.APIStatusError) -> TryError | EngineError | RecordError:
    """What an error status means, other than those about key and model."""
    status, words = error.status_code, error_words(server, error)
    if status == 402 or error.code == "insufficient_quota":
        return EngineError(f"{server.url} answered {status}: {words}; the account's credit is used up")
    if status == 429 or status >= 500:
        retry_after = error.response.headers.get("retry-after")
        return TryError(server, "server_error", f"answered {status}: {words}", retry_after=retry_after)
    overflow = status in (400, 413, 422) and _OVERFLOW.search(f"{error.code} {error.type} {words}")
    reason = "context_overflow" if overflow else "request_refused"
    return RecordError(reason, f"{server.url} answered {status}: {words}")


def read_silence(server: Server, error: TimeoutError | openai.APIConnectionError, timeout: float) -> TryError:
    """What it means that no complete answer came."""
    # The cause is an error of httpx or of httpx2, by the client's version.
    names = {kind.__name__ for kind in type(error.__cause__).__mro__}
    if names & {"ConnectError", "ConnectTimeout"}:
        return TryError(server, "server_error", "cannot be reached", lost=True, unsent=True)
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return TryError(server, "timeout", f"did not answer within {timeout:g} s", lost=True)
    return TryError(server, "server_error", "broke the connection before its reply was complete", lost=True)


def error_words(server: Server, error: openai.APIStatusError) -> str:
    """The server's own words in an error."""
    body = error.body
    said = next((body[name] for name in ("message", "detail") if body.get(name)), "") if isinstance(body, dict) else ""
    return server.quote(str(said or error.response.text))


def _usage(counts: _Counts) -> Usage:
    cached = counts.prompt_tokens_details.cached_tokens if counts.prompt_tokens_details else None
    return Usage(
        prompt_tokens=counts.prompt_tokens or 0,
        cached_tokens=cached or 0,
        completion_tokens=counts.completion_tokens or 0,
    )
