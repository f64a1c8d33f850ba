"""What the last edit moved is told against the last whole run, whatever was done in between."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from small_recipe import STAGES, Ran, in_process, write_recipe

from cai.pipeline import running
from cai.pipeline_records import Changes, StageChange

PAGE = STAGES + "  page: {stage: report}\n"
FEWER = PAGE.replace("drafts: {", "drafts: {limit: 2, ")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_recipe(tmp_path, PAGE)


def interrupted_at(command: str, recipe: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Ran(recipe, lambda words: 130 if words[0] == command else in_process(words))


def drafts(out: Path) -> StageChange:
    """What changes.json has of the drafts."""
    found = Changes.model_validate_json((out / "changes.json").read_bytes())
    return next(change for change in found.stages if change.name == "drafts")


def said(recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of `cai run`."""
    with monkeypatch.context() as patch:
        patch.setattr(running, "run_recipe", partial(running.run_recipe, launch=in_process))
        capsys.readouterr()
        assert in_process(["run", recipe.name]) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_an_edit_that_is_taken_back_is_told_with_what_it_moved(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Ran(recipe)
    recipe.write_text(FEWER)
    Ran(recipe)
    recipe.write_text(PAGE)
    lines = said(recipe, monkeypatch, capsys)

    assert "drafts is taken from an earlier run, for limit" in lines
    assert "drafts chains 2 5 +3" in lines
    assert "skipped: samples, labels" in lines
    assert not any("nothing to do" in line for line in lines)
    found = drafts(first.out)
    assert (found.outcome, found.why, found.after) == ("skipped", ("limit",), first.run("drafts").path)
    assert {one.name: (one.before, one.after) for one in found.moved}["chains"] == ("2", "5")
    page = first.out / json.loads((first.out / "pipeline.json").read_bytes())["stages"][-1]["path"]
    assert "taken from an earlier run" in page.read_text(encoding="utf-8")

    assert any("nothing to do: all stages are done" in line for line in said(recipe, monkeypatch, capsys))
    assert drafts(first.out) == found


def test_what_was_done_before_an_interruption_is_told_at_the_end(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Ran(recipe)
    recipe.write_text(FEWER)
    interrupted_at("label", recipe)
    lines = said(recipe, monkeypatch, capsys)

    assert "drafts is taken from an earlier run, for limit" in lines
    assert "drafts chains 5 2 -3" in lines
    assert "revised ran again, for result of drafts" in lines
    assert "skipped: samples, labels" in lines


def test_an_edit_that_is_taken_back_before_its_end_leaves_nothing_to_tell(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Ran(recipe)
    recipe.write_text(FEWER)
    interrupted_at("label", recipe)
    assert drafts(first.out).outcome == "ran"
    recipe.write_text(PAGE)
    lines = said(recipe, monkeypatch, capsys)

    assert not any("drafts is" in line or "drafts chains" in line for line in lines)
    assert (drafts(first.out).outcome, drafts(first.out).why, drafts(first.out).moved) == ("skipped", (), ())


def test_a_page_that_is_made_anew_is_something_to_do(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Ran(recipe)
    before = (first.out / "changes.json").read_bytes()
    recipe.write_text(PAGE.replace("stage: report", "stage: report, title: Mine"))
    lines = said(recipe, monkeypatch, capsys)

    assert any("page: report in" in line for line in lines)
    assert not any("nothing to do" in line for line in lines)
    assert (first.out / "changes.json").read_bytes() == before


def test_no_reason_is_made_up_for_a_stage_that_is_new_or_was_removed(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Ran(recipe)
    shutil.rmtree(first.out / first.run("samples").path)
    recipe.write_text(PAGE.replace("  page:", "  more: {stage: sample, limit: 2}\n  page:"))
    lines = said(recipe, monkeypatch, capsys)

    assert {"samples ran again", "more is new"} <= set(lines)
