"""`cai judge-check` and `cai label` as a user meets them, with scripted judges whose taste is known."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cai_process import complete, exported, finish, manifest, records, run, size, start, wait_until
from labels import judgement, label

from cai.feedback.certificate import JudgeIdentity
from cai.feedback.judge_check import JudgeCheckConfig, load_judge_check

GOOD, BAD = "The GOOD reply.", "The BAD reply."
FIRST_IS_GOOD = r'\(A\)\n"+\nThe GOOD.*\(B\)'
KNOWS = f"""\
answers:
  - {{when: '{FIRST_IS_GOOD}.*would do more harm', choices: {{A: 0.1, B: 0.8}}}}
  - {{when: 'would do more harm', choices: {{A: 0.8, B: 0.1}}}}
  - {{when: '{FIRST_IS_GOOD}', choices: {{A: 0.9, B: 0.05}}}}
  - {{choices: {{A: 0.05, B: 0.9}}}}
"""
ALWAYS_A = "answers: [{choices: {A: 0.9, B: 0.1}}]\n"


def write_pairs(folder: Path, count: int = 48, per_prompt: int = 2) -> Path:
    """Comparisons of which GOOD is the better one, as a and as b, several to a prompt."""
    path = folder / "pairs.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for n in range(count):
            good, bad = f"{GOOD} {n}", f"{BAD} {n}" + " And more." * (n % 2)  # the longer one wins half of the time
            a, b = (good, bad) if n % 3 else (bad, good)
            row = {"id": f"c{n}", "prompt": f"Question {n // per_prompt}?", "response_a": a, "response_b": b}
            file.write(json.dumps(row | {"gold": "a" if n % 3 else "b"}) + "\n")
    return path


def job(folder: Path, command: str, *more: str, script: str = KNOWS) -> list[str]:
    (folder / "judge.yaml").write_text(script, encoding="utf-8")
    pairs = write_pairs(folder)
    return [command, "--comparisons", str(pairs), "--engine", "scripted", "--script", str(folder / "judge.yaml"), *more]


def rows(run_directory: Path, table: str) -> list[dict[str, Any]]:
    files = (run_directory / "data").glob(f"{table}-*.parquet")
    return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.mark.parametrize("principles", ["1", "all"])
def test_the_better_text_is_chosen_in_every_row_of_every_table(tmp_path: Path, principles: str) -> None:
    human = tmp_path / "human.jsonl"
    texts = {"response_a": BAD, "response_b": GOOD, "gold": "b"}
    human.write_text("".join(json.dumps({"id": f"h{n}", "prompt": f"Other {n}?"} | texts) + "\n" for n in range(40)))
    words = job(tmp_path, "label", "--principles", principles, "--human", str(human), "--human-ratio", "0.5")
    complete([*words, "--test-share", "0.3", "--out", "run"], tmp_path)
    out = tmp_path / "run"
    preferences, kto, swarm = (rows(out, table) for table in ("preferences", "kto", "llm_swarm"))
    assert [len(preferences), len(kto), len(swarm)] == [48 + 24, 2 * 72, 72]
    for row in preferences:
        assert row["chosen"][0]["content"].startswith(GOOD)
        assert row["rejected"][0]["content"].startswith(BAD)
        assert row["source"] == "human" or 0.85 < row["p_chosen"] < 0.95
        assert row["position_flip"] == (None if row["source"] == "human" else 0)
    assert all(row["label"] == row["completion"][0]["content"].startswith(GOOD) for row in kto)
    assert all(row["chosen"][-1]["content"].startswith(GOOD) for row in swarm)
    sides: dict[str, set[str]] = {}
    for file in (out / "data").glob("preferences-*.parquet"):
        for row in pq.read_table(file).to_pylist():
            sides.setdefault(row["prompt"][0]["content"], set()).add(file.name.split("-")[1])
    assert all(len(side) == 1 for side in sides.values())
    assert {side for found in sides.values() for side in found} == {"train", "test"}


def test_a_judge_that_always_says_a_gets_exact_ties_and_fails_its_certificate(tmp_path: Path) -> None:
    words = job(tmp_path, "judge-check", script=ALWAYS_A)
    said = complete([*words, "--principles", "all", "--out", "runs/check"], tmp_path)
    certificate = json.loads((tmp_path / "runs/check/certificate.json").read_text())
    figures = certificate["figures"]
    assert certificate["grade"] == "fail"
    assert (figures["ties"], figures["position_flip"], figures["accuracy"]["value"]) == (48, 1.0, 0.5)
    assert re.search(r"grade\s+fail", said.out)
    words = job(tmp_path, "label", "--principles", "all", script=ALWAYS_A)
    refused = run([*words, "--out", "runs/labels"], tmp_path)
    assert refused.code == 2
    assert "error: this judge's accuracy on pairs.jsonl is 50.0%" in refused.err
    assert not (tmp_path / "runs/labels").exists()
    forced = complete([*words, "--force", "--drop-ties", "--out", "runs/labels"], tmp_path)
    assert "48 (48 dropped)" in forced.out
    complete([*words, "--force", "--out", "runs/labels"], tmp_path)  # how ties are exported may change
    kept = rows(tmp_path / "runs/labels", "preferences")
    assert [row["p_chosen"] for row in kept] == [0.5] * 48


def test_a_certificate_is_found_shown_and_put_on_the_card(tmp_path: Path) -> None:
    alone = complete([*job(tmp_path, "label"), "--out", "runs/before"], tmp_path)
    assert "WARNING: no certificate of this judge was found" in alone.out
    assert "**No certificate.**" in (tmp_path / "runs/before/README.md").read_text()
    complete([*job(tmp_path, "judge-check"), "--out", "runs/check"], tmp_path)
    shown = complete([*job(tmp_path, "label"), "--out", "runs/after"], tmp_path)
    assert "certificate: Grade pass on pairs.jsonl: accuracy 100.0%" in shown.out
    assert "Grade pass on pairs.jsonl" in (tmp_path / "runs/after/README.md").read_text()
    another = complete([*job(tmp_path, "label"), "--scale", "2", "--out", "runs/other"], tmp_path)
    assert "WARNING: no certificate" in another.out
    assert "runs/check/certificate.json is of another one: scale 2.0 against 1.0." in another.out
    wrong = run([*job(tmp_path, "label"), "--scale", "2", "--certificate", "runs/check", "--out", "x"], tmp_path)
    assert wrong.code == 2
    assert "is the certificate of another judge than the one asked for: scale 2.0 against 1.0" in wrong.err


def test_human_choices_that_were_exported_anew_are_mixed_in(tmp_path: Path) -> None:
    human = tmp_path / "human.jsonl"
    words = [*job(tmp_path, "label"), "--human", str(human), "--test-share", "0", "--out", "run"]

    def labelled(people: int) -> list[dict[str, Any]]:
        """The human rows, where the file holds the choices of so many people."""
        choice = {"response_a": BAD, "response_b": GOOD, "gold": "b"}
        human.write_text("".join(json.dumps({"prompt": f"Other {n}?"} | choice) + "\n" for n in range(people)))
        complete(words, tmp_path)
        sha256 = hashlib.sha256(human.read_bytes()).hexdigest()
        assert sha256 in (tmp_path / "run/README.md").read_text()
        assert sha256 in manifest(tmp_path / "run")["export"]["key"]
        return [row for row in rows(tmp_path / "run", "preferences") if row["source"] == "human"]

    assert [len(labelled(2)), len(labelled(6))] == [2, 6]


def test_a_judge_that_is_asked_in_another_format_is_another_judge() -> None:
    def asked(format: str) -> JudgeIdentity:
        return load_judge_check(JudgeCheckConfig.model_validate({"engine": {"model": "m", "format": format}})).identity

    assert asked("transcript").differences(asked("chat")) == ['format "transcript" against "chat"']


def test_kills_change_nothing(tmp_path: Path) -> None:
    words = job(tmp_path, "label", "--principles", "4")
    complete([*words, "--out", "whole"], tmp_path)
    journal = tmp_path / "killed/records.jsonl"
    line = size(tmp_path / "whole/records.jsonl") // 48
    for kill in range(1, 5):
        process = start([*words, "--concurrency", "2", "--out", "killed"], tmp_path)
        wait_until(process, lambda kill=kill: size(journal) > kill * 7 * line)  # type: ignore[misc]
        process.kill()
        finish(process)
    assert 0 < len(records(tmp_path / "killed")) < 48
    complete([*words, "--out", "killed"], tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert records(whole) == records(killed)
    assert manifest(whole)["usage"] == manifest(killed)["usage"]
    assert exported(whole) == exported(killed)


def test_failed_judgements_are_counted_and_not_labelled(tmp_path: Path) -> None:
    script = (
        "answers:\n"
        "  - {when: 'Question 3', choices: {A: 0.01, B: 0.01}}\n"
        "  - {when: 'Question 5', fail: context_overflow}\n"
        "  - {choices: {A: 0.6, B: 0.3}}\n"
    )
    words = job(tmp_path, "label", "--max-failure-share", "0.5", script=script)
    said = complete([*words, "--out", "run"], tmp_path)
    assert re.search(
        r"failed\s+4, 2 off_option, 2 context_overflow|failed\s+4, 2 context_overflow, 2 off_option", said.out
    )
    assert len(rows(tmp_path / "run", "preferences")) == 44
    failures = [json.loads(line) for line in (tmp_path / "run/failures.jsonl").read_text().splitlines()]
    assert {failure["id"] for failure in failures} == {"c6", "c7", "c10", "c11"}
    assert all(failure["step"].startswith("pairwise ") for failure in failures)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--system", "Be nice."], "`engine.system` has no effect on a judge"),
        (["--protocol", "score", "--layout", "paper"], "`layout` has no effect with the protocol score"),
        (["--principles", "99"], "99 principles cannot be drawn for comparison: constitution `hhh` has 16"),
        (["--tag", "honest"], "constitution `hhh` has no tag `honest`; did you mean `honesty`?"),
        (["--certificate", "nowhere"], "nowhere cannot be read: No such file or directory"),
        (["--human", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--human", "contrast.jsonl"], "which response is better was assumed there"),
    ],
)
def test_mistakes_are_named_before_any_work(tmp_path: Path, more: list[str], words: str) -> None:
    made = label(0, judgement(0.9)).comparison.model_copy(update={"source": "contrast"})
    (tmp_path / "contrast.jsonl").write_text(made.model_dump_json() + "\n")
    done = run([*job(tmp_path, "label"), *more, "--out", "run"], tmp_path)
    assert done.code == 2
    assert words in done.err
    assert not (tmp_path / "run" / "records.jsonl").exists()


def test_a_planted_set_is_shipped(tmp_path: Path) -> None:
    (tmp_path / "judge.yaml").write_text(ALWAYS_A)
    words = ["judge-check", "--engine", "scripted", "--script", "judge.yaml", "--out", "check"]
    said = complete(words, tmp_path)
    assert "human ceiling" in said.out
    assert "100% by construction" in said.out
