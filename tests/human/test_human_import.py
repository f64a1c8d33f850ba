"""Preferences from elsewhere: whoever's format it is, the text that people prefer is chosen, and nothing is lost."""

import csv
import gzip
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cai_process import manifest
from chain_samples import header, rows
from preference_runs import cai, texts, train_briefly
from pydantic import ValidationError
from tiny_model import save_tiny_model

from cai.data.comparisons import ComparisonInput, read_comparisons
from cai.data.preference_source import PreferenceSource, read_preferences
from cai.data.rows import ignore
from cai.errors import DataError, RunDirError
from cai.human.card import ImportCounts
from cai.human.importing import ImportConfig, ImportInputs, import_preferences, load_import
from cai.human.preference_run import Published

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "hh-rlhf-harmless-base.jsonl.gz"
PAIRS = {"prompt": "q", "response_a": "x", "response_b": "y", "preference": "winner"}


def write(path: Path, *lines: object) -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def load(path: Path | str, format_: str = "pairs", **config: Any) -> ImportInputs:
    return load_import(ImportConfig.model_validate({"format": format_, "path": str(path)} | config))


def run(inputs: ImportInputs, out: Path, **how: Any) -> Published[ImportCounts]:
    return import_preferences(inputs, out, command=("cai", "import"), **how)


def imported(path: Path, out: Path, format_: str = "pairs", **config: Any) -> Published[ImportCounts]:
    return run(load(path, format_, **{"test_share": 0.0} | config), out)


def rejects(inputs: ImportInputs) -> list[tuple[int, str]]:
    return [(reject.row, reject.reason) for reject in inputs.rejects]


def told(human: str, *replies: str) -> str:
    """A transcript of hh-rlhf with one human turn before each reply."""
    return "".join(f"\n\nHuman: {human} {n}\n\nAssistant: {reply}" for n, reply in enumerate(replies))


# Pairs by columns


def test_a_preference_between_two_columns_is_read_by_its_mapping(tmp_path: Path) -> None:
    file = write(
        tmp_path / "pairs.jsonl",
        {"q": "Q0", "x": "good", "y": "bad", "winner": 1},
        {"q": "Q1", "x": "bad", "y": "good", "winner": 2},
        {"q": "Q2", "x": "one", "y": "other", "winner": "="},
        {"q": "Q3", "x": "bad", "y": "good", "winner": " Model_B "},
        {"q": "Q4", "x": "good", "y": "bad", "winner": "left=right"},
    )
    columns = PAIRS | {"map": {"1": "a", "2": "b", "=": "tie", "left=right": "a"}}
    done = imported(file, tmp_path / "run", columns=columns)
    found = texts(tmp_path / "run")
    assert [(row[0], *sorted(row[1:3]), row[3]) for row in found if row[0] == "Q2"] == [("Q2", "one", "other", 0.5)]
    assert [row for row in found if row[0] != "Q2"] == [(f"Q{n}", "good", "bad", 1.0) for n in (0, 1, 3, 4)]
    assert (done.counts.figures.ties, done.counts.rows("preferences"), done.counts.rows("kto")) == (1, 5, 8)
    for row in rows(tmp_path / "run", "kto"):
        assert row["completion"][0]["content"] == ("good" if row["label"] else "bad")
    for row in rows(tmp_path / "run", "llm_swarm"):
        assert (row["chosen"][-1]["content"], row["rejected"][-1]["content"]) == ("good", "bad")
    assert {row["source"] for row in rows(tmp_path / "run", "preferences")} == {"human"}


