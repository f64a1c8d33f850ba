"""Responses in: what each kind of row and of run holds, and what its label says."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from chain_samples import chain, round_, step, turns
from labels import judgement, label

from cai.data.responses import Responses, read_responses, scan_responses
from cai.data.rows import Reject
from cai.errors import CaiError
from cai.records import ContrastSample, Prompt, ResponseSample, StageResult, Usage
from cai.rundir import RunDir

PROMPT = turns("Why?")


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_run(path: Path, stage: str, *records: StageResult) -> str:
    with RunDir.open(path, stage=stage, config={}, inputs={}, seed=7) as run:
        for record in records:
            run.append(record, Usage())
    return str(path)


def read(path: str) -> tuple[list[Responses], list[Reject]]:
    rejects: list[Reject] = []
    return list(read_responses(path, on_reject=rejects.append)), rejects


def texts(row: Responses) -> list[tuple[str, str]]:
    return [(response.origin, response.text) for response in row.responses]


TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"prompt": "Why?", "completion": "So."},
        {"prompt": TURNS[:1], "response": [TURNS[1]]},
        {"transcript": "\n\nHuman: Why?\n\nAssistant: So."},
        {"chosen": "\n\nHuman: Why?\n\nAssistant: So.", "rejected": None},
        {"prompt": "Why?", "completion": "So.", "finish_reason": "length"},
    ],
)
def test_a_row_with_one_response_has_no_label(tmp_path: Path, row: Any) -> None:
    (found,), rejects = read(write(tmp_path / "rows.jsonl", row))
    assert (found.prompt, texts(found), found.p_first, found.label_source) == (PROMPT, [("", "So.")], None, None)
    assert not rejects


@pytest.mark.parametrize(
    ("row", "names", "p_first", "source"),
    [
        ({"chosen": "So.", "rejected": "No."}, ["chosen", "rejected"], 1.0, "human"),
        ({"chosen": "So.", "rejected": "No.", "p_chosen": 0.3, "source": "ai"}, ["chosen", "rejected"], 0.3, "ai"),
        ({"response_a": "So.", "response_b": "No."}, ["response_a", "response_b"], None, None),
        ({"response_a": "So.", "response_b": "No.", "gold": "a"}, ["response_a", "response_b"], 1.0, "human"),
        ({"response_a": "So.", "response_b": "No.", "gold": "b"}, ["response_a", "response_b"], 0.0, "human"),
        ({"response_a": "So.", "response_b": "No.", "gold": "tie"}, ["response_a", "response_b"], None, None),
    ],
)
def test_both_responses_of_a_pair_are_read_in_their_order_with_its_label(
    tmp_path: Path, row: Any, names: list[str], p_first: float | None, source: str | None
) -> None:
    rows = [{"id": number, "prompt": "Why?", **row} for number in range(8)]  # sides are drawn by id
    found, rejects = read(write(tmp_path / "rows.jsonl", *rows))
    assert len(found) == 8
    assert not rejects
    for one in found:
        assert texts(one) == list(zip(names, ["So.", "No."], strict=True))
        assert one.p_first == (None if p_first is None else pytest.approx(p_first))
        assert (one.prompt, one.label_source) == (PROMPT, source)


def test_comparison_records_keep_their_origins_and_gold(tmp_path: Path) -> None:
    known = label("c", judgement(0.5), prompt=["Why?"], a="So.", b="No.", gold="b").comparison
    (found,), _ = read(write(tmp_path / "comparisons.jsonl", known.model_dump(mode="json")))
    assert (texts(found), found.p_first) == ([("small", "So."), ("large", "No.")], 0.0)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Why?", "response_a": "So.", "response_b": None}, "missing_response"),
        ({"prompt": "Why?", "chosen": "So.", "rejected": "No.", "p_chosen": 2}, "bad_p"),
        ({"prompt": "Why?", "completion": " "}, "empty_response"),
        ({"prompt": "Why?"}, "missing_response"),
        ({"id": "first", "prompt": "Why?", "completion": "Because."}, "duplicate_id"),
    ],
)
def test_a_row_that_cannot_be_used_is_counted_with_its_reason(tmp_path: Path, row: Any, reason: str) -> None:
    path = write(tmp_path / "rows.jsonl", {"id": "first", "prompt": "Why?", "completion": "So."}, row)
    found, rejects = read(path)
    assert [one.id for one in found] == ["first"]
    assert [(reject.row, reject.reason) for reject in rejects] == [(2, reason)]
    scan = scan_responses(path)
    assert (scan.total, scan.responses, scan.rejects) == (2, 1, {reason: 1})


def sample(id: str, *replies: str) -> ResponseSample:
    prompt = Prompt(id=id, messages=PROMPT)
    return ResponseSample(
        id=id, index=0, prompt=prompt, policy="small", replies=tuple(map(step, replies)), model="m", seed=1
    )


CONTRAST = ContrastSample(
    id="c",
    index=0,
    prompt=Prompt(id="p", messages=PROMPT),
    principle_id="harm",
    follow=step("So."),
    oppose=step("No."),
    constitution_sha256="c",
    templates_sha256="t",
    model="m",
    seed=1,
)


def lock_chain(*revisions: str, **changes: Any) -> StageResult:
    return chain("k", *(round_("harm", "Bad.", text) for text in revisions), prompt=["Why?"], draft="So.", **changes)


@pytest.mark.parametrize(
    ("stage", "record", "responses", "label_"),
    [
        ("sample", sample("s", "So.", "", "No."), [("small", "So."), ("small", ""), ("small", "No.")], (None, None)),
        ("contrast", CONTRAST, [("follow", "So."), ("oppose", "No.")], (1.0, "contrast")),
        (
            "critique-revise",
            lock_chain("No.", "Never."),
            [("draft", "So."), ("revision 1", "No."), ("revision 2", "Never.")],
            (0.0, "revision"),
        ),
        ("critique-revise", lock_chain("So. "), [("draft", "So."), ("revision 1", "So. ")], (None, None)),
        ("critique-revise", lock_chain(kind="helpful"), [("draft", "So.")], (None, None)),
        (
            "label",
            label("c", judgement(0.2), prompt=["Why?"], a="So.", b="No.", gold="a"),
            [("small", "So."), ("large", "No.")],
            (0.2, "ai"),
        ),
    ],
)
def test_runs_give_all_responses_with_what_orders_them(
    tmp_path: Path, stage: str, record: StageResult, responses: Sequence[tuple[str, str]], label_: Any
) -> None:
    (found,), rejects = read(write_run(tmp_path / "run", stage, record))
    assert (found.id, found.prompt, texts(found)) == (record.id, PROMPT, list(responses))
    assert (found.p_first, found.label_source) == label_
    assert not rejects


def test_the_hash_of_a_source_is_that_of_its_content(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", "sample", sample("s", "So."))
    same = write_run(tmp_path / "same", "sample", sample("s", "So."))
    other = write_run(tmp_path / "other", "sample", sample("s", "No."))
    assert scan_responses(one).sha256 == scan_responses(same).sha256 != scan_responses(other).sha256
    file = write(tmp_path / "rows.jsonl", {"prompt": "Why?", "completion": "So."})
    before = scan_responses(file).sha256
    write(tmp_path / "rows.jsonl", {"prompt": "Why?", "completion": "No."})
    assert scan_responses(file).sha256 != before


def test_what_holds_no_responses_is_an_error_that_says_what_to_name(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        CaiError, match=r"not a run directory .*; name a file, or the directory of a run of `cai sample`"
    ):
        read(str(tmp_path / "folder"))
    with pytest.raises(
        CaiError, match=r"is a run of the stage train-sft, whose records hold no responses; name one of"
    ):
        read(write_run(tmp_path / "run", "train-sft"))
    with pytest.raises(CaiError, match=r"there is no such file, and no set of comparisons"):
        read(str(tmp_path / "nothing.jsonl"))
    with pytest.raises(CaiError, match=r"has no rows"):
        scan_responses(write(tmp_path / "empty.jsonl"))
