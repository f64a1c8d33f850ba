"""Preferences to train on: the right text is chosen with the right probability, no prompt is on both sides, and every
row is used, rejected or left out."""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import test_preferences
from chain_samples import chain, export, round_, rows, turns
from click.testing import CliRunner
from labels import both, label
from test_labelling import BAD, GOOD, job

from cai.cli import cli
from cai.data.dataset import DatasetCounts
from cai.data.preference_source import PreferenceSource, read_preferences
from cai.data.tables import split_of
from cai.data.training_rows import Preference, SourceFacts, TrainingRows
from cai.errors import ConfigError, DataError
from cai.records import Comparison, Prompt, Response
from cai.rundir import RunDir, State

HUMAN = {"role": "user", "content": "Hello"}
GOOD_REPLY, BAD_REPLY = {"role": "assistant", "content": "Good."}, {"role": "assistant", "content": "Bad."}
PAIR = {"prompt": "Hello", "chosen": "Good.", "rejected": "Bad."}


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(path: Path, number: int, start: int = 0, **more: Any) -> str:
    """A file of pairs about prompts of their own."""
    return write(
        path,
        *({"prompt": f"Q{n}", "chosen": f"Good {n}.", "rejected": "Bad."} | more for n in range(start, start + number)),
    )


def read(
    *sources: str | PreferenceSource, tests: tuple[str, ...] = (), test_share: float = 0.0, seed: int = 7
) -> TrainingRows[Preference]:
    asked = [PreferenceSource(path=one) if isinstance(one, str) else one for one in sources]
    found = read_preferences(asked, [PreferenceSource(path=path) for path in tests], test_share=test_share, seed=seed)
    for facts in found.sources:
        assert facts.rows == facts.used + sum(facts.rejects.values()) + sum(facts.left_out.values())
    assert sum(facts.used for facts in found.sources) == len(found.train) + len(found.test)
    return found


def asked(found: Any) -> list[str]:
    """The last turn of each row's prompt."""
    return [row.prompt[-1].content for row in found]


def finished(run: Path, stage: str, write: Callable[[Path], DatasetCounts], state: State = "finished") -> str:
    """A run directory with the data set that `write` exports into it."""
    with RunDir.open(
        run, stage=stage, config={}, inputs={}, seed=7, command=("cai", stage, "--out", "my run")
    ) as open_:
        open_.manifest.export = {"counts": write(run).model_dump(mode="json")}
        open_.save(state)
    return str(run)


def label_run(run: Path, number: int, state: State = "finished", test_share: float = 0.3) -> str:
    """A run of `cai label` whose judge gives GOOD a probability of 0.8, on either side."""
    labels = [
        label(
            f"n{n}",
            *(both(0.8, 0.8) if n % 2 else both(0.2, 0.2)),
            prompt=(f"Run question {n}?",),
            a=f"{'GOOD' if n % 2 else 'BAD'} {n}",
            b=f"{'BAD' if n % 2 else 'GOOD'} {n}",
        )
        for n in range(number)
    ]
    return finished(run, "label", lambda out: test_preferences.export(out, labels, test_share=test_share), state)


# Rows of files


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "\n\nHuman: Hello\n\nAssistant: Good.", "rejected": "\n\nHuman: Hello\n\nAssistant: Bad."},
        {"chosen": [HUMAN, GOOD_REPLY], "rejected": [HUMAN, BAD_REPLY]},
        {"prompt": [HUMAN], "chosen": [GOOD_REPLY], "rejected": [BAD_REPLY]},
        PAIR,
        {"prompt": "Hello", "response_a": "Good.", "response_b": "Bad.", "gold": "a"},
        {"prompt": "Hello", "response_a": "Bad.", "response_b": "Good.", "gold": "model_b"},
    ],
)
def test_every_shape_is_a_hard_label_for_the_better_response(tmp_path: Path, row: Any) -> None:
    [found] = read(write(tmp_path / "rows.jsonl", row)).train
    assert (found.prompt, found.chosen, found.rejected) == (turns("Hello"), "Good.", "Bad.")
    assert (found.p_chosen, found.source, found.weight) == (1.0, "human", 1.0)
    assert found.prompt_id == hashlib.sha256(b"user\0Hello").hexdigest()[:16]


