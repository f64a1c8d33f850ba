"""Rows become prompts: conversations kept whole, ids stable, every unusable row rejected with its reason."""

import hashlib
import json
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from cai.data.formats import parse_transcript
from cai.data.prompts import PromptSource, Reject, RowNote, SeenIds, read_prompts, scan_prompts
from cai.errors import DataError, RecordError
from cai.records import Prompt

HUMAN = {"role": "user", "content": "Hello"}
REPLY = {"role": "assistant", "content": "Hi"}
MORE = {"role": "user", "content": "More"}
SYSTEM = {"role": "system", "content": "Be brief."}
GOOD = {"id": "good", "prompt": "fine"}


def read(tmp_path: Path, *rows: Any, **source: Any) -> tuple[list[Prompt], list[Reject], list[RowNote]]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rejects: list[Reject] = []
    notes: list[RowNote] = []
    found = read_prompts(
        PromptSource(path=str(path), **source), kind="red_team", on_reject=rejects.append, on_note=notes.append
    )
    return list(found), rejects, notes


def turns(prompt: Prompt) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in prompt.messages]


# Conversations


def test_transcript_opens_turns_only_after_a_blank_line() -> None:
    text = (
        "\n\nHuman: Note: this is it: go\nHuman: same turn.  Human: too\n\nHuman nature: what is it?"
        "\n\nAssistant: One.\n\nTwo: Assistant: x\n\nHuman: and?\r\n\r\nAssistant: "
    )
    assert [(turn.role, turn.content) for turn in parse_transcript(text)] == [
        ("user", "Note: this is it: go\nHuman: same turn.  Human: too\n\nHuman nature: what is it?"),
        ("assistant", "One.\n\nTwo: Assistant: x"),
        ("user", "and?"),
        ("assistant", ""),
    ]


def test_transcript_must_begin_with_a_turn() -> None:
    with pytest.raises(RecordError) as caught:
        parse_transcript("Once upon a time\n\nHuman: hi")
    assert caught.value.reason == "not_a_transcript"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [HUMAN, REPLY]}, "U:Hello"),
        ({"messages": [SYSTEM, HUMAN, REPLY, MORE, REPLY]}, "S:Be brief.|U:Hello|A:Hi|U:More"),
        ({"prompt": [HUMAN, REPLY, MORE]}, "U:Hello|A:Hi|U:More"),
        ({"prompt": " Human: is: a word\n"}, "U: Human: is: a word\n"),
        ({"prompt": "\n\nHuman: Hello\n\nAssistant:"}, "U:Hello"),
        ({"transcript": "Human: Hello\n\nAssistant: Hi\n\nHuman: More\n\nAssistant: Hi"}, "U:Hello|A:Hi|U:More"),
        ({"chosen": "\n\nHuman: Hello\n\nAssistant: A", "rejected": "\n\nHuman: Hello\n\nAssistant: B"}, "U:Hello"),
        ({"chosen": [HUMAN, REPLY], "rejected": [HUMAN, {"role": "assistant", "content": "No"}]}, "U:Hello"),
        ({"chosen": "\n\nHuman: Hello\n\nAssistant: A", "rejected": None}, "U:Hello"),
        ({"text": "Hello"}, "U:Hello"),
    ],
)
def test_every_format_keeps_the_conversation_up_to_the_last_human_turn(tmp_path: Path, row: Any, expected: str) -> None:
    [prompt], rejects, notes = read(tmp_path, row)
    assert "|".join(f"{role[0].upper()}:{text}" for role, text in turns(prompt)) == expected
    assert (rejects, notes) == ([], [])


def test_columns_are_tried_in_the_documented_order_and_null_is_passed_over(tmp_path: Path) -> None:
    pair = {"chosen": "\n\nHuman: c\n\nAssistant: x", "transcript": "\n\nHuman: t", "turns": ["u"], "text": "v"}
    row = {**pair, "prompt": "p", "messages": [HUMAN]}
    prompts, _, _ = read(tmp_path, row, {**row, "messages": None}, {**pair, "prompt": None})
    assert [prompt.messages[-1].content for prompt in prompts] == ["Hello", "p", "c"]


