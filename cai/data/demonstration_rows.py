r"""One row of a data set → the conversation in it, with the reply to learn.

A row has one of these shapes, tried in this order:

| columns | value | the reply is |
|---|---|---|
| `messages` | list of `{role, content}` | its last message, of the assistant |
| `prompt` (as in `formats.py`), `completion` or `response` | text, or one message of the assistant | that |
| `transcript`, `chosen` or `text` | transcript, or list of messages | its last turn, of the assistant |

Further columns: `id` and `prompt_id` (default: hashes of the conversation and of the prompt), `finish_reason`, `source`
(`revision`, `helpful` or `human`; default `human`) and `constitution_sha256`. All others are ignored, so `rejected`
beside a `chosen` is not learnt from.
"""

from collections.abc import Mapping
from typing import get_args

from cai.data.formats import (
    Finding,
    RowContent,
    check_text,
    conversation_id,
    listed,
    row_columns,
    row_prompt,
    split_reply,
    type_name,
)
from cai.data.training_rows import Demonstration, ReplySource
from cai.data.training_sources import PROVENANCE, SourceRow, row_constitution, row_prompt_id
from cai.errors import RecordError
from cai.records import Message

COLUMNS = (*PROVENANCE, "completion", "response", "finish_reason", "kind", "round")
"""The columns that are read beside those that may hold a prompt."""

_SOURCES = get_args(ReplySource)


def row_demonstration(row: object, *, source: str) -> RowContent[SourceRow[Demonstration]]:
    """Read the demonstration of one row of `source`. A reply that was cut at the token limit is not wanted.

    Raises:
        RecordError: the row holds no usable demonstration; `reason` says why.
    """
    columns = row_columns(row)
    column, reply = _reply(columns)
    # Without other columns: nothing here hangs on the prompt's topic or kind.
    asked = {column: columns[column], "id": columns.get("id")}
    prompt = row_prompt(asked, column=column, kind=None, default_kind="helpful", source=source)
    if not reply.content.strip():
        raise RecordError("empty_response", "the reply has no text")
    messages = (*prompt.item.messages, reply)
    reply_source, note = _reply_source(columns.get("source"))
    finish_reason = columns.get("finish_reason")
    if finish_reason is not None and not isinstance(finish_reason, str):
        raise RecordError("not_text", f"`finish_reason` must be text, but is {type_name(finish_reason)}")
    demonstration = Demonstration(
        id=prompt.item.id if prompt.own_id else conversation_id(messages),
        prompt_id=row_prompt_id(columns, conversation_id(prompt.item.messages)),
        messages=messages,
        source=reply_source,
        finish_reason=finish_reason or None,
    )
    unwanted = "cut" if finish_reason == "length" else None
    return RowContent(SourceRow(demonstration, row_constitution(columns), unwanted), prompt.own_id, note)


def _reply(columns: Mapping[str, object]) -> tuple[str, Message]:
    """The column that holds the prompt, and the reply to it."""
    filled = [name for name, value in columns.items() if value is not None]
    if "messages" not in filled and "prompt" in filled:
        for name in ("completion", "response"):
            if name in filled:
                return "prompt", _completion(columns, name)
    for name in ("messages", "transcript", "chosen", "text"):
        if name in filled:
            _, reply = split_reply(columns[name], name)
            if reply is None:
                raise RecordError("missing_response", f"`{name}` does not end with a reply of the assistant")
            return name, reply
    raise RecordError(
        "missing_response",
        "has neither `messages`, nor `prompt` and `completion` or `response`, nor a transcript, only "
        + listed(list(map(str, columns))),
    )


def _completion(columns: Mapping[str, object], name: str) -> Message:
    """The reply beside a prompt, which must not end with a reply itself."""
    value = columns[name]
    _, earlier = split_reply(columns["prompt"], "prompt")
    if earlier is not None and earlier.content.strip():
        raise RecordError("last_turn_not_user", f"`prompt` ends with a reply of the assistant, beside `{name}`")
    if isinstance(value, str):
        check_text(value, name)
        return Message(role="assistant", content=value)
    before, reply = split_reply(value, name)
    if before or reply is None:
        raise RecordError("missing_response", f"`{name}` must be text, or one message of the assistant")
    return reply


def _reply_source(value: object) -> tuple[ReplySource, Finding | None]:
    """What a reply is. Other data sets have a column `source` of another meaning, which is noted."""
    known: ReplySource | None = next((name for name in _SOURCES if name == value), None)
    if known is not None:
        return known, None
    if value is None or value == "":
        return "human", None
    message = f"`source` is {value!r:.40} and none of {', '.join(_SOURCES)}; the reply counts as `human`"
    return "human", Finding("unknown_source", message)
