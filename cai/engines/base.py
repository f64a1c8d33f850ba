"""What every engine offers: asynchronous text generation for one conversation at a time.

An engine batches whatever is waiting; callers simply await many calls at once. Errors follow `cai.errors`: a
`RecordError` concerns the one request, an `EngineError` all of them.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from cai.records import Generation, Message, Record, Sampling


class EngineInfo(Record):
    """Provenance and capacity of an opened engine; goes into the run's manifest."""

    engine: str
    model: str
    """Name as the user knows it: directory, hub id, or the server's model name."""
    details: Mapping[str, str] = {}
    """Versions, device, dtype, weights hash or whatever else makes the run repeatable. Never a key."""
    concurrency: int
    """How many requests in flight keep the engine busy."""
    seeded: bool
    """Whether `Sampling.seed` fixes the reply, whatever else is in flight (up to floating-point differences)."""


class Engine(Protocol):
    """A model that answers conversations."""

    @property
    def info(self) -> EngineInfo: ...

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Generation:
        """Sample one assistant reply to `messages`.

        Raises:
            RecordError: this request cannot be served; `reason` is one of `context_overflow`, `request_refused`,
                `malformed_response`, `timeout`, `server_error`.
            EngineError: no request can be served.
        """
        ...

    async def aclose(self) -> None:
        """Free the model or the connections. Calls in flight are abandoned."""
        ...
