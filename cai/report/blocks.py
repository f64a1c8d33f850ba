"""What a report is made of, before it is a page. Nothing in a block is escaped yet: all text is text from outside."""

from dataclasses import dataclass
from typing import Literal

from cai.compare.report import Paragraph, TableBlock
from cai.worddiff import DiffPiece

__all__ = [
    "Block",
    "Chapter",
    "Folded",
    "Histogram",
    "Level",
    "Note",
    "Paragraph",
    "Part",
    "Passage",
    "Picture",
    "TableBlock",
    "Texts",
    "Transcript",
    "Transcripts",
]


Level = Literal["good", "doubt", "bad"]


@dataclass(frozen=True)
class Picture:
    """A plot. It stands in the page as an image, so that nothing in the file can act."""

    svg: bytes
    caption: str


@dataclass(frozen=True)
class Note:
    """A sentence that must not be overlooked."""

    level: Level
    text: str


@dataclass(frozen=True)
class Histogram:
    """Counts by class."""

    head: str
    """What the classes are of."""
    bars: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Texts:
    """Texts under their names, line breaks kept."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Passage:
    """One turn or reply of a transcript."""

    name: str
    pieces: tuple[DiffPiece, ...]
    """Without changes, a single `same` piece."""
    remark: str = ""
    """What else is to be known of it: cut at the token limit, shortened for the page."""


@dataclass(frozen=True)
class Transcript:
    """A record of a run for people to read."""

    run: str
    id: str
    topic: str | None
    principles: tuple[str, ...]
    """Ids of all that were drawn for it."""
    facts: str
    """What became of it, in one line."""
    passages: tuple[Passage, ...]


@dataclass(frozen=True)
class Transcripts:
    """Transcripts that a reader can filter."""

    shown: tuple[Transcript, ...]


@dataclass(frozen=True)
class Folded:
    """Blocks that are shown on demand, and in print."""

    title: str
    blocks: "tuple[Block, ...]"


@dataclass(frozen=True)
class Part:
    """Blocks under a heading of their own."""

    title: str
    blocks: "tuple[Block, ...]"


Block = Paragraph | TableBlock | Picture | Note | Histogram | Texts | Transcripts | Folded | Part


@dataclass(frozen=True)
class Chapter:
    """An entry of the table of contents."""

    id: str
    """Fragment of its address within the page."""
    title: str
    blocks: tuple[Block, ...]
