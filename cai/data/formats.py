r"""One row of a data set → the prompt in it.

The prompt stands in the first of these columns that the row has and that is not null:

| column | value | the prompt is |
|---|---|---|
| `messages` | list of `{role, content}` | the conversation; a reply of the assistant at its end is dropped |
| `prompt` | the same list, or text | the same, or one human turn |
| `chosen` (`rejected`) | transcript, or list of messages | all before the last reply, equal on both sides |
| `transcript` | transcript | the conversation; a reply at its end is dropped |
| `turns` | list of texts (MT-bench) | the first text; later ones build on replies that are not there |
| `text` | text | one human turn |

A named column (`--prompt-column`) is read like the one of that name, any other like `prompt`. A transcript is text with
turns that open with `Human:` or `Assistant:` after a blank line (hh-rlhf); text in any column that begins with
`\n\nHuman:` is one. Roles are `system` (first only), `user` and `assistant`, the latter two in turn.

Further columns: `id` (text or whole number; default: a hash of the conversation), `topic` or `tags` (the first of a
list), `kind` (`red_team` or `helpful`). All others are ignored.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, NoReturn, TypeVar, get_args

from cai.errors import RecordError
from cai.records import Message, Prompt, PromptKind, Role
from cai.strict_yaml import nearest

PROMPT_COLUMNS = ("messages", "prompt", "chosen", "transcript", "turns", "text")
"""Columns that may hold the prompt, in the order in which they are tried."""
FURTHER_COLUMNS = ("rejected", "id", "topic", "tags", "kind")
"""The other columns that are read."""

_OPENING = re.compile(r"(?:\r?\n){2}Human:")
_TURN = re.compile(r"(?:\A\s*|\r?\n\r?\n)(Human|Assistant):")
_SPEAKERS: Mapping[str, Role] = {"Human": "user", "Assistant": "assistant"}
_ROLES = get_args(Role)
_KINDS = get_args(PromptKind)

Turns = tuple[Message, ...]
ItemT = TypeVar("ItemT")


class Finding(NamedTuple):
    """Something that is wrong or odd about a row."""

    reason: str
    """Stable snake_case code."""
    message: str


@dataclass(frozen=True, slots=True)
class RowContent(Generic[ItemT]):
    """What was read from a row."""

    item: ItemT
    own_id: bool
    """Whether the id stands in the row; otherwise it is a hash of the text."""
    note: Finding | None
    """Something odd that does not keep the item from being used."""


def row_prompt(
    row: object, *, column: str | None, kind: PromptKind | None, default_kind: PromptKind, source: str
) -> RowContent[Prompt]:
    """Read the prompt of one row.

    `column` is the only one to look in (None: all of `PROMPT_COLUMNS`); `kind` overrides the row's own kind, which
    overrides `default_kind`.

    Raises:
        RecordError: the row holds no usable prompt; `reason` says why.
    """
    columns = row_columns(row)
    turns, note = _conversation(columns, _prompt_column(columns, column))
    _check_order(turns)
    own_id = row_id(columns.get("id"))
    prompt = Prompt(
        id=own_id or conversation_id(turns),
        messages=turns,
        kind=kind or _kind(columns.get("kind")) or default_kind,
        topic=_topic(columns),
        source=source,
    )
    return RowContent(prompt, own_id is not None, note)


def row_columns(row: object) -> Mapping[str, object]:
    """The columns of a row.

    Raises:
        RecordError: `not_an_object`.
    """
    if not isinstance(row, Mapping):
        _reject("not_an_object", f"must be an object with named columns, but is {type_name(row)}")
    return row


def conversation_id(turns: Sequence[Message]) -> str:
    """Id of a conversation: 16 hex digits of the SHA-256 of role, text, role, text, …, joined by NUL characters.

    No turn holds a NUL character, so different conversations give different bytes.
    """
    text = "\0".join(part for turn in turns for part in (turn.role, turn.content))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parse_transcript(text: str) -> Turns:
    """Split `\\n\\nHuman: … \\n\\nAssistant: …` into its turns, without the white space around them.

    A turn opens only after a blank line (or at the start): `Human:` within a line or a paragraph is text.

    Raises:
        RecordError: `not_a_transcript` where the text does not begin with a turn.
    """
    marks = list(_TURN.finditer(text))
    if not marks or marks[0].start() != 0:
        _reject("not_a_transcript", "must begin with `Human:` or `Assistant:`")
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return tuple(
        Message(role=_SPEAKERS[mark[1]], content=text[mark.end() : end].strip())
        for mark, end in zip(marks, ends, strict=True)
    )


def split_reply(value: object, column: str) -> tuple[Turns, Message | None]:
    """Read the conversation that stands in a column, and take one reply of the assistant off its end.

    Raises:
        RecordError: the column holds none; `reason` says why.
    """
    turns = _turns(value, column)
    return (turns[:-1], turns[-1]) if turns and turns[-1].role == "assistant" else (turns, None)


def is_transcript(text: str) -> bool:
    """Whether a text in any column is read as a transcript."""
    return _OPENING.match(text) is not None


def check_text(text: str, where: str) -> None:
    """Check that a text can be stored.

    Raises:
        RecordError: `not_text`.
    """
    if not _is_text(text):
        _reject("not_text", f"`{where}` has a NUL character or half of a surrogate pair, which no text file can hold")


def row_id(value: object) -> str | None:
    """The id that stands in a row; None where there is none.

    Raises:
        RecordError: `bad_id`.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        _reject("bad_id", f"`id` must be text or a whole number, but is {type_name(value)}")
    text = str(value)
    if not text.strip() or not _is_text(text):
        _reject("bad_id", "`id` is blank, or has a NUL character or half of a surrogate pair")
    return text


