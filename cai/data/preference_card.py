"""The data set card of labelled comparisons: README.md, with what is known of the judge and of its labels."""

from collections.abc import Mapping

from cai.data.card_parts import (
    CONSTITUTION_BESIDE,
    ConstitutionFacts,
    RunFacts,
    by_reason,
    card_text,
    escaped,
    how_made,
    markdown_table,
    most_first,
    principle_table,
    table_list,
)
from cai.data.dataset import DatasetCounts
from cai.data.preference_tables import LABEL_STUDIO_CONFIG, PREFERENCE_TABLES
from cai.records import Record

LABEL_STUDIO = "label-studio.json"
"""The file with the comparisons as tasks for people."""

_WARNINGS = """\
- **The labels of a model are not human preferences.** `source` tells them apart in every row.
- {certificate}
- **The text may be offensive or harmful.** Many prompts ask for harmful things, and the better one of two responses may
  still comply, be wrong, or be nonsense.
- A label says which response the principles favour and how sure the judge is. `p_chosen` near 0.5 says hardly anything:
  train on it as a probability.
"""

_NO_CERTIFICATE = (
    "**No certificate.** The judge was not checked against comparisons with known answers, so nothing is known of the "
    "worth of these labels. Small models often answer by position alone. `cai judge-check` measures a judge."
)

_SPLITS = """\
Each prompt falls on the test side with probability {share:g}, by a hash of its conversation and the seed, whatever \
the source of the row: no conversation stands on both sides. Human choices stand after the labels: shuffle before you \
train. `kto` and `llm_swarm` hold hard labels, so they have no ties."""

_TASKS = """\
`{name}` holds every comparison as a task that Label Studio imports, with the judge's label as a prediction (none for \
ties), in this labelling interface:

```xml
{config}```
"""


class PreferenceFacts(Record):
    """What the card says of the run beside the counts of the export."""

    run: RunFacts
    constitution: ConstitutionFacts
    judge: Mapping[str, str]
    """What the judge is, in words: model, engine, protocol and the like."""
    comparisons: str
    """File, run or data set that the comparisons were read from."""
    certificate: str | None
    """What the judge's certificate says, in a sentence; None where there is none."""
    human_sha256: str | None = None
    """Content hash of the human choices that were mixed in; None where there are none."""


class PreferenceCounts(DatasetCounts):
    """What an export wrote and what it left out."""

    labels: int
    """Labels of the judge that were read."""
    ties: int
    """Those within the tie margin of 0.5; they are in no table of hard labels."""
    dropped_ties: int
    """Those of `ties` that are not in `preferences` either."""
    both_orders: int
    """Labels for which the judge saw both orders."""
    position_flip: float | None
    """Mean share of principles by which another response wins in the other order; None without such labels."""
    confidence: float | None
    """Mean probability of the likelier response; None without labels."""
    off_mass: float | None
    """Mean probability that the judge gave to anything but its options; None without labels."""
    principles: Mapping[str, int]
    """Number of labels for which the judge was asked by each principle."""
    response_sources: Mapping[str, int]
    """Labels by where their responses come from."""
    human_found: int
    """Comparisons with human choices that can be used."""
    human_wanted: int
    """Human rows that the ratio asks for."""
    human_rows: int
    """Human rows written: as many as are wanted, or all that were found."""
    human_rejects: Mapping[str, int]
    """Rows of the file of human choices that cannot be used, by reason."""


def render_preference_card(
    facts: PreferenceFacts,
    counts: PreferenceCounts,
    *,
    human: str | None,
    test_share: float,
    tie_margin: float,
    seed: int,
) -> str:
    """Write the card. All figures come from `counts` and `facts`; text from outside is escaped.

    `human` is where the human choices were read from.
    """
    certificate = _NO_CERTIFICATE if facts.certificate is None else f"**Certificate**: {escaped(facts.certificate)}"
    made = {
        **{f"judge: {escaped(name)}": value for name, value in facts.judge.items()},
        "seed": str(seed),
        **facts.constitution.rows,
        "comparisons": facts.comparisons,
        **({} if human is None else {"human choices": human}),
        **({} if facts.human_sha256 is None else {"sha256 of the human choices": facts.human_sha256}),
    }
    return card_text(
        facts.run,
        PREFERENCE_TABLES,
        counts,
        tags=("preferences", "ai-feedback"),
        about="Pairs of responses with the probability that one is better, as a language model judged them by a file "
        "of principles (Constitutional AI, Bai et al. 2022, arXiv 2212.08073, section 4), made with `cai label`.",
        sections={
            "Read this first": _WARNINGS.format(certificate=certificate),
            "How it was made": how_made(facts.run, made, CONSTITUTION_BESIDE),
            "The labels": _labels(counts, tie_margin),
            "Counts": _counts(facts.run, counts),
            "Principles": principle_table(counts.principles, "labels it was asked for", "There is no label."),
            "Tables": table_list(PREFERENCE_TABLES, counts, _SPLITS.format(share=test_share)),
            "Tasks for people": _TASKS.format(name=LABEL_STUDIO, config=LABEL_STUDIO_CONFIG),
        },
    )


def _labels(counts: PreferenceCounts, tie_margin: float) -> str:
    rows = {
        f"ties ({'p exactly 0.5' if not tie_margin else f'p within {tie_margin:g} of 0.5'})": _share(
            counts.ties, counts.labels
        ),
        "position flips: another response wins in the other order, mean over principles": _mean(counts.position_flip),
        "mean confidence: probability of the likelier response": _mean(counts.confidence),
        "mean probability outside the options": _mean(counts.off_mass),
    }
    return markdown_table(("", "share or mean"), rows.items())


def _counts(run: RunFacts, counts: PreferenceCounts) -> str:
    sources = {f"of them with responses from `{name}`": number for name, number in most_first(counts.response_sources)}
    human = {
        "human choices that can be used": counts.human_found,
        "human rows asked for": counts.human_wanted,
        "human rows written": counts.human_rows,
        "rows of human choices that cannot be used": sum(counts.human_rejects.values()),
    }
    rows = {
        "labels": counts.labels,
        "of them asked in both orders": counts.both_orders,
        **sources,
        "ties left out of `preferences`": counts.dropped_ties,
        **(human if counts.human_found else {}),
        "input rows rejected before the run": sum(run.rejects.values()),
        **dict(by_reason("rejected", run.rejects)),
        "comparisons that could not be labelled": sum(run.failures.values()),
        **dict(by_reason("failed", run.failures)),
    }
    return markdown_table(("", "number"), rows.items())


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%} ({part:,} of {whole:,})" if whole else "–"


def _mean(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
