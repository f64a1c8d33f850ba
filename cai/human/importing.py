"""The stage `import`: what people prefer, from files of elsewhere, as preference data to train on.

A source is read twice: once to count votes and rejects, and once to write the comparisons, so that memory grows with
their ids and votes and not with their texts.
"""

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from cai import __version__
from cai.config import Positive
from cai.data.card_parts import RunFacts
from cai.data.comparisons import SAMPLED
from cai.data.dataset import DatasetWriter
from cai.data.files import COMPARISON_SETS, Row, file_sha256, find_file, read_rows
from cai.data.formats import PROMPT_COLUMNS, RowContent
from cai.data.preference_tables import PREFERENCE_TABLES
from cai.data.rows import Reject, RowNote, RowTally, ignore, used_rows
from cai.errors import DataError
from cai.human.card import ImportCounts, ImportFacts, render_import_card
from cai.human.columns import Ballot, OneVoteEach, PairColumns, pair_ballot, swarm_ballot, transcript_ballot
from cai.human.label_studio import annotation_rows, task_ballot
from cai.human.preference_run import HumanTablesConfig, Published, publish, write_labels
from cai.human.records import SLIGHT
from cai.human.votes import HumanLabel, Vote, human_label
from cai.records import Comparison
from cai.rundir import RunDir, run_path

STAGE = "import"

Format = Literal["hh-rlhf", "pairs", "label-studio", "llm-swarm"]
"""See `cai.human.columns` and `cai.human.label_studio`."""

_COLUMNS: Mapping[Format, tuple[str, ...]] = {
    "hh-rlhf": (),
    "pairs": tuple(PairColumns.model_fields),
    "label-studio": ("prompt", "response_a", "response_b"),
    "llm-swarm": (),
}
"""The columns that can be named for each format."""


class ImportConfig(HumanTablesConfig):
    """Configuration of `cai import`."""

    format: Format
    path: str
    """A file (.jsonl, .json, .csv, each also with .gz, or .parquet), or `hub:owner/name[@config][:split]`."""
    columns: PairColumns = PairColumns()
    slight: Annotated[float, Field(gt=0.5, le=1)] = SLIGHT
    """What an answer counts that is marked `slightly better` in a Label Studio task."""
    skip: Annotated[int, Field(ge=0)] = 0
    """Pass over the first comparisons that have votes."""
    limit: Positive | None = None
    """Use so many of the comparisons behind those."""

    FREE_KEYS: ClassVar[frozenset[str]] = HumanTablesConfig.FREE_KEYS | {"path", "limit"}

    @model_validator(mode="after")
    def _read_by_the_format(self) -> Self:
        given = self.columns.model_fields_set
        if unused := [name for name in PairColumns.model_fields if name in given - {*_COLUMNS[self.format]}]:
            raise ValueError(f"`columns.{unused[0]}` has no effect on the format {self.format}")
        if "slight" in self.model_fields_set and self.format != "label-studio":
            raise ValueError(f"`slight` has no effect on the format {self.format}")
        return self


@dataclass
class _Pair:
    """The votes on two responses to one prompt."""

    a: str
    """The text that is a for these votes."""
    votes: list[Vote] = field(default_factory=list)

    def add(self, ballot: Ballot) -> None:
        if ballot.vote is not None:
            same = ballot.comparison.a.text == self.a
            self.votes.append(ballot.vote if same else ballot.vote.swap())


@dataclass(frozen=True)
class ImportInputs:
    """What a source holds, read once and counted."""

    config: ImportConfig
    hashes: Mapping[str, str]
    """Content hash of the source."""
    labels: Mapping[str, HumanLabel]
    """The label of each pair that will be written, in order."""
    rows: int
    """Rows read; of Label Studio, annotations, drafts, predictions, and tasks with none of them."""
    rejects: tuple[Reject, ...]
    """Rows that cannot be used."""
    notes: Mapping[str, int]
    """Odd rows that are used all the same, by reason."""
    no_votes: Mapping[str, int]
    """Rows that hold no vote, by reason."""
    unvoted: int
    """Pairs that have no vote."""
    passed_over: int
    """Pairs before the first one wanted, or behind the last one."""

    @property
    def default_out(self) -> Path:
        """Where the run goes that names no directory."""
        config = self.config
        return run_path(f"{STAGE}-{config.format}", config, self.hashes)


