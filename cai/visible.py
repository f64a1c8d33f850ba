"""Text from models and data sets, made safe to print: what would drive the terminal is shown as a symbol instead."""

import re

_PICTURES = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "\N{SYMBOL FOR DELETE}"}
_UNSEEN = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f"  # C0 controls but tab and line feed, and DEL
    "\x80-\x9f"  # C1 controls: one character escape sequences
    "\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"  # direction overrides and other marks without a width
    "\u2028\u2029"  # line and paragraph separator
    "\ud800-\udfff"  # lone surrogates: cannot be encoded
    "\U000e0000-\U000e007f"  # tags: invisible copies of ASCII
    "]"
)


def visible(text: str) -> str:
    """Return `text` with control, direction and invisible characters shown as symbols; line feeds and tabs are kept.

    C0 controls become their control pictures (ESC is `␛`), the others `⟨U+202E⟩` and the like.
    """
    return _UNSEEN.sub(_symbol, text)


def _symbol(found: re.Match[str]) -> str:
    code = ord(found[0])
    return _PICTURES.get(code, f"⟨U+{code:04X}⟩")


def whole(text: str) -> str:
    """The text with each half of a surrogate pair, which no file could take, replaced; servers send such halves."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