def test_chosen_is_not_swapped_by_the_drawn_side_nor_by_a_low_probability(tmp_path: Path) -> None:
    ps = [0, 0.3, 0.5, 0.97, 1, "0.25"]
    path = write(tmp_path / "rows.jsonl", *(PAIR | {"id": f"r{n}", "p_chosen": ps[n % 6]} for n in range(60)))
    found = read(path).train
    assert [row.p_chosen for row in found] == [0, 0.3, 0.5, 0.97, 1, 0.25] * 10
    assert {(row.chosen, row.rejected) for row in found} == {("Good.", "Bad.")}
    assert [row.id for row in found] == [f"r{n}" for n in range(60)]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "nan"),
        (1.01, "1.01"),
        (-0.1, "-0.1"),
        (float("inf"), "inf"),
        (10**400, "a number"),
        ("likely", "'likely'"),
        ("", "''"),
        (None, "null"),
        (True, "true or false"),
        ([0.5], "a list"),
    ],
)
def test_a_probability_that_is_none_is_a_reject(tmp_path: Path, value: Any, words: str) -> None:
    bad = PAIR | {"p_chosen": value}
    found = read(write(tmp_path / "rows.jsonl", bad, PAIR | {"p_chosen": 0.5}))
    assert [row.p_chosen for row in found.train] == [0.5]
    [reject] = found.rejects
    assert (reject.source, reject.row, reject.reason) == (str(tmp_path / "rows.jsonl"), 1, "bad_p")
    assert reject.message == f"`p_chosen` must be a number from 0 to 1, but is {words}"
    assert found.sources[0].rejects == {"bad_p": 1}
    with pytest.raises(DataError, match=r"no row can be used \(2 bad_p\); the first: row 1 `p_chosen` must be"):
        read(write(tmp_path / "rows.jsonl", bad, bad))


def test_a_probability_of_chosen_beside_responses_of_other_names_is_a_reject(tmp_path: Path) -> None:
    row = {"prompt": "Hello", "response_a": "Good.", "response_b": "Bad.", "gold": "b", "p_chosen": 0.9}
    found = read(write(tmp_path / "rows.jsonl", row, PAIR))
    assert [(reject.row, reject.reason) for reject in found.rejects] == [(1, "bad_p")]


def test_the_source_of_a_label_is_kept_where_it_is_known_and_noted_where_not(tmp_path: Path) -> None:
    values = ["ai", "human", "revision", "contrast", None, "", "evol_instruct", 3]
    found = read(write(tmp_path / "rows.jsonl", *(PAIR | {"source": value} for value in values)))
    sources = [row.source for row in found.train]
    assert sources == ["ai", "human", "revision", "contrast", "human", "human", "human", "human"]
    assert found.sources[0].notes == {"unknown_source": 2}


def test_a_record_that_was_asked_for_opposites_is_a_contrast(tmp_path: Path) -> None:
    record = Comparison(
        id="c",
        prompt=Prompt(id="p", messages=turns("Hello")),
        a=Response(text="Bad."),
        b=Response(text="Good."),
        source="contrast",
        gold="b",
    )
    [found] = read(write(tmp_path / "rows.jsonl", record.model_dump(mode="json"))).train
    assert (found.id, found.prompt_id, found.chosen, found.source) == ("c", "p", "Good.", "contrast")


def test_the_id_of_the_prompt_is_the_rows_own(tmp_path: Path) -> None:
    values = ["p1", 5, "", True, "nul\0"]
    found = read(write(tmp_path / "rows.jsonl", *(PAIR | {"prompt_id": value} for value in values)))
    assert [row.prompt_id for row in found.train[:2]] == ["p1", "5"]
    assert len(found.train[2].prompt_id) == 16
    assert [(reject.row, reject.reason) for reject in found.rejects] == [(4, "bad_id"), (5, "not_text")]


