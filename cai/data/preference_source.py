"""Preferences in, to train on: from finished runs and from files, judges' labels and people's alike.

A row of a file is read as `comparison_rows` says, and must say which response is the better one. Further columns:
`p_chosen` (probability that `chosen` is the better one; a row without the column has a hard label, which is 1),
`source` (`ai`, `human`, `revision`, `contrast`; default `human`), `prompt_id` and `constitution_sha256`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, get_args

from pydantic import Field

from cai.config import Share
from cai.data.comparison_rows import COLUMNS, GOLD, row_comparison
from cai.data.files import COMPARISON_SETS, find_file, read_rows
from cai.data.formats import Finding, RowContent, row_columns, type_name
from cai.data.preference_tables import PREFERENCES
from cai.data.run_tables import run_table
from cai.data.tables import PAIRS
from cai.data.training_rows import LabelSource, Preference, TrainingRows
from cai.data.training_sources import (
    PROVENANCE,
    SourceRow,
    SourceRows,
    Splitting,
    TrainingSource,
    combined,
    leave_out_tested,
    row_constitution,
    row_prompt_id,
)
from cai.errors import ConfigError, RecordError
from cai.records import Comparison

_TABLES = {
    **dict.fromkeys(("label", "contrast", "export", "import"), PREFERENCES.name),
    "critique-revise": PAIRS.name,
}
_SOURCES = get_args(LabelSource)


class PreferenceSource(TrainingSource):
    """Where preferences are read from."""

    path: str
    """The directory of a finished run of `cai label`, `cai contrast`, `cai export`, `cai import` or `cai
    critique-revise`, a file (.jsonl, .json, .csv, each also with .gz, or .parquet), the name of a shipped set, or
    `hub:owner/name[@config][:split]`."""
    column: str | None = None
    """The column of a file that holds the prompt. Default: found by its name, see `formats.PROMPT_COLUMNS`."""
    gold_column: str | None = None
    """The column of a file that names the better of `response_a` and `response_b`. Default: `gold`."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Factor of the loss of its rows, against that of other sources."""


def read_preferences(
    sources: Sequence[PreferenceSource], eval_sources: Sequence[PreferenceSource], *, test_share: Share, seed: int
) -> TrainingRows[Preference]:
    """Read everything that a training run on preferences learns from and is measured on.

    The rows of `eval_sources` are the test rows. Where there are none, runs keep the splits they were exported with,
    and of each file about `test_share` of the prompts go to the test rows, by a hash of their text and `seed`.

    Raises:
        DataError: a source cannot be read, is not finished, or has no usable row; or no train row is left.
        ConfigError: a column is named for a run.
    """
    how = Splitting(test_share, seed, tests_named=bool(eval_sources))
    named = [*((source, False) for source in sources), *((source, True) for source in eval_sources)]
    found = [_rows(source, for_test) for source, for_test in named]
    for one in found:
        one.collect(how)
    leave_out_tested(found)
    weights = [source.weight for source, _ in named]
    facts = [one.facts(weight=weight, ratio=None) for one, weight in zip(found, weights, strict=True)]
    rows = combined(found, facts)
    train = [weight for one, weight in zip(found, weights, strict=True) for _ in one.train]
    test = [weight for one, weight in zip(found, weights, strict=True) for _ in one.test]
    return replace(rows, train=_weighted(rows.train, train), test=_weighted(rows.test, test))


def _rows(source: PreferenceSource, for_test: bool) -> SourceRows[Preference]:
    gold = GOLD if source.gold_column is None else source.gold_column
    further = (*COLUMNS, *PROVENANCE, "p_chosen", gold)
    is_run = Path(source.path).is_dir()
    if is_run and (source.column is not None or source.gold_column is not None):
        raise ConfigError(f"{source.path} is a directory of a run, whose columns are known; name no column of it")
    file = None if is_run or source.path.startswith("hub:") else find_file(source.path, COMPARISON_SETS)
    return SourceRows(
        source=source,
        for_test=for_test,
        files=run_table(Path(source.path), _TABLES) if is_run else {},
        file=file,
        read=partial(read_rows, column=source.column, further=further),
        content=partial(row_preference, column=source.column, gold_column=source.gold_column, source=source.path),
    )


def row_preference(
    row: object, *, column: str | None, gold_column: str | None, source: str
) -> RowContent[SourceRow[Preference]]:
    """Read the preference of one row; the arguments are those of `row_comparison`. Its weight is 1.

    Raises:
        RecordError: the row holds no usable preference; `reason` says why.
    """
    columns = row_columns(row)
    found = row_comparison(columns, column=column, gold_column=gold_column, require_gold=True, source=source)
    comparison = found.item if found.item.gold == "a" else found.item.swap()
    label_source, note = _label_source(columns, comparison)
    preference = Preference(
        id=comparison.id,
        prompt_id=row_prompt_id(columns, comparison.prompt.id),
        prompt=comparison.prompt.messages,
        chosen=comparison.a.text,
        rejected=comparison.b.text,
        p_chosen=_p_chosen(columns),
        source=label_source,
        weight=1.0,
    )
    return RowContent(SourceRow(preference, row_constitution(columns)), found.own_id, note or found.note)


def _p_chosen(columns: Mapping[str, object]) -> float:
    """The label of a row; 1 where it has no such column."""
    if "p_chosen" not in columns:
        return 1.0
    if not columns.keys().isdisjoint(("response_a", "response_b")):
        raise RecordError("bad_p", "`p_chosen` speaks of `chosen`, but the responses are `response_a` and `response_b`")
    return row_probability(columns["p_chosen"], "p_chosen")


def row_probability(value: object, column: str) -> float:
    """The probability that stands in a column.

    Raises:
        RecordError: `bad_p`.
    """
    try:
        p = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        p = None
    if p is None:
        shown = f"{value!r:.40}" if isinstance(value, str) else type_name(value)
        raise RecordError("bad_p", f"`{column}` must be a number from 0 to 1, but is {shown}")
    if not 0 <= p <= 1:  # NaN is in no range
        raise RecordError("bad_p", f"`{column}` must be a number from 0 to 1, but is {p:g}")
    return p


def _label_source(columns: Mapping[str, object], comparison: Comparison) -> tuple[LabelSource, Finding | None]:
    """Who or what made the label. Other data sets have a column `source` of another meaning, which is noted."""
    if comparison.source != "file":
        return ("contrast" if comparison.source == "contrast" else "human"), None
    value = columns.get("source")
    known: LabelSource | None = next((name for name in _SOURCES if name == value), None)
    if known is not None:
        return known, None
    if value is None or value == "":
        return "human", None
    message = f"`source` is {value!r:.40} and none of {', '.join(_SOURCES)}; the label counts as `human`"
    return "human", Finding("unknown_source", message)


def _weighted(rows: Sequence[Preference], weights: Sequence[float]) -> tuple[Preference, ...]:
    """The rows with their weights, divided by the mean: the learning rate then means the same for any weights."""
    mean = math.fsum(weights) / len(weights) if weights else 1.0
    return tuple(row.model_copy(update={"weight": weight / mean}) for row, weight in zip(rows, weights, strict=True))
