"""The data set card of a run: README.md, whose YAML header makes `datasets.load_dataset` find the files."""

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

    run: RunFacts
    constitution: ConstitutionFacts
    model: str
    engine: str
    sampling: Sampling
    rounds: int
    """Rounds asked for; a chain has fewer where it stopped because a critique found nothing."""
    critiques: bool
    """False when the revisions were asked for without a critique."""
    prompt_sources: tuple[str, ...]
    """Files or data sets that the prompts were read from."""


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
    made = {
        "model": facts.model,
        "engine": facts.engine,
        "sampling": facts.sampling.in_words,
        "seed": str(seed),
        "rounds": f"{facts.rounds}{'' if facts.critiques else ', without critiques'}",
        **facts.constitution.rows,
        "prompts": ", ".join(facts.prompt_sources),
    }
    return card_text(
        facts.run,
        TABLES,
        counts,
        tags=("critique-revision",),
        about="Replies of a language model that were criticised and revised by a file of principles (Constitutional "
        "AI, Bai et al. 2022, arXiv 2212.08073, section 3), made with `cai critique-revise`.",
        sections={
            "Read this first": _WARNINGS,
            "How it was made": how_made(facts.run, made, CONSTITUTION_BESIDE),
            "Counts": _counts(facts.run, counts),
            "Principles": principle_table(counts.principles, "rounds it was drawn for", "No chain has a round."),
            "Tables": table_list(TABLES, counts, _SPLITS.format(share=test_share)),
        },
    )


def _counts(run: RunFacts, counts: ExportCounts) -> str:
    rows = {
        "chains exported": counts.chains,
        "of them answers to helpful prompts, which are not revised": counts.helpful,
        "of them left as drafted, since the critique found nothing to change": counts.unrevised,
        "revised chains without a pair: last revision equal to the draft": counts.identical_pairs,
        "revised chains without a pair: draft or last revision without text": counts.empty_pairs,
        "revisions and helpful answers without text, left out of `sft`": counts.empty_replies,
        "rows of `sft` cut at the token limit": counts.cut_replies,
        "input rows rejected before the run": sum(run.rejects.values()),
        "prompts that failed": sum(run.failures.values()),
    }
    return markdown_table(("", "number"), (*rows.items(), *by_reason("failed", run.failures)))