def test_a_named_column_is_the_only_one_read(tmp_path: Path) -> None:
    prompts, rejects, _ = read(
        tmp_path,
        {"prompt": "no", "question": "yes"},
        {"prompt": "no", "question": [HUMAN, REPLY]},
        {"prompt": "no", "queston": "?"},
        column="question",
    )
    assert [prompt.messages[0].content for prompt in prompts] == ["yes", "Hello"]
    assert [(reject.row, reject.reason) for reject in rejects] == [(3, "no_prompt_column")]
    assert "did you mean `queston`?" in rejects[0].message


def test_preference_rows_with_different_prompts_are_rejected(tmp_path: Path) -> None:
    same = "\n\nHuman: a\n\nAssistant: b\n\nHuman: "
    row = {"chosen": same + "c\n\nAssistant: d", "rejected": same + "C\n\nAssistant: d"}
    _, rejects, _ = read(tmp_path, GOOD, row)
    assert [(reject.row, reject.reason) for reject in rejects] == [(2, "prompts_differ")]


@pytest.mark.parametrize("empty_side", ["chosen", "rejected"])
def test_an_empty_reply_is_noted_and_the_prompt_is_used(tmp_path: Path, empty_side: str) -> None:
    row = dict.fromkeys(("chosen", "rejected"), "\n\nHuman: a\n\nAssistant: b")
    row[empty_side] = "\n\nHuman: a\n\nAssistant: "
    [prompt], rejects, notes = read(tmp_path, row)
    assert turns(prompt) == [("user", "a")]
    assert rejects == []
    assert [(note.row, note.reason) for note in notes] == [(1, "empty_reply")]


def test_later_turns_of_a_two_turn_benchmark_are_noted(tmp_path: Path) -> None:
    prompts, _, notes = read(tmp_path, {"turns": ["first", "second"]}, {"turns": ["alone"]})
    assert [turns(prompt) for prompt in prompts] == [[("user", "first")], [("user", "alone")]]
    assert [(note.row, note.reason) for note in notes] == [(1, "later_turns")]


