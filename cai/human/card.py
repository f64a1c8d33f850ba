"""The data set cards of people's preferences: what was counted, and what to mind before training on it."""

from collections.abc import Mapping
from typing import Literal

from cai.data.card_parts import (
    RunFacts,
    by_reason,
    card_text,
    escaped,
    how_made,
    markdown_table,
    table_list,
)
from cai.data.comparisons import SAMPLED
from cai.data.preference_card import LABEL_STUDIO
from cai.data.preference_tables import PREFERENCE_TABLES, PREFERENCES
from cai.human.label_studio import RATING_CONFIG
from cai.human.preference_run import HumanCounts, HumanTablesConfig, LabelCounts
from cai.human.votes import RaterFacts
from cai.records import Record

_ABOUT = "Pairs of responses with the probability that one is better, "
_NAMES = (
    "- **Names of people** stand in `annotator_id`{files}. Ask them, or take the names out, before you share the data."
)
_TEXT = (
    "- **The text may be offensive or harmful.** Many prompts ask for harmful things, and the better one of two "
    "responses may still comply, be wrong, or be nonsense."
)
_ONE_VOTE = (
    "- **Most labels are few people's.** `p_chosen` is the mean of the votes: 1 says that all who voted chose the same "
    "response, however few they are, and nothing of how sure anyone else would be."
)
_SLIGHT = (
    "- A slight preference counts as {slight:g}, where a clear one is 1. Nothing fixes this number; `--slight` sets "
    "another."
)
_FAILED = (
    "- **{name} failed {failed} of {checks} attention checks**, more than half. {what}: look at their ratings{advice}."
)
_ORDER_ASSUMED = (
    "- **No person has compared the two; the order is assumed.** `chosen` is a model's revision and `rejected` its "
    "draft, so `source` is `revision` in every row, and `p_chosen` is 1 in every row. `cai label` has a judge compare "
    "them."
)
_NOT_OURS = (
    "- **These labels were made elsewhere.** How raters were chosen, what they were asked and how well they agree, the "
    "card of the source says or nobody does."
)
_SPLITS = """\
Each prompt falls on the test side with probability {share:g}, by a hash of its conversation and the seed; no \
conversation stands on both sides. `kto` and `llm_swarm` hold hard labels, so they have no ties. `{comparisons}` holds \
the comparisons of all splits, {gold}."""
_GOLD = "with the preferred response as `gold`: a judge can be checked against it or label the same comparisons"
_NO_GOLD = "without a `gold`, since nobody has compared them: a judge can label them"
_TASKS = """\
`{name}` holds every comparison as a task that Label Studio imports, with one annotation for each rating that counts, \
in this labelling interface; `cai import label-studio` reads it, or what Label Studio exports of it, to the same votes.

```xml
{config}```
"""
_RATINGS = """\
`ratings.jsonl` holds every rating that stands, those of raters who are left out too, and `checks.jsonl` the answers \
to attention checks, which are no data.
"""


class ExportFacts(Record):
    """What the card of an export says beside its counts."""

    run: RunFacts
    constitution: str
    constitution_version: str
    constitution_sha256: str
    comparisons: str
    """Where the rated comparisons came from."""
    comparisons_sha256: str


