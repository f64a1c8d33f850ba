"""A report as its reader's program sees it, by the parser of the standard library."""

import base64
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from cai.report.report import write_report

_VOID = ("meta", "link", "img", "input", "br", "hr")


@dataclass
class Node:
    """An element."""

    tag: str
    attributes: dict[str, str | None]
    children: list["Node | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(one if isinstance(one, str) else one.text for one in self.children)

    @property
    def nodes(self) -> list["Node"]:
        """All elements within, in their order."""
        found: list[Node] = []
        for one in self.children:
            if isinstance(one, Node):
                found += [one, *one.nodes]
        return found

    def all(self, tag: str, **attributes: str) -> list["Node"]:
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}.items()
        return [one for one in self.nodes if one.tag == tag and wanted <= one.attributes.items()]

    def chapter(self, id: str) -> "Node":
        (found,) = self.all("section", id=id)
        return found

    @property
    def chapters(self) -> list[str | None]:
        return [one.attributes["id"] for one in self.nodes if one.tag == "section" and "id" in one.attributes]

    @property
    def tables(self) -> list[list[list[str]]]:
        """The cells of all tables, the head first."""
        return [
            [[cell.text for cell in row.nodes if cell.tag in ("th", "td")] for row in table.all("tr")]
            for table in self.all("table")
        ]

    def row(self, first: str) -> list[str]:
        """The cells of the only row that begins so."""
        (found,) = (row for table in self.tables for row in table[1:] if row[0] == first)
        return found


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Node("document", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in _VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(page: str) -> Node:
    """The page's elements; every one that was opened is closed."""
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert len(parser.open) == 1
    return parser.open[0]


def read(path: Path) -> Node:
    return parse(path.read_text(encoding="utf-8"))


def report(*runs: Path, **options: Any) -> Node:
    """The page of these runs."""
    out = runs[0].parent / "report.html"
    write_report(runs, out, **options)
    return read(out)


def notes(node: Node, level: str) -> list[str]:
    return [one.text for one in node.all("p", class_=f"note {level}")]


def pictures(node: Node) -> list[bytes]:
    sources = [one.attributes["src"] or "" for one in node.all("img")]
    assert all(one.startswith("data:image/svg+xml;base64,") for one in sources)
    return [base64.b64decode(one.partition(",")[2]) for one in sources]
