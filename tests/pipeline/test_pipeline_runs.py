"""What a recipe runs, what it skips, and what it says of an edit."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from cai_process import exported, records
from small_recipe import STAGES, Ran, in_process, outputs, state, write_constitution, write_recipe

from cai.engines.scripted import ScriptedEngine
from cai.errors import DataError, RecordError, RunDirError, StageError
from cai.pipeline_records import Changes
from cai.records import Generation, Message, Sampling
from cai.rundir import read_manifest

ALL = ["drafts", "samples", "labels", "revised"]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_recipe(tmp_path)


def changes(ran: Ran) -> Changes:
    found = Changes.model_validate_json((ran.out / "changes.json").read_bytes())
    assert found == ran.done.changes
    return found


def test_all_stages_run_in_order_and_are_skipped_when_run_again(recipe: Path) -> None:
    first = Ran(recipe)

    assert first.launched == ALL
    assert [run.name for run in first.done.state.stages] == ALL
    assert {run.state for run in first.done.state.stages} == {"finished"}
    for run in first.done.state.stages:
        assert run.path == f"{run.name}-{run.key[:8]}"
        assert read_manifest(first.out / run.path).state == "finished"
    labels = first.run("labels")
    assert labels.reads == {"samples": first.run("samples").path}
    config = json.loads((first.out / labels.path / "manifest.json").read_bytes())["config"]
    assert config["comparisons"] == f"runs/small/{first.run('samples').path}"
    assert {line.name: line.text for line in labels.headlines}["labels"] == "5"
    assert first.run("drafts").usage == read_manifest(first.out / first.run("drafts").path).usage
    assert first.run("drafts").usage.completion_tokens > 0

    before = (first.out / "changes.json").read_bytes()
    second = Ran(recipe)

    assert second.launched == []
    assert second.done.changes is None
    assert (first.out / "changes.json").read_bytes() == before
    assert second.done.state.stages == first.done.state.stages


def test_shared_settings_and_the_seed_reach_the_stages_that_have_such_a_key(recipe: Path) -> None:
    recipe.write_text(STAGES.replace("name: small", "name: small\nseed: 7").replace("drafts: {", "drafts: {seed: 3, "))
    ran = Ran(recipe)

    config = {name: read_manifest(ran.out / ran.run(name).path).config for name in ALL}
    assert [config[name]["seed"] for name in ALL] == [3, 7, 7, 7]
    assert {config[name]["engine"]["script"] for name in ALL} == {"script.yaml"}
    assert config["drafts"]["constitution"] == "rules.yaml"
    assert config["samples"]["prompts"] == "prompts.jsonl"


def test_an_edited_principle_runs_again_only_what_it_touches(recipe: Path, tmp_path: Path) -> None:
    first = Ran(recipe)
    write_constitution(tmp_path, kind={"critique": "Does the reply hurt anybody?"})
    second = Ran(recipe)

    assert second.launched == ["drafts"]
    found = {change.name: change for change in changes(second).stages}
    assert [found[name].outcome for name in ALL] == ["ran", "skipped", "skipped", "skipped"]
    assert found["drafts"].why == ("constitution",)
    assert [(one.id, one.kind, one.parts) for one in found["drafts"].principles] == [("kind", "changed", ("critique",))]
    assert found["drafts"].before == first.run("drafts").path != found["drafts"].after
    # The script's critique is the same for any principle, and so nothing that is read of the drafts changed.
    assert found["drafts"].same_result

    write_constitution(tmp_path, kind={"critique": "Does the reply hurt anybody?"}, true={"weight": 0.5})
    third = Ran(recipe)
    assert third.launched == ["labels", "revised"]  # it has nothing to say to critiques
    found = {change.name: change for change in changes(third).stages}
    assert [one.id for one in found["labels"].principles] == ["kind", "true"]

    write_constitution(tmp_path)
    fourth = Ran(recipe)
    assert fourth.launched == []  # what was done by the first constitution is still there
    assert fourth.done.state.stages == first.done.state.stages


def test_a_principle_with_one_text_for_all_touches_all_that_know_it(recipe: Path, tmp_path: Path) -> None:
    Ran(recipe)
    write_constitution(tmp_path, true={"text": "The reply is true."})

    assert Ran(recipe).launched == ["drafts", "labels", "revised"]


def test_with_templates_of_ones_own_the_whole_constitution_counts(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    recipe.write_text(STAGES.replace("revised: {", "revised: {templates: mine, "))
    Ran(recipe)
    write_constitution(tmp_path, kind={"critique": "Does the reply hurt anybody?"})

    assert Ran(recipe).launched == ["drafts", "revised"]


def test_an_interrupted_stage_goes_on_after_an_edit_that_is_nothing_to_it(recipe: Path, tmp_path: Path) -> None:
    def stopped_after_the_labels(words: Sequence[str]) -> int:
        code = in_process(words)
        return 130 if words[0] == "label" else code

    with pytest.raises(KeyboardInterrupt):
        Ran(recipe, stopped_after_the_labels)
    write_constitution(tmp_path, kind={"critique": "Does the reply hurt anybody?"})
    second = Ran(recipe)

    assert second.launched == ["drafts", "labels", "revised"]
    assert second.run("labels").state == "finished"
    assert "goes on in" in second.screen.getvalue()


def test_records_that_an_edit_does_not_touch_are_taken_over_and_the_end_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = STAGES + "  pairs: {stage: contrast}\n"
    edits = {"kind": {"revision": "Write it kindly."}, "calm": {"weight": 0.5}, "true": {"question": "Is it wrong?"}}
    edited, fresh = tmp_path / "edited", tmp_path / "fresh"
    for folder in (edited, fresh):
        folder.mkdir()
        write_recipe(folder, stages, prompts=24)
        monkeypatch.chdir(folder)
        if folder == edited:
            Ran(Path("recipe.yaml"))
        write_constitution(folder, **edits)
    monkeypatch.chdir(edited)
    again = Ran(Path("recipe.yaml"))
    monkeypatch.chdir(fresh)
    whole = Ran(Path("recipe.yaml"))

    for name in ("drafts", "labels", "pairs"):
        one, other = (folder / ran.out / ran.run(name).path for folder, ran in ((edited, again), (fresh, whole)))
        assert records(one) == records(other)
        assert exported(one) == exported(other)
    assert again.run("drafts").output == whole.run("drafts").output
    # A chain is taken over if its draw is that of before, and of the principle that was not edited.
    old = edited / again.out / next(run.path for run in again.done.state.earlier if run.name == "drafts")
    kept = [
        id_
        for id_, line in records(old).items()
        if all(one["principle_id"] != "kind" for one in json.loads(line)["rounds"])
        and [one["principle_id"] for one in json.loads(line)["rounds"]]
        == [
            one["principle_id"]
            for one in json.loads(records(edited / again.out / again.run("drafts").path)[id_])["rounds"]
        ]
    ]
    assert again.run("drafts").carried == len(kept) > 0
    assert whole.run("drafts").carried == 0


def test_an_interrupted_stage_goes_on_reading_what_it_began_to_read(recipe: Path) -> None:
    def stopped_after_the_labels(words: Sequence[str]) -> int:
        code = in_process(words)
        return 130 if words[0] == "label" else code

    with pytest.raises(KeyboardInterrupt):
        Ran(recipe, stopped_after_the_labels)
    began = {run.name: run for run in state(Path("runs/small")).stages}
    recipe.write_text(STAGES.replace("max_tokens: 50", "max_tokens: 51"))
    second = Ran(recipe)

    assert second.launched == ["samples", "labels", "revised"]
    assert second.run("labels").path == began["labels"].path
    assert second.run("samples").path != began["samples"].path
    assert second.run("labels").reads == {"samples": began["samples"].path}
    config = read_manifest(second.out / began["labels"].path).config
    assert config["comparisons"] == f"runs/small/{began['samples'].path}"


def test_later_stages_are_skipped_where_what_they_read_is_the_same(recipe: Path) -> None:
    Ran(recipe)
    recipe.write_text(STAGES.replace("max_tokens: 50", "max_tokens: 51"))
    second = Ran(recipe)

    assert second.launched == ["samples"]
    found = {change.name: change for change in changes(second).stages}
    assert found["samples"].why == ("sampling.max_tokens",)
    assert found["samples"].same_result
    assert found["labels"].outcome == "skipped"
    # The labels go on pointing at the samples that they were made of, which are still there.
    assert second.run("labels").reads["samples"] != second.run("samples").path
    assert (second.out / second.run("labels").reads["samples"]).is_dir()


def test_later_stages_run_again_where_what_they_read_changed_and_the_figures_say_so(
    recipe: Path, tmp_path: Path
) -> None:
    Ran(recipe)
    with (tmp_path / "prompts.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "p5", "prompt": "Another one?"}\n')
    second = Ran(recipe)

    assert second.launched == ALL
    found = {change.name: change for change in changes(second).stages}
    assert found["samples"].why == ("content of prompts",)
    assert not found["samples"].same_result
    assert found["labels"].why == ("result of samples",)
    moved = {one.name: one for one in found["labels"].moved}
    assert (moved["labels"].before, moved["labels"].after, moved["labels"].difference) == ("5", "6", 1.0)
    assert "mean confidence" not in moved


def test_changes_are_told_against_the_last_whole_run_even_when_it_was_interrupted_since(recipe: Path) -> None:
    Ran(recipe)
    recipe.write_text(STAGES.replace("drafts: {", "drafts: {limit: 2, "))

    def stopped_at_the_labels(words: Sequence[str]) -> int:
        return 130 if words[0] == "label" else in_process(words)

    with pytest.raises(KeyboardInterrupt):
        Ran(recipe, stopped_at_the_labels)
    assert next(run.state for run in state(Path("runs/small")).stages if run.name == "revised") == "stopped"
    second = Ran(recipe)

    assert second.launched == ["revised"]
    found = {change.name: change for change in changes(second).stages}
    assert found["drafts"].why == ("limit",)
    assert {one.name: one.difference for one in found["drafts"].moved}["chains"] == -3


def test_settings_that_no_result_depends_on_run_nothing_again(recipe: Path) -> None:
    Ran(recipe)
    recipe.write_text(STAGES.replace("script: script.yaml", "script: script.yaml, concurrency: 1, timeout: 5"))

    assert Ran(recipe).launched == []


def test_a_comment_in_the_constitution_runs_nothing_again(recipe: Path, tmp_path: Path) -> None:
    Ran(recipe)
    path = tmp_path / "rules.yaml"
    path.write_text("# A word about it.\n" + path.read_text(encoding="utf-8"), encoding="utf-8")

    assert Ran(recipe).launched == []


def test_a_run_directory_that_was_removed_is_made_again(recipe: Path) -> None:
    first = Ran(recipe)
    manifest = first.out / first.run("samples").path / "manifest.json"
    for file in sorted(manifest.parent.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    second = Ran(recipe)

    assert second.launched == ["samples"]
    assert outputs(second.out) == {run.name: run.output for run in first.done.state.stages}


def test_a_stage_that_is_taken_out_is_kept_for_when_it_comes_back(recipe: Path) -> None:
    Ran(recipe)
    recipe.write_text(STAGES.replace("  revised:", "  # revised:"))
    without = Ran(recipe)
    assert without.launched == []
    assert [run.name for run in without.done.state.stages] == ALL[:3]

    recipe.write_text(STAGES)
    assert Ran(recipe).launched == []


def test_a_stage_that_fails_stops_the_recipe_and_the_next_run_begins_with_it(recipe: Path) -> None:
    with pytest.raises(StageError, match="the stage `samples` ended with exit code 2; what is wrong stands above"):
        Ran(recipe, lambda words: 2 if words[0] == "sample" else in_process(words))
    assert [(run.name, run.state) for run in state(Path("runs/small")).stages] == [
        ("drafts", "finished"),
        ("samples", "failed"),
    ]
    assert Ran(recipe).launched == ALL[1:]


def test_a_stage_that_was_killed_says_so(recipe: Path) -> None:
    with pytest.raises(StageError, match=r"was killed by signal 9 \(is the memory full\?\)"):
        Ran(recipe, lambda _: -9)


def test_failed_records_of_a_finished_stage_are_tried_again_when_asked_for_and_then_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, down = ScriptedEngine.generate, True

    async def now_and_then(engine: ScriptedEngine, messages: Sequence[Message], sampling: Sampling) -> Generation:
        if down and "Question 3?" in messages[0].content:
            raise RecordError("timeout", "the server is down")
        return await generate(engine, messages, sampling)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ScriptedEngine, "generate", now_and_then)
    recipe = write_recipe(tmp_path, prompts=12)
    first = Ran(recipe)
    assert {one.name: one.text for one in first.run("drafts").headlines}["failed"] == "1"
    assert Ran(recipe).launched == []
    down = False
    again = Ran(recipe, retry_failed=True)

    assert again.launched == ALL
    assert again.run("drafts").path == first.run("drafts").path
    assert {one.name: one.text for one in again.run("drafts").headlines}["failed"] == "0"
    assert len(records(again.out / again.run("drafts").path)) == 12
    assert Ran(recipe, retry_failed=True).launched == []


def test_a_stage_that_failed_goes_on_where_a_greater_share_may_fail(recipe: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.yaml"
    script.write_text(script.read_text().replace("answers:\n", "answers:\n  - {when: Question 3, fail: timeout}\n"))
    with pytest.raises(StageError, match="the stage `drafts` ended with exit code"):
        Ran(recipe)
    (failed,) = state(Path("runs/small")).stages
    before = records(Path("runs/small") / failed.path)
    recipe.write_text(STAGES.replace("shared:\n", "shared:\n  max_failure_share: 0.2\n"))
    second = Ran(recipe)

    assert second.run("drafts").path == failed.path
    assert records(second.out / failed.path) == before
    assert read_manifest(second.out / failed.path).sessions == 2


def test_something_in_a_run_can_be_named(recipe: Path) -> None:
    recipe.write_text(STAGES.replace('"${samples}"', '"${samples/comparisons.jsonl}"'))
    ran = Ran(recipe)
    config = read_manifest(ran.out / ran.run("labels").path).config
    assert config["comparisons"] == f"runs/small/{ran.run('samples').path}/comparisons.jsonl"

    recipe.write_text(STAGES.replace('"${samples}"', '"${samples/nothing.jsonl}"'))
    with pytest.raises(DataError, match=r"\$\{samples/nothing.jsonl\}: `samples` is finished and left no nothing"):
        Ran(recipe)


def test_a_directory_of_another_recipe_is_refused(recipe: Path) -> None:
    ran = Ran(recipe)
    recipe.write_text(STAGES.replace("name: small", "name: other\nout: runs/small"))
    with pytest.raises(RunDirError, match="holds the pipeline of the recipe `small`, not of `other`"):
        Ran(recipe)
    assert {run.name for run in state(ran.out).stages} == set(ALL)


def test_a_recipe_killed_at_its_first_write_goes_on(recipe: Path) -> None:
    out = Path("runs/small")
    out.mkdir(parents=True)
    (out / ".pipeline.lock").touch()
    (out / ".pipeline.json.partial").write_text('{"recipe": "sm')

    assert Ran(recipe).launched == ALL
    assert not (out / ".pipeline.json.partial").exists()


def test_a_directory_of_something_else_is_refused(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(STAGES.replace("name: small", f"name: small\nout: {tmp_path}"))
    with pytest.raises(RunDirError, match="holds no pipeline and is not empty"):
        Ran(recipe)
