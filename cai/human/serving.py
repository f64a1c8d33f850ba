"""The rating page on a socket, until Ctrl-C or SIGTERM."""

import errno
import ipaddress
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

import uvicorn
from starlette.types import ASGIApp

from cai.errors import ConfigError
from cai.stage import sigterm_interrupts

_GRACE = 3
"""Seconds that requests under way have to finish when the server is stopped."""
COUNT_EVERY = 1.0
"""Seconds between two updates of the count on a terminal."""


def listen(host: str, port: int) -> socket.socket:
    """Take the port before anything else is done.

    Raises:
        ConfigError: it is taken, or there is no such address here.
    """
    found: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
    except OSError as error:
        if found is not None:
            found.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is taken; stop what listens there, or give another --port (0: any free one)"
            ) from None
        raise ConfigError(f"cannot listen on port {port} of {host}: {error.strerror}; give another one") from None
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def names_of(host: str, allowed: tuple[str, ...]) -> frozenset[str]:
    """Names under which the page may be reached; addresses in numbers are no names."""
    own = {socket.gethostname()} if is_wildcard(host) else set()
    return frozenset(name.lower() for name in {"localhost", host, *own, *allowed})


def is_wildcard(host: str) -> bool:
    """Whether the address stands for all of this machine's."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def address_of(host: str, port: int) -> str:
    """Where a browser finds the page."""
    name = socket.gethostname() if is_wildcard(host) else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def serve(app: ASGIApp, on: socket.socket, announce: Callable[[], None]) -> None:
    """Serve until Ctrl-C or SIGTERM, and let requests under way finish. Nothing is logged but bugs.

    `announce` is called once requests and signals are heeded.
    """
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=_GRACE,
    )
    with on, sigterm_interrupts(), suppress(KeyboardInterrupt):
        _Server(config, announce).run([on])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()


class Ticker:
    """Calls back in a thread of its own when asked to, and not too often. Use as a context manager."""

    def __init__(self, tick: Callable[[], None], every: float = COUNT_EVERY) -> None:
        """Call `tick`, and wait `every` seconds before the next time."""
        self._tick = tick
        self._every = every
        self._wanted = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._wanted.set()
        self._thread.join()

    def want(self) -> None:
        """Ask for a call."""
        self._wanted.set()

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            if self._stopped.is_set():
                return
            self._wanted.clear()
            self._tick()
            self._stopped.wait(self._every)
