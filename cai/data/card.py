"""The data set card of a run: README.md, whose YAML header makes `datasets.load_dataset` find the files."""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence

import yaml

from cai.data.tables import TABLES, Table
from cai.records import Record, Sampling
from cai.visible import visible

_TAGS = ("constitutional-ai", "rlaif", "critique-revision", "synthetic", "not-for-all-audiences")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#|~!$])")

_WARNINGS = """\
- **No judge has labelled these data.** The `pairs` table and the preference splits of `llm_swarm` put the last revision
  above the draft because a revision is meant to be the better text. Whether it is was not measured. Do not report
  these pairs as AI feedback or as human feedback.
- **The text may be offensive or harmful.** Many prompts ask for harmful things. Drafts, critiques and also revisions
  were written by a language model and may comply, be wrong, or be nonsense.
- Revisions are not filtered by quality. `finish_reason` is `length` where a reply was cut at the token limit.
"""

_LICENSE = """\
No licence is granted here. The terms of the prompts and of the model that wrote the replies apply; check both before
you share or train on the data.
"""


class CardFacts(Record):
    """What the card says of the run beside the counts of the export."""

    title: str
    command: str
    """The command line that made the run."""
    cai_version: str
    created: str
    """Date or time in ISO format."""
    model: str
    engine: str
    sampling: Sampling
    constitution: str
    """Name of the constitution."""
    constitution_version: str
    constitution_description: str
    constitution_sha256: str
    templates_sha256: str
    rounds: int
    """Rounds asked for; a chain has fewer where it stopped because a critique found nothing."""
    critiques: bool
    """False when the revisions were asked for without a critique."""
    prompt_sources: tuple[str, ...]
    """Files or data sets that the prompts were read from."""
    failures: Mapping[str, int]
    """Number of prompts that failed, by reason; they are in no table."""
    rejects: int
    """Input rows that could not be read as prompts."""


class SplitFile(Record):
    """A written file: one split of one table."""

    table: str
    split: str
    path: str
    """Relative to the run directory, with forward slashes."""
    rows: int


class ExportCounts(Record):
    """What an export wrote and what it left out."""

    chains: int
    """Chains read."""
    helpful: int
    """Those of `chains` that answer a helpful prompt; they are not revised."""
    unrevised: int
    """Chains of red-team prompts without a revision, since the first critique found nothing to change."""
    identical_pairs: int
    """Revised chains whose last revision equals the draft; no pair is made of them."""
    empty_pairs: int
    """Revised chains whose draft or last revision has no text; no pair is made of them."""
    empty_replies: int
    """Revisions and helpful answers without text; they are left out of `sft`."""
    cut_replies: int
    """Rows of `sft` whose reply was cut at the token limit."""
    principles: Mapping[str, int]
    """Number of rounds in which each principle was drawn."""
    files: tuple[SplitFile, ...]
    """A split without rows has no file: `datasets` cannot load one."""

    def rows(self, table: str, split: str | None = None) -> int:
        """Rows of one split of a table, or of the whole table."""
        return sum(file.rows for file in self.files if file.table == table and split in (None, file.split))


def render_card(facts: CardFacts, counts: ExportCounts, *, test_share: float, seed: int) -> str:
    """Write the card. All figures come from `counts` and `facts`; text from outside is escaped."""
    parts = [
        f"---\n{_header(facts, counts)}---\n",
        f"# {escaped(facts.title)}\n",
        "Replies of a language model that were criticised and revised by a file of principles (Constitutional AI, Bai "
        "et al. 2022, arXiv 2212.08073, section 3), made with `cai critique-revise`.\n",
        "## Read this first\n",
        _WARNINGS,
        "## How it was made\n",
        _fenced(facts.command),
        _provenance(facts, seed),
        "## Counts\n",
        _counts(facts, counts),
        "## Principles\n",
        _principles(counts),
        "## Tables\n",
        _tables(counts, test_share),
        *(_columns(table) for table in TABLES),
        "## Licence\n",
        _LICENSE,
    ]
    return "\n".join(parts)


