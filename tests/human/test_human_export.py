"""Ratings out of the store: the text that raters prefer is chosen in every row, and every rating is accounted for."""

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cai_process import manifest
from chain_samples import CONSTITUTION, header, rows
from preference_runs import cai, texts, train_briefly
from rating_samples import attention_checks, comparison, new_rater, new_store
from tiny_model import save_tiny_model

from cai.constitution import load_constitution
from cai.data.preference_source import PreferenceSource, read_preferences
from cai.errors import ConfigError, DataError, RunDirError
from cai.human.card import ExportCounts
from cai.human.exporting import ExportConfig, export_ratings, load_export
from cai.human.importing import ImportConfig, import_preferences, load_import
from cai.human.preference_run import Published
from cai.human.records import Answer, Rating
from cai.human.store import RatingStore, Shown
from cai.records import Comparison

Choose = Callable[[Shown], Answer]
TABLES = ("preferences", "kto", "llm_swarm")


def rating_folder(folder: Path, comparisons: Sequence[Comparison], checks: int = 0, **config: Any) -> RatingStore:
    """A rating directory and its store."""
    folder.mkdir()
    (folder / "constitution.yaml").write_text(CONSTITUTION)
    asked: dict[str, Any] = {"check_every": 0, "overlap": 1.0, "overlap_raters": 3} | config
    return new_store(folder / "ratings.sqlite", comparisons, attention_checks(checks), **asked)


def rate(store: RatingStore, name: str, choose: Choose, number: int | None = None) -> int:
    """Rate so many items, or all there are; returns how many."""
    rater = new_rater(store, name)
    done = 0
    while done != number and (shown := store.next(rater)) is not None:
        key = f"{name} {shown.number} {shown.item}"
        store.answer(rater, shown.item, choose(shown), comment="", seconds=0.0, key=key)
        done += 1
    return done


def by_id(**answers: Answer) -> Choose:
    return lambda shown: answers[shown.comparison.id]


def prefers_right(shown: Shown) -> Answer:
    """Prefers the right text, clearly or slightly, wherever it stands."""
    slightly = len(shown.comparison.id) % 2
    if shown.comparison.a.text.startswith("right"):
        return "rather_a" if slightly else "a"
    return "rather_b" if slightly else "b"


def planted(number: int, prompts: int) -> list[Comparison]:
    draw = random.Random(3)
    found = []
    for n in range(number):
        sides = [f"right {n}", f"wrong {n}"]
        draw.shuffle(sides)
        found.append(comparison(f"c{n}", prompt=(f"Question {n % prompts}?",), a=sides[0], b=sides[1]))
    return found


def export(folder: Path, out: Path, **config: Any) -> Published[ExportCounts]:
    asked = ExportConfig.model_validate({"ratings": str(folder), "test_share": 0.0} | config)
    return export_ratings(load_export(asked), out, command=("cai", "export", str(folder)))


def read_ratings(path: Path) -> list[Rating]:
    return [Rating.model_validate_json(line) for line in path.read_text().splitlines()]


# Planted truth


def test_the_text_that_raters_prefer_is_chosen_in_every_row_of_every_table(tmp_path: Path) -> None:
    with rating_folder(tmp_path / "rated", planted(90, 40), checks=4, check_every=10, overlap=0.4) as store:
        first_is_right = []

        def choose(shown: Shown) -> Answer:
            first_is_right.append(
                (shown.comparison.a if shown.first == "a" else shown.comparison.b).text.startswith("right")
            )
            return prefers_right(shown)

        numbers = [
            rate(store, name, choose, most) for name, most in (("ann", 50), ("bea", 40), ("cy", None), ("dee", None))
        ]
        standing = len(list(store.ratings()))
    assert 0.3 < sum(first_is_right) / len(first_is_right) < 0.7
    counts = export(tmp_path / "rated", tmp_path / "run", test_share=0.3).counts
    run = tmp_path / "run"
    preferences = rows(run, "preferences")
    assert {row["id"] for row in preferences} == {f"c{n}" for n in range(90)}
    for row in preferences:
        number = row["id"][1:]
        assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == (f"right {number}", f"wrong {number}")
        assert row["p_chosen"] == (0.75 if len(row["id"]) % 2 else 1.0)
        assert row["source"] == "human"
        assert row["annotator_id"]
        assert {row["chosen_origin"], row["rejected_origin"]} == {"small", "large"}
    assert len(rows(run, "kto")) == 180
    for row in rows(run, "kto"):
        assert row["completion"][0]["content"].startswith("right" if row["label"] else "wrong")
        assert row["source"] == "human"
    assert len(rows(run, "llm_swarm")) == 90
    for row in rows(run, "llm_swarm"):
        assert row["chosen"][-1]["content"].startswith("right")
        assert row["rejected"][-1]["content"].startswith("wrong")
    for line in (run / "comparisons.jsonl").read_text().splitlines():
        found = Comparison.model_validate_json(line)
        assert (found.a if found.gold == "a" else found.b).text.startswith("right")
    for task in json.loads((run / "label-studio.json").read_text()):
        for annotation in task["annotations"]:
            [selected] = [one["value"]["selected"] for one in annotation["result"] if one["type"] == "pairwise"]
            assert task["data"][{"left": "response_a", "right": "response_b"}[selected]].startswith("right")
    figures = counts.figures
    assert (figures.labels, figures.votes, figures.disputed, counts.unrated) == (90, standing, 0, 0)
    assert figures.overlap == sum("," in row["annotator_id"] for row in preferences) > 10
    assert sum(numbers) > standing  # some were attention checks
    sides = [{row["prompt"][-1]["content"] for row in rows(run, "preferences", side)} for side in ("train", "test")]
    assert not sides[0] & sides[1]
    assert all(sides)


