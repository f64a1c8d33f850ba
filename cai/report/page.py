"""Chapters as one HTML file that needs nothing else: styles and script stand in it, plots are images in it.

All text of the runs is taken as text from outside: it is escaped, and what would not be seen or would turn the text
around is shown as a symbol. Should something slip through all the same, the page's policy lets nothing run or load but
its own style and script, which it knows by their hashes.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cai.compare.page import sentences
from cai.report.blocks import Block, Chapter, Histogram, Picture, Transcripts
from cai.visible import visible

_HERE = Path(__file__).parent


def render(title: str, chapters: Sequence[Chapter]) -> str:
    """The page."""
    style, script = (_static(name) for name in ("report.css", "report.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters.update(kind=_kind, sentences=_sentences, data=_data, widest=_widest, choices=_choices)
    return environment.get_template("page.html.j2").render(
        title=title, chapters=chapters, policy=policy, style=Markup(style), script=Markup(script)
    )


def _static(name: str) -> str:
    return (_HERE / "static" / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """How the policy names a style or script that stands in the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _shown(value: object) -> object:
    """What is put in place of an expression: text with its unseen characters made visible; markup is the page's own."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _kind(block: Block) -> str:
    return type(block).__name__


def _sentences(text: str) -> Markup:
    return Markup(sentences(text))


def _data(picture: Picture) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(picture.svg).decode()}"


def _widest(histogram: Histogram) -> int:
    """The largest count, which the longest bar stands for."""
    return max((count for _, count in histogram.bars), default=0) or 1


def _choices(block: Transcripts, name: str) -> list[str]:
    """All values by which transcripts can be chosen: their `run`, `topic` or `principles`."""
    found: set[str] = set()
    for one in block.shown:
        value = getattr(one, name)
        found.update(value if isinstance(value, tuple) else [value] if value is not None else [])
    return sorted(found)
