"""The data set card of a run: README.md, whose YAML header makes `datasets.load_dataset` find the files."""

from collections.abc import Mapping

from cai.data.card_parts import (
    LICENSE,
    column_list,
    escaped,
    fenced,
    header,
    markdown_table,
    most_first,
    table_list,
)
from cai.data.dataset import DatasetCounts
from cai.data.tables import TABLES
from cai.records import Record, Sampling

_WARNINGS = """\
- **No judge has labelled these data.** The `pairs` table and the preference splits of `llm_swarm` put the last revision
  above the draft because a revision is meant to be the better text. Whether it is was not measured. Do not report
  these pairs as AI feedback or as human feedback.
- **The text may be offensive or harmful.** Many prompts ask for harmful things. Drafts, critiques and also revisions
  were written by a language model and may comply, be wrong, or be nonsense.
- Revisions are not filtered by quality. `finish_reason` is `length` where a reply was cut at the token limit.
"""


_SPLITS = """\
Each prompt falls on the test side with probability {share:g}, by a hash of its text and the seed; no conversation \
stands on both sides. `llm_swarm` divides each side's prompts further into `sft` and `prefs`."""


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


class ExportCounts(DatasetCounts):
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


def render_card(facts: CardFacts, counts: ExportCounts, *, test_share: float, seed: int) -> str:
    """Write the card. All figures come from `counts` and `facts`; text from outside is escaped."""
    parts = [
        header(facts.title, TABLES, counts, ("critique-revision",)),
        f"# {escaped(facts.title)}\n",
        "Replies of a language model that were criticised and revised by a file of principles (Constitutional AI, Bai "
        "et al. 2022, arXiv 2212.08073, section 3), made with `cai critique-revise`.\n",
        "## Read this first\n",
        _WARNINGS,
        "## How it was made\n",
        fenced(facts.command),
        _provenance(facts, seed),
        "## Counts\n",
        _counts(facts, counts),
        "## Principles\n",
        _principles(counts),
        "## Tables\n",
        table_list(TABLES, counts, _SPLITS.format(share=test_share)),
        *map(column_list, TABLES),
        "## Licence\n",
        LICENSE,
    ]
    return "\n".join(parts)


def _provenance(facts: CardFacts, seed: int) -> str:
    rows = {
        "model": facts.model,
        "engine": facts.engine,
        "sampling": facts.sampling.in_words,
        "seed": str(seed),
        "rounds": f"{facts.rounds}{'' if facts.critiques else ', without critiques'}",
        "constitution": f"{facts.constitution}, version {facts.constitution_version}",
        "description": facts.constitution_description,
        "sha256 of the constitution": facts.constitution_sha256,
        "sha256 of the templates": facts.templates_sha256,
        "prompts": ", ".join(facts.prompt_sources),
        "made": f"{facts.created}, cai {facts.cai_version}",
    }
    text = markdown_table(("", ""), ((name, escaped(value)) for name, value in rows.items()))
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
    failures = ((f"failed: {escaped(reason)}", number) for reason, number in most_first(facts.failures))
    return markdown_table(("", "number"), (*rows.items(), *failures))


def _principles(counts: ExportCounts) -> str:
    if not counts.principles:
        return "No chain has a round.\n"
    rows = ((escaped(name), number) for name, number in most_first(counts.principles))
    return markdown_table(("principle", "rounds it was drawn for"), rows)
