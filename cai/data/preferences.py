"""Labels out, human choices mixed in: tables in the columns that TRL reads, Label Studio tasks, and the card.

The data set is published as `dataset.py` says: at any byte either the old or the new one is there.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from cai.config import Share, StrictModel
from cai.data.comparisons import ComparisonInput, read_comparisons
from cai.data.dataset import DatasetWriter
from cai.data.preference_card import LABEL_STUDIO, PreferenceCounts, PreferenceFacts, render_preference_card
from cai.data.preference_tables import (
    KTO,
    PREFERENCE_TABLES,
    PREFERENCES,
    SWARM_PREFERENCES,
    PreferenceRow,
    ai_row,
    gold_row,
    is_tie,
    kto_rows,
    label_studio_task,
    swarm_preference_row,
)
from cai.data.rows import Reject, ignore
from cai.data.tables import split_of
from cai.records import Label, stable_seed


class TablesConfig(StrictModel):
    """How labels, a judge's or people's, become the rows of the tables."""

    test_share: Share = 0.05
    """Share of the prompts whose rows go to the test splits."""
    tie_margin: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """A label this close to 0.5 is a tie. 0 makes exact ties only."""
    drop_ties: bool = False
    """Leave ties out of `preferences` too; the tables of hard labels never have them."""


class PreferencesConfig(TablesConfig):
    """How a judge's labels become a data set."""

    human: str | None = None
    """Comparisons with human choices to mix in: a file, a shipped set, or `hub:owner/name[@config][:split]`."""
    human_column: str | None = None
    """Column of `human` that holds the prompt. Default: found by its name."""
    human_gold_column: str | None = None
    """Column of `human` that names the better response. Default: `gold`, or `chosen` and `rejected`."""
    human_ratio: Annotated[float, Field(gt=0)] = 1.0
    """Human rows for each row of a judge's label, drawn without replacement; all where there are too few."""

    def human_input(self) -> ComparisonInput | None:
        """Where the human choices are read from."""
        if self.human is None:
            return None
        return ComparisonInput(
            path=self.human, column=self.human_column, gold_column=self.human_gold_column, require_gold=True
        )


def export_labels(
    labels: Iterable[Label], out: Path, *, config: PreferencesConfig, seed: int, card: PreferenceFacts
) -> PreferenceCounts:
    """Write `data/*.parquet`, label-studio.json and README.md of the run directory `out`.

    Reads `labels` once and the human choices twice; memory grows with the ids of the human choices alone. A prompt's
    side hangs on its conversation and `seed`, so labels and human choices about one prompt are on the same side.

    Raises:
        RunDirError: the disk is full, or `out` cannot be written.
        DataError: the human choices cannot be read.
    """
    human = config.human_input()
    tally = _Tally()
    with DatasetWriter(out, PREFERENCE_TABLES, (LABEL_STUDIO,)) as writer:
        writer.write_line(LABEL_STUDIO, "[")
        for label in labels:
            tie = is_tie(label.verdict.p_a, config.tie_margin)
            row = ai_row(label)
            writer.write_line(LABEL_STUDIO, ("," if tally.labels else "") + label_studio_task(label, config.tie_margin))
            tally.add(row, tie)
            if not (tie and config.drop_ties):
                add_pair(writer, row, split_of(label.comparison.prompt, config.test_share, seed), tie=tie)
        writer.write_line(LABEL_STUDIO, "]")
        dropped = tally.ties if config.drop_ties else 0
        wanted = round(config.human_ratio * (tally.labels - dropped))
        drawn = _Drawn() if human is None else _draw_human(human, wanted, seed)
        if human is not None and drawn.ids:
            for comparison in read_comparisons(human, on_reject=ignore):
                if comparison.id in drawn.ids:
                    split = split_of(comparison.prompt, config.test_share, seed)
                    add_pair(writer, gold_row(comparison, seed), split, tie=False)
        counts = PreferenceCounts(
            files=writer.finish(),
            labels=tally.labels,
            ties=tally.ties,
            dropped_ties=dropped,
            both_orders=tally.both_orders,
            position_flip=_mean(tally.flips, tally.both_orders),
            confidence=_mean(tally.confidence, tally.labels),
            off_mass=_mean(tally.off_mass, tally.labels),
            principles=dict(tally.principles),
            response_sources=dict(tally.response_sources),
            human_found=drawn.found,
            human_wanted=0 if human is None else wanted,
            human_rows=len(drawn.ids),
            human_rejects=drawn.rejects,
        )
        text = render_preference_card(
            card, counts, human=config.human, test_share=config.test_share, tie_margin=config.tie_margin, seed=seed
        )
        writer.publish(text)
    return counts


def add_pair(writer: DatasetWriter, row: PreferenceRow, split: str, *, tie: bool) -> None:
    """Add a pair to every table that it belongs in; `split` is `train` or `test`."""
    writer.add(PREFERENCES, split, row)
    if not tie:
        for half in kto_rows(row):
            writer.add(KTO, split, half)
        writer.add(SWARM_PREFERENCES, f"{split}_prefs", swarm_preference_row(row))


class _Tally:
    """Counts and sums over the labels read so far."""

    def __init__(self) -> None:
        self.labels = self.ties = self.both_orders = 0
        self.flips = self.confidence = self.off_mass = 0.0
        self.principles: Counter[str] = Counter()
        self.response_sources: Counter[str] = Counter()

    def add(self, row: PreferenceRow, tie: bool) -> None:
        self.labels += 1
        self.ties += tie
        self.both_orders += row.position_flip is not None
        self.flips += row.position_flip or 0.0
        self.confidence += row.p_chosen
        self.off_mass += row.off_mass or 0.0
        self.principles.update(row.principle_ids)
        self.response_sources[row.response_source] += 1


def _mean(total: float, number: int) -> float | None:
    return total / number if number else None


@dataclass(frozen=True)
class _Drawn:
    """Which human choices are mixed in."""

    ids: frozenset[str] = frozenset()
    found: int = 0
    rejects: Mapping[str, int] = field(default_factory=dict)


def _draw_human(source: ComparisonInput, wanted: int, seed: int) -> _Drawn:
    """Draw `wanted` of the comparisons; a larger number takes the same ones and further ones."""
    rejects: Counter[str] = Counter()

    def count(reject: Reject) -> None:
        rejects[reject.reason] += 1

    found = sorted(
        (stable_seed(seed, "human", comparison.id), comparison.id)
        for comparison in read_comparisons(source, on_reject=count)
    )
    return _Drawn(frozenset(id_ for _, id_ in found[:wanted]), len(found), dict(rejects))
