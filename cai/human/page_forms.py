"""What the forms of the rating page carry, and how it is read back. The server keeps none of it.

Secrets are derived from the rater's own token, so that a page which was open while the server was started anew still
works.
"""

import hmac
import math
import re
import secrets
from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from cai.human.records import ANSWERS, Answer, Scale
from cai.human.store import COMMENT_LENGTH
from cai.records import Side

MAX_BODY = 64 * 1024
"""Bytes that a form may have."""
_HIDDEN = re.compile(r"[0-9a-f]{1,16}")
_FIELDS = 8
"""More fields than any form of the page has."""
_FORM_TYPE = "application/x-www-form-urlencoded"
_LONGEST = 24 * 3600.0
"""Seconds; whoever had an item before them for longer was not reading."""


def csrf_token(token: str) -> str:
    """What each form of the rater with this token carries, and no other site can know."""
    return _mac(token, "csrf")


@dataclass(frozen=True)
class Showing:
    """One rendering of an item: which response stood first, and when."""

    item: int
    first: Side
    at: float
    """Seconds since 1970."""

    def key(self, token: str) -> str:
        """A new key for a form, which only this server can read: neither order nor number of an item say anything."""
        stamp, nonce = f"{self.at:.3f}", secrets.token_urlsafe(9)
        hidden = self.item ^ _mask(token, stamp, nonce)
        return f"{stamp}~{nonce}~{hidden:x}~{_mac(token, 'showing', stamp, nonce, self.item, self.first)}"

    @classmethod
    def of(cls, key: str, token: str) -> Self | None:
        """Read a key; None where it was not made for the rater with this token."""
        stamp, nonce, hidden, mac, *_ = [*key.split("~"), "", "", ""]
        if not _HIDDEN.fullmatch(hidden):
            return None
        item = int(hidden, 16) ^ _mask(token, stamp, nonce)
        sides: tuple[Side, Side] = ("a", "b")
        for side in sides:
            if _same(mac, _mac(token, "showing", stamp, nonce, item, side)):
                return cls(item=item, first=side, at=float(stamp))
        return None


def item_name(token: str, item: int) -> str:
    """A name for an item, by which the rater's browser knows it again, and nobody else."""
    return _mac(token, "item", item)[:16]


def answer_from(value: str, first: Side, scale: Scale) -> Answer | None:
    """The answer behind a button: `1`, `2` … from the first response to the second, `both_bad` or `skipped`."""
    buttons: dict[str, Answer] = {"both_bad": "both_bad", "skipped": "skipped"}
    buttons |= {str(number): answer for number, answer in enumerate(in_order(first, scale), start=1)}
    return buttons.get(value)


def in_order(first: Side, scale: Scale) -> tuple[Answer, ...]:
    """The answers of a scale as they stand on the page, from the first response to the second."""
    return ANSWERS[scale] if first == "a" else tuple(reversed(ANSWERS[scale]))


def seconds_from(value: str, showing: Showing, now: float) -> float:
    """The time that the page measured; without JavaScript, the time since it was sent."""
    try:
        seconds = float(value) if value else now - showing.at
    except ValueError:
        raise HTTPException(400, "The form is not one of this page.") from None
    if math.isnan(seconds):
        raise HTTPException(400, "The form is not one of this page.")
    return min(max(seconds, 0.0), _LONGEST)


def comment_from(value: str) -> str:
    """A comment with line feeds for line breaks.

    Raises:
        HTTPException: it is too long, or holds a NUL, which files of data cannot all hold.
    """
    text = value.replace("\r\n", "\n").strip()
    if len(text) > COMMENT_LENGTH:
        raise HTTPException(400, f"The comment is longer than {COMMENT_LENGTH:,} characters; shorten it.")
    if "\0" in text:
        raise HTTPException(400, "The comment holds a character (NUL) that cannot be kept; remove it.")
    return text


class Form:
    """The fields of a posted form."""

    def __init__(self, fields: dict[str, str]) -> None:
        self._fields = fields

    def __getitem__(self, name: str) -> str:
        """A field that the form must have."""
        try:
            return self._fields[name]
        except KeyError:
            raise HTTPException(400, "The form is not one of this page.") from None

    def get(self, name: str) -> str:
        """A field that may be missing."""
        return self._fields.get(name, "")

    def check_csrf(self, token: str) -> None:
        """Make sure that the form is one that this rater was sent.

        Raises:
            HTTPException: it is not.
        """
        if not _same(self.get("csrf"), csrf_token(token)):
            raise HTTPException(403, "The form did not come from your rating page.")


async def read_form(request: Request) -> Form:
    """Read a posted form.

    Raises:
        HTTPException: it is of another type, too large, or broken.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM_TYPE:
        raise HTTPException(415, "Only forms of this page are taken.")
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or int(length) > MAX_BODY:
        raise HTTPException(413, "The form is too large.", headers={"Connection": "close"})
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise HTTPException(413, "The form is too large.", headers={"Connection": "close"})
    except ClientDisconnect:
        raise HTTPException(400, "The form was not received whole.") from None
    try:
        pairs = parse_qsl(body.decode("ascii"), True, True, errors="strict", max_num_fields=_FIELDS)
    except ValueError:
        raise HTTPException(400, "The form is not one of this page.") from None
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise HTTPException(400, "The form is not one of this page.")
    return Form(fields)


def _mask(token: str, stamp: str, nonce: str) -> int:
    return int(_mac(token, "mask", stamp, nonce)[:16], 16)


def _mac(token: str, *parts: str | int) -> str:
    return hmac.digest(token.encode(), "\x1f".join(map(str, parts)).encode(), "sha256").hex()


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