def _header(facts: CardFacts, counts: ExportCounts) -> str:
    configs: list[dict[str, object]] = []
    for table in TABLES:
        files = [{"split": file.split, "path": file.path} for file in counts.files if file.table == table.name]
        if files:
            default = {} if configs else {"default": True}
            configs.append({"config_name": table.name, **default, "data_files": files})
    rows = counts.rows("sft")
    header = {
        "pretty_name": _one_line(facts.title),
        "license": "other",
        "license_name": "terms-of-prompts-and-model",
        "task_categories": ["text-generation"],
        "tags": list(_TAGS),
        "size_categories": [next((name for limit, name in _SIZES if rows < limit), "n>1M")],
        "configs": configs,
    }
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=10_000)


def _provenance(facts: CardFacts, seed: int) -> str:
    sampling = facts.sampling
    stop = "".join(f", stop at {text!r}" for text in sampling.stop)
    rows = {
        "model": facts.model,
        "engine": facts.engine,
        "sampling": f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}, "
        f"at most {sampling.max_tokens} tokens{stop}",
        "seed": str(seed),
        "rounds": f"{facts.rounds}{'' if facts.critiques else ', without critiques'}",
        "constitution": f"{facts.constitution}, version {facts.constitution_version}",
        "description": facts.constitution_description,
        "sha256 of the constitution": facts.constitution_sha256,
        "sha256 of the templates": facts.templates_sha256,
        "prompts": ", ".join(facts.prompt_sources),
        "made": f"{facts.created}, cai {facts.cai_version}",
    }
    text = _table(("", ""), ((name, escaped(value)) for name, value in rows.items()))
    return f"{text}\n`constitution.yaml` and `manifest.json` beside this file hold the texts and the configuration.\n"


def _counts(facts: CardFacts, counts: ExportCounts) -> str:
    rows = {
        "chains exported": counts.chains,
        "of them answers to helpful prompts, which are not revised": counts.helpful,
        "of them left as drafted, since the critique found nothing to change": counts.unrevised,
        "revised chains without a pair: last revision equal to the draft": counts.identical_pairs,
        "revised chains without a pair: draft or last revision without text": counts.empty_pairs,
        "revisions and helpful answers without text, left out of `sft`": counts.empty_replies,
        "rows of `sft` cut at the token limit": counts.cut_replies,
        "input rows rejected before the run": facts.rejects,
        "prompts that failed": sum(facts.failures.values()),
    }
    failures = ((f"failed: {escaped(reason)}", number) for reason, number in _most_first(facts.failures))
    return _table(("", "number"), (*rows.items(), *failures))


def _principles(counts: ExportCounts) -> str:
    if not counts.principles:
        return "No chain has a round.\n"
    rows = ((escaped(name), number) for name, number in _most_first(counts.principles))
    return _table(("principle", "rounds it was drawn for"), rows)


def _tables(counts: ExportCounts, test_share: float) -> str:
    rows = [(table.name, split, counts.rows(table.name, split)) for table in TABLES for split in table.splits]
    text = [
        _table(("table", "split", "rows"), rows),
        f"Each prompt falls on the test side with probability {test_share:g}, by a hash of its text and the seed; no "
        "conversation stands on both sides. `llm_swarm` divides each side's prompts further into `sft` and `prefs`.\n",
    ]
    if empty := [f"`{table}` {split}" for table, split, number in rows if not number]:
        text.append(f"These have no rows, so they have no file and cannot be loaded: {', '.join(empty)}.\n")
    if calls := [f'load_dataset(folder, "{table.name}")' for table in TABLES if counts.rows(table.name)]:
        text += ["```python", "from datasets import load_dataset", "", *calls, "```", ""]
    return "\n".join(text)


def _columns(table: Table) -> str:
    meaning = inspect.cleandoc(table.row.__doc__ or "")
    rows = ((f"`{name}`", field.description) for name, field in table.row.model_fields.items())
    return f"### {table.name}\n\n{meaning}\n\n{_table(('column', 'meaning'), rows)}"


def _most_first(numbers: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(numbers.items(), key=lambda item: (-item[1], item[0]))


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the cells are Markdown already."""
    lines = (head, ["---"] * len(head), *rows)
    cells = ([f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def escaped(text: str) -> str:
    """Text from outside as Markdown that shows it literally, on one line."""
    html = _one_line(text).replace("&", "&amp;").replace("<", "&lt;")
    return _SPECIAL.sub(r"\\\1", html)


def _fenced(text: str) -> str:
    """Text from outside as a code block whose fence it cannot close."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}sh\n{_one_line(text)}\n{fence}\n"


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))