def test_a_csv_file_and_named_columns_are_read(tmp_path: Path) -> None:
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["q", "chosen", "rejected", "p_chosen"], ["Hi", "Yes.", "No.", "0.75"]])
    [row] = read(PreferenceSource(path=str(tmp_path / "rows.csv"), column="q")).train
    assert (row.prompt, row.chosen, row.p_chosen) == (turns("Hi"), "Yes.", 0.75)
    votes = {"prompt": "Hi", "response_a": "No.", "response_b": "Yes.", "winner": "b", "gold": "a"}
    [row] = read(PreferenceSource(path=write(tmp_path / "votes.jsonl", votes), gold_column="winner")).train
    assert (row.chosen, row.rejected) == ("Yes.", "No.")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no rows"),
        ([{"prompt": "Hello"}], r"no row can be used \(1 missing_response\).*has neither `response_a`"),
        ([{"chosen": "A.", "rejected": "B."}], "not_a_transcript"),
        ([PAIR | {"rejected": "Good. "}], "identical_responses"),
        ([{"prompt": "Hello", "response_a": "A.", "response_b": "B."}], "1 no_gold"),
        ([{"prompt": "Hello", "response_a": "A.", "response_b": "B.", "gold": "tie"}], "1 gold_tie"),
    ],
)
def test_a_file_without_a_usable_row_is_an_error(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "rows.jsonl", *rows))


def test_rows_of_several_formats_are_read_each_by_its_own(tmp_path: Path) -> None:
    gold = {"prompt": "Hello", "response_a": "Bad.", "response_b": "Good.", "gold": "b"}
    found = read(write(tmp_path / "rows.jsonl", PAIR | {"p_chosen": 0.6}, gold, {"text": "Hello"}, PAIR))
    assert [(row.chosen, row.p_chosen) for row in found.train] == [("Good.", 0.6), ("Good.", 1), ("Good.", 1)]
    assert [(reject.row, reject.reason) for reject in found.rejects] == [(3, "missing_response")]
    assert found.duplicates == 2


def test_a_hub_data_set_is_read_no_further_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    def stream(*_: object, **__: object) -> Any:
        for n in range(1000):
            given.append(n)
            yield PAIR | {"prompt": f"Q{n}", "p_chosen": 2 if n == 3 else 0.9}

    monkeypatch.setattr(datasets, "load_dataset", stream)
    found = read(PreferenceSource(path="hub:owner/name", skip=2, limit=3))
    assert (asked(found.train), len(given)) == (["Q2", "Q4", "Q5"], 6)
    [facts] = found.sources
    assert (facts.rows, facts.used, facts.left_out, facts.rejects) == (6, 3, {"skipped": 2}, {"bad_p": 1})
    split = read(PreferenceSource(path="hub:owner/name", skip=2, limit=3, weight=9), test_share=0.5, seed=3)
    other = read(PreferenceSource(path="hub:owner/name", skip=1, limit=3))
    assert split.sources[0].sha256 == facts.sha256 != other.sources[0].sha256


# Runs