# Votes by hand


def test_what_people_chose_among_contrasts_is_theirs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They prefer the reply that was asked to oppose, which `cai contrast` took for the worse one."""
    made = [
        one.model_copy(
            update={
                "source": "contrast",
                "gold": "b" if one.a.text.startswith("right") else "a",
                "a": one.a.model_copy(update={"origin": "oppose" if one.a.text.startswith("right") else "follow"}),
            }
        )
        for one in planted(12, 12)
    ]
    with rating_folder(tmp_path / "rated", made) as store:
        rate(store, "ann", prefers_right)
    export(tmp_path / "rated", tmp_path / "run")
    lines = (tmp_path / "run" / "comparisons.jsonl").read_text().splitlines()
    for found in map(Comparison.model_validate_json, lines):
        assert (found.a if found.gold == "a" else found.b).text.startswith("right")
        assert found.a.origin in ("follow", "oppose")
    assert {(row["source"], row["response_source"]) for row in rows(tmp_path / "run", "preferences")} == {
        ("human", "contrast")
    }
    for place in ("run", "run/comparisons.jsonl"):
        found = read_preferences([PreferenceSource(path=str(tmp_path / place))], [], test_share=0.0, seed=0)
        assert {row.source for row in found.train} == {"human"}
    (tmp_path / "judge.yaml").write_text("answers: [{choices: {A: 0.6, B: 0.3}}]")
    judge = ("--engine", "scripted", "--script", tmp_path / "judge.yaml", "--out", tmp_path / "judged")
    checked = cai(capsys, monkeypatch, "judge-check", "--comparisons", tmp_path / "run", *judge)
    assert checked.code == 0, checked.err


def test_votes_worked_out_by_hand(tmp_path: Path) -> None:
    asked = [comparison(f"c{n}", a=f"A{n}", b=f"B{n}") for n in range(6)]
    given: dict[str, dict[str, Answer]] = {
        "mo": {"c0": "a", "c1": "rather_b", "c2": "both_bad", "c3": "a", "c4": "skipped", "c5": "rather_a"},
        "bea": {"c0": "a", "c1": "b", "c2": "both_bad", "c3": "b", "c4": "both_bad", "c5": "skipped"},
        "Cy": {"c0": "b", "c1": "b", "c2": "skipped", "c3": "both_bad", "c4": "skipped", "c5": "both_bad"},
    }
    with rating_folder(tmp_path / "rated", asked) as store:
        for name, answers in given.items():
            assert rate(store, name, by_id(**answers)) == 6
    done = export(tmp_path / "rated", tmp_path / "run")
    found = {row["id"]: row for row in rows(tmp_path / "run", "preferences")}
    # c0: 1, 1, 0. c1: 1/4, 0, 0. c3: 1, 0, so a tie. c5: 3/4. c2 and c4 have no vote.
    assert {id_: pytest.approx(row["p_chosen"]) for id_, row in found.items()} == {
        "c0": 2 / 3,
        "c1": 1 - 1 / 12,
        "c3": 0.5,
        "c5": 0.75,
    }
    chosen = {id_: row["chosen"][0]["content"] for id_, row in found.items() if id_ != "c3"}
    assert chosen == {"c0": "A0", "c1": "B1", "c5": "A5"}
    assert {id_: row["annotator_id"] for id_, row in found.items()} == {
        "c0": "Cy,bea,mo",
        "c1": "Cy,bea,mo",
        "c3": "bea,mo",
        "c5": "mo",
    }
    assert {row["id"] for row in rows(tmp_path / "run", "kto")} == {
        f"{id_}/{half}" for id_ in ("c0", "c1", "c5") for half in ("chosen", "rejected")
    }
    figures, counts = done.counts.figures, done.counts
    assert (figures.labels, figures.votes, figures.overlap, figures.disputed, figures.ties) == (4, 9, 3, 2, 1)
    assert (counts.comparisons, counts.unvoted, counts.unrated) == (6, 2, 0)
    assert [(one.name, one.votes, one.both_bad, one.skipped) for one in counts.raters] == [
        ("Cy", 2, 2, 2),
        ("bea", 3, 2, 1),
        ("mo", 4, 1, 1),
    ]
    other = export(tmp_path / "rated", tmp_path / "run", slight=0.9, drop_ties=True)
    assert {row["id"]: pytest.approx(row["p_chosen"]) for row in rows(tmp_path / "run", "preferences")} == {
        "c0": 2 / 3,
        "c1": 1 - 0.1 / 3,
        "c5": 0.9,
    }
    assert other.counts.figures.dropped_ties == 1
    card = (tmp_path / "run" / "README.md").read_text()
    assert "A slight preference counts as 0.9" in card
    for line in ("| Cy | 2 | 2 | 2 | 0 | 0 |  |", "| votes | 9 |", "| of these with votes for either response | 2 |"):
        assert line in card
    assert "| answered with `both_bad` or `skipped` alone, so without a label | 2 |" in card
    # Without mo, c3 is bea's and c5 has no vote any more.
    left = export(tmp_path / "rated", tmp_path / "run", leave_out=("mo",))
    assert {row["id"]: row["annotator_id"] for row in rows(tmp_path / "run", "preferences")} == {
        "c0": "Cy,bea",
        "c1": "Cy,bea",
        "c3": "bea",
    }
    assert (left.counts.unvoted, left.counts.unrated) == (3, 0)
    assert "| mo | 4 | 1 | 1 | 0 | 0 | left out |" in (tmp_path / "run" / "README.md").read_text()
    assert len(read_ratings(tmp_path / "run" / "ratings.jsonl")) == 18
    with pytest.raises(ConfigError, match=r"no rater is called 'moo'.*\(raters: Cy, bea, mo\)"):
        export(tmp_path / "rated", tmp_path / "run", leave_out=("moo",))


def test_label_studio_and_back_gives_the_same_rows(tmp_path: Path) -> None:
    draw = random.Random(5)
    asked = [
        comparison(f"c{n}", prompt=("Hello\n\nHuman: no turn", "Hi", f"Q {n}?"), a=f" A{n}\n", b=f"B{n}")
        for n in range(40)
    ]
    answers: tuple[Answer, ...] = ("a", "rather_a", "rather_b", "b", "both_bad", "skipped")
    with rating_folder(tmp_path / "rated", asked, overlap=0.6, overlap_raters=2) as store:
        for name in ("ann", "bea"):
            rate(store, name, lambda _: draw.choice(answers))
    done = export(tmp_path / "rated", tmp_path / "run", slight=0.8)
    back = ImportConfig(
        format="label-studio", path=str(tmp_path / "run" / "label-studio.json"), test_share=0.0, slight=0.8
    )
    again = import_preferences(load_import(back), tmp_path / "again")
    columns = ("id", "prompt", "chosen", "rejected", "p_chosen", "annotator_id", "source")
    ours, theirs = (
        [{name: row[name] for name in columns} for row in rows(tmp_path / run, "preferences")]
        for run in ("run", "again")
    )
    assert ours == theirs
    assert len(ours) > 20
    assert again.counts.figures == done.counts.figures
    assert again.counts.rejects == {}


# Every rating


def test_every_rating_that_stands_is_exported_and_checks_are_apart(tmp_path: Path) -> None:
    with rating_folder(tmp_path / "rated", planted(20, 20), checks=6, check_every=3) as store:
        rater = new_rater(store, "mo")
        for number in range(12):
            shown = store.next(rater)
            assert shown is not None
            store.answer(rater, shown.item, "a", comment=f"n{number}", seconds=0.0, key=f"k{number}")
            if number % 4 == 3:
                store.undo(rater, key=f"u{number}")
        standing = list(store.ratings(checks=True))
    done = export(tmp_path / "rated", tmp_path / "run")
    data, checks = (read_ratings(tmp_path / "run" / name) for name in ("ratings.jsonl", "checks.jsonl"))
    assert data == [one for one in standing if one.check is None]
    assert checks == [one for one in standing if one.check is not None]
    assert (len(data) + len(checks), len(checks) > 1) == (9, True)
    assert done.counts.figures.votes == len(data)
    assert not {one.comparison_id for one in checks} & {row["id"] for row in rows(tmp_path / "run", "preferences")}
    assert manifest(tmp_path / "run")["counts"] == {
        "ratings": len(data),
        "checks": len(checks),
        "raters": 1,
        "rejected_rows": 0,
    }


def test_the_run_holds_the_constitution_that_raters_read(tmp_path: Path) -> None:
    rating_folder(tmp_path / "rated", planted(2, 2)).close()
    done = export(tmp_path / "rated", tmp_path / "run")
    frozen = load_constitution(str(tmp_path / "run" / "constitution.yaml"))
    assert frozen.sha256 == load_constitution(str(tmp_path / "rated" / "constitution.yaml")).sha256
    assert frozen.sha256 in (tmp_path / "run" / "README.md").read_text()
    assert (done.manifest.stage, done.manifest.state) == ("export", "finished")


def test_an_export_before_the_first_rating_has_no_rows_and_says_so(tmp_path: Path) -> None:
    with rating_folder(tmp_path / "rated", planted(3, 3)) as store:
        store.add_rater("mo")
    done = export(tmp_path / "rated", tmp_path / "run")
    assert (done.counts.figures.labels, done.counts.unrated, header(tmp_path / "run")["configs"]) == (0, 3, [])
    assert len(json.loads((tmp_path / "run" / "label-studio.json").read_text())) == 3
    with pytest.raises(DataError, match="has no rows in its table `preferences`"):
        read_preferences([PreferenceSource(path=str(tmp_path / "run"))], [], test_share=0.0, seed=0)


# Attention checks


def test_raters_who_fail_checks_are_named_and_left_out_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with rating_folder(tmp_path / "rated", planted(12, 12), checks=4, check_every=2, overlap_raters=2) as store:
        rate(store, "good", lambda shown: "a" if shown.comparison.gold in (None, "a") else "b")
        rate(store, "sloppy", lambda shown: "b" if shown.comparison.gold == "a" else "a")
    words = ("export", tmp_path / "rated", "--out", tmp_path / "run")
    done = cai(capsys, monkeypatch, *words)
    assert done.code == 0, done.err
    assert "WARNING: sloppy failed 4 of 4 attention checks; --leave-out sloppy leaves their ratings out" in done.out
    assert "good failed" not in done.out
    assert "24 of 2 raters, and 8 attention checks" in done.out
    card = (tmp_path / "run" / "README.md").read_text()
    assert "**sloppy failed 4 of 4 attention checks**, more than half. Their ratings count all the same" in card
    assert "| sloppy | 12 | 0 | 0 | 4 | 4 |  |" in card
    assert {row["annotator_id"] for row in rows(tmp_path / "run", "preferences")} == {"good,sloppy"}
    done = cai(capsys, monkeypatch, *words, "--leave-out", "sloppy")
    assert "left out: sloppy (12 ratings)" in done.out
    assert "WARNING: sloppy failed 4 of 4 attention checks; their ratings are left out" in done.out
    assert {row["annotator_id"] for row in rows(tmp_path / "run", "preferences")} == {"good"}
    assert "Preferences of 1 rater\n" in (tmp_path / "run" / "README.md").read_text()
    for task in json.loads((tmp_path / "run" / "label-studio.json").read_text()):
        assert len(task["annotations"]) == 1


# Again and again


def test_an_export_beside_an_open_store_is_made_anew_with_what_came_since(tmp_path: Path) -> None:
    with rating_folder(tmp_path / "rated", planted(20, 20), overlap=0.0) as store:
        rate(store, "mo", prefers_right, 5)
        assert export(tmp_path / "rated", tmp_path / "run").counts.figures.votes == 5
        before = {path.name for path in (tmp_path / "run" / "data").iterdir()}
        shown = store.next(rater := new_rater(store, "mo"))
        assert shown is not None  # open while the export is made
        assert export(tmp_path / "rated", tmp_path / "run").counts.figures.votes == 5
        assert {path.name for path in (tmp_path / "run" / "data").iterdir()} == before
        store.answer(rater, shown.item, "a", comment="", seconds=0.0, key="one more")
        done = export(tmp_path / "rated", tmp_path / "run")
    assert (done.counts.figures.votes, done.manifest.sessions) == (6, 3)
    assert len(texts(tmp_path / "run")) == 6
    assert {path.name for path in (tmp_path / "run" / "data").iterdir()}.isdisjoint(before)


def test_another_seed_or_rating_directory_needs_another_out(tmp_path: Path) -> None:
    for name in ("rated", "other"):
        with rating_folder(tmp_path / name, planted(4, 4)) as store:
            rate(store, "mo", prefers_right)
    export(tmp_path / "rated", tmp_path / "run")
    with pytest.raises(RunDirError, match="seed is 1, was 0"):
        export(tmp_path / "rated", tmp_path / "run", seed=1)
    with pytest.raises(RunDirError, match="ratings is "):
        export(tmp_path / "other", tmp_path / "run")
    assert len(texts(tmp_path / "run")) == 4
    configs = [
        ExportConfig(ratings=str(tmp_path / name), seed=seed)
        for name, seed in (("rated", 0), ("rated", 1), ("other", 0))
    ]
    assert len({load_export(config).default_out for config in configs}) == 3
    assert load_export(configs[0]).default_out == load_export(configs[0].model_copy(update={"slight": 0.9})).default_out
    assert load_export(configs[0]).default_out.name.startswith("export-rated-")


def test_a_folder_that_is_no_rating_directory_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a rating directory \(no ratings.sqlite\); name one that `cai rate`"):
        export(tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from cai.human.exporting import ExportConfig, export_ratings, load_export

left, replace, rename = int(sys.argv[3]), os.replace, os.rename

def counting(move):
    def moved(*arguments, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return move(*arguments, **named)
    return moved

os.replace, os.rename = counting(replace), counting(rename)
export_ratings(load_export(ExportConfig(ratings=sys.argv[1], test_share=0.3)), Path(sys.argv[2]))
print(left)
"""


