r"""One row of a data set, or one chain → the comparison in it.

A row has one of these shapes, tried in this order:

| columns | value | the comparison is |
|---|---|---|
| `a`, `b` (`prompt`, …) | objects | a record as `cai sample` writes it |
| `response_a`, `response_b` | texts | of these two; `gold` names the better one |
| `chosen`, `rejected` | transcripts, or lists of messages | of the two last replies; `chosen` is the better one |
| `chosen`, `rejected` | texts, or one message of the assistant each | the same, beside a prompt column |

The prompt is read as in `formats.py`. The gold column (`gold`, or the one that is named) holds `a`, `response_a` or
`model_a`, or the same with b, in any case; `tie`, `both`, `neither` and `tie (bothbad)` name no better one, and neither
does an empty cell. The first two shapes say which response is `a`; in all others, and in chains, a stable hash of the
comparison's id draws it, so that the better one is on either side equally often.

`id` is the comparison's (default: a hash of prompt and responses); the prompt's is always the hash of its conversation,
so that comparisons of one prompt are known as such.
"""

from collections.abc import Mapping

from pydantic import ValidationError

from cai.data.formats import (
    FURTHER_COLUMNS,
    Finding,
    RowContent,
    Turns,
    check_text,
    conversation_id,
    is_transcript,
    listed,
    row_columns,
    row_prompt,
    split_reply,
    type_name,
)
from cai.data.tables import pair_state
from cai.errors import RecordError
from cai.journal import first_problem
from cai.records import Comparison, Message, Prompt, Response, RevisionChain, Side, stable_seed

GOLD = "gold"
"""The column that is read for the better response where no other is named."""
COLUMNS = (*FURTHER_COLUMNS, "response_a", "response_b", "a", "b", "source")
"""The columns that are read beside those of the prompt and the gold column."""

_SIDES: Mapping[str, Side] = {
    "a": "a",
    "response_a": "a",
    "model_a": "a",
    "b": "b",
    "response_b": "b",
    "model_b": "b",
}
_TIES = ("tie", "both", "neither", "tie (bothbad)")


def row_comparison(
    row: object, *, column: str | None, gold_column: str | None, require_gold: bool, source: str
) -> RowContent[Comparison]:
    """Read the comparison of one row.

    `column` holds the prompt (None: found by its name); `gold_column` names the better of `response_a` and `response_b`
    (None: `GOLD`, where there is one), and rows of other shapes have no use for it. Without `require_gold` a row that
    has no gold label, or a tie, is used all the same.

    Raises:
        RecordError: the row holds no usable comparison; `reason` says why.
    """
    columns = row_columns(row)
    if {"a", "b"} <= columns.keys():
        if gold_column not in (None, GOLD):
            raise _order_is_known(f"a record has `{GOLD}`", gold_column)
        found = RowContent(_record(columns), own_id=True, note=None)
    elif not columns.keys().isdisjoint(("response_a", "response_b")):
        found = _two_responses(columns, column, gold_column, require_gold, source)
    elif not columns.keys().isdisjoint(("chosen", "rejected")):
        if gold_column is not None:
            raise _order_is_known("`chosen` and `rejected` are in order", gold_column)
        found = _chosen_and_rejected(columns, column, source)
    else:
        raise RecordError(
            "missing_response",
            "has neither `response_a` and `response_b` nor `chosen` and `rejected`, only "
            + listed(list(map(str, columns))),
        )
    _check(found.item, require_gold)
    return found


def chain_comparison(chain: RevisionChain, *, require_gold: bool) -> RowContent[Comparison]:
    """Compare the draft of a chain with its last revision.

    Raises:
        RecordError: there are no two replies to compare; `reason` says why.
    """
    if chain.prompt.kind == "helpful":
        raise RecordError("helpful", "answers a helpful prompt, which is not revised")
    if pair_state(chain) == "unrevised":
        raise RecordError("unrevised", "has no revision, since the critique found nothing to change")
    draft = Response(text=chain.draft.text, origin="draft")
    revision = Response(text=chain.final.text, origin=f"revision {len(chain.revisions)}")
    a, b = (revision, draft) if _second_first(chain.id) else (draft, revision)
    comparison = Comparison(id=chain.id, prompt=chain.prompt, a=a, b=b, source="revision")
    _check(comparison, require_gold)
    return RowContent(comparison, own_id=True, note=None)


def _order_is_known(why: str, gold_column: str | None) -> RecordError:
    return RecordError("gold_column", f"{why}, so `{gold_column}` is not read; leave the gold column out")


def _record(columns: Mapping[str, object]) -> Comparison:
    try:
        return Comparison.model_validate(columns)
    except ValidationError as error:
        raise RecordError("bad_record", f"is not a comparison record: {first_problem(error)}") from None


