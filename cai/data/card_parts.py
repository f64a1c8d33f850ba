"""What the cards of all data sets are made of: what they say of any run, their sections, safe Markdown."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Self

import yaml

from cai.constitution import Constitution
from cai.data.dataset import DatasetCounts, Table
from cai.records import Record
from cai.visible import visible

CONSTITUTION_BESIDE = "`constitution.yaml` and `manifest.json` beside this file hold the texts and the configuration."
"""The last sentence of how data were made by a constitution, for `how_made`."""
_LICENSE = """\
No licence is granted here. The terms of the prompts and of the model that wrote the replies apply; check both before
you share or train on the data.
"""

_TAGS = ("constitutional-ai", "not-for-all-audiences")
_FROM_MODELS = ("rlaif", "synthetic")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#|~!$])")


class RunFacts(Record):
    """What every card says of the run that made the data."""

    title: str
    command: str
    """The command line that made the run."""
    cai_version: str
    created: str
    """Date or time in ISO format."""
    failures: Mapping[str, int]
    """Number of items that failed, by reason; they are in no table."""
    rejects: Mapping[str, int]
    """Number of input rows that could not be used, by reason."""


class ConstitutionFacts(Record):
    """What a card says of the principles and the wording that made the data."""

    name: str
    version: str
    description: str
    sha256: str
    templates_sha256: str

    @classmethod
    def of(cls, constitution: Constitution, templates_sha256: str) -> Self:
        """Describe a constitution and the templates it was used with."""
        return cls(
            name=constitution.name,
            version=constitution.version,
            description=constitution.description,
            sha256=constitution.sha256,
            templates_sha256=templates_sha256,
        )

    @property
    def rows(self) -> dict[str, str]:
        """For `how_made`."""
        return {
            "constitution": f"{self.name}, version {self.version}",
            "description": self.description,
            "sha256 of the constitution": self.sha256,
            "sha256 of the templates": self.templates_sha256,
        }


def card_text(
    run: RunFacts,
    tables: Sequence[Table],
    counts: DatasetCounts,
    *,
    tags: Sequence[str],
    about: str,
    sections: Mapping[str, str],
    by_models: bool = True,
) -> str:
    """The whole card: header, title, `about` (a line of Markdown), `sections` by their headings, and the licence.

    `by_models`: whether models gave the feedback, which the tags then say.
    """
    tags = (*(_FROM_MODELS if by_models else ()), *tags)
    parts = [header(run.title, tables, counts, tags), f"# {escaped(run.title)}\n", f"{about}\n"]
    for heading, text in {**sections, "Licence": _LICENSE}.items():
        parts += [f"## {heading}\n", text]
    return "\n".join(parts)


def how_made(run: RunFacts, rows: Mapping[str, str], beside: str) -> str:
    """The command line, `rows` and what is known of any run, and `beside`, the sentence on the files beside the card.

    Names of `rows` are Markdown already; values are escaped.
    """
    made = {**rows, "made": f"{run.created}, cai {run.cai_version}"}
    table = markdown_table(("", ""), ((name, escaped(value)) for name, value in made.items()))
    return f"{_fenced(run.command)}\n{table}\n{beside}\n"


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
        "pretty_name": _one_line(title),
        "license": "other",
        "license_name": "terms-of-prompts-and-model",
        "task_categories": ["text-generation"],
        "tags": [*_TAGS, *tags],
        "size_categories": [next((name for limit, name in _SIZES if rows < limit), "n>1M")],
        "configs": configs,
    }
    return f"---\n{yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=10_000)}---\n"


def table_list(tables: Sequence[Table], counts: DatasetCounts, note: str) -> str:
    """Rows of all splits, `note` (a paragraph of Markdown), splits without rows, how to load the others, columns."""
    rows = [(table.name, split, counts.rows(table.name, split)) for table in tables for split in table.splits]
    text = [markdown_table(("table", "split", "rows"), rows), f"{note}\n"]
    if empty := [f"`{table}` {split}" for table, split, number in rows if not number]:
        text.append(f"These have no rows, so they have no file and cannot be loaded: {', '.join(empty)}.\n")
    if calls := [f'load_dataset(folder, "{table.name}")' for table in tables if counts.rows(table.name)]:
        text += ["```python", "from datasets import load_dataset", "", *calls, "```", ""]
    return "\n".join([*text, *map(_column_list, tables)])


def _column_list(table: Table) -> str:
    """What a row of the table is and what its columns mean, from the docstrings of its row class."""
    meaning = inspect.cleandoc(table.row.__doc__ or "")
    rows = ((f"`{name}`", field.description) for name, field in table.row.model_fields.items())
    return f"### {table.name}\n\n{meaning}\n\n{markdown_table(('column', 'meaning'), rows)}"


def principle_table(principles: Mapping[str, int], what: str, none: str) -> str:
    """Numbers by principle, `what` they are, and what to say where there are none."""
    rows = ((escaped(name), number) for name, number in most_first(principles))
    return markdown_table(("principle", what), rows) if principles else f"{none}\n"


def by_reason(what: str, numbers: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Rows of a table: `what: reason` and the number."""
    return ((f"{what}: {escaped(reason)}", number) for reason, number in most_first(numbers))


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
    html = _one_line(text).replace("&", "&amp;").replace("<", "&lt;")
    return _SPECIAL.sub(r"\\\1", html)


def _fenced(text: str) -> str:
    """A command line as a code block whose fence it cannot close."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}sh\n{_one_line(text)}\n{fence}\n"


def _one_line(text: str) -> str:
    """Text from outside with all white space as single spaces and control characters made visible."""
    return visible(" ".join(text.split()))