def load_import(config: ImportConfig) -> ImportInputs:
    """Read a source from end to end.

    Raises:
        DataError: it cannot be read, has no row that can be used, or no comparison with a vote is left.
    """
    file = _file(config)
    content = sha256()
    rejects: list[Reject] = []
    tally = RowTally(rejects.append)
    no_votes: Counter[str] = Counter()
    pairs: dict[str, _Pair] = {}
    rows = 0
    for ballot in _ballots(config, on_reject=tally.reject, on_note=tally.note):
        rows += 1
        no_votes.update([ballot.no_vote] if ballot.vote is None else [])
        pairs.setdefault(ballot.pair, _Pair(ballot.comparison.a.text)).add(ballot)
        if file is None:
            content.update(ballot.model_dump_json().encode() + b"\n")
    voted = {key: pair.votes for key, pair in pairs.items() if pair.votes}
    end = None if config.limit is None else config.skip + config.limit
    labels = {key: human_label(votes) for key, votes in islice(voted.items(), config.skip, end)}
    if not labels:
        why = f"skip passes over all {len(voted)}" if voted else _counted(no_votes)
        raise DataError(f"{config.path}: no comparison with a vote is left ({why})")
    return ImportInputs(
        config=config,
        hashes={"source": content.hexdigest() if file is None else file_sha256(file)},
        labels=labels,
        rows=rows + len(rejects),
        rejects=tuple(rejects),
        notes=dict(tally.notes),
        no_votes=dict(no_votes),
        unvoted=len(pairs) - len(voted),
        passed_over=len(voted) - len(labels),
    )


def import_preferences(
    inputs: ImportInputs, out: Path, *, command: Sequence[str] = (), overwrite: bool = False
) -> Published[ImportCounts]:
    """Write the preferences of a source as a run, in place of an earlier import of the same.

    Raises:
        RunDirError: `out` holds another run or cannot be written.
        DataError: the source cannot be read any more.
    """
    config = inputs.config

    def write(run: RunDir) -> ImportCounts:
        with DatasetWriter(run.path, PREFERENCE_TABLES, (SAMPLED,)) as writer:
            figures = write_labels(
                writer, _labelled(inputs), config, "revision" if config.format == "llm-swarm" else "human"
            )
            counts = ImportCounts(
                files=writer.finish(),
                figures=figures,
                annotators=len({name for label in inputs.labels.values() for name in label.raters}),
                rows_read=inputs.rows,
                rejects=dict(Counter(reject.reason for reject in inputs.rejects)),
                notes=inputs.notes,
                no_votes=inputs.no_votes,
                unvoted=inputs.unvoted,
                passed_over=inputs.passed_over,
            )
            facts = ImportFacts(
                run=RunFacts(
                    title=f"Preferences from {Path(config.path).name}",
                    command=shlex.join(command),
                    cai_version=__version__,
                    created=run.manifest.created,
                    failures={},
                    rejects=counts.rejects,
                ),
                format=config.format,
                path=config.path,
                sha256=inputs.hashes["source"],
                columns=config.columns.model_dump_json(exclude_defaults=True),
            )
            writer.publish(render_import_card(facts, counts, config))
        return counts

    return publish(
        STAGE,
        config,
        inputs.hashes,
        out,
        write,
        counts={"rows": inputs.rows, "comparisons": len(inputs.labels)},
        other_files=(SAMPLED,),
        rejects=inputs.rejects,
        command=command,
        overwrite=overwrite,
    )


def _labelled(inputs: ImportInputs) -> Iterator[tuple[Comparison, HumanLabel]]:
    """The comparisons that will be written, each as its first row has it, with their labels."""
    waiting = dict(inputs.labels)
    for ballot in _ballots(inputs.config, on_reject=ignore, on_note=ignore):
        if (label := waiting.pop(ballot.pair, None)) is not None:
            yield ballot.comparison, label


def _ballots(
    config: ImportConfig, *, on_reject: Callable[[Reject], None], on_note: Callable[[RowNote], None]
) -> Iterator[Ballot]:
    """What the rows of the source say, in order."""
    file = _file(config)
    place = config.path if file is None else str(file)
    read = OneVoteEach(_reader(config), unnamed_differ=config.format == "label-studio")
    return used_rows(config.path, _rows(config, place), read, on_reject=on_reject, on_note=on_note, seen=None)


def _file(config: ImportConfig) -> Path | None:
    """The source's file; None of a hub data set."""
    return None if config.path.startswith("hub:") else find_file(config.path, COMPARISON_SETS)


def _rows(config: ImportConfig, place: str) -> Iterator[Row]:
    columns = config.columns
    if config.format == "label-studio":
        return annotation_rows(read_rows(place, "data", further=()))
    if config.format == "pairs":
        transcripts = None if columns.has_preference else columns.chosen
        return read_rows(place, columns.prompt or transcripts, further=(*PROMPT_COLUMNS, *_all_columns(place)))
    return read_rows(place, "chosen", further=("rejected",))


def _all_columns(place: str) -> Sequence[str]:
    """The columns of a parquet file, so that a message can name them; other files are read with all they have."""
    if not place.endswith(".parquet"):
        return ()
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names: list[str] = pq.read_schema(place).names
    except (pa.ArrowException, OSError):
        return ()  # the reader says what is wrong with the file
    return names


def _reader(config: ImportConfig) -> Callable[[object], RowContent[Ballot]]:
    """Reads one row of the source."""
    if config.format == "hh-rlhf":
        return partial(transcript_ballot, source=config.path)
    if config.format == "llm-swarm":
        return partial(swarm_ballot, source=config.path)
    if config.format == "label-studio":
        return partial(task_ballot, columns=config.columns, slight=config.slight, source=config.path)
    return partial(pair_ballot, columns=config.columns, source=config.path)


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in reasons.items())


FORMATS: tuple[Format, ...] = get_args(Format)
