"""Chains as people read them: conversation, then each round's principle, critique, and what the revision changed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.text import Text

from cai.prompting import Requests
from cai.records import RevisionChain, RevisionRound
from cai.transcript_parts import Reply, block, conversation, heading, pair, title
from cai.visible import visible
from cai.worddiff import DiffPiece, PieceKind, word_diff

_STYLES: Mapping[PieceKind, str] = {"same": "", "removed": "red strike", "added": "green"}
_MARKS: Mapping[PieceKind, tuple[str, str]] = {"same": ("", ""), "removed": ("[-", "-]"), "added": ("{+", "+}")}


def format_chain(chain: RevisionChain, requests: Requests, width: int) -> RenderableType:
    """Lay out a chain for a Rich console of `width` columns.

    `requests` is what `Templates.requests` returns. Where the console has no colours, removed words stand in [-…-] and
    added ones in {+…+}.
    """
    parts: list[RenderableType] = [
        title(chain.id, chain.prompt.kind.replace("_", "-"), chain.prompt.topic, chain.model),
        *conversation(chain.prompt.messages),
    ]
    if not chain.rounds:
        parts += Reply.of("Assistant", chain.draft).lines()
    before = Reply.of("Draft", chain.draft)
    for number, round_ in enumerate(chain.rounds, 1):
        parts += _round_head(number, round_, requests(round_.principle_id, chain.prompt.topic, number))
        if round_.revision is None:
            if number == 1:
                parts += before.lines()
            parts += block("No revision", Text("The critique found nothing to change.", style="dim"))
            continue
        after = Reply.of(f"Revision {number}", round_.revision)
        parts += _change(before, after, width)
        before = replace(after, removed=Text())  # said once
    return Group(*parts)


def _round_head(number: int, round_: RevisionRound, asked: tuple[str, str] | None) -> Iterator[RenderableType]:
    """The principle of a round, what it asks for, and the critique."""
    yield heading(f"Round {number} · {round_.principle_id}", "─")
    unknown = "(the constitution has no such principle)"
    critique_request, revision_request = asked or (unknown, unknown)
    if round_.critique is None:
        yield from block("Revision request", Text(visible(revision_request), style="italic"))
    else:
        yield from block("Critique request", Text(visible(critique_request), style="italic"))
        yield from Reply.of("Critique", round_.critique).lines()


def _change(before: Reply, after: Reply, width: int) -> Iterator[RenderableType]:
    """A reply and its revision, with the words that differ marked in each."""
    pieces = word_diff(before.written, after.written)
    before = replace(before, shown=_Marked([piece for piece in pieces if piece.kind != "added"]))
    after = replace(after, shown=_Marked([piece for piece in pieces if piece.kind != "removed"]))
    yield from pair(before, after, width)
    yield from _note(pieces)


def _note(pieces: Sequence[DiffPiece]) -> list[RenderableType]:
    """A line where the marks alone would not say what happened."""
    kinds = {piece.kind for piece in pieces}
    if kinds <= {"same"}:
        return [Text("The revision changed nothing.", style="dim"), Text()]
    if "same" not in kinds:
        return [Text("The revision is new text throughout.", style="dim"), Text()]
    return []


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
