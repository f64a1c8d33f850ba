"""What holds for every request to the rating page, before any of its routes is reached."""

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    # Not `no-referrer`: under that policy browsers send `Origin: null` with the page's own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers of every response."""


class SafeHeaders:
    """Gives every response the headers of `HEADERS`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, send_safely)


def check_host(request: Request, names: frozenset[str]) -> None:
    """Refuse requests under a name that is not this server's: another site's name may lead here (DNS rebinding).

    An address in numbers is nobody's name.

    Raises:
        HTTPException: the name is not known.
    """
    name = _name(request.headers.get("host", ""))
    if name not in names and not _is_address(name):
        raise HTTPException(400, "This server is not known by that name; --allow-host makes it so.")


def check_origin(request: Request, names: frozenset[str]) -> None:
    """Refuse forms that the browser says come from another site; one that says nothing leaves it to the CSRF token.

    Behind a proxy that changes the Host header, the page's own origin has one of `names`.

    Raises:
        HTTPException: the form comes from elsewhere.
    """
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise HTTPException(403, "The form did not come from your rating page.")
    origin = request.headers.get("origin")
    if origin is None:
        return
    place = origin.lower().partition("://")[2]
    if place != request.headers.get("host", "").lower() and _name(place) not in names:
        raise HTTPException(403, "The form did not come from your rating page.")


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
