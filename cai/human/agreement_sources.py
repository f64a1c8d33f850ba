"""What agreement is measured on: ratings, the comparisons they are of, and the labels of judges."""

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from cai.constitution import load_constitution
from cai.data.comparisons import SAMPLED, ComparisonInput, read_comparisons
from cai.data.files import file_sha256, read_rows
from cai.data.rows import RowTally, ignore
from cai.errors import CaiError, DataError, Problem
from cai.human.exporting import CHECKS, RATINGS
from cai.human.page_directory import CONSTITUTION, STORE
from cai.human.records import Rating
from cai.human.store import RatingStore
from cai.journal import first_problem
from cai.records import Comparison, Label, Record, Verdict
from cai.rundir import read_manifest, read_records

InputKind = Literal["rating directory", "export", "ratings", "comparisons", "labels"]
RecordT = TypeVar("RecordT", bound=Record)

_LABEL_STAGES = ("label", "judge-check")
_SHOWN_PROBLEMS = 10


class InputFile(Record):
    """A source that figures were computed from."""

    path: str
    kind: InputKind
    sha256: str
    """Of the file's bytes (an export: of all its files that are read); of a store and of chains: of what they hold."""
    items: int
    """Ratings with those of attention checks, comparisons, or labels."""


@dataclass(frozen=True)
class RatingSource:
    """The ratings of one source."""

    file: InputFile
    ratings: tuple[Rating, ...]
    """Those of attention checks among them."""
    comparisons: tuple[Comparison, ...] = ()
    """What was rated, where the source knows it."""
    set_name: str = ""
    """Name of the set that the comparisons come from, where the source knows it."""


@dataclass(frozen=True)
class ComparisonSource:
    """Comparisons by their ids."""

    file: InputFile
    comparisons: tuple[Comparison, ...]
    rejects: Mapping[str, int]
    """Rows that cannot be used, by reason."""


@dataclass(frozen=True)
class JudgeSource:
    """The labels of one judge for comparisons that people have rated."""

    file: InputFile
    model: str
    verdicts: Mapping[str, tuple[Comparison, Verdict]]
    """By the comparison's id."""
    unrated: int
    """Labels of comparisons that nobody has rated; they are in no figure."""
    tags: Mapping[str, tuple[str, ...]] | None
    """Tags of each principle by its id; None where no constitution lies beside the labels."""
    set_name: str
    note: str | None
    """That the run is not finished, where it is not."""


def read_rating_source(path: str) -> RatingSource:
    """Read a directory of `cai rate`, a run of `cai export`, or a .jsonl file of ratings.

    Raises:
        DataError: there are no ratings, or lines are broken; all of them are named.
        CaiError: the store of a rating directory cannot be opened.
    """
    folder = Path(path)
    if (folder / STORE).is_file():
        return _store(path)
    if not folder.is_dir():
        file, ratings = folder, tuple(_lines(folder, Rating))
        return RatingSource(_file(path, "ratings", file_sha256(file), ratings), _checked(path, ratings))
    if not (folder / RATINGS).is_file():
        raise DataError(
            f"{path} holds neither {STORE} nor {RATINGS}; name a directory of `cai rate`, a run of `cai export` or a "
            "file of ratings"
        )
    read = [folder / name for name in (RATINGS, CHECKS) if (folder / name).is_file()]
    ratings = tuple(rating for file in read for rating in _lines(file, Rating, may_be_empty=file.name == CHECKS))
    comparisons: tuple[Comparison, ...] = ()
    if (folder / SAMPLED).is_file():
        read.append(folder / SAMPLED)
        comparisons = tuple(_lines(folder / SAMPLED, Comparison, may_be_empty=True))
    sha256 = hashlib.sha256("\n".join(map(file_sha256, read)).encode()).hexdigest()
    return RatingSource(_file(path, "export", sha256, ratings), _checked(path, ratings), comparisons)


def read_comparison_source(path: str) -> ComparisonSource:
    """Read the comparisons that were rated from any source that `cai label` takes.

    Raises:
        CaiError: as `read_comparisons`.
    """
    tally = RowTally(ignore)
    found = tuple(read_comparisons(ComparisonInput(path=path), on_reject=tally.reject))
    return ComparisonSource(_file(path, "comparisons", _content_sha256(found), found), found, dict(tally.rejects))


