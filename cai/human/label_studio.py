"""Ratings as Label Studio tasks, and answers out of a Label Studio export.

Label Studio refuses annotations of people it does not know, so the name of a rater stands in a text field of the task
and not in `completed_by`; the person who imports the tasks there becomes the author of all of them. `a` and `b` are a
choice of the left and the right response, `rather_a` and `rather_b` are marked with `slightly better` beside it,
`both_bad` is marked alone, and a skipped comparison is a cancelled annotation.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cai.data.comparison_rows import row_comparison
from cai.data.files import Row
from cai.data.formats import RowContent, check_text, is_transcript, type_name
from cai.data.preference_tables import task_data
from cai.errors import RecordError
from cai.human.columns import Ballot, PairColumns, shaped_prompt, wanted
from cai.human.records import Answer, Rating
from cai.human.votes import Vote
from cai.records import Comparison

SLIGHTLY, BOTH_BAD = "slightly better", "both bad"
_STRENGTH, _RATER, _COMMENT = "strength", "rater", "comment"

RATING_CONFIG = f"""\
<View>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="pairwise" toName="response_a,response_b"/>
  <Text name="response_a" value="$response_a"/>
  <Text name="response_b" value="$response_b"/>
  <Choices name="{_STRENGTH}" toName="prompt" choice="single">
    <Choice value="{SLIGHTLY}"/>
    <Choice value="{BOTH_BAD}"/>
  </Choices>
  <TextArea name="{_COMMENT}" toName="prompt"/>
  <TextArea name="{_RATER}" toName="prompt"/>
