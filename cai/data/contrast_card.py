"""The data set of contrasting replies: its counts and its card."""

from collections.abc import Mapping

from cai.data.card_parts import LICENSE, column_list, escaped, fenced, header, markdown_table, most_first, table_list
from cai.data.dataset import DatasetCounts
from cai.data.preference_tables import PREFERENCE_TABLES, PREFERENCES
from cai.records import Record, Sampling

_WARNINGS = """\
- **No judge has compared the two replies of a pair; the order is assumed from the prompts.** `chosen` was asked to keep
  to a principle and `rejected` to go against it. A model that does not do what its system prompt says writes pairs in
  any order, so read some before you train. `cai label` has a judge compare them.
- **Half of the replies were asked to be bad.** The text may be offensive or harmful, in `rejected` on purpose, and
  `chosen` may comply with harmful requests, be wrong, or be nonsense.
- `p_chosen` is 1 in every row. It says what was asked for, and nothing of how sure anyone is.
"""
_SPLITS = """\
Each prompt falls on the test side with probability {share:g}, by a hash of its conversation and the seed; no \
conversation stands on both sides. `comparisons.jsonl` holds the pairs of all splits in the order of the prompts, with \
the sides drawn by chance and `gold` for the reply that was asked to follow."""


class ContrastFacts(Record):
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
    prompt_source: str
    failures: Mapping[str, int]
    """Number of pairs that failed, by reason."""
    rejects: int
    """Input rows that could not be read as prompts."""


class ContrastCounts(DatasetCounts):
    """What the export of contrasting replies wrote and what it left out."""

    pairs: int
    """Pairs that were sampled."""
    cut: int
    """Those of which a reply was cut at the token limit; they are exported all the same."""
    dropped: Mapping[str, int]
    """Pairs left out since both replies say the same, by reason."""
    principles: Mapping[str, int]
    """Number of exported pairs by principle."""


def render_contrast_card(facts: ContrastFacts, counts: ContrastCounts, *, test_share: float, seed: int) -> str:
    """Write the card. All figures come from `counts` and `facts`; text from outside is escaped."""
    principles = ((escaped(name), number) for name, number in most_first(counts.principles))
    parts = [
        header(facts.title, PREFERENCE_TABLES, counts, ("preferences", "contrast")),
        f"# {escaped(facts.title)}\n",
        "Pairs of replies of one language model to one prompt, under a system prompt that follows a principle and one "
        "that opposes it (RLCD, Yang et al. 2023, arXiv 2307.12950), made with `cai contrast`.\n",
        "## Read this first\n",
        _WARNINGS,
        "## How it was made\n",
        fenced(facts.command),
        _provenance(facts, seed),
        "## Counts\n",
        _counts(facts, counts),
        "## Principles\n",
        markdown_table(("principle", "pairs"), principles) if counts.principles else "There is no pair.\n",
        "## Tables\n",
        table_list(PREFERENCE_TABLES, counts, _SPLITS.format(share=test_share)),
        *map(column_list, PREFERENCE_TABLES),
        "## Licence\n",
        LICENSE,
    ]
    return "\n".join(parts)


def _provenance(facts: ContrastFacts, seed: int) -> str:
    rows = {
        "model": facts.model,
        "engine": facts.engine,
        "sampling": facts.sampling.in_words,
        "seed": str(seed),
        "constitution": f"{facts.constitution}, version {facts.constitution_version}",
        "description": facts.constitution_description,
        "sha256 of the constitution": facts.constitution_sha256,
        "sha256 of the templates": facts.templates_sha256,
        "prompts": facts.prompt_source,
        "made": f"{facts.created}, cai {facts.cai_version}",
    }
    text = markdown_table(("", ""), ((name, escaped(value)) for name, value in rows.items()))
    return f"{text}\n`constitution.yaml` and `manifest.json` beside this file hold the texts and the configuration.\n"


def _counts(facts: ContrastFacts, counts: ContrastCounts) -> str:
    rows = [
        ("pairs sampled", counts.pairs),
        ("of them with a reply cut at the token limit", counts.cut),
        *((f"left out: {escaped(reason)}", number) for reason, number in most_first(counts.dropped)),
        ("pairs written", counts.rows(PREFERENCES.name)),
        ("input rows rejected before the run", facts.rejects),
        *((f"failed: {escaped(reason)}", number) for reason, number in most_first(facts.failures)),
    ]
    return markdown_table(("", "number"), rows)
