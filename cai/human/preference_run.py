"""People's preferences as a finished run directory, with the tables that a run of `cai label` has.

A second run in the same directory replaces the data set of the first as `cai.data.dataset` says: whoever opens it by
its card finds the old or the new one. From its start to its end the manifest's state is `running`, so what was killed
in between is not trained on before the command was run again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, Literal, TypeVar

from cai import __version__
from cai.data.comparisons import SAMPLED
from cai.data.dataset import DatasetCounts, DatasetWriter
from cai.data.preference_tables import is_tie, vote_row
from cai.data.preferences import TablesConfig, add_pair
from cai.data.rows import Reject
from cai.data.tables import split_of
from cai.human.votes import HumanLabel
from cai.records import Comparison, Record
from cai.rundir import Manifest, RunDir
from cai.stage import sigterm_interrupts


class HumanTablesConfig(TablesConfig):
    """How people's labels become a data set."""

    seed: int = 0
    """Fixes which prompts go to the test splits, and which response of an exact tie is called chosen."""

    FREE_KEYS: ClassVar[frozenset[str]] = frozenset(TablesConfig.model_fields)
    """Keys that may change between runs in one directory: everything that hangs on them is made anew."""


class LabelCounts(Record):
    """The labels of an export or import, in figures."""

    labels: int
    """Comparisons with at least one vote."""
    votes: int
    overlap: int
    """Comparisons with several votes."""
    disputed: int
    """Those of `overlap` with votes for either response."""
    ties: int
    """Labels within the tie margin of 0.5; they are in no table of hard labels."""
    dropped_ties: int
    """Those of `ties` that are not in `preferences` either."""
    confidence: float | None
    """Mean p_chosen; None without labels."""


class HumanCounts(DatasetCounts):
    """What was written. Exports and imports add what they left out."""

    figures: LabelCounts


CountsT = TypeVar("CountsT", bound=HumanCounts, covariant=True)


@dataclass(frozen=True)
class Published(Generic[CountsT]):
    """A finished run of people's preferences."""

    path: Path
    manifest: Manifest
    counts: CountsT


def write_labels(
    writer: DatasetWriter,
    labelled: Iterable[tuple[Comparison, HumanLabel]],
    config: HumanTablesConfig,
    source: Literal["human", "revision"],
) -> LabelCounts:
    """Put labels into the tables, and their comparisons into comparisons.jsonl.

    The side that people prefer is `gold` there, and no comparison is a `contrast`: its gold would be the assumed one.
    """
    labels = votes = overlap = disputed = ties = 0
    confidence = 0.0
    for comparison, label in labelled:
        row = vote_row(comparison, label.p_a, config.seed, annotator_id=label.annotator_id, source=source)
        tie = is_tie(label.p_a, config.tie_margin)
        labels += 1
        votes += label.votes
        overlap += label.votes > 1
        disputed += label.disputed
        ties += tie
        confidence += row.p_chosen
        if not (tie and config.drop_ties):
            add_pair(writer, row, split_of(comparison.prompt, config.test_share, config.seed), tie=tie)
        gold = None if tie or source == "revision" else "a" if label.p_a > 0.5 else "b"
        made = "sampled" if comparison.source == "contrast" else comparison.source
        writer.write_line(SAMPLED, comparison.model_copy(update={"gold": gold, "source": made}).model_dump_json())
    return LabelCounts(
        labels=labels,
        votes=votes,
        overlap=overlap,
        disputed=disputed,
        ties=ties,
        dropped_ties=ties if config.drop_ties else 0,
        confidence=confidence / labels if labels else None,
    )


def publish(
    stage: str,
    config: HumanTablesConfig,
    hashes: Mapping[str, str],
    out: Path,
    write: Callable[[RunDir], CountsT],
    *,
    counts: Mapping[str, int],
    other_files: Sequence[str],
    rejects: Sequence[Reject] = (),
    command: Sequence[str] = (),
    overwrite: bool = False,
) -> Published[CountsT]:
    """Make, or make anew, the run in `out`, whose data set `write` publishes.

    `counts` are figures of the inputs, and `other_files` what `write` puts beside the tables and the card.

    Raises:
        KeyboardInterrupt: interrupted by a signal.
        RunDirError: `out` holds another run or cannot be written.
    """
    with (
        sigterm_interrupts(),
        RunDir.open(
            out,
            stage=stage,
            config=config.model_dump(mode="json"),
            inputs=hashes,
            seed=config.seed,
            command=command,
            free_keys=config.free_keys,
            other_files=other_files,
            keeps_records=False,
            overwrite=overwrite,
        ) as run,
    ):
        run.manifest.counts = {**counts, "rejected_rows": len(rejects)}
        with run.stopped_if_it_fails():
            run.write_rejects(rejects)
            found = write(run)
        run.manifest.export = {"cai": __version__, "counts": found.model_dump(mode="json")}
        run.save("finished")
        return Published(out, run.manifest, found)