def _two_responses(
    columns: Mapping[str, object], column: str | None, gold_column: str | None, require_gold: bool, source: str
) -> RowContent[Comparison]:
    first, second = (_response(columns, name) for name in ("response_a", "response_b"))
    gold, tie = _gold(columns, gold_column)
    if tie is not None and require_gold:
        raise RecordError(*tie)
    found = row_prompt(columns, column=column, kind=None, default_kind="red_team", source=source)
    comparison = Comparison(
        id=found.item.id if found.own_id else _content_id(found.item, first, second),
        prompt=_renamed(found.item),
        a=Response(text=first),
        b=Response(text=second),
        source="file",
        gold=gold,
    )
    return RowContent(comparison, found.own_id, tie or found.note)


def _chosen_and_rejected(columns: Mapping[str, object], column: str | None, source: str) -> RowContent[Comparison]:
    prompt_columns = ("messages", "prompt") if column is None else (column,)
    own_prompt = any(columns.get(name) is not None for name in prompt_columns)
    (before_chosen, chosen), (before_rejected, rejected) = (
        _last_reply(columns, name, own_prompt) for name in ("chosen", "rejected")
    )
    if column is None and (before_chosen or before_rejected):
        column = "chosen"
    found = row_prompt(columns, column=column, kind=None, default_kind="red_team", source=source)
    if any(turns and turns != found.item.messages for turns in (before_chosen, before_rejected)):
        raise RecordError("prompts_differ", f"`chosen` or `rejected` holds another conversation than `{column}`")
    id_ = found.item.id if found.own_id else _content_id(found.item, chosen, rejected)
    best, worst = Response(text=chosen), Response(text=rejected)
    swapped = _second_first(id_)
    comparison = Comparison(
        id=id_,
        prompt=_renamed(found.item),
        a=worst if swapped else best,
        b=best if swapped else worst,
        source="file",
        gold="b" if swapped else "a",
    )
    return RowContent(comparison, found.own_id, note=None)


def _response(columns: Mapping[str, object], name: str) -> str:
    value = columns.get(name)
    if value is None:
        raise RecordError("missing_response", f"`{name}` is missing or null")
    if not isinstance(value, str):
        raise RecordError("not_text", f"`{name}` must be text, but is {type_name(value)}")
    check_text(value, name)
    return value


def _last_reply(columns: Mapping[str, object], name: str, own_prompt: bool) -> tuple[Turns, str]:
    """The last reply of a side and the conversation before it, which is empty where the reply stands alone."""
    value = columns.get(name)
    if value is None or (own_prompt and isinstance(value, str) and not is_transcript(value)):
        return (), _response(columns, name)
    turns, reply = split_reply(value, name)
    if reply is None:
        raise RecordError("missing_response", f"`{name}` does not end with a reply of the assistant")
    return turns, reply.content


def _gold(columns: Mapping[str, object], gold_column: str | None) -> tuple[Side | None, Finding | None]:
    """The better side where one is named, or that it is a tie."""
    name = GOLD if gold_column is None else gold_column
    if gold_column is not None and gold_column not in columns:
        raise RecordError("no_gold", f"has no column `{gold_column}`, only {listed(list(map(str, columns)))}")
    value = columns.get(name)
    text = value.strip().lower() if isinstance(value, str) else value
    if text is None or text == "":
        return None, None
    if text in _TIES:
        return None, Finding("gold_tie", f"`{name}` names neither response as the better one")
    if not isinstance(text, str) or text not in _SIDES:
        known = ", ".join((*_SIDES, *_TIES))
        raise RecordError("unknown_gold", f"`{name}` is {value!r:.40}; known: {known}")
    return _SIDES[text], None


def _check(comparison: Comparison, require_gold: bool) -> None:
    """White space at its ends does not tell a response from another."""
    texts = [response.text.strip() for response in (comparison.a, comparison.b)]
    if not all(texts):
        raise RecordError("empty_response", "at least one of the two responses has no text")
    if texts[0] == texts[1]:
        raise RecordError("identical_responses", "the two responses are the same")
    if require_gold and comparison.gold is None:
        raise RecordError("no_gold", "does not say which response is the better one")


def _content_id(prompt: Prompt, *replies: str) -> str:
    return conversation_id((*prompt.messages, *(Message(role="assistant", content=text) for text in replies)))


def _renamed(prompt: Prompt) -> Prompt:
    return prompt.model_copy(update={"id": conversation_id(prompt.messages)})


def _second_first(id_: str) -> bool:
    return stable_seed("sides", id_) % 2 == 1
