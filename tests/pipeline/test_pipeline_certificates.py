"""What becomes of a certificate, and of the labels that go by it, when the constitution is edited."""

import json
from pathlib import Path

import pytest
from cai_process import exported, records
from small_recipe import SCRIPT, Ran, write_constitution, write_recipe

from cai.feedback import certificate_files

STAGES = """\
name: small
shared:
  engine: {engine: scripted, script: script.yaml}
  constitution: rules.yaml
  judge: {few_shot: 0}
stages:
  drafts: {stage: critique-revise, prompts: prompts.jsonl, rounds: 1, few_shot: 0, helpful_ratio: 0}
  check: {stage: judge-check, comparisons: known.jsonl}
  labels: {stage: label, comparisons: "${drafts}", certificate: "${check}", force: true}
"""
CRUEL = {"critique": "Is the reply cruel? Quote it."}


def prepare(folder: Path, monkeypatch: pytest.MonkeyPatch, *, prompts: int = 5) -> Path:
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(certificate_files, "draw_reliability", lambda *_: b"")  # which takes longer than all the rest
    path = write_recipe(folder, STAGES, prompts=prompts)
    cruel = 'answers:\n  - {when: "Critique request.*cruel", say: "Cruel. {seed}"}\n'
    (folder / "script.yaml").write_text(SCRIPT.replace("answers:\n", cruel), encoding="utf-8")
    rows = (
        {"prompt": f"Question {n}?", "response_a": f"Yes, {n}.", "response_b": f"No, {n}.", "gold": "a"}
        for n in range(8)
    )
    (folder / "known.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_an_edited_critique_leaves_the_certificate_valid_and_an_edited_comparison_measures_the_judge_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = prepare(tmp_path, monkeypatch)
    first = Ran(recipe)
    write_constitution(tmp_path, kind=CRUEL)
    second = Ran(recipe)

    assert second.launched == ["drafts", "labels"]
    assert second.run("labels").reads["check"] == first.run("check").path
    assert second.run("labels").state == "finished"

    write_constitution(tmp_path, kind=CRUEL, true={"comparison": "Which response is the more truthful one?"})
    assert Ran(recipe).launched == ["check", "labels"]


def test_with_templates_of_ones_own_an_edited_critique_measures_the_judge_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = prepare(tmp_path, monkeypatch)
    (tmp_path / "mine").mkdir()
    recipe.write_text(STAGES.replace("shared:\n", "shared:\n  templates: mine\n"))
    Ran(recipe)
    write_constitution(tmp_path, kind=CRUEL)

    assert Ran(recipe).launched == ["drafts", "check", "labels"]


def test_labels_that_an_edit_does_not_touch_are_taken_over_though_the_certificate_is_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits = {"true": {"comparison": "Which response is the more truthful one?"}, "calm": {"comparison": "Calmer?"}}
    edited, fresh = tmp_path / "edited", tmp_path / "fresh"
    for folder in (fresh, edited):
        recipe = prepare(folder, monkeypatch, prompts=24)
        if folder == edited:
            write_constitution(folder, calm=edits["calm"])
            Ran(recipe)
        write_constitution(folder, **edits)
        again = Ran(recipe)
        if folder == fresh:
            whole = again
    labels = edited / again.out / again.run("labels").path
    assert again.launched == ["check", "labels"]
    assert 0 < again.run("labels").carried < 24
    by_calm = [line for line in records(labels).values() if b'"principle_id":"calm"' in line]
    assert again.run("labels").carried == len(by_calm)
    assert records(labels) == records(fresh / whole.out / whole.run("labels").path)
    assert exported(labels) == exported(fresh / whole.out / whole.run("labels").path)


def test_labels_are_taken_over_where_nothing_but_the_certificate_is_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = prepare(tmp_path, monkeypatch)
    first = Ran(recipe)
    with (tmp_path / "known.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": "Another?", "response_a": "Yes.", "response_b": "No.", "gold": "b"}\n')
    second = Ran(recipe)

    assert second.launched == ["check", "labels"]
    assert second.run("labels").carried == 5
    assert records(second.out / second.run("labels").path) == records(first.out / first.run("labels").path)
    assert "on 9 comparisons with known answers" in (second.out / second.run("labels").path / "README.md").read_text()