def test_every_kind_of_reject_is_counted_with_its_row(tmp_path: Path) -> None:
    file = write(
        tmp_path / "pairs.jsonl",
        {"id": 1, "q": "Q", "x": "good", "y": "bad", "winner": "a"},
        "{not json",
        ["no", "object"],
        "",
        {"q": "Q2", "x": "good", "y": "bad", "winner": "both"},
        {"q": "Q3", "x": "good", "y": "bad", "winner": None},
        {"q": "Q4", "x": "good", "y": "bad", "winner": "  "},
        {"q": "Q5", "x": "good", "y": "bad"},
        {"q": "Q6", "x": " same", "y": "same ", "winner": "a"},
        {"q": "Q7", "x": "", "y": "bad", "winner": "a"},
        {"q": "Q8", "x": None, "y": "bad", "winner": "a"},
        {"q": "", "x": "good", "y": "bad", "winner": "a"},
        {"id": 1, "q": "Q9", "x": "good", "y": "bad", "winner": "a"},
        {"id": 2, "q": "Q", "x": "bad", "y": "good", "winner": "a"},
        {"q": "Q10", "x": "good", "y": "bad", "winner": {"is": "a"}},
        {"q": "Q11", "x": 4, "y": "bad", "winner": "a"},
        {"id": 3, "q": "Q12", "x": "good", "y": "bad", "winner": "a"},
    )
    inputs = load(file, columns=PAIRS)
    assert rejects(inputs) == [
        (2, "not_json"),
        (3, "not_an_object"),
        (5, "unknown_preference"),
        (6, "no_preference"),
        (7, "no_preference"),
        (8, "missing_column"),
        (9, "identical_responses"),
        (10, "empty_response"),
        (11, "missing_response"),
        (12, "empty_prompt"),
        (13, "duplicate_id"),
        (14, "duplicate_comparison"),
        (15, "unknown_preference"),
        (16, "not_text"),
    ]
    messages = {reject.row: reject.message for reject in inputs.rejects}
    assert messages[5] == ("`winner` is 'both'; known: a, response_a, model_a, b, response_b, model_b, tie")
    assert messages[8] == "has no column `winner`, only `q`, `x`, `y`"
    assert (len(inputs.labels), inputs.rows) == (2, 16)
    done = run(inputs, tmp_path / "run")
    assert done.counts.rejects == dict(Counter(reason for _, reason in rejects(inputs)))
    lines = [json.loads(line) for line in (tmp_path / "run" / "rejects.jsonl").read_text().splitlines()]
    assert [(line["row"], line["reason"]) for line in lines] == rejects(inputs)
    assert manifest(tmp_path / "run")["counts"] == {"rows": 16, "comparisons": 2, "rejected_rows": 14}
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| rows rejected | 14 |" in card
    assert "| rejected: unknown\\_preference | 2 |" in card


def test_rows_of_several_people_become_votes_in_whichever_order_the_responses_stand(tmp_path: Path) -> None:
    def row(who: object, x: str, y: str, winner: str, q: str = "Q") -> dict[str, object]:
        return {"who": who, "q": q, "x": x, "y": y, "winner": winner}

    file = write(
        tmp_path / "pairs.jsonl",
        row("mo", "good", "bad", "a"),
        row("bea", "bad", "good", "b"),
        row("cy", "bad", "good", "a"),
        row("mo", "bad", "good", "b"),
        row("", "good", "bad", "a"),
        row(None, "good", "bad", "a"),
        row(4, "good", "bad", "tie", q="Other"),
    )
    inputs = load(file, columns=PAIRS | {"annotator": "who"})
    assert rejects(inputs) == [(4, "duplicate_vote"), (5, "no_annotator"), (6, "no_annotator")]
    done = run(inputs, tmp_path / "run")
    first, second = rows(tmp_path / "run", "preferences")
    assert (first["chosen"][0]["content"], first["p_chosen"]) == ("good", pytest.approx(2 / 3))
    assert (first["annotator_id"], second["annotator_id"]) == ("bea,cy,mo", "4")
    assert second["p_chosen"] == 0.5
    figures = done.counts.figures
    assert (figures.labels, figures.votes, figures.overlap, figures.disputed, figures.ties) == (2, 4, 1, 1, 1)
    assert done.counts.annotators == 4
    assert "names out, before you share" in (tmp_path / "run" / "README.md").read_text()


def test_chosen_and_rejected_of_other_names_with_a_probability(tmp_path: Path) -> None:
    file = write(
        tmp_path / "pairs.jsonl",
        *({"question": f"Q{n}", "better": "good", "worse": "bad", "p": p} for n, p in enumerate([0.9, "0.6", 0.2, 1])),
        *({"question": f"R{n}", "better": "good", "worse": "bad", "p": p} for n, p in enumerate([1.1, "x", None])),
    )
    columns = {"prompt": "question", "chosen": "better", "rejected": "worse", "p_chosen": "p"}
    inputs = load(file, columns=columns, test_share=0.0)
    assert rejects(inputs) == [(5, "bad_p"), (6, "bad_p"), (7, "bad_p")]
    assert "`p` must be a number from 0 to 1, but is 1.1" in inputs.rejects[0].message
    run(inputs, tmp_path / "run")
    found = texts(tmp_path / "run")
    assert [row[:3] for row in found] == [
        (f"Q{n}", *(("bad", "good") if n == 2 else ("good", "bad"))) for n in range(4)
    ]
    assert [row[3] for row in found] == pytest.approx([0.9, 0.6, 0.8, 1.0])


