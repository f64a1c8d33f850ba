"""The rating page as tests meet it: a server, raters' HTTP clients, and what stands on a page."""

import http.client
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Self
from urllib.parse import urlencode, urlsplit

import uvicorn

from cai.constitution import Constitution, load_constitution
from cai.human.app import Site, create_app
from cai.human.serving import listen
from cai.human.store import RatingStore

_VOID = {"meta", "link", "input", "br"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class PageReader(HTMLParser):
    """What stands on a page: title, status, texts of turns and responses, hidden fields of its forms, buttons."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.title = ""
        self.note = ""
        self.turns: list[str] = []
        self.responses: list[str] = []
        self.chosen: list[str] = []
        self.fields: dict[str, dict[str, str]] = {}
        self.buttons: list[str] = []
        self.comment = ""
        self.text = ""
        self._open: list[tuple[str, dict[str, str]]] = []
        self._form = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._form = given["id"]
            self.fields[self._form] = {}
        if tag == "input" and given.get("type") == "hidden":
            self.fields[self._form][given["name"]] = given["value"]
        if tag == "button" and given.get("name") == "answer":
            self.buttons.append(given["value"])
            if "chosen" in given.get("class", ""):
                self.chosen.append(given["value"])
        if tag not in _VOID:
            self._open.append((tag, given))
        if self._inside("div", "text"):
            (self.responses if self._inside("section", "response") else self.turns).append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._inside("h1"):
            self.title += data
        if self._inside("p", "note"):
            self.note += data
        if self._inside("textarea"):
            self.comment += data
        if self._inside("div", "text"):
            found = self.responses if self._inside("section", "response") else self.turns
            found[-1] += data

    def _inside(self, tag: str, kind: str = "") -> bool:
        return any(one == tag and (not kind or kind in given.get("class", "").split()) for one, given in self._open)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: str

    @property
    def page(self) -> PageReader:
        return PageReader(self.body)


@dataclass
class Client:
    """A rater's browser, without JavaScript: keeps cookies, follows no redirect by itself."""

    port: int
    cookies: dict[str, str] = field(default_factory=dict)
    keeps_connection: bool = False
    _connection: http.client.HTTPConnection | None = None

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        wanted = dict(headers or {})
        if self.cookies:
            wanted["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        try:
            self._connection.request(method, path, body, wanted)
            response = self._connection.getresponse()
            found = Reply(
                response.status,
                {name.lower(): value for name, value in response.getheaders()},
                response.read().decode(),
            )
        except BaseException:
            self.close()
            raise
        if not self.keeps_connection:
            self.close()
        for header in response.headers.get_all("Set-Cookie") or []:
            name, _, value = header.partition(";")[0].partition("=")
            self.cookies[name] = value
        return found

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def open(self, link: str) -> Self:
        """Follow a rater's link."""
        assert self.send("GET", urlsplit(link).path).status == 303
        return self

    def get(self, path: str = "/") -> Reply:
        return self.send("GET", path)

    def look(self) -> PageReader:
        """The page in front of the rater."""
        reply = self.get()
        assert reply.status == 200, reply.body
        return reply.page

    def post(
        self, path: str, fields: Mapping[str, str] | Sequence[tuple[str, str]], headers: Mapping[str, str] | None = None
    ) -> Reply:
        return self.send("POST", path, urlencode(fields).encode(), {**FORM, **(headers or {})})

    def answer(self, page: PageReader, value: str, comment: str = "", seconds: str = "") -> Reply:
        """Press a button of the page."""
        return self.post("/answer", {**page.fields["answer"], "answer": value, "comment": comment, "seconds": seconds})

    def undo(self, page: PageReader) -> Reply:
        return self.post("/undo", page.fields["undo"])


@dataclass(frozen=True)
class Served:
    """A rating page that is being served."""

    store: RatingStore
    port: int
    errors: list[str]
    """What was reported to whoever runs the server."""
    changes: list[None]
    """One for each change."""

    def client(self, name: str = "Ann") -> Client:
        """The browser of a rater, who gets a new link."""
        return Client(self.port).open(f"/r/{self.store.add_rater(name)}")


@contextmanager
def serving(
    store: RatingStore, constitution: Constitution | None = None, names: Sequence[str] = ("localhost",)
) -> Iterator[Served]:
    """Serve a store on a free port from a thread."""
    with listen("127.0.0.1", 0) as on:
        served = Served(store, on.getsockname()[1], [], [])
        app = create_app(
            store,
            constitution or load_constitution("hhh"),
            Site(frozenset(names)),
            on_change=lambda: served.changes.append(None),
            on_error=served.errors.append,
        )
        config = uvicorn.Config(app, log_level="critical", access_log=False, lifespan="off", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([on],))
        thread.start()
        try:
            yield served
        finally:
            server.should_exit = True
            thread.join()
