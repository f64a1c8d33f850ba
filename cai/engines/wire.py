"""What OpenAI-compatible servers say: lists of models, replies and errors, read leniently and independently of the
client library's version."""

import re

import openai
from pydantic import BaseModel, ValidationError

from cai.engines.servers import Server, TryError
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


class _Models(BaseModel):
    data: list[ModelEntry]


class _Said(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Said | None = None
    text: str | None = None
    finish_reason: str | None = None


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
    try:
        reply = _Reply.model_validate_json(content)
    except ValidationError:
        text = server.quote(content.decode(errors="replace"))
        raise TryError(server, "malformed_response", f"sent something that is not a completion: {text}") from None
    if not reply.choices:
        raise TryError(server, "malformed_response", "sent a reply without choices")
    choice = reply.choices[0]
    said = choice.message or _Said(content=choice.text)
    if choice.finish_reason == "content_filter" or said.refusal:
        reason = server.quote(said.refusal or "its content filter stopped it")
        raise RecordError("request_refused", f"{server.url} withheld the reply: {reason}")
    if said.content is None:
        raise TryError(server, "malformed_response", "sent a reply without text")
    if choice.finish_reason not in ("stop", "length"):
        reason = f"sent a reply with the unknown finish reason {choice.finish_reason}"
        raise TryError(server, "malformed_response", reason)
    finish: FinishReason = "stop" if choice.finish_reason == "stop" else "length"
    return Generation(text=said.content, finish_reason=finish, usage=_usage(reply.usage or _Counts()))


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