def read_judge_source(path: str, rated: Collection[str]) -> JudgeSource:
    """Read a run of `cai label` or `cai judge-check`, or a .jsonl file of label records.

    Labels of comparisons that are not in `rated` are counted only.

    Raises:
        DataError: there are no labels, two are of the same comparison, or they come from several models.
        RunDirError: the directory is no run, or its records are broken.
    """
    folder = Path(path)
    note, set_name = None, ""
    if folder.is_dir():
        manifest = read_manifest(folder)
        if manifest.stage not in _LABEL_STAGES:
            raise DataError(f"{path} is a run of `cai {manifest.stage}` and holds no labels; name one of `cai label`")
        file = folder / "records.jsonl"
        labels: Iterable[Label] = read_records(folder, Label)
        set_name = str(manifest.config.get("comparisons", ""))
        note = _unfinished(path, manifest.state, manifest.counts)
    else:
        file = folder
        labels = _lines(folder, Label)
        folder = folder.parent
    verdicts: dict[str, tuple[Comparison, Verdict]] = {}
    seen: set[str] = set()
    models: set[str] = set()
    for label in labels:
        if label.comparison.id in seen:
            raise DataError(f"{path} has two labels of the comparison {label.comparison.id}; leave one of them")
        seen.add(label.comparison.id)
        models.add(label.model)
        if label.comparison.id in rated:
            verdicts[label.comparison.id] = (label.comparison, label.verdict)
    if not seen:
        raise DataError(f"{path} has no finished label yet")
    if len(models) > 1:
        raise DataError(f"{path} has labels of several models ({', '.join(sorted(models))}); give a file for each")
    return JudgeSource(
        file=InputFile(path=path, kind="labels", sha256=file_sha256(file), items=len(seen)),
        model=models.pop(),
        verdicts=verdicts,
        unrated=len(seen) - len(verdicts),
        tags=_tags(folder),
        set_name=Path(set_name).name,
        note=note,
    )


def _store(path: str) -> RatingSource:
    store = RatingStore.open(Path(path) / STORE)
    try:
        ratings, comparisons = tuple(store.ratings(checks=True)), tuple(store.comparisons())
        name = Path(store.source).name
    finally:
        store.close()
    if not ratings:
        raise DataError(f"{path} has no rating yet; rate first")
    file = _file(path, "rating directory", _content_sha256((*ratings, *comparisons)), ratings)
    return RatingSource(file, _checked(path, ratings), comparisons, name)


def _file(path: str, kind: InputKind, sha256: str, items: Collection[Record]) -> InputFile:
    return InputFile(path=path, kind=kind, sha256=sha256, items=len(items))


def _content_sha256(items: Iterable[Record]) -> str:
    content = hashlib.sha256()
    for item in items:
        content.update(item.model_dump_json().encode() + b"\n")
    return content.hexdigest()


def _lines(path: Path, model: type[RecordT], *, may_be_empty: bool = False) -> Iterator[RecordT]:
    """The records of a .jsonl file.

    Raises:
        DataError: after the last line: some are broken, or there is none.
    """
    problems: list[Problem] = []
    number = 0
    if not path.is_file():
        raise DataError(f"{path}: there is no such file or directory")
    if not path.name.removesuffix(".gz").endswith(".jsonl"):
        raise DataError(f"{path}: a file of {model.__name__.lower()}s has one on each line and is named .jsonl")
    for row in read_rows(str(path), None):
        number += 1
        if row.fault is not None:
            problems.append(Problem(row.fault.message, str(path), row.number))
            continue
        try:
            yield model.model_validate(row.data)
        except ValidationError as error:
            message = f"is no {model.__name__.lower()}: {first_problem(error)}"
            problems.append(Problem(message, str(path), row.number))
    if problems:
        more = [f"{len(problems)} lines in all are broken"] if len(problems) > _SHOWN_PROBLEMS else []
        raise DataError("\n".join([*map(str, problems[:_SHOWN_PROBLEMS]), *more]))
    if not number and not may_be_empty:
        raise DataError(f"{path} has no {model.__name__.lower()}")


def _checked(path: str, ratings: tuple[Rating, ...]) -> tuple[Rating, ...]:
    """Check what a rating's type does not.

    Raises:
        DataError: a time is no time.
    """
    for number, rating in enumerate(ratings, 1):
        if not (math.isfinite(rating.seconds) and rating.seconds >= 0):
            raise DataError(
                f"{path}: rating {number}, of {rating.comparison_id} by {rating.rater}, took {rating.seconds} seconds; "
                "give a time, or 0 where it is not known"
            )
    return ratings


def _unfinished(path: str, state: str, counts: Mapping[str, int]) -> str | None:
    """Word the state of a run that is not finished."""
    if state == "finished":
        return None
    done, wanted = counts.get("finished", 0), counts.get("comparisons")
    of = "" if wanted is None else f" of {wanted}"
    return f"The label run {path} is not finished (its state is `{state}`, with {done}{of} labels when it was saved)."


def _tags(folder: Path) -> Mapping[str, tuple[str, ...]] | None:
    """Tags of the principles of a run's frozen constitution.

    Raises:
        DataError: it is there and cannot be read.
    """
    file = folder / CONSTITUTION
    if not file.is_file():
        return None
    try:
        return {principle.id: tuple(principle.tags) for principle in load_constitution(str(file)).principles}
    except CaiError as error:
        raise DataError(str(error)) from None
