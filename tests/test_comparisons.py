"""Rows, chains and sampled responses become comparisons: right side gold, nothing guessed, all rejects counted."""

import csv
import gzip
import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chain_samples import chain, round_, turns, write_run

from cai.data.comparisons import ComparisonInput, read_comparisons, scan_comparisons
from cai.data.rows import Reject, RowNote
from cai.errors import DataError
from cai.records import Comparison, Prompt, Response
from cai.rundir import Manifest

HUMAN = {"role": "user", "content": "Hello"}
GOOD, BAD = {"role": "assistant", "content": "Good."}, {"role": "assistant", "content": "Bad."}
FINE = {"id": "fine", "prompt": "Hello", "response_a": "Good.", "response_b": "Bad.", "gold": "a"}
HH = Path(__file__).parents[2] / "shared/data/hh-rlhf-harmless-base.jsonl.gz"


def comparison_record(id: str, b: str = "Hello.") -> Comparison:
    return Comparison(
        id=id,
        prompt=Prompt(id="p", messages=turns("Hello"), kind="helpful", topic="greetings"),
        a=Response(text="Hi.", origin="small"),
        b=Response(text=b, origin="large"),
        source="contrast",
        gold="b",
    )


def write(tmp_path: Path, *rows: Any) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: str, **source: Any) -> tuple[list[Comparison], list[Reject], list[RowNote]]:
    rejects: list[Reject] = []
    notes: list[RowNote] = []
    found = read_comparisons(ComparisonInput(path=path, **source), on_reject=rejects.append, on_note=notes.append)
    return list(found), rejects, notes


def better(comparison: Comparison) -> str:
    assert comparison.gold is not None
    return {"a": comparison.a, "b": comparison.b}[comparison.gold].text


def worse(comparison: Comparison) -> str:
    assert comparison.gold is not None
    return {"a": comparison.b, "b": comparison.a}[comparison.gold].text


# Rows


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "\n\nHuman: Hello\n\nAssistant: Good.", "rejected": "\n\nHuman: Hello\n\nAssistant: Bad."},
        {"chosen": [HUMAN, GOOD], "rejected": [HUMAN, BAD]},
        {"chosen": [HUMAN, GOOD], "rejected": [HUMAN, BAD], "prompt": "Hello", "messages": [HUMAN, GOOD]},
        {"prompt": [HUMAN], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Hello", "chosen": "Good.", "rejected": "Bad."},
        {"messages": [HUMAN], "chosen": "Good.", "rejected": [BAD]},
        {"prompt": "Hello", "response_a": "Good.", "response_b": "Bad.", "gold": "a"},
        {"messages": [HUMAN], "response_a": "Bad.", "response_b": "Good.", "gold": "response_b"},
    ],
)
def test_every_shape_gives_the_prompt_and_the_right_better_response(tmp_path: Path, row: Any) -> None:
    [comparison], rejects, notes = read(write(tmp_path, row))
    assert (better(comparison), worse(comparison)) == ("Good.", "Bad.")
    assert comparison.prompt.messages == turns("Hello")
    assert comparison.prompt.id == hashlib.sha256(b"user\0Hello").hexdigest()[:16]
    assert (comparison.source, comparison.a.origin) == ("file", "")
    assert (rejects, notes) == ([], [])


def test_a_conversation_is_kept_whole(tmp_path: Path) -> None:
    talk = "\n\nHuman: Hello\n\nAssistant: Hi\n\nHuman: More\n\nAssistant: "
    [comparison], _, _ = read(write(tmp_path, {"chosen": talk + "Yes.\n\nTwo lines.", "rejected": talk + "No."}))
    assert comparison.prompt.messages == turns("Hello", "Hi", "More")
    assert (better(comparison), worse(comparison)) == ("Yes.\n\nTwo lines.", "No.")