def test_two_people_with_probabilities_about_swapped_choices(tmp_path: Path) -> None:
    file = write(
        tmp_path / "pairs.jsonl",
        {"prompt": "Q", "chosen": "good", "rejected": "bad", "who": "mo", "p": 0.9},
        {"prompt": "Q", "chosen": "bad", "rejected": "good", "who": "bea", "p": 0.6},
    )
    imported(file, tmp_path / "run", columns={"annotator": "who", "p_chosen": "p"})
    [(_, chosen, rejected, p)] = texts(tmp_path / "run")
    assert (chosen, rejected, p) == ("good", "bad", pytest.approx((0.9 + 0.4) / 2))


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_transcripts_in_columns_of_other_names_bring_their_prompt(suffix: str, tmp_path: Path) -> None:
    row = {"win": told("Why?", "Because.", "good"), "lose": told("Why?", "Because.", "bad"), "note": "something else"}
    path = tmp_path / f"pairs.{suffix}"
    if suffix == "jsonl":
        write(path, row)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerow(row)
    imported(path, tmp_path / "run", columns={"chosen": "win", "rejected": "lose"})
    assert texts(tmp_path / "run") == [("Why? 1", "good", "bad", 1.0)]
    [found] = rows(tmp_path / "run", "preferences")
    assert [turn["content"] for turn in found["prompt"]] == ["Why? 0", "Because.", "Why? 1"]


