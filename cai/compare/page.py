"""Sections as one HTML page that needs no network, and as Markdown. All text is taken as text from outside."""

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape

from cai.compare.report import Block, FigureBlock, Paragraph, Section, TableBlock
from cai.data.card_parts import escaped, markdown_table
from cai.visible import visible

_STYLE = """\
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a202c; background: #fff; max-width: 60rem; margin: 0 auto;
  padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid #cbd5e0; }
p, td, figcaption { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
.wide:focus-visible { outline: 2px solid #2b6cb0; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.8rem 0.3rem 0; border-bottom: 1px solid #e2e8f0;
  min-width: 4.5rem; }
tbody th { font-weight: normal; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; }
figcaption { font-size: 0.9rem; color: #4a5568; }
code { font-size: 0.9em; }
@media print {
  body { font-size: 10pt; max-width: none; padding: 0; }
  h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  .wide { overflow: visible; }
}
"""
_CODE = re.compile("`([^`\n]+)`")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render_html(sections: Sequence[Section], figures: Mapping[str, bytes]) -> str:
    """The page; `figures` are the SVGs by their names."""
    first, *others = sections
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>{_html(first.title)}</title>",
        f"<style>\n{_STYLE}</style>",
        "</head>",
        "<body>",
        "<main>",
        f"<h1>{_html(first.title)}</h1>",
        *(_html_block(block, first.title, figures) for block in first.blocks),
    ]
    for section in others:
        parts.append(f"<h2>{_html(section.title)}</h2>")
        parts += [_html_block(block, section.title, figures) for block in section.blocks]
    return "\n".join([*parts, "</main>", "</body>", "</html>", ""])


def render_markdown(sections: Sequence[Section]) -> str:
    """The same in Markdown, for a terminal or a repository; figures are files beside it."""
    parts = []
    for place, section in enumerate(sections):
        parts.append(f"{'##' if place else '#'} {escaped(section.title)}\n")
        parts += map(_markdown_block, section.blocks)
    return "\n".join(parts)


def _html_block(block: Block, title: str, figures: Mapping[str, bytes]) -> str:
    if isinstance(block, Paragraph):
        return f"<p>{sentences(block.text)}</p>"
    if isinstance(block, FigureBlock):
        data = base64.b64encode(figures[block.name]).decode()
        image = f'<img src="data:image/svg+xml;base64,{data}" alt="{_html(block.caption)}">'
        return f"<figure>{image}<figcaption>{_html(block.caption)}</figcaption></figure>"
    return _html_table(block, title)


def _html_table(table: TableBlock, title: str) -> str:
    """A table that scrolls by itself on a narrow screen, with the keyboard too."""
    head = "".join(f'<th scope="col">{_html(cell)}</th>' for cell in table.head)
    rows = [
        f'<tr><th scope="row">{_html(first)}</th>{"".join(f"<td>{_html(cell)}</td>" for cell in cells)}</tr>'
        for first, *cells in table.rows
    ]
    body = "\n".join(rows)
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{_html(title)}">\n'
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>\n</div>"
    )


def _markdown_block(block: Block) -> str:
    if isinstance(block, Paragraph):
        return f"{escaped(block.text)}\n"
    if isinstance(block, FigureBlock):
        return f"![{escaped(block.caption)}]({block.name})\n"
    return markdown_table(list(map(escaped, block.head)), [list(map(escaped, row)) for row in block.rows])


def sentences(text: str) -> str:
    """Our sentences as HTML, in which what stands in backticks is code; all that is in them is text from outside."""
    return _CODE.sub(r"<code>\1</code>", _html(text))


def _html(text: str) -> str:
    return escape(visible(text), quote=True)