def test_the_side_of_chosen_is_drawn_and_the_gold_label_goes_with_it(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{n}", "chosen": f"Good {n}.", "rejected": f"Bad {n}."} for n in range(400)]
    found, _, _ = read(write(tmp_path, *rows))
    assert [(better(one), worse(one)) for one in found] == [(f"Good {n}.", f"Bad {n}.") for n in range(400)]
    # 400 draws at 1/2: mean 200, standard deviation 10.
    assert 150 <= sum(one.gold == "a" for one in found) <= 250
    again, _, _ = read(write(tmp_path, *rows[::-1]))
    assert again == found[::-1]


def test_the_order_of_response_a_and_b_is_kept(tmp_path: Path) -> None:
    rows = [FINE | {"id": n, "response_a": f"A{n}", "response_b": f"B{n}", "gold": None} for n in range(20)]
    found, _, _ = read(write(tmp_path, *rows))
    assert [(one.a.text, one.b.text, one.gold) for one in found] == [(f"A{n}", f"B{n}", None) for n in range(20)]


@pytest.mark.parametrize(
    ("value", "side"),
    [
        (value, side)
        for side in "ab"
        for value in (side, side.upper(), f"response_{side}", f"model_{side}", f" {side} ")
    ],
)
def test_known_gold_values(tmp_path: Path, value: str, side: str) -> None:
    [comparison], _, _ = read(write(tmp_path, FINE | {"gold": value}))
    assert comparison.gold == side


@pytest.mark.parametrize("value", ["tie", "Both", "neither", "tie (bothbad)"])
def test_a_tie_is_noted_and_is_no_gold_label(tmp_path: Path, value: str) -> None:
    path = write(tmp_path, FINE | {"gold": value}, FINE | {"id": "other"})
    (tie, _), rejects, notes = read(path)
    assert (tie.gold, rejects, [(note.row, note.reason) for note in notes]) == (None, [], [(1, "gold_tie")])
    [kept], rejects, notes = read(path, require_gold=True)
    assert (kept.id, notes, [(reject.row, reject.reason) for reject in rejects]) == ("other", [], [(1, "gold_tie")])


@pytest.mark.parametrize("missing", [{"gold": None}, {"gold": ""}, {"gold": "  "}, {}])
def test_a_row_without_gold_is_a_reject_where_gold_is_wanted(tmp_path: Path, missing: Any) -> None:
    row = {key: value for key, value in FINE.items() if key != "gold"} | {"id": "bare"} | missing
    path = write(tmp_path, row, FINE)
    (bare, _), rejects, _ = read(path)
    assert (bare.gold, rejects) == (None, [])
    [kept], rejects, _ = read(path, require_gold=True)
    assert (kept.id, [(reject.row, reject.reason) for reject in rejects]) == ("fine", [(1, "no_gold")])


def test_a_named_gold_column_is_the_only_one_read(tmp_path: Path) -> None:
    path = write(tmp_path, FINE | {"winner": "model_b"}, FINE | {"id": "x"}, FINE | {"id": "y", "winner": ""})
    found, rejects, _ = read(path, gold_column="winner")
    assert [(one.id, one.gold) for one in found] == [("fine", "b"), ("y", None)]
    assert [(reject.row, reject.reason) for reject in rejects] == [(2, "no_gold")]
    assert "has no column `winner`" in rejects[0].message


def test_a_gold_column_that_no_row_has_a_use_for_is_no_silent_one(tmp_path: Path) -> None:
    pair = {"prompt": "Hello", "chosen": "Good.", "rejected": "Bad.", "winner": "rejected"}
    record = comparison_record("r").model_dump()
    found, rejects, _ = read(write(tmp_path, pair, record, FINE | {"winner": "b"}), gold_column="winner")
    assert [(one.id, one.gold) for one in found] == [("fine", "b")]
    assert [(reject.row, reject.reason) for reject in rejects] == [(1, "gold_column"), (2, "gold_column")]
    assert "`chosen` and `rejected` are in order, so `winner` is not read" in rejects[0].message
    assert [one.gold for one in read(write(tmp_path, record), gold_column="gold")[0]] == ["b"]


def test_a_named_prompt_column_is_the_only_one_read(tmp_path: Path) -> None:
    transcript = "\n\nHuman: Hello\n\nAssistant: "
    path = write(
        tmp_path,
        {"prompt": "no", "question": "Hello", "response_a": "Good.", "response_b": "Bad."},
        {"prompt": "no", "question": "Hello", "chosen": "Better.", "rejected": "Bad."},
        {"question": "Hello", "chosen": f"{transcript}Good.", "rejected": f"{transcript}Worse."},
        {"question": "Other", "chosen": f"{transcript}Good.", "rejected": f"{transcript}Bad."},
        {"prompt": "Hello", "response_a": "Good.", "response_b": "Bad."},
    )
    found, rejects, _ = read(path, column="question")
    assert [one.prompt.messages for one in found] == [turns("Hello")] * 3
    assert [(reject.row, reject.reason) for reject in rejects] == [(4, "prompts_differ"), (5, "no_prompt_column")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (["a"], "not_an_object"),
        ({"prompt": "Hello"}, "missing_response"),
        ({"prompt": "Hello", "response_a": "Good."}, "missing_response"),
        ({"prompt": "Hello", "response_a": "Good.", "response_b": None}, "missing_response"),
        ({"prompt": "Hello", "chosen": "Good."}, "missing_response"),
        ({"chosen": [HUMAN, GOOD], "rejected": None}, "missing_response"),
        ({"chosen": "\n\nHuman: Hello\n\nAssistant: Good.", "rejected": "\n\nHuman: Hello"}, "missing_response"),
        (FINE | {"response_a": " \n"}, "empty_response"),
        (
            {"chosen": "\n\nHuman: Hello\n\nAssistant: Good.", "rejected": "\n\nHuman: Hello\n\nAssistant: "},
            "empty_response",
        ),
        (FINE | {"response_a": "Bad.\n"}, "identical_responses"),
        ({"chosen": [HUMAN, GOOD], "rejected": [HUMAN, GOOD]}, "identical_responses"),
        ({"chosen": [HUMAN, GOOD], "rejected": [GOOD, HUMAN, BAD]}, "prompts_differ"),
        ({"prompt": [HUMAN], "chosen": [HUMAN, GOOD], "rejected": [BAD]}, "prompts_differ"),
        (FINE | {"response_a": 5}, "not_text"),
        (FINE | {"response_b": "a\0b"}, "not_text"),
        ({"prompt": "Hello", "chosen": "Good.", "rejected": "\ud800"}, "not_text"),
        (FINE | {"gold": "c"}, "unknown_gold"),
        (FINE | {"gold": 1}, "unknown_gold"),
        (FINE | {"gold": False}, "unknown_gold"),
        (FINE | {"gold": ["a"]}, "unknown_gold"),
        (FINE | {"id": 1.5}, "bad_id"),
        (FINE | {"prompt": None}, "empty_prompt"),
        ({"response_a": "Good.", "response_b": "Bad."}, "no_prompt_column"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "empty_prompt"),
        ({"chosen": "Good.", "rejected": "Bad."}, "not_a_transcript"),
        ({"chosen": [HUMAN, GOOD, GOOD], "rejected": [HUMAN, GOOD, BAD]}, "last_turn_not_user"),
        ({"id": "x", "prompt": "Hello", "a": "Good.", "b": "Bad."}, "bad_record"),
        (FINE, "duplicate_id"),
    ],
)
def test_an_unusable_row_is_rejected_with_its_reason_and_the_next_is_read(
    tmp_path: Path, row: Any, reason: str
) -> None:
    found, rejects, _ = read(write(tmp_path, FINE, row, FINE | {"id": "next"}))
    assert [(reject.row, reject.reason) for reject in rejects] == [(2, reason)]
    assert [one.id for one in found] == ["fine", "next"]


