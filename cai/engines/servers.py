"""The servers that requests are spread over, and when a failed request is tried again."""

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from cai.config import holds_password
from cai.errors import ConfigError, RecordError

FIRST_PAUSE = 1.0
"""Seconds: upper end of the first pause; each further one may be twice as long."""
LONGEST_PAUSE = 60.0
"""Seconds: no backoff is longer. A server's own Retry-After may be."""
LOST_ASIDE = 15.0
"""Seconds for which a server that cannot be reached is passed over while another is healthy."""


@dataclass(frozen=True)
class Timing:
    """Clock and chance of the retries; tests put their own in."""

    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[float, float], float] = field(default_factory=lambda: random.Random().uniform)
    """A generator of its own: the global one may be seeded to fix results, and jitter must not draw from it."""
    clock: Callable[[], float] = time.monotonic
    """Seconds, for how long a server is set aside."""
    now: Callable[[], float] = time.time
    """Seconds since the epoch, against which an HTTP date is read."""

    def pause(self, attempt: int, retry_after: str | None, longest: float) -> float:
        """Seconds to wait after try number `attempt` (from 0) failed.

        Exponential backoff with full jitter: uniform between 0 and FIRST_PAUSE·2^attempt. A server's Retry-After is
        waited for in full, the jitter coming on top so that requests refused together do not come back together; the
        whole is at most `longest`.
        """
        jitter = self.uniform(0.0, min(LONGEST_PAUSE, FIRST_PAUSE * 2.0**attempt))
        return min(longest, self._asked(retry_after) + jitter)

    def _asked(self, retry_after: str | None) -> float:
        """Seconds that a Retry-After header asks for, as a number or an HTTP date; 0 where it is absent or neither."""
        text = (retry_after or "").strip()
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return float(text)
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - self.now())
        except ValueError:
            return 0.0


@dataclass(eq=False)
class Server:
    """One OpenAI-compatible server."""

    url: str
    client: Any
    """The `openai.AsyncOpenAI` of this server."""
    key: str | None = field(repr=False)
    """Kept only to take it out of what the server says."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """Parameters beyond the common ones that every request to this server carries."""
    continuation: Mapping[str, bool] | None = None
    """Parameters with which the server goes on with a last turn of the assistant's; None where it cannot."""
    in_flight: int = 0
    aside_until: float = 0.0
    """Time on the clock until which the server is passed over while another is healthy."""

    def quote(self, text: str) -> str:
        """What the server said, for a message: one short line without the key."""
        line = " ".join((text.replace(self.key, "***") if self.key else text).split())
        return line if len(line) <= 300 else line[:299] + "…"


class TryError(Exception):
    """One try failed in a way that a further try may not. Never leaves the engine."""

    def __init__(
        self,
        server: Server,
        reason: str,
        message: str,
        *,
        retry_after: str | None = None,
        lost: bool = False,
        unsent: bool = False,
    ) -> None:
        self.server = server
        self.reason = reason
        """Code of the `RecordError` that the request ends in when no try succeeds."""
        self.retry_after = retry_after
        self.lost = lost
        """No answer came: the server may be down."""
        self.unsent = unsent
        """The server was not reached at all, so the request was not tried."""
        super().__init__(f"{server.url} {message}")

    def final(self, tries: int) -> RecordError:
        """The outcome once all tries are used up."""
        return RecordError(self.reason, str(self) if tries == 1 else f"{self} ({tries} tries)")


def healthy(servers: Sequence[Server], now: float) -> list[Server]:
    """The servers that are not set aside, the least busy first."""
    return sorted((server for server in servers if server.aside_until <= now), key=lambda server: server.in_flight)


def checked_url(text: str) -> str:
    """A base URL without its last slash.

    Raises:
        ConfigError: it is not the address of a server, or has a password in it, which would end up in the manifest.
    """
    try:
        parts = urlsplit(text)
        if holds_password(text):
            raise ConfigError(
                f"the base_url of {parts.hostname} holds a user name or password; put the key into an environment "
                "variable and name it by api_key_env"
            )
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of its port, or of an IPv6 address
        usable = False
    if not usable:
        raise ConfigError(f"base_url {text!r} is not an address such as http://localhost:8000/v1")
    return text.rstrip("/")
