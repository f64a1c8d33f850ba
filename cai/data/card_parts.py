"""What the cards of all data sets are made of: YAML header, list of tables, meaning of columns, safe Markdown."""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence

import yaml

from cai.data.dataset import DatasetCounts, Table
from cai.visible import visible

LICENSE = """\
No licence is granted here. The terms of the prompts and of the model that wrote the replies apply; check both before
you share or train on the data.
"""

_TAGS = ("constitutional-ai", "rlaif", "synthetic", "not-for-all-audiences")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#|~!$])")


def header(title: str, tables: Sequence[Table], counts: DatasetCounts, tags: Sequence[str]) -> str:
    """The YAML header, which leads `datasets.load_dataset` to the files. The first table with rows is the default."""
    configs: list[dict[str, object]] = []
    for table in tables:
        files = [{"split": file.split, "path": file.path} for file in counts.files if file.table == table.name]
        if files:
            default = {} if configs else {"default": True}
            configs.append({"config_name": table.name, **default, "data_files": files})
    rows = counts.rows(tables[0].name)
    found = {
        "pretty_name": one_line(title),
        "license": "other",
        "license_name": "terms-of-prompts-and-model",
        "task_categories": ["text-generation"],
        "tags": [*_TAGS, *tags],
        "size_categories": [next((name for limit, name in _SIZES if rows < limit), "n>1M")],
        "configs": configs,
    }
    return f"---\n{yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=10_000)}---\n"


def table_list(tables: Sequence[Table], counts: DatasetCounts, note: str) -> str:
    """Rows of all splits, `note` (a paragraph of Markdown), the splits without rows, and how to load the others."""
    rows = [(table.name, split, counts.rows(table.name, split)) for table in tables for split in table.splits]
    text = [markdown_table(("table", "split", "rows"), rows), f"{note}\n"]
    if empty := [f"`{table}` {split}" for table, split, number in rows if not number]:
        text.append(f"These have no rows, so they have no file and cannot be loaded: {', '.join(empty)}.\n")
    if calls := [f'load_dataset(folder, "{table.name}")' for table in tables if counts.rows(table.name)]:
        text += ["```python", "from datasets import load_dataset", "", *calls, "```", ""]
    return "\n".join(text)


def column_list(table: Table) -> str:
    """What a row of the table is and what its columns mean, from the docstrings of its row class."""
    meaning = inspect.cleandoc(table.row.__doc__ or "")
    rows = ((f"`{name}`", field.description) for name, field in table.row.model_fields.items())
    return f"### {table.name}\n\n{meaning}\n\n{markdown_table(('column', 'meaning'), rows)}"


def most_first(numbers: Mapping[str, int]) -> list[tuple[str, int]]:
    """Counts in falling order, equal ones by name."""
    return sorted(numbers.items(), key=lambda item: (-item[1], item[0]))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the cells are Markdown already."""
    lines = (head, ["---"] * len(head), *rows)
    cells = ([f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def escaped(text: str) -> str:
    """Text from outside as Markdown that shows it literally, on one line."""
    html = one_line(text).replace("&", "&amp;").replace("<", "&lt;")
    return _SPECIAL.sub(r"\\\1", html)


def fenced(text: str) -> str:
    """A command line as a code block whose fence it cannot close."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}sh\n{one_line(text)}\n{fence}\n"


def one_line(text: str) -> str:
    """Text from outside with all white space as single spaces and control characters made visible."""
    return visible(" ".join(text.split()))