def test_one_prompt_may_have_many_comparisons_but_none_twice(tmp_path: Path) -> None:
    rows = [{"prompt": "Hello", "chosen": "Good.", "rejected": text} for text in ("Bad.", "Worse.", "Bad.")]
    found, rejects, _ = read(write(tmp_path, *rows))
    assert len({one.id for one in found}) == 2
    assert len({one.prompt.id for one in found}) == 1
    assert [(reject.row, reject.reason) for reject in rejects] == [(3, "duplicate_comparison")]
    own = [
        FINE | {"id": "x"},
        FINE | {"id": "y"},
        {"id": "z", "prompt": "Hello", "chosen": "Good.", "rejected": "Bad."},
    ]
    found, rejects, _ = read(write(tmp_path, *own))
    assert ([one.id for one in found], rejects) == (["x", "y", "z"], [])
    assert {one.prompt.id for one in found} == {hashlib.sha256(b"user\0Hello").hexdigest()[:16]}


# Files


def test_csv_and_parquet_give_the_same_as_jsonl(tmp_path: Path) -> None:
    rows = [FINE | {"id": f"r{n}", "response_a": f"Good {n}.", "winner": "ab"[n % 2], "noise": "x"} for n in range(5)]
    expected = [
        one.model_dump(exclude={"prompt": {"source"}}) for one in read(write(tmp_path, *rows), gold_column="winner")[0]
    ]
    table, parquet = tmp_path / "rows.csv", tmp_path / "rows.parquet"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    for path in (table, parquet):
        found, rejects, _ = read(str(path), gold_column="winner")
        assert [one.model_dump(exclude={"prompt": {"source"}}) for one in found] == expected
        assert rejects == []
    assert [one["gold"] for one in expected] == ["a", "b", "a", "b", "a"]