# Rejects


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (["a"], "not_an_object"),
        ("a", "not_an_object"),
        ({"propmt": "a"}, "no_prompt_column"),
        ({}, "no_prompt_column"),
        ({"prompt": None}, "empty_prompt"),
        ({"prompt": " \n"}, "empty_prompt"),
        ({"messages": []}, "empty_prompt"),
        ({"messages": [SYSTEM]}, "empty_prompt"),
        ({"messages": [REPLY]}, "empty_prompt"),
        ({"turns": []}, "empty_prompt"),
        ({"turns": ["", "b"]}, "empty_prompt"),
        ({"prompt": 5}, "not_text"),
        ({"prompt": True}, "not_text"),
        ({"prompt": {"text": "a"}}, "not_text"),
        ({"messages": "[{'role': 'user'}]"}, "not_text"),
        ({"messages": [{"role": "user", "content": None}]}, "not_text"),
        ({"turns": ["a", 1]}, "not_text"),
        ({"turns": "a"}, "not_text"),
        ({"prompt": "a\ud800b"}, "not_text"),
        ({"prompt": "a\0b"}, "not_text"),
        ({"messages": [{"role": "user", "content": "\udfff"}]}, "not_text"),
        ({"chosen": "\n\nHuman: \ud800\n\nAssistant: b"}, "not_text"),
        ({"turns": ["a\0"]}, "not_text"),
        ({"messages": ["a"]}, "bad_message"),
        ({"messages": [{"role": "user"}]}, "bad_message"),
        ({"messages": [{"role": "human", "content": "a"}]}, "unknown_role"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "unknown_role"),
        ({"chosen": "a"}, "not_a_transcript"),
        ({"messages": [HUMAN, REPLY, REPLY]}, "last_turn_not_user"),
        ({"messages": [HUMAN, SYSTEM]}, "last_turn_not_user"),
        ({"messages": [HUMAN, HUMAN]}, "bad_turn_order"),
        ({"messages": [REPLY, HUMAN]}, "bad_turn_order"),
        ({"messages": [SYSTEM, SYSTEM, HUMAN]}, "bad_turn_order"),
        ({"messages": [HUMAN, {"role": "assistant", "content": " "}, HUMAN]}, "empty_turn"),
        ({"prompt": "a", "id": 1.5}, "bad_id"),
        ({"prompt": "a", "id": True}, "bad_id"),
        ({"prompt": "a", "id": " "}, "bad_id"),
        ({"prompt": "a", "id": "\ud800"}, "bad_id"),
        ({"prompt": "a", "kind": "harmful"}, "unknown_kind"),
        ({"prompt": "a", "topic": {"name": "b"}}, "bad_topic"),
        ({"prompt": "a", "tags": [["b"]]}, "bad_topic"),
        ({"prompt": "a", "topic": "\ud800"}, "bad_topic"),
    ],
)
def test_an_unusable_row_is_rejected_with_its_reason_and_the_next_is_read(
    tmp_path: Path, row: Any, reason: str
) -> None:
    prompts, rejects, _ = read(tmp_path, row, GOOD)
    assert [(reject.row, reject.reason) for reject in rejects] == [(1, reason)]
    assert [prompt.id for prompt in prompts] == ["good"]


def test_a_reject_can_be_written_to_a_file_whatever_the_row_holds(tmp_path: Path) -> None:
    _, rejects, _ = read(tmp_path, GOOD, {"\ud800": 1}, {"messages": [{"role": "\ud800", "content": "a"}]})
    assert [reject.reason for reject in rejects] == ["no_prompt_column", "unknown_role"]
    for reject in rejects:
        assert Reject.model_validate_json(reject.model_dump_json().encode()) == reject


def test_a_source_with_rejects_alone_is_an_error_that_counts_them(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no row can be used \(2 no_prompt_column, 1 not_an_object\).*row 1 has none of"
    ):
        read(tmp_path, {"a": 1}, {"b": 1}, 3)


# Ids, kinds, topics


def test_own_ids_are_kept_and_others_are_a_hash_of_the_conversation(tmp_path: Path) -> None:
    rows = [{"id": "Ä/1 x", "prompt": "a"}, {"id": 7, "prompt": "a"}, {"id": "", "prompt": "a"}]
    talk = {"id": None, "messages": [HUMAN, REPLY, {"role": "user", "content": "Wie spät?"}]}
    prompts, rejects, _ = read(tmp_path, *rows, talk)
    expected = [
        hashlib.sha256(text.encode()).hexdigest()[:16]
        for text in ("user\0a", "user\0Hello\0assistant\0Hi\0user\0Wie spät?")
    ]
    assert [prompt.id for prompt in prompts] == ["Ä/1 x", "7", *expected]
    assert rejects == []


def test_repeated_ids_and_repeated_conversations_without_ids_are_rejected(tmp_path: Path) -> None:
    rows = [
        {"id": "1", "prompt": "a"},
        {"prompt": "a"},
        {"id": 1, "prompt": "b"},
        {"prompt": "a", "topic": "t"},
        {"id": "2", "prompt": "a"},
    ]
    prompts, rejects, _ = read(tmp_path, *rows)
    assert [prompt.messages[0].content for prompt in prompts] == ["a", "a", "a"]
    assert [(reject.row, reject.reason) for reject in rejects] == [(3, "duplicate_id"), (4, "duplicate_prompt")]