class ExportCounts(HumanCounts):
    """What an export wrote and what it left out. Comparisons are labelled, without a vote, or unrated."""

    comparisons: int
    """Comparisons of the rating directory."""
    unrated: int
    """Those that no rater who counts has answered."""
    unvoted: int
    """Those that were answered with `both_bad` or `skipped` alone."""
    raters: tuple[RaterFacts, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each rater who fails attention checks."""
        return tuple(
            f"{rater.name} failed {rater.checks_failed} of {rater.checks} attention checks; "
            + ("their ratings are left out" if rater.left_out else f"--leave-out {rater.name} leaves their ratings out")
            for rater in self.raters
            if rater.fails_checks
        )


class ImportFacts(Record):
    """What the card of an import says beside its counts."""

    run: RunFacts
    format: Literal["hh-rlhf", "pairs", "label-studio", "llm-swarm"]
    path: str
    sha256: str
    columns: str
    """The mapping of columns, as JSON."""


class ImportCounts(HumanCounts):
    """What an import wrote and what it left out. Each row is a reject, holds no vote, or is a vote on a pair."""

    annotators: int
    """People with a name whose votes are among the labels."""
    rows_read: int
    rejects: Mapping[str, int]
    """Rows that cannot be used, by reason."""
    notes: Mapping[str, int]
    """Odd rows that are used all the same, by reason."""
    no_votes: Mapping[str, int]
    """Rows that hold no vote, by reason."""
    unvoted: int
    """Comparisons that have no vote."""
    passed_over: int
    """Comparisons left out by `skip` and `limit`."""


def render_export_card(facts: ExportFacts, counts: ExportCounts, config: HumanTablesConfig, *, slight: float) -> str:
    """Write the card of an export. All figures come from `counts`; text from outside is escaped."""
    made = {
        "comparisons": facts.comparisons,
        "sha256 of the comparisons": facts.comparisons_sha256,
        "constitution that raters read": f"{facts.constitution}, version {facts.constitution_version}",
        "sha256 of the constitution": facts.constitution_sha256,
        "a slight preference counts": f"{slight:g}",
        "seed": str(config.seed),
    }
    warnings = [
        *(_failed(rater) for rater in counts.raters if rater.fails_checks),
        _ONE_VOTE,
        _SLIGHT.format(slight=slight),
        _NAMES.format(files=", `ratings.jsonl`, `checks.jsonl` and `label-studio.json`"),
        _TEXT,
    ]
    return _card(
        facts.run,
        counts,
        config,
        tags=("preferences", "human-feedback"),
        about=f"{_ABOUT}as people rated them on the page of `cai rate`, made with `cai export`.",
        warnings=warnings,
        made=made,
        beside="`constitution.yaml` and `manifest.json` beside this file hold the guidelines and the configuration.",
        left_out={
            "comparisons of the rating directory": counts.comparisons,
            "answered with `both_bad` or `skipped` alone, so without a label": counts.unvoted,
            "not rated by anyone who counts": counts.unrated,
        },
        more={
            "Raters": f"{_raters(counts.raters)}\n{_RATINGS}",
            "Tasks for people": _TASKS.format(name=LABEL_STUDIO, config=RATING_CONFIG),
        },
    )


def render_import_card(facts: ImportFacts, counts: ImportCounts, config: HumanTablesConfig) -> str:
    """Write the card of an import. All figures come from `counts`; text from outside is escaped."""
    made = {
        "source": facts.path,
        "sha256 of the source": facts.sha256,
        "format": facts.format,
        "columns": facts.columns,
        "seed": str(config.seed),
    }
    revisions = facts.format == "llm-swarm"
    kind = "as the order of a model's drafts and revisions has it" if revisions else "as people chose"
    return _card(
        facts.run,
        counts,
        config,
        tags=("preferences", "revisions" if revisions else "human-feedback"),
        about=f"{_ABOUT}{kind}, made with `cai import {facts.format}`.",
        warnings=[
            _ORDER_ASSUMED if revisions else _NOT_OURS,
            *([] if revisions else [_ONE_VOTE]),
            *([_NAMES.format(files="")] if counts.annotators else []),
            _TEXT,
        ],
        made=made,
        beside="`manifest.json` beside this file holds the configuration, `rejects.jsonl` the rows that were rejected.",
        left_out={
            "rows read": counts.rows_read,
            "rows rejected": sum(counts.rejects.values()),
            **dict(by_reason("rejected", counts.rejects)),
            "rows without a vote": sum(counts.no_votes.values()),
            **dict(by_reason("no vote", counts.no_votes)),
            **dict(by_reason("used all the same, and odd", counts.notes)),
            "comparisons without a vote": counts.unvoted,
            "comparisons left out by `skip` and `limit`": counts.passed_over,
            "people with a name": counts.annotators,
        },
        more={},
        by_models=revisions,
    )


def _card(
    run: RunFacts,
    counts: HumanCounts,
    config: HumanTablesConfig,
    *,
    tags: tuple[str, ...],
    about: str,
    warnings: list[str],
    made: Mapping[str, str],
    beside: str,
    left_out: Mapping[str, int],
    more: Mapping[str, str],
    by_models: bool = False,
) -> str:
    return card_text(
        run,
        PREFERENCE_TABLES,
        counts,
        tags=tags,
        about=about,
        sections={
            "Read this first": "\n".join(warnings) + "\n",
            "How it was made": how_made(run, made, beside),
            "The labels": _labels(counts.figures, counts.rows(PREFERENCES.name), config.tie_margin),
            "Counts": markdown_table(("", "number"), left_out.items()),
            **more,
            "Tables": table_list(
                PREFERENCE_TABLES,
                counts,
                _SPLITS.format(share=config.test_share, comparisons=SAMPLED, gold=_NO_GOLD if by_models else _GOLD),
            ),
        },
        by_models=by_models,
    )


def _labels(figures: LabelCounts, rows: int, tie_margin: float) -> str:
    near = "p exactly 0.5" if not tie_margin else f"p within {tie_margin:g} of 0.5"
    cells = {
        "comparisons with a label": figures.labels,
        "votes": figures.votes,
        "comparisons with several votes": figures.overlap,
        "of these with votes for either response": figures.disputed,
        f"ties ({near})": figures.ties,
        "ties left out of `preferences`": figures.dropped_ties,
        "rows of `preferences`": rows,
        "mean p_chosen": "–" if figures.confidence is None else f"{figures.confidence:.3f}",
    }
    return markdown_table(("", "number or mean"), cells.items())


def _raters(raters: tuple[RaterFacts, ...]) -> str:
    head = ("rater", "votes", "both bad", "skipped", "attention checks", "of these failed", "")
    rows = (
        (
            escaped(rater.name),
            rater.votes,
            rater.both_bad,
            rater.skipped,
            rater.checks,
            rater.checks_failed,
            "left out" if rater.left_out else "",
        )
        for rater in raters
    )
    return markdown_table(head, rows)


def _failed(rater: RaterFacts) -> str:
    return _FAILED.format(
        name=escaped(rater.name),
        failed=rater.checks_failed,
        checks=rater.checks,
        what="Their ratings are left out of the labels" if rater.left_out else "Their ratings count all the same",
        advice="" if rater.left_out else ", or leave them out with `--leave-out`",
    )