def test_a_response_is_not_taken_for_the_prompt_by_its_name(tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", {"text": "Q", "transcript": "good", "y": "bad", "preference": "a"})
    imported(file, tmp_path / "run", columns={"response_a": "transcript", "response_b": "y"})
    assert texts(tmp_path / "run") == [("Q", "good", "bad", 1.0)]


def test_only_the_named_columns_are_read(tmp_path: Path) -> None:
    row = {"q": "Q", "x": "good", "y": "bad", "winner": "a", "a": 1, "b": 2, "gold": "b", "kind": "odd", "chosen": "x"}
    imported(write(tmp_path / "pairs.jsonl", row | {"messages": [], "source": "ai"}), tmp_path / "run", columns=PAIRS)
    assert texts(tmp_path / "run") == [("Q", "good", "bad", 1.0)]


def test_csv_with_quotes_line_breaks_and_a_byte_order_mark(tmp_path: Path) -> None:
    said = [('Say "hi",\nplease', 'Good, "very"\n\ngood', "bad; worse"), ("日本?", "はい", "=1+1")]
    with (tmp_path / "pairs.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["q", "x", "y", "winner", "who"])
        for question, good, bad in said:
            writer.writerow([question, bad, good, "2", "mo"])
        writer.writerow(["cells", "are missing"])
    columns = PAIRS | {"map": {"2": "b"}, "annotator": "who"}
    done = imported(tmp_path / "pairs.csv", tmp_path / "run", columns=columns)
    assert texts(tmp_path / "run") == [(*one, 1.0) for one in said]
    assert done.counts.rejects == {"cell_count": 1}


def test_parquet_with_gaps_in_a_whole_number_column(tmp_path: Path) -> None:
    table = {
        "q": ["Q0", "Q1", "Q2", "Q3"],
        "x": ["good", "bad", "good", "good"],
        "y": ["bad", "good", "bad", "bad"],
        "winner": [1.0, 0.0, float("nan"), None],
        "who": [3, 4, 5, 6],
        "never read": [{"a": 1}] * 4,
    }
    pq.write_table(pa.table(table), tmp_path / "pairs.parquet")
    columns = PAIRS | {"map": {"1": "a", "0": "b"}, "annotator": "who"}
    done = imported(tmp_path / "pairs.parquet", tmp_path / "run", columns=columns)
    assert texts(tmp_path / "run") == [(f"Q{n}", "good", "bad", 1.0) for n in range(2)]
    assert done.counts.rejects == {"no_preference": 2}
    assert [row["annotator_id"] for row in rows(tmp_path / "run", "preferences")] == ["3", "4"]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_a_wrong_column_is_one_sentence_that_names_those_that_are_there(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"pairs.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"q": ["Q"], "winers": ["a"], "x": ["good"], "y": ["bad"]}), path)
    elif suffix == "csv":
        path.write_text("q,winers,x,y\nQ,a,good,bad\n")
    else:
        write(path, {"q": "Q", "winers": "a", "x": "good", "y": "bad"})
    with pytest.raises(DataError) as error:
        load(path, columns=PAIRS)
    assert "has no column `winner`, only `q`, `winers`, `x`, `y`; did you mean `winers`" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="has no column `question`, only `q`, `winers`, `x`, `y`"):
        load(path, columns=PAIRS | {"prompt": "question"})


def test_bools_and_ids(tmp_path: Path) -> None:
    file = write(
        tmp_path / "pairs.jsonl",
        {"pair": "p0", "q": "Q0", "x": "good", "y": "bad", "winner": True, "id": "row"},
        {"pair": "p1", "q": "Q1", "x": "bad", "y": "good", "winner": False, "id": "row"},
    )
    done = imported(file, tmp_path / "run", columns=PAIRS | {"map": {"true": "a", "false": "b"}, "id": "pair"})
    assert [row["id"] for row in rows(tmp_path / "run", "preferences")] == ["p0", "p1"]
    assert texts(tmp_path / "run") == [(f"Q{n}", "good", "bad", 1.0) for n in range(2)]
    assert done.counts.rejects == {}
    assert rejects(load(file, columns=PAIRS | {"map": {"true": "a", "false": "b"}})) == [(2, "duplicate_id")]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"columns": PAIRS | {"chosen": "c"}}, "`chosen` has no effect beside columns of `response_a`"),
        ({"columns": {"map": {"1": "a"}, "p_chosen": "p"}}, "`p_chosen` has no effect beside"),
        ({"format": "hh-rlhf", "columns": {"prompt": "q"}}, "`columns.prompt` has no effect on the format hh-rlhf"),
        ({"format": "llm-swarm", "columns": {"id": "q"}}, "`columns.id` has no effect on the format llm-swarm"),
        ({"slight": 0.8}, "`slight` has no effect on the format pairs"),
        ({"slight": 0.5, "format": "label-studio"}, "greater than 0.5"),
        ({"columns": {"map": {"1": "c"}}}, "columns.map.1"),
    ],
)
def test_options_without_effect_are_errors(config: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ImportConfig.model_validate({"format": "pairs", "path": "x.jsonl"} | dict(config))


# The formats of others


def test_hh_rlhf_transcripts(tmp_path: Path) -> None:
    file = write(
        tmp_path / "hh.jsonl",
        {"chosen": told("Why?", "Because.", "good"), "rejected": told("Why?", "Because.", "bad"), "gold": "b"},
        {"chosen": told("Why?", "good"), "rejected": told("How?", "bad")},
        {"chosen": told("Why?", ""), "rejected": told("Why?", "bad")},
        {"chosen": "good", "rejected": "bad"},
        {"chosen": told("Why?", "good")},
        {"chosen": told("Why?", "bad"), "rejected": told("Why?", "good")},
        {"chosen": told("Why?", "good"), "rejected": told("Why?", "bad")},
    )
    inputs = load(file, "hh-rlhf", test_share=0.0)
    assert rejects(inputs) == [
        (2, "prompts_differ"),
        (3, "empty_response"),
        (4, "not_a_transcript"),
        (5, "missing_column"),
        (7, "duplicate_comparison"),
    ]
    run(inputs, tmp_path / "run")
    assert texts(tmp_path / "run") == [("Why? 1", "good", "bad", 1.0), ("Why? 0", "bad", "good", 1.0)]


@pytest.mark.skipif(not SHARED.is_file(), reason="needs the shared data")
def test_the_1500_rows_of_hh_rlhf(tmp_path: Path) -> None:
    # Read without the package: a row is sound if human and assistant take turns, the two sides agree up to the last
    # reply, and both replies have text. White space is not compared.
    sound: list[tuple[str, str, str]] = []
    with gzip.open(SHARED, "rt", encoding="utf-8") as lines:
        for line in lines:
            chosen, rejected = (turns_of(json.loads(line)[name]) for name in ("chosen", "rejected"))
            speakers = [turn.partition(":")[0] for turn in chosen]
            if speakers == ["Human", "Assistant"] * (len(speakers) // 2) and chosen[:-1] == rejected[:-1]:
                good, bad = (turns[-1].removeprefix("Assistant:").strip() for turns in (chosen, rejected))
                if len(chosen) == len(rejected) and good and bad and good != bad:
                    sound.append((chosen[-2].removeprefix("Human:").strip(), good, bad))
    done = imported(SHARED, tmp_path / "run", "hh-rlhf")
    assert (done.counts.rows_read, done.counts.figures.labels) == (1500, len(sound))
    assert sum(done.counts.rejects.values()) == 1500 - len(sound)
    assert [tuple(" ".join(str(text).split()) for text in row[:3]) for row in texts(tmp_path / "run")] == sound


def turns_of(text: str) -> list[str]:
    """The turns of a transcript, each with its speaker, all white space as single spaces."""
    turns: list[str] = []
    for paragraph in text.split("\n\n"):
        words = " ".join(paragraph.split())
        if words.startswith(("Human:", "Assistant:")):
            turns.append(words)
        elif words:
            turns[-1] += f" {words}"
    return turns


def test_llm_swarm_rows_are_marked_as_revisions(tmp_path: Path) -> None:
    def talk(*contents: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]

    drafts = [talk("Q0", "rude"), talk("Q1", "kind"), talk("Q", "rude"), talk("Q3"), talk("Q4", "r")]
    rows_ = [
        {"prompt": f"Q{n}", "messages": talk(f"Q{n}", "kind"), "chosen": talk(f"Q{n}", "kind"), "rejected": draft}
        for n, draft in enumerate(drafts)
    ]
    pq.write_table(pa.Table.from_pylist(rows_), tmp_path / "swarm.parquet")
    inputs = load(tmp_path / "swarm.parquet", "llm-swarm", test_share=0.0)
    assert rejects(inputs) == [(2, "identical_responses"), (3, "prompts_differ"), (4, "missing_response")]
    run(inputs, tmp_path / "run")
    assert texts(tmp_path / "run") == [("Q0", "kind", "rude", 1.0), ("Q4", "kind", "r", 1.0)]
    for row in rows(tmp_path / "run", "preferences"):
        assert (row["source"], row["response_source"], row["annotator_id"]) == ("revision", "revision", None)
        assert (row["chosen_origin"], row["rejected_origin"]) == ("revision", "draft")
    card = (tmp_path / "run" / "README.md").read_text()
    assert "No person has compared the two" in card
    assert "synthetic" in header(tmp_path / "run")["tags"]
    assert "human-feedback" not in header(tmp_path / "run")["tags"]
    found = read_preferences([PreferenceSource(path=str(tmp_path / "run"))], [], test_share=0.0, seed=0)
    assert {row.source for row in found.train} == {"revision"}


def test_the_order_of_revisions_is_nobodys_known_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [
        {
            side: [{"role": "user", "content": f"Q{n}"}, {"role": "assistant", "content": f"{text} {n}"}]
            for side, text in (("chosen", "kind"), ("rejected", "rude"))
        }
        for n in range(4)
    ]
    run(load(write(tmp_path / "swarm.jsonl", *pairs), "llm-swarm"), tmp_path / "run")
    assert "without a `gold`, since nobody has compared them" in (tmp_path / "run" / "README.md").read_text()
    (tmp_path / "judge.yaml").write_text("answers: [{choices: {A: 0.6, B: 0.3}}]")
    judge = ("--engine", "scripted", "--script", tmp_path / "judge.yaml", "--out", tmp_path / "judged")
    for words in (
        ("judge-check", "--comparisons", tmp_path / "run", *judge),
        ("label", "--comparisons", tmp_path / "run", "--human", tmp_path / "run", *judge),
    ):
        refused = cai(capsys, monkeypatch, *words)
        assert refused.code == 2
        assert "no row can be used (4 no_gold)" in refused.err
    assert cai(capsys, monkeypatch, "label", "--comparisons", tmp_path / "run", *judge).code == 0


# Any import


def test_no_prompt_stands_on_both_sides(tmp_path: Path) -> None:
    draw = random.Random(1)
    lines = [{"prompt": f"Q{draw.randrange(120)}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(400)]
    done = imported(write(tmp_path / "pairs.jsonl", *lines), tmp_path / "run", test_share=0.3)
    for table, train, test in (("preferences", "train", "test"), ("kto", "train", "test")):
        sides = [
            {row["prompt"][-1]["content"] for row in rows(tmp_path / "run", table, side)} for side in (train, test)
        ]
        assert not sides[0] & sides[1]
        assert 0.15 < len(sides[1]) / len(sides[0] | sides[1]) < 0.45
    swarm = [
        {row["prompt"] for row in rows(tmp_path / "run", "llm_swarm", f"{side}_prefs")} for side in ("train", "test")
    ]
    assert not swarm[0] & swarm[1]
    assert done.counts.rows("preferences") == 400
    assert "human-feedback" in header(tmp_path / "run")["tags"]
    assert "rlaif" not in header(tmp_path / "run")["tags"]


def test_skip_and_limit_count_comparisons_with_votes(tmp_path: Path) -> None:
    file = write(
        tmp_path / "pairs.jsonl",
        *(
            {"prompt": f"Q{n}", "chosen": "good", "rejected": "bad", "who": who}
            for n in range(6)
            for who in ("mo", "bea")
        ),
    )
    inputs = load(file, columns={"annotator": "who"}, skip=1, limit=3, test_share=0.0)
    done = run(inputs, tmp_path / "run")
    assert [row[0] for row in texts(tmp_path / "run")] == ["Q1", "Q2", "Q3"]
    assert (done.counts.passed_over, done.counts.figures.votes) == (3, 6)
    with pytest.raises(DataError, match=r"no comparison with a vote is left \(skip passes over all 6\)"):
        load(file, columns={"annotator": "who"}, skip=6)


def test_ties_within_the_margin_are_only_in_preferences_or_dropped(tmp_path: Path) -> None:
    file = write(
        tmp_path / "pairs.jsonl",
        *({"prompt": f"Q{n}", "chosen": "good", "rejected": "bad", "p": p} for n, p in enumerate([0.5, 0.55, 0.65])),
    )
    done = imported(file, tmp_path / "kept", columns={"p_chosen": "p"}, tie_margin=0.1)
    assert (done.counts.figures.ties, done.counts.figures.dropped_ties) == (2, 0)
    assert (done.counts.rows("preferences"), done.counts.rows("kto"), done.counts.rows("llm_swarm")) == (3, 2, 1)
    done = imported(file, tmp_path / "dropped", columns={"p_chosen": "p"}, tie_margin=0.1, drop_ties=True)
    assert done.counts.figures.dropped_ties == 2
    assert [row[0] for row in texts(tmp_path / "dropped")] == ["Q2"]
    gold = [json.loads(line)["gold"] for line in (tmp_path / "kept" / "comparisons.jsonl").read_text().splitlines()]
    assert gold[:2] == [None, None]
    assert gold[2] in ("a", "b")


def test_the_chosen_response_of_an_exact_tie_is_drawn(tmp_path: Path) -> None:
    file = write(
        tmp_path / "pairs.jsonl",
        *({"prompt": f"Q{n}", "response_a": "one", "response_b": "other", "preference": "tie"} for n in range(60)),
    )
    imported(file, tmp_path / "run", columns={"preference": "preference"})
    assert 15 < Counter(row[1] for row in texts(tmp_path / "run"))["one"] < 45


def test_the_comparisons_can_be_labelled_by_a_judge_as_they_are(tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", *({"q": f"Q{n}", "x": "bad", "y": "good", "winner": "b"} for n in range(5)))
    imported(file, tmp_path / "run", columns=PAIRS)
    found = list(read_comparisons(ComparisonInput(path=str(tmp_path / "run"), require_gold=True), on_reject=ignore))
    assert [one.b.text for one in found] == ["good"] * 5
    assert [one.gold for one in found] == ["b"] * 5
    assert [one.id for one in found] == [row["id"] for row in rows(tmp_path / "run", "preferences")]


def test_the_same_import_again_is_made_anew_and_another_one_refused(tmp_path: Path) -> None:
    file = write(
        tmp_path / "pairs.jsonl", *({"prompt": f"Q{n}", "chosen": "good", "rejected": "bad"} for n in range(9))
    )
    first = imported(file, tmp_path / "run")
    again = imported(file, tmp_path / "run", limit=4)
    assert (first.counts.figures.labels, again.counts.figures.labels) == (9, 4)
    assert len(list((tmp_path / "run" / "data").iterdir())) == 3
    with pytest.raises(RunDirError, match="skip is 2, was 0"):
        imported(file, tmp_path / "run", skip=2)
    assert len(texts(tmp_path / "run")) == 4
    other = write(tmp_path / "other.jsonl", {"prompt": "Q", "chosen": "good", "rejected": "bad"})
    with pytest.raises(RunDirError, match="the source changed"):
        imported(other, tmp_path / "run")
    run(load(other), tmp_path / "run", overwrite=True)
    assert len(texts(tmp_path / "run")) == 1
    moved = file.rename(tmp_path / "moved.jsonl")
    assert load(moved).default_out == load(write(file, *moved.read_text().splitlines())).default_out
    assert load(moved).default_out != load(moved, skip=1).default_out


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_an_import_trains_unchanged(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        {"q": f"Q{n}?", "x": f"good {n}", "y": f"bad {n}", "winner": ("a", "b", "tie")[n % 3], "who": "mo"}
        for n in range(24)
    ]
    file = write(tmp_path / "pairs.jsonl", *lines)
    words = (
        "import",
        "pairs",
        file,
        "--prompt",
        "q",
        "--response-a",
        "x",
        "--response-b",
        "y",
        "--preference",
        "winner",
    )
    done = cai(capsys, monkeypatch, *words, "--annotator", "who", "--test-share", "0.3", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    held = len(rows(tmp_path / "run", "preferences", "test"))
    counts = train_briefly(
        capsys, monkeypatch, kind, save_tiny_model(tmp_path / "tiny"), tmp_path / "run", tmp_path / "trained"
    )
    assert (counts["train"], counts["test"]) == (24 - held, held)


# The command line


def test_the_command_says_what_it_found_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"q": f"Q{n}", "x": "good", "y": "bad", "winner": "L"} for n in range(3)]
    lines += [{"q": f"R{n}", "x": "good", "y": "bad", "winner": f"odd {n}"} for n in range(5)]
    file = write(tmp_path / "pairs.jsonl", *lines)
    words: Sequence[object] = (
        "import", "pairs", file, "--prompt", "q", "--response-a", "x", "--response-b", "y", "--preference", "winner",
        "--out", tmp_path / "run",
    )  # fmt: skip
    done = cai(capsys, monkeypatch, *words, "--map", "L=a")
    assert done.code == 0
    assert "3 comparisons with votes" in done.out
    assert f"{file}:4: unknown_preference: `winner` is 'odd 0'; known: L, a," in done.out
    assert "not used: 5 rows in all for unknown_preference" in done.out
    assert f"cai train reward --data {tmp_path / 'run'}" in done.out
    for value in ("L", "L=c", "=a"):
        bad = cai(capsys, monkeypatch, *words, "--map", value)
        assert (bad.code, f"{value!r} must be written VALUE=a" in bad.err) == (2, True)
    bad = cai(capsys, monkeypatch, *words, "--map", "L=a", "--map", "L=b")
    assert "the value 'L' stands twice" in bad.err
    bad = cai(capsys, monkeypatch, *words, "--chosen", "z")
    assert (bad.code, bad.err.count("\n")) == (2, 1)
    assert "`chosen` has no effect beside" in bad.err


def test_a_file_without_votes_is_one_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps([{"data": {"prompt": "Q", "response_a": "x", "response_b": "y"}}]))
    with pytest.raises(DataError, match=r"no comparison with a vote is left \(1 unrated\)"):
        load(file, "label-studio")


def test_hub_sources_are_read_and_hashed_by_what_they_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    held = [{"chosen": told(f"Q{n}?", "good"), "rejected": told(f"Q{n}?", "bad")} for n in range(3)]
    asked: list[tuple[object, ...]] = []

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> list[dict[str, str]]:
        asked.append((name, config, split, streaming))
        return held

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = "hub:Anthropic/hh-rlhf@harmless-base:test"
    first = load(source, "hh-rlhf", test_share=0.0)
    run(first, tmp_path / "run")
    assert [row[:3] for row in texts(tmp_path / "run")] == [(f"Q{n}? 0", "good", "bad") for n in range(3)]
    assert asked[0] == ("Anthropic/hh-rlhf", "harmless-base", "test", True)
    held[2]["chosen"] = told("Q2?", "better")
    assert load(source, "hh-rlhf").hashes != first.hashes