def killed_at(move: int, folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Export in a process of its own that is killed before it renames its `move`-th file."""
    words = [sys.executable, "-c", KILLED, str(folder), str(out), str(move)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)


def state(run: Path) -> dict[str, list[dict[str, Any]]]:
    return {table: rows(run, table) for table in TABLES}


def test_a_kill_in_the_middle_of_an_export_leaves_the_old_one_or_none(tmp_path: Path) -> None:
    with rating_folder(tmp_path / "rated", planted(30, 30), overlap=0.0) as store:
        rate(store, "mo", prefers_right, 12)
        out = tmp_path / "run"
        export(tmp_path / "rated", out, test_share=0.3)
        old = state(out)
        rate(store, "bea", prefers_right)
    whole = killed_at(10**6, tmp_path / "rated", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    new, moves = state(tmp_path / "whole"), 10**6 - int(whole.stdout)
    assert len(old["preferences"]) < len(new["preferences"])
    moves -= 1  # the manifest is there already
    seen = []
    for move in (2, 5, 10, moves - 6, moves - 2, moves - 1, moves):
        killed = killed_at(move, tmp_path / "rated", out)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        seen.append(state(out) == old)
        assert seen[-1] or state(out) == new
        with pytest.raises(DataError, match="is not finished; run"):
            read_preferences([PreferenceSource(path=str(out))], [], test_share=0.0, seed=0)
    assert seen == sorted(seen, reverse=True)
    assert seen[0]
    assert not seen[-1]
    export(tmp_path / "rated", out, test_share=0.3)
    assert state(out) == new
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in (tmp_path / "whole").iterdir())
    first = killed_at(5, tmp_path / "rated", tmp_path / "none")
    assert first.returncode == -signal.SIGKILL
    assert not (tmp_path / "none" / "README.md").exists()
    export(tmp_path / "rated", tmp_path / "none", test_share=0.3)
    assert state(tmp_path / "none") == new


# The same training


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_an_export_trains_unchanged(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with rating_folder(tmp_path / "rated", planted(24, 24), overlap=0.3) as store:
        for name in ("ann", "bea", "cy"):
            rate(store, name, prefers_right)
    words = ("export", tmp_path / "rated", "--out", tmp_path / "run", "--test-share", "0.3")
    assert cai(capsys, monkeypatch, *words).code == 0
    found = read_preferences([PreferenceSource(path=str(tmp_path / "run"))], [], test_share=0.0, seed=0)
    assert {row.source for row in found.train} == {"human"}
    assert {row.p_chosen for row in found.train} == {0.75, 1.0}
    assert all(row.chosen.startswith("right") for row in (*found.train, *found.test))
    held = len(rows(tmp_path / "run", "preferences", "test"))
    counts = train_briefly(
        capsys, monkeypatch, kind, save_tiny_model(tmp_path / "tiny"), tmp_path / "run", tmp_path / "trained"
    )
    assert (counts["train"], counts["test"]) == (24 - held, held)
