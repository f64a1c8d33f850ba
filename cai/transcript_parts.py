"""What all transcripts are made of: headings, conversations, replies.

Everything that a model or a data set wrote is data: it is never read as markup, and characters that could drive a
terminal are shown as symbols.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from cai.records import Message, Step
from cai.visible import visible

SIDE_BY_SIDE = 100
"""Columns from which two replies stand side by side; below, one above the other."""

_ROLES = {"system": "System", "user": "Human", "assistant": "Assistant"}


@dataclass(frozen=True)
class Reply:
    """A reply under its name: what was cut off it (dim), its text, and whether it reached the token limit."""

    name: str
    written: str
    shown: RenderableType
    """`written` as it is laid out."""
    removed: Text = field(default_factory=Text)
    cut: bool = False

    @classmethod
    def of(cls, name: str, step: Step) -> "Reply":
        """What a model wrote in one call."""
        removed = f"(removed: {visible(step.removed.strip())})" if step.removed else ""
        return cls(name, step.text, _laid_out(step.text), Text(removed, style="dim"), step.finish_reason == "length")

    @classmethod
    def plain(cls, name: str, text: str) -> "Reply":
        """A text of which nothing else is known."""
        return cls(name, text, _laid_out(text))

    @property
    def head(self) -> Text:
        """The name, with a note where the reply was cut."""
        head = Text(visible(self.name), style="bold")
        if self.cut:
            head.append(" (cut at max tokens)", style="yellow not bold")
        return head

    def lines(self) -> Iterator[RenderableType]:
        """The reply by itself, with an empty line after it."""
        yield self.head
        if self.removed:
            yield self.removed
        yield self.shown
        yield Text()


def title(*about: str | None) -> Rule:
    """The first line of a transcript; what is None or empty is left out."""
    return heading(" · ".join(part for part in about if part), "═")


def heading(text: str, line: str) -> Rule:
    """A line of the character `line` that begins with `text`."""
    return Rule(Text(visible(text), style="bold"), align="left", characters=line, style="dim")


def block(name: str, text: Text) -> Iterator[RenderableType]:
    """A text under its name, with an empty line after it."""
    yield Text(name, style="bold")
    yield text
    yield Text()


def conversation(messages: Sequence[Message]) -> Iterator[RenderableType]:
    """The turns of a conversation."""
    for message in messages:
        yield from block(_ROLES[message.role], Text(visible(message.content)))


def pair(left: Reply, right: Reply, width: int) -> Iterator[RenderableType]:
    """Two replies, side by side where the console's `width` columns have room for it."""
    if width < SIDE_BY_SIDE:
        yield from (*left.lines(), *right.lines())
        return
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(ratio=1, overflow="fold")
    table.add_column(ratio=1, overflow="fold")
    table.add_row(left.head, right.head)
    if left.removed or right.removed:
        table.add_row(left.removed, right.removed)
    table.add_row(left.shown, right.shown)
    yield from (table, Text())


def _laid_out(text: str) -> Text:
    return Text(visible(text)) if text.strip() else Text("(no text)", style="dim")
