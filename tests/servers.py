"""A real HTTP server on loopback that speaks the OpenAI protocol and fails on demand."""

import asyncio
import json
import math
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

MODEL = "test-model"


@dataclass(frozen=True)
class Answer:
    """What the server does with one request."""

    status: int = 200
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    hold: threading.Event | None = None
    """The answer waits for this."""
    cut_after: int | None = None
    """Bytes of the body after which the connection is broken."""
    trickle: bool = False
    """Spaces come, one by one, for as long as the client listens."""


@dataclass(frozen=True)
class Request:
    """One request that arrived."""

    path: str
    headers: Mapping[str, str]
    body: Any


def reply(text: str | None = "Fine.", finish: str | None = "stop", **more: Any) -> Answer:
    """A completion; `more` goes into its first choice's message."""
    message = {"role": "assistant", "content": text, **more}
    usage = {"prompt_tokens": 20, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 16}}
    choice = {"index": 0, "message": message, "text": text, "finish_reason": finish}
    return Answer(body=json.dumps({"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage}))


def listed(*positions: Mapping[str, float], plain: bool = False) -> Answer:
    """A completion whose tokens are the first of each position, and the probabilities listed there.

    `plain` gives the form of plain completions.
    """
    tops = [{token: math.log(p) for token, p in position.items()} for position in positions]
    tokens = [next(iter(top)) for top in tops]
    logprobs: Any
    if plain:
        logprobs = {"tokens": tokens, "token_logprobs": [top[t] for t, top in zip(tokens, tops, strict=True)]}
        logprobs["top_logprobs"] = tops
    else:
        lists = [[{"token": token, "logprob": logprob} for token, logprob in top.items()] for top in tops]
        logprobs = {"content": [{**top[0], "top_logprobs": top} for top in lists]}
    text = "".join(tokens)
    usage = {"prompt_tokens": 20, "completion_tokens": len(tokens)}
    choice = {"message": {"content": text}, "text": text, "logprobs": logprobs, "finish_reason": "length"}
    return Answer(body=json.dumps({"choices": [choice], "usage": usage}))


def fault(status: int, message: str = "it went wrong", retry_after: str | None = None, **more: Any) -> Answer:
    """An error in the protocol's form; `more` goes beside the message."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return Answer(status, json.dumps({"error": {"message": message, **more}}), headers)


def models(*names: str, owned_by: str = "someone") -> Answer:
    """A list of models."""
    return Answer(body=json.dumps({"object": "list", "data": [{"id": name, "owned_by": owned_by} for name in names]}))


class ChatServer:
    """Answers completions by `plan`, one entry a request, then by `default`; a context manager.

    `/v1/models` has its own answer. Requests of both are recorded apart, completions in `requests`.
    """

    def __init__(
        self,
        plan: Iterable[Answer] = (),
        default: Answer | None = None,
        models_answer: Answer | None = None,
        port: int = 0,
    ) -> None:
        self.plan = deque(plan)
        self.default = default or reply()
        self.models_answer = models_answer or models(MODEL)
        self.requests: list[Request] = []
        self.listings: list[Request] = []
        self._arrived = threading.Semaphore(0)
        self._connections: set[socket.socket] = set()
        self._http = _Http(("127.0.0.1", port), _Handler)
        self._http.chat = self
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.die()

    def die(self) -> None:
        """Close the port and break all connections, as a killed process would."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.socket.close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    async def request_arrived(self) -> None:
        """Return when one more completion request has arrived; it need not be answered yet."""
        if not await asyncio.to_thread(self._arrived.acquire, timeout=10):
            raise AssertionError("no further request came to this server")

    def answer_to(self, request: Request) -> Answer:
        """Record a request and choose its answer."""
        if request.path.endswith("/models"):
            self.listings.append(request)
            return self.models_answer
        self.requests.append(request)
        answer = self.plan.popleft() if self.plan else self.default
        self._arrived.release()
        return answer

    def connected(self, connection: socket.socket) -> None:
        """Note a connection, so that `die` can break it."""
        self._connections.add(connection)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    chat: ChatServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def setup(self) -> None:
        super().setup()
        self.server.chat.connected(self.connection)

    def handle(self) -> None:
        with suppress(OSError, ValueError):  # the connection was broken, here or by the client
            super().handle()

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: Any) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.server.chat.answer_to(Request(self.path, headers, body))
        if answer.hold is not None:
            answer.hold.wait()
        content = answer.body.encode()
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Type": answer.content_type}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(10**9 if answer.trickle else len(content)))
        self.end_headers()
        while answer.trickle:
            self.wfile.write(b" ")
            time.sleep(0.01)
        self.wfile.write(content[: answer.cut_after])
        if answer.cut_after is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""
