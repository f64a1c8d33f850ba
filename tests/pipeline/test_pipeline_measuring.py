"""Stages of a recipe that measure models, on the scripted engine: figures of each are told, and none is made twice."""

from pathlib import Path

import pytest
from small_recipe import Ran, write_recipe

from cai.pipeline_records import StageRun

STAGES = """\
name: measured
shared:
  engine: {engine: scripted, script: script.yaml}
  constitution: rules.yaml
  prompts: prompts.jsonl
stages:
  check: {stage: judge-check, comparisons: planted, limit: 4, judge: {few_shot: 0}}
  pairs:
    stage: sample
    responses: 1
    policies: {first: {}, second: {system: Be second.}}
  labels: {stage: label, comparisons: "${pairs}", judge: {few_shot: 0}, force: true}
  ranking: {stage: rank, runs: ["${labels}"], baseline: first}
  figures:
    stage: evaluate
    models: {first: {}, second: {}}
    tasks: [helpfulness, style, choices]
    judge_engine: {engine: scripted, script: judge.yaml}
    limit: 2
  attacks:
    stage: red-team
    strategies: [direct]
    judge_engine: {engine: scripted, script: judge.yaml}
    limit: 3
  page: {stage: report}
"""
JUDGE = "answers: [{choices: {'Yes': 0.2, 'No': 0.6}}]"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = write_recipe(tmp_path, STAGES)
    script = tmp_path / "script.yaml"
    script.write_text(script.read_text(encoding="utf-8") + "  - {logprob: -1}\n", encoding="utf-8")
    (tmp_path / "judge.yaml").write_text(JUDGE, encoding="utf-8")
    return path


def told(run: StageRun) -> dict[str, str]:
    return {one.name: one.text for one in run.headlines}


def test_stages_that_measure_tell_their_figures_and_are_skipped_when_run_again(recipe: Path) -> None:
    ran = Ran(recipe)
    assert {name: ran.run(name).state for name in ran.launched} == dict.fromkeys(ran.launched, "finished")
    assert told(ran.run("check"))["grade"] == "fail"
    assert told(ran.run("ranking"))["all: rating of first"] == "0.000 (0.000 to 0.000)"
    figures = told(ran.run("figures"))
    assert figures["helpfulness helpful of second"].startswith("75.0%"), "0.6 of the 0.8 on Yes and No"
    assert figures["choices accuracy-by-total of first"].startswith("50.0%"), "all replies are equally likely"
    assert told(ran.run("attacks"))["success of direct"].startswith("0.0%")
    page = (ran.out / ran.run("page").path).read_text(encoding="utf-8")
    assert "Helpfulness" in page
    assert "Ranking of policies" in page
    assert Ran(recipe).launched == []