def test_scan_counts_what_reading_yields(tmp_path: Path) -> None:
    path = write(
        tmp_path, FINE, FINE, FINE | {"id": 2, "gold": "b"}, FINE | {"id": 3, "gold": "tie"}, {}, FINE | {"id": 4}
    )
    scan = scan_comparisons(ComparisonInput(path=path))
    assert (scan.source, scan.total, scan.comparisons) == (path, 6, 4)
    assert scan.gold == {"a": 2, "b": 1}
    assert scan.rejects == {"duplicate_id": 1, "missing_response": 1}
    assert scan.notes == {"gold_tie": 1}
    assert scan.sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_rejects_alone_are_an_error_that_counts_them(tmp_path: Path) -> None:
    path = write(tmp_path, FINE | {"gold": "c"}, FINE | {"id": 2, "gold": "d"})
    with pytest.raises(
        DataError, match=r"no row can be used \(2 unknown_gold\); the first: row 1 `gold` is 'c'; known: a"
    ):
        scan_comparisons(ComparisonInput(path=path))


def test_the_planted_set_is_read_by_its_name() -> None:
    scan = scan_comparisons(ComparisonInput(path="planted", require_gold=True))
    assert scan.rejects == {}
    assert scan.total == scan.comparisons >= 60


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(DataError, match="no such file, and no set of comparisons of this name ships"):
        scan_comparisons(ComparisonInput(path="plnated"))