def test_a_run_of_label_keeps_its_splits_and_its_probabilities(tmp_path: Path) -> None:
    human = write(tmp_path / "human.jsonl", *({"prompt": f"H{n}", "chosen": GOOD, "rejected": BAD} for n in range(9)))
    words = job(tmp_path, "label", "--human", human, "--human-ratio", "0.1", "--test-share", "0.3")
    words = [*words, "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = read(str(tmp_path / "run"), test_share=1.0, seed=99)
    for side, given in (("train", found.train), ("test", found.test)):
        table = rows(tmp_path / "run", "preferences", side)
        assert [(row.id, row.prompt_id, row.p_chosen, row.source) for row in given] == [
            (row["id"], row["prompt_id"], row["p_chosen"], row["source"]) for row in table
        ]
        assert [row.chosen for row in given] == [row["chosen"][0]["content"] for row in table]
    assert len(found.train) + len(found.test) == 53
    assert min(len(found.train), len(found.test)) > 5
    assert {row.p_chosen for row in found.train if row.source == "human"} == {1.0}
    ai = [row for row in found.train if row.source == "ai"]
    assert all(0.85 < row.p_chosen < 0.95 and row.chosen.startswith(GOOD) for row in ai)
    [facts] = found.sources
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert facts.constitution_sha256s == (manifest["inputs"]["constitution"],)
    files = [(side, next((tmp_path / "run/data").glob(f"preferences-{side}-*"))) for side in ("train", "test")]
    hashes = [f"{side} {hashlib.sha256(file.read_bytes()).hexdigest()}\n" for side, file in files]
    assert facts.sha256 == hashlib.sha256("".join(hashes).encode()).hexdigest()


def test_revisions_are_preferred_to_drafts(tmp_path: Path) -> None:
    revised = chain("r", round_("honesty", "Bad.", "Better."), round_("harm", "Bad.", "Best."), draft="Worst.")
    run = finished(tmp_path / "run", "critique-revise", lambda out: export(out, [revised, chain("unrevised")]))
    [row] = read(run).train
    assert (row.chosen, row.rejected, row.p_chosen, row.source) == ("Best.", "Worst.", 1.0, "revision")
    assert (row.id, row.prompt_id, row.prompt) == ("r", "p-r", turns("How do I pick a lock?"))


def test_a_run_of_contrast_gives_its_pairs(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("answers: [{say: 'Reply {seed}.'}]")
    words = ["contrast", "--engine", "scripted", "--script", str(tmp_path / "policy.yaml"), "--limit", "6"]
    done = CliRunner().invoke(cli, [*words, "--out", str(tmp_path / "run")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = read(str(tmp_path / "run"))
    table = {row["id"]: row["chosen"][0]["content"] for row in rows(tmp_path / "run", "preferences")}
    assert {row.id: row.chosen for row in (*found.train, *found.test)} == table
    assert {(row.source, row.p_chosen) for row in found.train} == {("contrast", 1.0)}


@pytest.mark.parametrize("state", ["running", "stopped", "failed"])
def test_a_run_that_is_not_finished_is_an_error_that_names_its_command(tmp_path: Path, state: State) -> None:
    with pytest.raises(DataError, match=r"run `cai label --out 'my run'` again") as raised:
        read(label_run(tmp_path / "run", 9, state))
    assert ("--retry-failed" in str(raised.value)) == (state == "failed")


def test_runs_that_hold_nothing_to_learn_are_explained(tmp_path: Path) -> None:
    run = tmp_path / "run"
    label_run(run, 9)
    manifest = json.loads((run / "manifest.json").read_text())

    def refused(**changes: Any) -> str:
        (run / "manifest.json").write_text(json.dumps(manifest | changes))
        with pytest.raises(DataError) as raised:
            read(str(run))
        return str(raised.value)

    assert "has no exported data set; run `cai label --out 'my run'` again" in refused(export={})
    assert "has no exported data set; run `cai label` again" in refused(export={"counts": 3}, command=[])
    assert "has no rows in its table `preferences`" in refused(export={"counts": {"files": []}})
    assert "is a run of `cai sample`, which has nothing of this kind" in refused(stage="sample")
    assert "name a file, or the directory of a run of `cai label`" in refused(stage=3)
    next(run.glob("data/preferences-test-*")).unlink()
    assert "is missing; run `cai label --out 'my run'` again" in refused()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"is not a run directory \(no manifest.json\); name a file"):
        read(str(tmp_path / "empty"))
    with pytest.raises(DataError, match="there is no such file, and no set of comparisons of this name"):
        read(str(tmp_path / "nowhere"))


def test_a_column_of_a_run_cannot_be_chosen(tmp_path: Path) -> None:
    run = label_run(tmp_path / "run", 9)
    for column in ({"column": "prompt"}, {"gold_column": "gold"}):
        with pytest.raises(ConfigError, match="name no column of it"):
            read(PreferenceSource(path=run, **column))


# Train rows and test rows


def test_the_prompts_of_a_file_are_split_by_their_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *(PAIR | {"prompt": f"Q{n % 100}", "chosen": f"Good {n}"} for n in range(300)))
    found = read(path, test_share=0.3)
    held = {n for n in range(100) if split_of(Prompt(id="x", messages=turns(f"Q{n}")), 0.3, 7) == "test"}
    # 100 draws at 0.3: mean 30, standard deviation 4.6.
    assert 15 < len(held) < 45
    assert Counter(asked(found.test)) == {f"Q{n}": 3 for n in held}
    assert [row.chosen for row in found.train] == [f"Good {n}" for n in range(300) if n % 100 not in held]
    assert read(path, test_share=0.3) == found
    assert asked(read(path, test_share=0.3, seed=8).test) != asked(found.test)
    assert read(path).test == ()
    with pytest.raises(DataError, match=r"no row is left to train on \(300 test rows; left out: none\)"):
        read(path, test_share=1.0)
    with pytest.raises(DataError, match=r"no row is left to train on \(no source is named: give one with --data"):
        read()


def test_named_test_rows_are_the_only_ones(tmp_path: Path) -> None:
    run, file = label_run(tmp_path / "run", 40), pairs(tmp_path / "file.jsonl", 30)
    tests = label_run(tmp_path / "tests", 60), pairs(tmp_path / "tests.jsonl", 5, start=100)
    own = read(run)
    found = read(run, file, tests=(tests[1],), test_share=0.5)
    assert asked(found.test) == [f"Q{n}" for n in range(100, 105)]
    assert asked(found.train) == asked(own.train) + [f"Q{n}" for n in range(30)]
    assert found.left_out == {"own_test": len(own.test)}
    assert len(own.test) > 3
    assert [(one.path, one.for_test) for one in found.sources] == [(run, False), (file, False), (tests[1], True)]
    # Of a run that is named for the test rows, both splits are test rows.
    whole = read(file, tests=(tests[0],))
    assert sorted(asked(whole.test)) == sorted(f"Run question {n}?" for n in range(60))


def test_no_prompt_of_the_test_rows_is_trained_on_whatever_its_id(tmp_path: Path) -> None:
    rows = [PAIR | {"prompt": prompt, "prompt_id": f"a{n}"} for n, prompt in enumerate(["Hello", "hello", "More"])]
    talk = {"messages": [HUMAN, GOOD_REPLY, {"role": "user", "content": "Hello"}], "chosen": "Yes.", "rejected": "No."}
    file = write(tmp_path / "file.jsonl", *rows, talk)
    tests = write(tmp_path / "tests.jsonl", PAIR | {"prompt": " Hello\n", "prompt_id": "b"}, PAIR | {"prompt": "Else"})
    found = read(file, tests=(tests,))
    assert asked(found.train) == ["hello", "More", "Hello"]
    assert found.left_out == found.sources[0].left_out == {"in_test": 1}
    assert len(found.test) == 2
    # A file's train rows give way to the test split of a run too.
    run = label_run(tmp_path / "run", 40)
    held = asked(read(run).test)
    again = write(tmp_path / "again.jsonl", *(PAIR | {"prompt": f"Run question {n}?"} for n in range(40)))
    mixed = read(again, run)
    assert mixed.left_out == {"in_test": len(held)}
    assert set(asked(mixed.train)).isdisjoint(held)


def test_weights_are_divided_by_their_mean_over_the_rows_in_use(tmp_path: Path) -> None:
    heavy, light = pairs(tmp_path / "heavy.jsonl", 4), pairs(tmp_path / "light.jsonl", 2, start=10)
    tests = pairs(tmp_path / "tests.jsonl", 1, start=3), pairs(tmp_path / "more.jsonl", 1, start=20)
    found = read_preferences(
        [PreferenceSource(path=heavy, weight=2), PreferenceSource(path=light, weight=0.5)],
        [PreferenceSource(path=tests[0], weight=3), PreferenceSource(path=tests[1])],
        test_share=0,
        seed=0,
    )
    # Q3 is a test prompt, so the mean is that of 2, 2, 2, 0.5, 0.5: 7 / 5. That of 3 and 1 is 2.
    assert [row.weight for row in found.train] == pytest.approx([10 / 7] * 3 + [5 / 14] * 2)
    assert [row.weight for row in found.test] == [1.5, 0.5]
    assert [one.weight for one in found.sources] == [2, 0.5, 3, 1]
    for weight in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="weight"):
            PreferenceSource(path=heavy, weight=weight)


def test_rows_that_stand_twice_are_kept_and_counted(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", PAIR | {"id": "r", "p_chosen": 0.9}, PAIR | {"id": "r", "p_chosen": 0.6})
    other = write(tmp_path / "other.jsonl", PAIR, PAIR | {"chosen": "Bad.", "rejected": "Good."})
    found = read(one, other)
    assert [(row.chosen, row.p_chosen) for row in found.train] == [
        ("Good.", 0.9),
        ("Good.", 0.6),
        ("Good.", 1),
        ("Bad.", 1),
    ]
    assert (found.duplicates, found.left_out, found.rejects) == (2, {}, ())


def test_skip_and_limit_count_rows_that_can_be_used(tmp_path: Path) -> None:
    rows = [PAIR | {"prompt": f"Q{n}", "p_chosen": 7 if n % 3 == 0 else 1} for n in range(30)]
    path = write(tmp_path / "rows.jsonl", *rows)
    found = read(PreferenceSource(path=path, skip=2, limit=3))
    assert asked(found.train) == ["Q4", "Q5", "Q7"]
    [facts] = found.sources
    assert (facts.rows, facts.rejects, facts.left_out) == (8, {"bad_p": 3}, {"skipped": 2})
    parts = [read(PreferenceSource(path=path, limit=12)), read(PreferenceSource(path=path, skip=12))]
    assert parts[0].train + parts[1].train == read(path).train
    with pytest.raises(DataError, match=r"no row is left of those that can be used \(20 skipped\)"):
        read(PreferenceSource(path=path, skip=20))


def test_skip_and_limit_leave_the_test_split_of_a_run_whole(tmp_path: Path) -> None:
    run = label_run(tmp_path / "run", 40)
    whole, part = read(run), read(PreferenceSource(path=run, skip=3, limit=5))
    assert (part.train, part.test) == (whole.train[3:8], whole.test)
    tests = read_preferences(
        [PreferenceSource(path=pairs(tmp_path / "file.jsonl", 3))],
        [PreferenceSource(path=run, skip=3, limit=30)],
        test_share=0,
        seed=0,
    )
    assert tests.test == (*whole.train, *whole.test)[3:33]


def test_the_facts_name_content_and_constitutions(tmp_path: Path) -> None:
    rows = [PAIR | {"constitution_sha256": value} for value in ("b" * 64, None, "a" * 64, "b" * 64)]
    path = write(tmp_path / "rows.jsonl", *rows)
    [facts] = read(path).sources
    assert facts == SourceFacts(
        path=path,
        for_test=False,
        sha256=hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        rows=4,
        used=4,
        rejects={},
        left_out={},
        notes={},
        constitution_sha256s=("a" * 64, "b" * 64),
        weight=1.0,
    )


def test_a_shipped_set_can_be_named() -> None:
    found = read("planted")
    assert len(found.train) > 50
    assert {row.source for row in found.train} == {"human"}
