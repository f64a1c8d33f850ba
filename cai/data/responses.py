"""Responses in, to be scored: from runs that wrote or compared them, and from files; every unused row is counted.

A row of a file is read as `comparison_rows` says where it has two responses, else as `demonstration_rows` does. Of two
responses a label may say which is the better one: a judge's, the gold column, `chosen` and `rejected` with `p_chosen`
where there is one; the order of draft and revision; what the two replies of a contrast were asked for.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cai.data.comparison_rows import COLUMNS as PAIR_COLUMNS, GOLD, row_comparison
from cai.data.demonstration_rows import COLUMNS as REPLY_COLUMNS, row_demonstration
from cai.data.files import COMPARISON_SETS, Row, file_sha256, find_file, read_rows
from cai.data.formats import RowContent, row_columns
from cai.data.preference_source import row_preference
from cai.data.rows import Reject, RowNote, RowTally, SeenIds, SourceScan, ignore, used_rows
from cai.data.tables import pair_state
from cai.data.training_rows import LabelSource
from cai.errors import DataError, RunDirError
from cai.records import (
    ContrastSample,
    Label,
    Message,
    Record,
    Response,
    ResponseSample,
    RevisionChain,
    StageResult,
)
from cai.rundir import read_manifest, read_records


class Responses(Record):
    """The responses to one prompt that stand together: a row, or a record of a run."""

    id: str
    """Unique within the source."""
    prompt: tuple[Message, ...]
    """Ends with a user turn."""
    responses: tuple[Response, ...]
    """At least one. `origin` is a policy's name, `draft`, `revision 2`, or the column that it stood in."""
    p_first: float | None = None
    """Probability that the first one is better than the last one, where a label says so."""
    label_source: LabelSource | None = None
    """Who or what made the label; None where there is none."""


class ResponseScan(SourceScan):
    """What a source of responses holds."""

    responses: int


def read_responses(
    path: str, *, on_reject: Callable[[Reject], None], on_note: Callable[[RowNote], None] = ignore
) -> Iterator[Responses]:
    """Read the responses of a source one row at a time, in order; every other row goes to `on_reject`.

    `path` is the directory of a run of `cai sample`, `cai contrast`, `cai critique-revise` or `cai label`, a file
    (.jsonl, .json, .csv, each also with .gz, or .parquet), the name of a shipped set of comparisons, or
    `hub:owner/name[@config][:split]`.

    Raises:
        DataError: at the first row or a later one: the source cannot be read, has no rows, or only rejected ones.
            `scan_responses` finds this out before any work.
        RunDirError: the records of a run are broken.
    """
    rows: Iterator[Row]
    content: Callable[[Any], RowContent[Responses]]
    if Path(path).is_dir():
        model, convert = _run_kind(Path(path))
        records = enumerate(read_records(Path(path), model), start=1)
        rows = (Row(number, record) for number, record in records)
        content = partial(_of_record, convert=convert)
    else:
        rows = read_rows(path, None, sets=COMPARISON_SETS, further=_COLUMNS)
        content = partial(row_responses, source=path)
    return used_rows(path, rows, content, on_reject=on_reject, on_note=on_note, seen=SeenIds())


def scan_responses(path: str, *, on_reject: Callable[[Reject], None] = ignore) -> ResponseScan:
    """Read a source once from end to end and count what it holds, so that faults show before any work.

    Raises:
        DataError, RunDirError: as `read_responses` does.
    """
    rows = responses = 0
    content = hashlib.sha256()
    tally = RowTally(on_reject)
    file = None if path.startswith("hub:") or Path(path).is_dir() else find_file(path, COMPARISON_SETS)
    for row in read_responses(path, on_reject=tally.reject, on_note=tally.note):
        rows += 1
        responses += len(row.responses)
        if file is None:
            content.update(row.model_dump_json().encode() + b"\n")
    return ResponseScan(
        source=path,
        sha256=content.hexdigest() if file is None else file_sha256(file),
        total=rows + tally.rejects.total(),
        responses=responses,
        rejects=dict(tally.rejects),
        notes=dict(tally.notes),
    )


def row_responses(row: object, *, source: str) -> RowContent[Responses]:
    """Read the responses of one row of a file.

    Raises:
        RecordError: the row holds no usable response; `reason` says why.
    """
    columns = row_columns(row)
    names = _pair_names(columns)
    if names is not None:
        return _pair(columns, names, source)
    found = row_demonstration(columns, source=source)
    demonstration = found.item.item
    reply = Response(text=demonstration.messages[-1].content)
    item = Responses(id=demonstration.id, prompt=demonstration.prompt, responses=(reply,))
    return RowContent(item, found.own_id, found.note)