@pytest.mark.skipif(not HH.is_file(), reason="the hh-rlhf rows are not on this machine")
def test_hh_rlhf_rows_agree_with_a_second_reader() -> None:
    expected: list[tuple[str, str]] = []
    lost: Counter[str] = Counter()
    with gzip.open(HH, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for row in rows:
        (before, _, best), (other, _, worst) = (
            row[side].rpartition("\n\nAssistant:") for side in ("chosen", "rejected")
        )
        speakers = re.findall("\n\n(Human|Assistant):", before)
        if before != other:
            lost["prompts_differ"] += 1
        elif speakers != ["Human", "Assistant"] * (len(speakers) // 2) + ["Human"]:
            lost["bad_turn_order"] += 1
        elif not best.strip() or not worst.strip():
            lost["empty_response"] += 1
        else:
            expected.append((best.strip(), worst.strip()))
    scan = scan_comparisons(ComparisonInput(path=str(HH), require_gold=True))
    found, _, _ = read(str(HH), require_gold=True)
    assert [(better(one), worse(one)) for one in found] == expected
    assert scan.rejects == lost == {"empty_response": 4, "bad_turn_order": 3, "prompts_differ": 1}
    assert (scan.total, scan.comparisons) == (1500, 1492)
    # The better response is a in 1492 draws at 1/2: mean 746, standard deviation 19.3.
    assert 669 <= scan.gold["a"] <= 823


# Runs


def manifest(run: Path, stage: str) -> None:
    run.mkdir(exist_ok=True)
    text = Manifest(stage=stage, config={}, inputs={}, seed=0, created="", updated="").model_dump_json()
    (run / "manifest.json").write_text(text)


def test_a_critique_revise_run_sets_draft_against_last_revision(tmp_path: Path) -> None:
    chains = [
        chain("two", round_("harm", "Bad.", "No."), round_("honesty", "Bad.", "Never."), index=0),
        chain("stopped", round_("harm", "Bad.", "No."), round_("harm", "Fine.", None), index=1),
        chain("same", round_("harm", "Bad.", " With a pin.\n"), index=2),
        chain("void", round_("harm", "Bad.", " "), index=3),
        chain("clean", round_("harm", "Fine.", None), index=4),
        chain("egg", index=5, kind="helpful"),
    ]
    manifest(tmp_path, "critique-revise")
    write_run(tmp_path, chains)
    found, rejects, _ = read(str(tmp_path))
    assert [(one.id, one.source, one.gold) for one in found] == [
        ("two", "revision", None),
        ("stopped", "revision", None),
    ]
    assert [{one.a.origin: one.a.text, one.b.origin: one.b.text} for one in found] == [
        {"draft": "With a pin.", "revision 2": "Never."},
        {"draft": "With a pin.", "revision 1": "No."},
    ]
    assert found[0].prompt == chains[0].prompt
    assert {reject.row: reject.reason for reject in rejects} == {
        3: "identical_responses",
        4: "empty_response",
        5: "unrevised",
        6: "helpful",
    }
    with pytest.raises(DataError, match="2 no_gold"):
        scan_comparisons(ComparisonInput(path=str(tmp_path), require_gold=True))


def test_draft_and_revision_stand_on_either_side(tmp_path: Path) -> None:
    manifest(tmp_path, "critique-revise")
    write_run(tmp_path, [chain(f"c{n}", round_("harm", "Bad.", "No."), index=n) for n in range(400)])
    found, _, _ = read(str(tmp_path))
    assert 150 <= sum(one.a.origin == "draft" for one in found) <= 250


def test_the_hash_of_a_run_is_that_of_its_comparisons_not_of_the_order_they_were_made_in(tmp_path: Path) -> None:
    chains = [chain(f"c{n}", round_("harm", "Bad.", f"No {n}."), index=n) for n in range(3)]

    def scanned(name: str, *records: Any) -> str:
        manifest(tmp_path / name, "critique-revise")
        write_run(tmp_path / name, records)
        return scan_comparisons(ComparisonInput(path=str(tmp_path / name))).sha256

    assert scanned("in order", *chains) == scanned("reversed", *chains[::-1])
    assert scanned("fewer", *chains[:2]) != scanned("in order", *chains)


def test_a_run_of_sampling_gives_its_records_as_they_are(tmp_path: Path) -> None:
    records = [comparison_record(f"p/1-{n}", f"Hello {n}.") for n in (2, 3)]
    same = records[0].model_copy(update={"id": "p/4-5", "b": Response(text="Hi. ", origin="large")})
    manifest(tmp_path, "sample")
    text = "".join(record.model_dump_json() + "\n" for record in (*records, same))
    (tmp_path / "comparisons.jsonl").write_text(text)
    found, rejects, _ = read(str(tmp_path))
    assert found == records
    assert [(reject.row, reject.reason) for reject in rejects] == [(3, "identical_responses")]
    assert read(str(tmp_path / "comparisons.jsonl"))[0] == records
    scan = scan_comparisons(ComparisonInput(path=str(tmp_path)))
    assert scan.sha256 == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("sample", "has no comparisons.jsonl yet; run its `cai sample` command again"),
        ("label", "is a run of `cai label`, which holds no comparisons; name one of `cai sample`"),
    ],
)
def test_another_run_is_an_error_that_says_what_to_name(tmp_path: Path, stage: str, message: str) -> None:
    manifest(tmp_path, stage)
    with pytest.raises(DataError, match=message):
        scan_comparisons(ComparisonInput(path=str(tmp_path)))


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a run directory .*; name a file, or the directory of a run"):
        scan_comparisons(ComparisonInput(path=str(tmp_path)))
