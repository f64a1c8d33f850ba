"""The data set of contrasting replies: its counts and its card."""

from collections.abc import Mapping

from cai.data.card_parts import (
    CONSTITUTION_BESIDE,
    ConstitutionFacts,
    RunFacts,
    by_reason,
    card_text,
    how_made,
    markdown_table,
    principle_table,
    table_list,
)
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

    run: RunFacts
    constitution: ConstitutionFacts
    model: str
    engine: str
    sampling: Sampling
    prompt_source: str


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
    made = {
        "model": facts.model,
        "engine": facts.engine,
        "sampling": facts.sampling.in_words,
        "seed": str(seed),
        **facts.constitution.rows,
        "prompts": facts.prompt_source,
    }
    return card_text(
        facts.run,
        PREFERENCE_TABLES,
        counts,
        tags=("preferences", "contrast"),
        about="Pairs of replies of one language model to one prompt, under a system prompt that follows a principle "
        "and one that opposes it (RLCD, Yang et al. 2023, arXiv 2307.12950), made with `cai contrast`.",
        sections={
            "Read this first": _WARNINGS,
            "How it was made": how_made(facts.run, made, CONSTITUTION_BESIDE),
            "Counts": _counts(facts.run, counts),
            "Principles": principle_table(counts.principles, "pairs", "There is no pair."),
            "Tables": table_list(PREFERENCE_TABLES, counts, _SPLITS.format(share=test_share)),
        },
    )


def _counts(run: RunFacts, counts: ContrastCounts) -> str:
    rows = [
        ("pairs sampled", counts.pairs),
        ("of them with a reply cut at the token limit", counts.cut),
        *by_reason("left out", counts.dropped),
        ("pairs written", counts.rows(PREFERENCES.name)),
        ("input rows rejected before the run", sum(run.rejects.values())),
        *by_reason("failed", run.failures),
    ]
    return markdown_table(("", "number"), rows)