_COLUMNS = (*REPLY_COLUMNS, *PAIR_COLUMNS, GOLD, "p_chosen")


def _pair_names(columns: Mapping[str, object]) -> tuple[str, str] | None:
    """The columns of a row's two responses; None where it has one response."""
    filled = {name for name, value in columns.items() if value is not None}
    if filled >= {"a", "b"}:
        return "a", "b"
    if filled & {"response_a", "response_b"}:
        return "response_a", "response_b"
    return ("chosen", "rejected") if filled >= {"chosen", "rejected"} else None


def _pair(columns: Mapping[str, object], names: tuple[str, str], source: str) -> RowContent[Responses]:
    found = row_comparison(columns, column=None, gold_column=None, require_gold=False, source=source)
    comparison, p_a, label_source = found.item, None, None
    if comparison.gold is not None:
        preference = row_preference(columns, column=None, gold_column=None, source=source).item.item
        p_a = preference.p_chosen if comparison.gold == "a" else 1 - preference.p_chosen
        label_source = preference.source
    pair = [(comparison.a, p_a), (comparison.b, None if p_a is None else 1 - p_a)]
    if names[0] == "chosen" and comparison.gold == "b":  # which of them is `a` was drawn
        pair.reverse()
    item = Responses(
        id=comparison.id,
        prompt=comparison.prompt.messages,
        responses=tuple(
            Response(text=response.text, origin=response.origin or name)
            for (response, _), name in zip(pair, names, strict=True)
        ),
        p_first=pair[0][1],
        label_source=label_source,
    )
    return RowContent(item, found.own_id, found.note)


def _run_kind(run: Path) -> tuple[type[StageResult], Callable[[Any], Responses]]:
    """What the records of a run are, and what makes responses out of one."""
    try:
        stage = read_manifest(run).stage
    except RunDirError as error:
        raise DataError(f"{error}; name a file, or the directory of a run of {_RUNS}") from None
    if stage not in _KINDS:
        raise DataError(
            f"{run} is a run of the stage {stage}, whose records hold no responses; name one of {_RUNS}, or a file"
        )
    if not (run / "records.jsonl").is_file():
        raise DataError(f"{run} has no records.jsonl yet; run its `cai {stage}` command again")
    return _KINDS[stage]


def _of_record(record: Any, *, convert: Callable[[Any], Responses]) -> RowContent[Responses]:
    return RowContent(convert(record), own_id=True, note=None)


def _of_sample(sample: ResponseSample) -> Responses:
    return Responses(
        id=sample.id,
        prompt=sample.prompt.messages,
        responses=tuple(Response(text=reply.text, origin=sample.policy) for reply in sample.replies),
    )


def _of_contrast(sample: ContrastSample) -> Responses:
    return Responses(
        id=sample.id,
        prompt=sample.prompt.messages,
        responses=(
            Response(text=sample.follow.text, origin="follow"),
            Response(text=sample.oppose.text, origin="oppose"),
        ),
        p_first=1.0,
        label_source="contrast",
    )


def _of_chain(chain: RevisionChain) -> Responses:
    """The draft and all revisions; where the last revision says something else, it should be the better one."""
    revisions = (Response(text=step.text, origin=f"revision {n}") for n, step in enumerate(chain.revisions, 1))
    is_pair = chain.prompt.kind == "red_team" and pair_state(chain) == "pair"
    return Responses(
        id=chain.id,
        prompt=chain.prompt.messages,
        responses=(Response(text=chain.draft.text, origin="draft"), *revisions),
        p_first=0.0 if is_pair else None,
        label_source="revision" if is_pair else None,
    )


def _of_label(label: Label) -> Responses:
    comparison = label.comparison
    return Responses(
        id=label.id,
        prompt=comparison.prompt.messages,
        responses=tuple(
            Response(text=response.text, origin=response.origin or name)
            for response, name in ((comparison.a, "a"), (comparison.b, "b"))
        ),
        p_first=label.verdict.p_a,
        label_source="ai",
    )


_KINDS: Mapping[str, tuple[type[StageResult], Callable[[Any], Responses]]] = {
    "sample": (ResponseSample, _of_sample),
    "contrast": (ContrastSample, _of_contrast),
    "critique-revise": (RevisionChain, _of_chain),
    "label": (Label, _of_label),
}
_RUNS = ", ".join(f"`cai {stage}`" for stage in _KINDS)
