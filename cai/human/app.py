"""The rating page: one comparison at a time, in plain forms that also work without JavaScript.

    GET  /           the comparison that the rater has open, or that all is done
    GET  /r/TOKEN    a rater's link: sets the cookie
    POST /answer     an answer; leads back to /
    POST /undo       takes the last answer back; leads back to /

A redirect says that the store has the answer. Each form has a key of its own, so that one sent twice counts once.
Nothing of where a response comes from reaches the page.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from cai.constitution import Constitution
from cai.errors import CaiError
from cai.human.guidelines import GuidelineBook
from cai.human.page_forms import (
    Form,
    Showing,
    answer_from,
    comment_from,
    csrf_token,
    in_order,
    item_name,
    read_form,
    seconds_from,
)
from cai.human.page_guard import SafeHeaders, check_host, check_origin
from cai.human.records import Scale
from cai.human.store import COMMENT_LENGTH, Rater, RatingRefused, RatingStore, Shown
from cai.records import Role

T = TypeVar("T")

_COOKIE_DAYS = 30
_STATIC = {"rate.css": "text/css", "rate.js": "text/javascript", "icon.svg": "image/svg+xml"}
_SPEAKERS: dict[Role, str] = {"system": "System", "user": "Human", "assistant": "Assistant"}
_LABELS: dict[Scale, tuple[str, ...]] = {
    "four": (
        "Response 1 is clearly better",
        "Response 1 is slightly better",
        "Response 2 is slightly better",
        "Response 2 is clearly better",
    ),
    "two": ("Response 1 is better", "Response 2 is better"),
}
_AFTER = {
    "answer": "Your answer is saved.",
    "undo": "Your last answer is taken back. Here it is again.",
    "nothing": "There is no answer to take back.",
}
"""What the page says after what was done last, by the query of its address."""
_OPENED = "link"
_TITLES = {
    400: "This request cannot be used",
    401: "A personal link is needed",
    403: "Not accepted",
    404: "There is no such page",
    409: "This comparison is no longer open",
    413: "Too large",
    415: "Not accepted",
    500: "Something went wrong",
    503: "The page is out of order",
}


@dataclass(frozen=True)
class Site:
    """Under what names and by which cookie the page is known."""

    names: frozenset[str]
    """Host names of the server, in lower case."""
    cookie: str = "cai_rater"


def create_app(
    store: RatingStore,
    constitution: Constitution,
    site: Site,
    *,
    on_change: Callable[[], None],
    on_error: Callable[[str], None],
) -> ASGIApp:
    """Make the application. `on_change` is called after each answer or undo, `on_error` with what the store reports.

    Raises:
        ConstitutionError: no principle serves comparisons.
        TemplateError: a principle cannot be phrased.
    """
    page = _RatingPage(store, GuidelineBook(constitution), site, on_change, on_error)
    app = Starlette(
        routes=[
            Route("/", page.guarded(page.item)),
            Route("/r/{token}", page.guarded(page.open_link)),
            Route("/answer", page.guarded(page.answer), methods=["POST"]),
            Route("/undo", page.guarded(page.undo), methods=["POST"]),
            *(Route(f"/static/{name}", page.guarded(_static(name, kind))) for name, kind in _STATIC.items()),
        ],
        exception_handlers={
            HTTPException: page.refused,
            RatingRefused: page.not_open,
            CaiError: page.broken,
            Exception: page.crashed,
        },
    )
    app.router.redirect_slashes = False
    return SafeHeaders(app)  # around all, so that a page about a bug has the headers too


class _RatingPage:
    def __init__(
        self,
        store: RatingStore,
        guidelines: GuidelineBook,
        site: Site,
        on_change: Callable[[], None],
        on_error: Callable[[str], None],
    ) -> None:
        self._store = store
        self._guidelines = guidelines
        self._site = site
        self._on_change = on_change
        self._on_error = on_error
        self._templates = Environment(
            loader=PackageLoader("cai.human"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def guarded(self, endpoint: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """The endpoint behind the checks that every request has to pass."""

        async def checked(request: Request) -> Response:
            check_host(request, self._site.names)
            if request.method == "POST":
                check_origin(request, self._site.names)
            response: Response = await endpoint(request)
            return response

        return checked

    async def open_link(self, request: Request) -> Response:
        token = request.path_params["token"]
        if await run_in_threadpool(self._store.rater, token) is None:
            raise HTTPException(401, "This link is not valid (any more); ask for a new one.")
        response = RedirectResponse(f"/?after={_OPENED}", 303)
        response.set_cookie(
            self._site.cookie,
            token,
            max_age=_COOKIE_DAYS * 24 * 3600,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    async def item(self, request: Request) -> Response:
        after = request.query_params.get("after", "")
        if after == _OPENED and self._site.cookie not in request.cookies:
            # Whoever follows the link from another site comes without the cookie (SameSite), up to the next page.
            return self._error(401, "Your page opens in a moment.", again=True)
        token, rater = await self._rater(request)
        shown = await run_in_threadpool(self._store.next, rater)
        note = _AFTER.get(after, "")
        if shown is not None:
            return self._shown(token, rater, shown, note)
        progress = await run_in_threadpool(self._store.progress)
        answered = next((one.answered for one in progress if one.rater == rater.name), 0)
        return self._page(
            "done.html",
            note=note,
            rater=rater.name,
            answered=answered,
            csrf=csrf_token(token),
            undo_key=Showing(0, "a", time.time()).key(token),
        )

    async def answer(self, request: Request) -> Response:
        token, rater, form = await self._posted(request)
        showing = Showing.of(form["key"], token)
        if showing is None:
            raise RatingRefused("the form was made for another item or rater")
        answer = answer_from(form["answer"], showing.first, self._store.config.scale)
        if answer is None:
            raise HTTPException(400, "There is no such answer.")
        await run_in_threadpool(
            self._store.answer,
            rater,
            showing.item,
            answer,
            comment=comment_from(form.get("comment")),
            seconds=seconds_from(form.get("seconds"), showing, time.time()),
            key=form["key"],
        )
        self._on_change()
        return RedirectResponse("/?after=answer", 303)

    async def undo(self, request: Request) -> Response:
        token, rater, form = await self._posted(request)
        if Showing.of(form["key"], token) is None:
            raise HTTPException(400, "The form is not one of this page.")
        reopened = await run_in_threadpool(self._store.undo, rater, key=form["key"])
        self._on_change()
        return RedirectResponse(f"/?after={'nothing' if reopened is None else 'undo'}", 303)

    async def refused(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        sentences = {404: "Nothing is to be found at this address.", 405: "This address does not take such a request."}
        return self._error(
            error.status_code, sentences.get(error.status_code, error.detail), headers=dict(error.headers or {})
        )

    async def not_open(self, _: Request, __: Exception) -> Response:
        return self._error(
            409, "You have answered it already, perhaps in another window, or it has gone to somebody else."
        )

    async def broken(self, request: Request, error: Exception) -> Response:
        self._on_error(str(error))
        return self._error(503, _trouble(request))

    async def crashed(self, request: Request, _: Exception) -> Response:
        return self._error(500, _trouble(request))

    async def _rater(self, request: Request) -> tuple[str, Rater]:
        token = request.cookies.get(self._site.cookie, "")
        rater = await run_in_threadpool(self._store.rater, token)
        if rater is None:
            raise HTTPException(401, "Open the link that was made for you; cookies must be allowed.")
        return token, rater

    async def _posted(self, request: Request) -> tuple[str, Rater, Form]:
        token, rater = await self._rater(request)
        form = await read_form(request)
        form.check_csrf(token)
        return token, rater, form

    def _shown(self, token: str, rater: Rater, shown: Shown, note: str) -> Response:
        config, comparison, now = self._store.config, shown.comparison, time.time()
        both = (comparison.a.text, comparison.b.text)
        prompt = comparison.prompt
        order = in_order(shown.first, config.scale)
        return self._page(
            "item.html",
            note=note,
            rater=rater.name,
            number=shown.number,
            remaining=shown.remaining,
            item=item_name(token, shown.item),
            turns=[(message.role, _SPEAKERS[message.role], message.content) for message in prompt.messages],
            responses=both if shown.first == "a" else both[::-1],
            labels=_LABELS[config.scale],
            chosen=order.index(shown.answer) + 1 if shown.answer in order else shown.answer,
            comment=shown.comment,
            max_comment=COMMENT_LENGTH,
            guidelines=self._guidelines.about(prompt.topic),
            csrf=csrf_token(token),
            key=Showing(shown.item, shown.first, now).key(token),
            undo_key=Showing(0, "a", now).key(token),
        )

    def _error(
        self, status: int, sentence: str, *, headers: dict[str, str] | None = None, again: bool = False
    ) -> Response:
        title = "Welcome" if again else _TITLES.get(status, "This does not work")
        return self._page(
            "error.html", status, headers, title=title, sentence=sentence, again=again, known=status != 401
        )

    def _page(
        self, template: str, status: int = 200, headers: dict[str, str] | None = None, **values: object
    ) -> Response:
        return HTMLResponse(self._templates.get_template(template).render(values), status, headers)


def _trouble(request: Request) -> str:
    saved = "This was not saved." if request.method == "POST" else "All that you have answered is saved."
    return f"{saved} Go back and try again in a moment, or tell the person who sent you the link."


def _static(name: str, kind: str) -> Callable[[Request], Any]:
    content = (files("cai.human") / "static" / name).read_bytes()

    async def serve(_: Request) -> Response:
        return Response(content, media_type=kind)

    return serve