</View>
"""
"""The labelling interface that the tasks are for."""

_SELECTED: Mapping[Answer, str] = {"a": "left", "rather_a": "left", "rather_b": "right", "b": "right"}
_P_LEFT: Mapping[object, float] = {"left": 1.0, "right": 0.0}


def rating_task(comparison: Comparison, ratings: Sequence[Rating]) -> str:
    """A task for `RATING_CONFIG` as JSON on one line, with one annotation for each rating of the comparison."""
    task = {"data": task_data(comparison), "annotations": [_annotation(rating) for rating in ratings]}
    return json.dumps(task, ensure_ascii=False)


def _annotation(rating: Rating) -> Mapping[str, object]:
    results = [_result(_RATER, "textarea", {"text": [rating.rater]})]
    if rating.answer in _SELECTED:
        results.append(_result("pairwise", "pairwise", {"selected": _SELECTED[rating.answer]}))
    if rating.answer in ("rather_a", "rather_b", "both_bad"):
        strength = BOTH_BAD if rating.answer == "both_bad" else SLIGHTLY
        results.append(_result(_STRENGTH, "choices", {"choices": [strength]}))
    if rating.comment:
        results.append(_result(_COMMENT, "textarea", {"text": [rating.comment]}))
    return {"result": results, "was_cancelled": rating.answer == "skipped", "lead_time": rating.seconds}


def _result(name: str, kind: str, value: Mapping[str, object]) -> Mapping[str, object]:
    target = "pairwise" if kind == "pairwise" else "prompt"
    return {"from_name": name, "to_name": target, "type": kind, "value": value}


def annotation_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """One row for each annotation, draft and prediction of the tasks, under the number of its task.

    A row's data is the task, what the part is called, and the part; a task that has no part makes one row.
    """
    for row in rows:
        if row.fault is not None or not isinstance(row.data, Mapping):
            yield row
            continue
        task = row.data
        annotations = task.get("annotations", task.get("completions"))
        found = 0
        for name, parts in (
            ("annotation", annotations),
            ("draft", task.get("drafts")),
            ("prediction", task.get("predictions")),
        ):
            # What is no list is passed on as one part, to be rejected with its reason.
            for part in parts if isinstance(parts, list) else () if parts is None else (parts,):
                found += name == "annotation"
                yield Row(row.number, (task, name, part))
        if not found:
            yield Row(row.number, (task, "unrated", None))


def task_ballot(row: object, columns: PairColumns, *, slight: float, source: str) -> RowContent[Ballot]:
    """Read one row of `annotation_rows`. Drafts, predictions, cancelled annotations and `both bad` are no votes.

    Raises:
        RecordError: the row holds no usable answer; `reason` says why.
    """
    if not isinstance(row, tuple):
        raise RecordError("not_an_object", f"must be an object with `data` and `annotations`, but is {type_name(row)}")
    task, name, part = row
    found = row_comparison(
        _shaped(task, columns),
        column=None if columns.prompt is None else "prompt",
        gold_column=None,
        require_gold=False,
        source=source,
    )
    vote = _vote(part, slight) if name == "annotation" else name
    ballot = (
        Ballot(comparison=found.item, vote=vote)
        if isinstance(vote, Vote)
        else Ballot(comparison=found.item, vote=None, no_vote=vote)
    )
    return RowContent(ballot, found.own_id, found.note)


def _shaped(task: Mapping[str, object], columns: PairColumns) -> Mapping[str, object]:
    """The data of a task in the columns of a comparison."""
    data = task.get("data")
    if not isinstance(data, Mapping):
        raise RecordError(
            "not_a_task",
            "has no object `data`: export from Label Studio as JSON; a JSON-MIN or CSV export is read by "
            "`cai import pairs`",
        )
    first, second = columns.response_names
    shaped = shaped_prompt(data, columns.prompt, others=(first, second))
    # A transcript in a task has lost the white space before its first turn, by which transcripts are known.
    if isinstance(text := shaped.get("prompt"), str) and not is_transcript(text) and is_transcript(f"\n\n{text}"):
        shaped = {**shaped, "prompt": f"\n\n{text}"}
    given = {} if data.get("id") is None else {"id": data["id"]}
    return {**given, **shaped, "response_a": wanted(data, first), "response_b": wanted(data, second)}


def _vote(annotation: object, slight: float) -> Vote | str:
    """The vote of an annotation, or why it is none."""
    results = annotation.get("result") if isinstance(annotation, Mapping) else None
    if not isinstance(annotation, Mapping) or not isinstance(results, list):
        raise RecordError("bad_annotation", "has an annotation that is not an object with a list `result`")
    values: list[tuple[object, object, Mapping[str, object]]] = []
    for result in results:
        if not isinstance(result, Mapping) or not isinstance(result.get("value"), Mapping):
            raise RecordError("bad_annotation", "has a result in an annotation that is not an object with `value`")
        values.append((result.get("type"), result.get("from_name"), result["value"]))
    if annotation.get("was_cancelled"):
        return "cancelled"
    marks = [value.get("choices") for kind, name, value in values if (kind, name) == ("choices", _STRENGTH)]
    if [BOTH_BAD] in marks:
        return "both_bad"
    selected = [value.get("selected") for kind, _, value in values if kind == "pairwise"]
    if len(selected) > 1:
        raise RecordError("bad_annotation", f"has an annotation with {len(selected)} pairwise results")
    if not selected or selected[0] in (None, "none"):
        return "no_choice"
    if selected[0] not in _P_LEFT:
        raise RecordError("unknown_preference", f"`selected` is {selected[0]!r:.40}; known: left, right")
    strength = slight if [SLIGHTLY] in marks else 1.0
    return Vote(
        rater=_rater(annotation, values),
        p_a=strength if _P_LEFT[selected[0]] == 1 else 1 - strength,
    )


def _rater(
    annotation: Mapping[str, object], values: Sequence[tuple[object, object, Mapping[str, object]]]
) -> str | None:
    """Who answered: the name in the text field `rater`, else who completed the annotation there."""
    for kind, name, value in values:
        if (kind, name) == ("textarea", _RATER):
            text = value.get("text")
            text = text[0] if isinstance(text, list) and text else text
            if isinstance(text, str) and text.strip():
                check_text(text, _RATER)
                return text
    by = annotation.get("completed_by")
    if isinstance(by, Mapping):
        by = by.get("email") or by.get("id")
    if by is None or isinstance(by, bool) or not isinstance(by, str | int):
        return None
    check_text(str(by), "completed_by")
    return str(by)
