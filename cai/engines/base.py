"""What every engine offers: asynchronous text generation for one conversation at a time, and log-probabilities.

An engine batches whatever is waiting; callers simply await many calls at once. Errors follow `cai.errors`: a
`RecordError` concerns the one request, an `EngineError` all of them.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from cai.records import Generation, Message, Record, Sampling, Usage


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
    choice_logprobs: bool = False
    """Whether the engine can be asked for `choice_logprobs`; a server may still turn out to offer none."""
    reply_logprob: bool = False
    """Whether the engine can be asked for `reply_logprob`."""


class ChoiceLogprobs(Record):
    """How likely each of several choices is as the next thing that the model writes."""

    logprobs: tuple[float, ...]
    """Natural logarithm of each choice's probability, in order, over all its spellings (`engines.choices`)."""
    off_mass: float
    """Probability of everything that is none of the choices, in [0, 1]."""
    usage: Usage


class ReplyLogprob(Record):
    """How likely a given reply is."""

    logprob: float
    """Natural logarithm of the reply's probability: the sum over its tokens."""
    tokens: int
    """Number of those tokens; the end of the turn is not among them."""
    usage: Usage


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

    async def choice_logprobs(
        self, messages: Sequence[Message], prefill: str, choices: Sequence[str]
    ) -> ChoiceLogprobs:
        """Read how likely each of `choices` is as what follows `prefill`, the beginning of the assistant's reply.

        No token is sampled. Where an engine sees only the most likely tokens, a choice that is not among them gets the
        highest probability that it can have. See `EngineInfo.choice_logprobs`, and `choices.choice_tokens` for choices
        of more than one token.

        Raises:
            RecordError: as `generate`.
            EngineError: no request can be served; the engine offers no log-probabilities; no token of the vocabulary
                spells one of the choices.
        """
        ...

    async def reply_logprob(self, messages: Sequence[Message], reply: str) -> ReplyLogprob:
        """Read how likely `reply` is as the assistant's reply to `messages`. See `EngineInfo.reply_logprob`.

        Raises:
            RecordError: as `generate`; `empty_reply` where the reply has no token.
            EngineError: no request can be served, or the engine does not offer this.
        """
        ...

    async def aclose(self) -> None:
        """Free the model or the connections. Calls in flight are abandoned."""
        ...