def test_ids_differ_across_sources_that_share_what_was_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "x", "prompt": "a"}\n{"id": "y", "prompt": "b"}\n')
    other = tmp_path / "b.jsonl"
    other.write_text('{"id": "y", "prompt": "c"}\n{"id": "z", "prompt": "d"}\n')
    seen, rejects = SeenIds(), list[Reject]()
    found = [
        prompt.id
        for file in (path, other)
        for prompt in read_prompts(PromptSource(path=str(file)), kind="helpful", on_reject=rejects.append, seen=seen)
    ]
    assert found == ["x", "y", "z"]
    assert [(reject.source, reject.row, reject.reason) for reject in rejects] == [(str(other), 1, "duplicate_id")]


def test_seen_ids_agree_with_a_plain_set() -> None:
    draw = random.Random(0)
    seen, plain = SeenIds(), set[str]()
    for _ in range(20_000):
        id_ = str(draw.randrange(15_000))
        assert seen.add(id_) == (id_ not in plain)
        plain.add(id_)


def test_kind_of_the_source_goes_before_the_rows_and_theirs_before_the_default(tmp_path: Path) -> None:
    rows = [{"id": 1, "prompt": "a", "kind": "helpful"}, {"id": 2, "prompt": "b"}, {"id": 3, "prompt": "c", "kind": ""}]
    assert [prompt.kind for prompt in read(tmp_path, *rows)[0]] == ["helpful", "red_team", "red_team"]
    assert [prompt.kind for prompt in read(tmp_path, *rows, kind="helpful")[0]] == ["helpful"] * 3
    odd = {"id": 4, "prompt": "d", "kind": "harmful"}
    assert [prompt.kind for prompt in read(tmp_path, odd, kind="red_team")[0]] == ["red_team"]


def test_topic_is_read_from_topic_or_the_first_tag(tmp_path: Path) -> None:
    columns: list[dict[str, Any]] = [
        {"topic": "a", "tags": ["b"]},
        {"tags": ["b", "c"]},
        {"tags": "d"},
        {"topic": 4},
        {"tags": []},
        {},
    ]
    prompts, _, _ = read(tmp_path, *({"id": number, "prompt": "p", **row} for number, row in enumerate(columns)))
    assert [prompt.topic for prompt in prompts] == ["a", "b", "d", "4", None, None]


# Whole sources


def test_scan_counts_what_reading_yields(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        {"prompt": "a"},
        {"prompt": "b", "kind": "helpful"},
        {"prompt": "a"},
        {"prompt": ""},
        {"turns": ["c", "d"]},
        {"prompt": " "},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    scan = scan_prompts(PromptSource(path=str(path)), kind="red_team")
    assert (scan.total, scan.prompts) == (6, 3)
    assert scan.kinds == {"red_team": 2, "helpful": 1}
    assert scan.rejects == {"duplicate_prompt": 1, "empty_prompt": 2}
    assert scan.notes == {"later_turns": 1}
    assert scan.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert scan.source == str(path)


@pytest.mark.parametrize("own_ids", [True, False])
def test_memory_does_not_hold_the_prompts(tmp_path: Path, own_ids: bool) -> None:
    path = tmp_path / "many.jsonl"
    rows = (
        {"prompt": f"{number} " + "word " * 40} | ({"id": str(number)} if own_ids else {}) for number in range(4_000)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = read_prompts(PromptSource(path=str(path)), kind="red_team", on_reject=lambda _: None)
    next(prompts)
    tracemalloc.start()
    try:
        assert sum(1 for _ in prompts) == 3_999
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The text alone is 0.8 MB; the table of seen ids is 64 KiB, and 32 KiB more while it grows.
    assert peak < 400_000


def test_reading_jsonl_loads_no_heavy_module(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a"}\n')
    code = (
        "import sys; from cai.data.prompts import *\n"
        "print(scan_prompts(PromptSource(path=sys.argv[1]), kind='helpful').prompts)\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow', 'numpy', 'openai'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["1", "[]"]
