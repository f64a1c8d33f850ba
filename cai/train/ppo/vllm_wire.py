"""What is said to a vLLM server and what it answers: adapters loaded and unloaded, completions in token ids."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openai
from pydantic import BaseModel

from cai.engines.servers import Server, TryError
from cai.engines.wire import error_words
from cai.errors import EngineError


class _Logprobs(BaseModel):
    token_logprobs: list[float]


class _Choice(BaseModel):
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Completion(BaseModel):
    choices: list[_Choice]


async def load_adapter(server: Server, adapter: Path, rank: int) -> bytes:
    """Have the server load an adapter by the name of its folder.

    Raises:
        EngineError: it cannot; the message names what it has to be started with.
        openai.APIError: it did not say why, or did not answer.
    """
    try:
        return await _post(server, "/load_lora_adapter", {"lora_name": adapter.name, "lora_path": str(adapter)})
    except openai.APIStatusError as error:
        words = error_words(server, error)
        if "already been loaded" in words:  # by a try whose answer was lost
            return b""
        if error.status_code == 404 or "lora" in words.lower():
            raise EngineError(f"{server.url} {_remedy(words, adapter, rank)}") from None
        raise


async def unload_adapter(server: Server, name: str, timeout: float | None = None) -> bytes:
    """Have the server forget an adapter, if it knows it.

    Raises:
        openai.APIError: it answered with an error, or not at all (within `timeout` seconds, where that is given).
    """
    options = {} if timeout is None else {"timeout": timeout}
    try:
        return await _post(server, "/unload_lora_adapter", {"lora_name": name}, **options)
    except openai.NotFoundError:  # the server was started again since
        return b""


async def complete(server: Server, body: Mapping[str, Any]) -> bytes:
    """Have the server continue a prompt.

    Raises:
        openai.APIError: it answered with an error, or not at all.
    """
    return await _post(server, "/completions", body)


def read_nothing(server: Server, content: bytes) -> None:
    """An answer whose status says all."""


def read_tokens(server: Server, content: bytes) -> tuple[list[int], str | None]:
    """Read the token ids of a completion, and the reason why it ended.

    Raises:
        TryError: it is not a completion, or is empty.
        EngineError: it came without token ids.
    """
    choice = _read_choice(server, content)
    if choice.token_ids is None:
        raise EngineError(f"{server.url} sends no token ids; it must be vLLM 0.10.2 or newer")
    if not choice.token_ids:
        raise TryError(server, "malformed_response", "sent a response without tokens")
    return choice.token_ids, choice.finish_reason


def read_logprobs(server: Server, content: bytes) -> tuple[list[int], list[float]]:
    """Read the token ids of a completion, and the log-probability of each.

    Raises:
        TryError: it is not a completion, is empty, or has not as many log-probabilities.
        EngineError: it came without token ids.
    """
    tokens, _ = read_tokens(server, content)
    found = _read_choice(server, content).logprobs
    if found is None or len(found.token_logprobs) != len(tokens):
        raise TryError(server, "malformed_response", "sent a response without a log-probability for each token")
    return tokens, found.token_logprobs


async def _post(server: Server, path: str, body: Mapping[str, Any], **options: float) -> bytes:
    content: bytes = await server.client.post(path, cast_to=bytes, body=body, options=options)
    return content


def _remedy(words: str, adapter: Path, rank: int) -> str:
    """What is to be done about a server that does not load an adapter of a rank, by its own words."""
    if "not enabled" in words:
        return "serves no adapters; start it with --enable-lora"
    if "max_lora_rank" in words:
        return f"serves no adapters of rank {rank}; start it with --max-lora-rank {rank} or more"
    if "No adapter found" in words:
        return f"does not find {adapter}; name a folder by adapter_dir that the server sees under the same path"
    if "lora" in words.lower():
        return f"cannot load the policy's adapter: {words}"
    return (
        "does not load adapters while it runs; start it with the environment variable "
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
    )


def _read_choice(server: Server, content: bytes) -> _Choice:
    try:
        (choice,) = _Completion.model_validate_json(content).choices
    except ValueError:  # pydantic's errors among them
        text = server.quote(content.decode(errors="replace"))
        raise TryError(server, "malformed_response", f"sent something that is not a completion: {text}") from None
    return choice