def type_name(value: object) -> str:
    """Name of a value's type as a data file would call it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, Mapping) else type(value).__name__


def wanted_columns(column: str | None) -> str:
    """Name what a row or file lacks that has no prompt column."""
    return f"none of the columns {', '.join(PROMPT_COLUMNS)}" if column is None else f"no column `{column}`"


def listed(names: Sequence[str]) -> str:
    """Column names for a message, cut where there are very many."""
    return (", ".join(f"`{name:.40}`" for name in names[:20]) or "no columns") + (", …" if len(names) > 20 else "")


def closest(column: str, names: Sequence[str]) -> str:
    """The name that may have been meant; empty where none is close."""
    hint = nearest(column, list(names))
    return hint if "did you mean" in hint else ""


def _prompt_column(row: Mapping[str, object], column: str | None) -> str:
    """The column that holds the prompt."""
    wanted = PROMPT_COLUMNS if column is None else (column,)
    present = [name for name in wanted if name in row]
    if not present:
        names = list(map(str, row))
        missing = f"has {wanted_columns(column)}, only {listed(names)}"
        _reject("no_prompt_column", missing + (closest(column, names) if column else ""))
    filled = [name for name in present if row[name] is not None]
    if not filled:
        _reject("empty_prompt", f"`{present[0]}` is null")
    return filled[0]


def _conversation(row: Mapping[str, object], column: str) -> tuple[Turns, Finding | None]:
    """The conversation up to the last human turn, and what is odd about the row."""
    value = row[column]
    if column == "turns":
        return _first_turn(value)
    turns, reply = split_reply(value, column)
    replies = [reply]
    if column == "chosen" and row.get("rejected") is not None:
        other, other_reply = split_reply(row["rejected"], "rejected")
        if turns != other:
            _reject("prompts_differ", "`chosen` and `rejected` differ before the last reply, so the prompt is unclear")
        replies.append(other_reply)
    if column in ("chosen", "transcript") and any(found is not None and not found.content for found in replies):
        return turns, Finding("empty_reply", f"the last reply of `{column}` is empty on at least one side")
    return turns, None


def _turns(value: object, column: str) -> Turns:
    if isinstance(value, list):
        return tuple(_message(item, f"{column}[{position}]") for position, item in enumerate(value))
    if not isinstance(value, str) or column == "messages":
        expected = "a list of messages" if column == "messages" else "text or a list of messages"
        _reject("not_text", f"`{column}` must be {expected}, but is {type_name(value)}")
    check_text(value, column)
    if column in ("chosen", "rejected", "transcript") or is_transcript(value):
        return parse_transcript(value)
    return (Message(role="user", content=value),)


def _message(item: object, where: str) -> Message:
    if not isinstance(item, Mapping) or "role" not in item or "content" not in item:
        _reject("bad_message", f"`{where}` must be an object with `role` and `content`")
    role, content = item["role"], item["content"]
    if role not in _ROLES:
        _reject("unknown_role", f"`{where}.role` is {role!r:.40}; known: {', '.join(_ROLES)}")
    if not isinstance(content, str):
        _reject("not_text", f"`{where}.content` must be text, but is {type_name(content)}")
    check_text(content, f"{where}.content")
    return Message(role=role, content=content)


def _first_turn(value: object) -> tuple[Turns, Finding | None]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        _reject("not_text", "`turns` must be a list of texts")
    if not value:
        _reject("empty_prompt", "`turns` is empty")
    check_text(value[0], "turns[0]")
    later = Finding("later_turns", f"only the first of {len(value)} `turns` is used: the replies between are missing")
    return (Message(role="user", content=value[0]),), later if len(value) > 1 else None


def _check_order(turns: Turns) -> None:
    """An optional system turn, then human and assistant in turn, a human at the end, none of these empty."""
    talk = turns[1:] if turns and turns[0].role == "system" else turns
    if not talk:
        _reject("empty_prompt", "has no human turn")
    if talk[-1].role != "user":
        _reject("last_turn_not_user", f"ends with a turn of the {talk[-1].role}; there is no human turn to answer")
    for position, turn in enumerate(talk):
        expected = "assistant" if position % 2 else "user"
        if turn.role != expected:
            _reject("bad_turn_order", f"turn {position + 1} must be of the {expected}, but is of the {turn.role}")
        if not turn.content.strip():
            last = position == len(talk) - 1
            _reject("empty_prompt" if last else "empty_turn", f"turn {position + 1} ({turn.role}) is empty")


def _kind(value: object) -> PromptKind | None:
    if value is None or value == "":
        return None
    found: PromptKind | None = next((kind for kind in _KINDS if kind == value), None)
    if found is None:
        _reject("unknown_kind", f"`kind` is {value!r:.40}; known: {', '.join(_KINDS)}")
    return found


def _topic(row: Mapping[str, object]) -> str | None:
    column = "topic" if row.get("topic") is not None else "tags"
    value = row.get(column)
    if isinstance(value, list):
        value = value[0] if value else None
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or not _is_text(str(value)):
        _reject("bad_topic", f"`{column}` must be text, but is {type_name(value)}")
    return str(value)


def _is_text(text: str) -> bool:
    """Whether the text can be written as UTF-8 and read as text again."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _reject(reason: str, message: str) -> NoReturn:
    raise RecordError(reason, message)
