"""Demonstrations in, to train on: revisions and helpful answers of finished runs, and files of conversations."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from cai.config import Share
from cai.data.demonstration_rows import COLUMNS, row_demonstration
from cai.data.files import read_rows
from cai.data.formats import RowContent
from cai.data.run_tables import run_table
from cai.data.tables import SFT
from cai.data.training_rows import Demonstration, ReplySource, TrainingRows
from cai.data.training_sources import (
    SourceRow,
    SourceRows,
    Splitting,
    TrainingSource,
    combined,
    leave_out_tested,
)
from cai.errors import ConfigError, DataError
from cai.records import PromptKind, stable_seed

Split = Literal["train", "test"]

_TABLES = {"critique-revise": SFT.name}


class DemonstrationSource(TrainingSource):
    """Where demonstrations are read from."""

    path: str
    """The directory of a finished run of `cai critique-revise`, a file (.jsonl, .json, .csv, each also with .gz, or
    .parquet; see `demonstration_rows`), or `hub:owner/name[@config][:split]`."""
    rounds: Literal["all", "last"] = "all"
    """Of a run: the revisions of all rounds (Bai et al. 2022, section 3.1), or the last one to each prompt."""
    kinds: Annotated[tuple[PromptKind, ...], Field(min_length=1)] = ("red_team", "helpful")
    """Of a run: revisions of the replies to `red_team` prompts, answers to `helpful` ones, or both."""
    ratio: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Rows for each row of the sources without a ratio, drawn without replacement by the seed; all where there are too
    few. Train rows and test rows are drawn each for themselves."""


def read_demonstrations(
    sources: Sequence[DemonstrationSource], eval_sources: Sequence[DemonstrationSource], *, test_share: Share, seed: int
) -> TrainingRows[Demonstration]:
    """Read everything that a training run on demonstrations learns from and is measured on.

    The rows of `eval_sources` are the test rows. Where there are none, runs keep the splits they were exported with,
    and of each file about `test_share` of the prompts go to the test rows, by a hash of their text and `seed`.

    Raises:
        DataError: a source cannot be read, is not finished, or has no usable row; or no train row is left.
        ConfigError: all sources have a ratio, or `rounds` or `kinds` is set for a file.
    """
    for named, word in ((sources, "train"), (eval_sources, "test")):
        if named and all(source.ratio is not None for source in named):
            raise ConfigError(
                f"every source of {word} rows has a ratio, which is one to the rows of the sources without; leave it "
                "out of one of them"
            )
    how = Splitting(test_share, seed, tests_named=bool(eval_sources))
    asked = (*sources, *eval_sources)
    found = [_rows(source, for_test=number >= len(sources)) for number, source in enumerate(asked)]
    for one in found:
        one.collect(how)
    ratios = [source.ratio for source in asked]
    first = len(sources) if eval_sources else 0
    _draw(found[first:], ratios[first:], "test", seed)
    leave_out_tested(found)
    _draw(found[: len(sources)], ratios[: len(sources)], "train", seed)
    return combined(found, [one.facts(weight=None, ratio=ratio) for one, ratio in zip(found, ratios, strict=True)])


def _rows(source: DemonstrationSource, for_test: bool) -> SourceRows[Demonstration]:
    path = Path(source.path)
    on_hub = source.path.startswith("hub:")
    files: Mapping[str, Path] = {}
    content = partial(row_demonstration, source=source.path)
    if path.is_dir():
        files = run_table(path, _TABLES)
        last = _last_rounds(files.values()) if source.rounds == "last" else None
        content = partial(_run_demonstration, of=source, last=last)
    elif not on_hub and not path.is_file():
        raise DataError(f"{path}: there is no such file, and no such directory of a run")
    elif source.rounds != "all" or set(source.kinds) != {"red_team", "helpful"}:
        raise ConfigError(f"{path} is not the directory of a run: leave `rounds` and `kinds` out, which are for runs")
    return SourceRows(
        source=source,
        for_test=for_test,
        files=files,
        file=None if files or on_hub else path,
        read=partial(read_rows, column=None, further=COLUMNS),
        content=content,
    )


def _last_rounds(files: Iterable[Path]) -> dict[str, int]:
    """The last round with a row, by prompt id."""
    last: dict[str, int] = {}
    for file in files:
        for row in read_rows(str(file), "prompt_id", further=("round",)):
            columns: Any = row.data
            last[columns["prompt_id"]] = max(columns["round"], last.get(columns["prompt_id"], 0))
    return last


def _run_demonstration(
    row: Any, *, of: DemonstrationSource, last: Mapping[str, int] | None
) -> RowContent[SourceRow[Demonstration]]:
    """The demonstration in a row of a run's table `sft`; `last` is that of `_last_rounds`, None for all rounds."""
    found = row_demonstration(row, source=of.path)
    reply: ReplySource = "revision" if row["kind"] == "red_team" else "helpful"
    unwanted = found.item.unwanted
    if row["kind"] not in of.kinds:
        unwanted = "other_kind"
    elif last is not None and row["round"] < last[row["prompt_id"]]:
        unwanted = "earlier_round"
    item = found.item.item.model_copy(update={"source": reply})
    return replace(found, item=replace(found.item, item=item, unwanted=unwanted))


def _draw(found: Sequence[SourceRows[Demonstration]], ratios: Sequence[float | None], side: Split, seed: int) -> None:
    """Keep as many rows of each source with a ratio as that allows; a larger ratio keeps the same and further ones."""
    rows = {"train": [one.train for one in found], "test": [one.test for one in found]}[side]
    base = sum(len(given) for given, ratio in zip(rows, ratios, strict=True) if ratio is None)
    for one, given, ratio in zip(found, rows, ratios, strict=True):
        if ratio is None:
            continue
        order = sorted((stable_seed(seed, "ratio", row.id), place) for place, row in enumerate(given))
        wanted = round(ratio * base)
        one.missing += max(0, wanted - len(given))
        one.left_out["over_ratio"] += max(0, len(given) - wanted)
        given[:] = [given[place] for place in sorted(place for _, place in order[:wanted])]
