"""Chains as people read them: the conversation, then each round's principle, critique, and what the revision changed.

Everything that a model or a data set wrote is data: it is never read as markup, and characters that could drive a
terminal are shown as symbols.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from cai.records import RevisionChain, RevisionRound, Step
from cai.visible import visible
from cai.worddiff import DiffPiece, PieceKind, word_diff

SIDE_BY_SIDE = 100
"""Columns from which draft and revision stand side by side; below, one above the other."""

_STYLES: Mapping[PieceKind, str] = {"same": "", "removed": "red strike", "added": "green"}
_MARKS: Mapping[PieceKind, tuple[str, str]] = {"same": ("", ""), "removed": ("[-", "-]"), "added": ("{+", "+}")}
_ROLES = {"system": "System", "user": "Human", "assistant": "Assistant"}


def format_chain(chain: RevisionChain, requests: Mapping[str, tuple[str, str]], width: int) -> RenderableType:
    """Lay out a chain for a Rich console of `width` columns.

    `requests` is what `Templates.requests` returns. Where the console has no colours, removed words stand in [-…-] and
    added ones in {+…+}.
    """
    about = [chain.id, chain.prompt.kind.replace("_", "-"), chain.prompt.topic, chain.model]
    parts: list[RenderableType] = [_heading(" · ".join(part for part in about if part), "═")]
    for message in chain.prompt.messages:
        parts += _block(_ROLES[message.role], Text(visible(message.content)))
    if not chain.rounds:
        parts += _Reply.of("Assistant", chain.draft).lines()
    before = _Reply.of("Draft", chain.draft)
    for number, round_ in enumerate(chain.rounds, 1):
        parts += _round_head(number, round_, requests)
        if round_.revision is None:
            if number == 1:
                parts += before.lines()
            parts += _block("No revision", Text("The critique found nothing to change.", style="dim"))
            continue
        after = _Reply.of(f"Revision {number}", round_.revision)
        parts += _change(before, after, width)
        before = replace(after, removed=Text())  # said once
    return Group(*parts)


def _heading(text: str, line: str) -> Rule:
    return Rule(Text(visible(text), style="bold"), align="left", characters=line, style="dim")


def _round_head(
    number: int, round_: RevisionRound, requests: Mapping[str, tuple[str, str]]
) -> Iterator[RenderableType]:
    """The principle of a round, what it asks for, and the critique."""
    yield _heading(f"Round {number} · {round_.principle_id}", "─")
    unknown = "(the constitution has no such principle)"
    critique_request, revision_request = requests.get(round_.principle_id, (unknown, unknown))
    if round_.critique is None:
        yield from _block("Revision request", Text(visible(revision_request), style="italic"))
    else:
        yield from _block("Critique request", Text(visible(critique_request), style="italic"))
        yield from _Reply.of("Critique", round_.critique).lines()


def _change(before: "_Reply", after: "_Reply", width: int) -> Iterator[RenderableType]:
    """A reply and its revision, with the words that differ marked in each."""
    pieces = word_diff(before.step.text, after.step.text)
    before = replace(before, text=_Marked([piece for piece in pieces if piece.kind != "added"]))
    after = replace(after, text=_Marked([piece for piece in pieces if piece.kind != "removed"]))
    if width < SIDE_BY_SIDE:
        yield from (*before.lines(), *after.lines())
    else:
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(ratio=1, overflow="fold")
        table.add_column(ratio=1, overflow="fold")
        table.add_row(before.head, after.head)
        if before.removed or after.removed:
            table.add_row(before.removed, after.removed)
        table.add_row(before.text, after.text)
        yield from (table, Text())
    yield from _note(pieces)


def _note(pieces: Sequence[DiffPiece]) -> list[RenderableType]:
    """A line where the marks alone would not say what happened."""
    kinds = {piece.kind for piece in pieces}
    if kinds <= {"same"}:
        return [Text("The revision changed nothing.", style="dim"), Text()]
    if "same" not in kinds:
        return [Text("The revision is new text throughout.", style="dim"), Text()]
    return []


def _block(name: str, text: Text) -> Iterator[RenderableType]:
    yield Text(name, style="bold")
    yield text
    yield Text()


@dataclass(frozen=True)
class _Reply:
    """A model's reply: what was cut off it (dim), its text, and whether it reached the token limit."""

    name: str
    step: Step
    text: RenderableType
    removed: Text

    @classmethod
    def of(cls, name: str, step: Step) -> "_Reply":
        removed = f"(removed: {visible(step.removed.strip())})" if step.removed else ""
        return cls(name, step, Text(visible(step.text)), Text(removed, style="dim"))

    @property
    def head(self) -> Text:
        head = Text(self.name, style="bold")
        if self.step.finish_reason == "length":
            head.append(" (cut at max tokens)", style="yellow not bold")
        return head

    def lines(self) -> Iterator[RenderableType]:
        yield self.head
        if self.removed:
            yield self.removed
        yield self.text
        yield Text()


@dataclass(frozen=True)
class _Marked:
    """Pieces of a difference: coloured, or between marks where the console has no colours."""

    pieces: Sequence[DiffPiece]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        plain = console.color_system is None
        marked = plain and any(piece.kind == "same" for piece in self.pieces)
        text = Text()
        for piece in self.pieces:
            opening, closing = _MARKS[piece.kind] if marked else ("", "")
            text.append(f"{opening}{visible(piece.text)}{closing}", style="" if plain else _STYLES[piece.kind])
        yield text
