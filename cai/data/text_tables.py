"""Tables of plain text under titles, for a screen and in Markdown."""

from collections.abc import Iterable
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from cai.data.card_parts import escaped, markdown_table
from cai.visible import visible


class TitledTable(NamedTuple):
    """A table of a report; all cells are plain text."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def markdown(self) -> str:
        """The table under its title."""
        rows = [tuple(map(escaped, row)) for row in self.rows]
        return f"## {escaped(self.title)}\n\n{markdown_table(self.head, rows)}"


def on_screen(tables: Iterable[TitledTable], sentences: Iterable[str]) -> Table:
    """The tables one below the other, and the sentences after them."""
    page = Table.grid()
    for one in tables:
        table = Table(box=None, pad_edge=False, title=Text(visible(one.title), style="bold"), title_justify="left")
        for place, name in enumerate(one.head):
            table.add_column(name, overflow="fold", justify="left" if place == 0 else "right")
        for row in one.rows:
            table.add_row(*(Text(visible(cell)) for cell in row))
        page.add_row(table)
        page.add_row("")
    for sentence in sentences:
        page.add_row(Text(visible(sentence)))
    return page


def bullets(sentences: Iterable[str]) -> str:
    """The sentences as a list in Markdown; empty where there are none."""
    return "".join(f"- {escaped(sentence)}\n" for sentence in sentences)
