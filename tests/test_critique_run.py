"""The stage critique-revise: which prompts a run takes, where it goes, what it leaves behind."""

import json
from pathlib import Path
from typing import Any

import pytest
from chain_samples import rows
from click.testing import CliRunner
from pydantic import ValidationError
from rich.console import Console

from cai.assets import asset_dir
from cai.cli.show import show
from cai.critique import CritiqueReviseConfig
from cai.critique_run import critique_revise, load_inputs, read_inputs
from cai.data.card import ExportCounts
from cai.data.chains import read_chains
from cai.errors import StageError
from cai.estimate import estimate_run, probe_size
from cai.running import Outcome

SCRIPT = """
answers:
  - when: "FAIL_ME"
    fail: context_overflow
  - when: "Critique request"
    say: "It could be kinder. {seed}"
  - when: "Revision request"
    say: "Kinder words {seed}"
  - say: "Draft {seed}"
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.yaml"
    path.write_text(SCRIPT)
    return path


def prompts(path: Path, count: int, kind: str = "red_team", fails: tuple[int, ...] = ()) -> Path:
    rows = [
        {"id": f"{kind}-{n}", "kind": kind, "prompt": f"FAIL_ME {n}" if n in fails else f"question {n}"}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(script: Path, **options: Any) -> CritiqueReviseConfig:
    engine = {"engine": "scripted", "script": script}
    return CritiqueReviseConfig.model_validate({"engine": engine, "few_shot": 0, "rounds": 1, **options})


def run(config: CritiqueReviseConfig, out: Path, **options: Any) -> Outcome[ExportCounts]:
    with Path("/dev/null").open("w") as nowhere:
        return critique_revise(load_inputs(config), out, Console(file=nowhere), **options)


def test_helpful_prompts_are_mixed_in_at_the_ratio(tmp_path: Path, script: Path) -> None:
    red, helpful = prompts(tmp_path / "r.jsonl", 6), prompts(tmp_path / "h.jsonl", 9, "helpful")
    found = config(script, prompts=str(red), helpful=str(helpful), helpful_ratio=0.5)
    assert [prompt.id for prompt in read_inputs(found)] == [
        "red_team-0", "red_team-1", "helpful-0", "red_team-2", "red_team-3", "helpful-1",
        "red_team-4", "red_team-5", "helpful-2",
    ]  # fmt: skip
    inputs = load_inputs(found)
    assert (inputs.red_team, inputs.helpful, inputs.calls) == (6, 3, 6 * 3 + 3)


def test_helpful_prompts_never_take_the_place_of_red_team_ones(tmp_path: Path, script: Path) -> None:
    for name, text, count in (("r.jsonl", "attack", 6), ("h.jsonl", "help", 12)):
        rows = [{"id": str(n), "prompt": f"{text} {n}"} for n in range(count)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = config(script, prompts=str(tmp_path / "r.jsonl"), helpful=str(tmp_path / "h.jsonl"), helpful_ratio=0.5)
    inputs = load_inputs(found)
    assert (inputs.red_team, inputs.helpful, len(inputs.rejects)) == (6, 3, 6)
    assert [(prompt.kind, prompt.id) for prompt in read_inputs(found)] == [
        ("red_team", "0"), ("red_team", "1"), ("helpful", "6"), ("red_team", "2"), ("red_team", "3"), ("helpful", "7"),
        ("red_team", "4"), ("red_team", "5"), ("helpful", "8"),
    ]  # fmt: skip
    part = load_inputs(found.model_copy(update={"limit": 2}))
    assert (part.red_team, part.helpful) == (2, 1)


def test_a_conversation_of_both_files_is_an_attack(tmp_path: Path, script: Path) -> None:
    for name, texts in (("r.txt", ["one", "two", "both"]), ("h.txt", ["both", "three"])):
        (tmp_path / name).write_text("".join(f"{text}\n" for text in texts))
    found = config(script, prompts=str(tmp_path / "r.txt"), helpful=str(tmp_path / "h.txt"), helpful_ratio=1)
    assert [(prompt.kind, prompt.messages[0].content) for prompt in read_inputs(found)] == [
        ("red_team", "one"), ("helpful", "three"), ("red_team", "two"), ("red_team", "both"),
    ]  # fmt: skip


def test_a_ratio_without_end_is_refused(tmp_path: Path, script: Path) -> None:
    red = prompts(tmp_path / "r.jsonl", 2)
    with pytest.raises(ValidationError, match="finite number"):
        load_inputs(config(script, prompts=str(red), helpful_ratio=float("inf")))


def test_a_limit_takes_a_beginning_of_the_whole(tmp_path: Path, script: Path) -> None:
    red = prompts(tmp_path / "r.jsonl", 20)
    whole = [prompt.id for prompt in read_inputs(config(script, prompts=str(red), helpful_ratio=0.7))]
    for limit in (1, 3, 10):
        part = [prompt.id for prompt in read_inputs(config(script, prompts=str(red), helpful_ratio=0.7, limit=limit))]
        assert part == whole[: len(part)]
        assert sum(id.startswith("red_team") for id in part) == limit


def test_a_ratio_of_0_does_not_read_the_helpful_prompts(tmp_path: Path, script: Path) -> None:
    red = prompts(tmp_path / "r.jsonl", 2)
    inputs = load_inputs(config(script, prompts=str(red), helpful="no-such-file.jsonl", helpful_ratio=0))
    assert (inputs.total, inputs.helpful) == (2, 0)


def test_a_raised_limit_goes_on_in_the_same_directory(tmp_path: Path, script: Path) -> None:
    red = str(prompts(tmp_path / "r.jsonl", 9))
    first = config(script, prompts=red, helpful_ratio=0, limit=4)
    second = config(script, prompts=red, helpful_ratio=0)
    assert load_inputs(first).default_out == load_inputs(second).default_out
    run(first, tmp_path / "run")
    before = (tmp_path / "run/records.jsonl").read_bytes()
    outcome = run(second, tmp_path / "run")
    assert (tmp_path / "run/records.jsonl").read_bytes().startswith(before)
    assert [chain.id for chain in read_chains(tmp_path / "run")] == [f"red_team-{n}" for n in range(9)]
    assert outcome.counts.chains == 9


def test_the_default_directory_follows_what_the_result_depends_on(tmp_path: Path, script: Path) -> None:
    red = str(prompts(tmp_path / "r.jsonl", 2))
    base = load_inputs(config(script, prompts=red)).default_out
    assert base.parent == Path("runs")
    assert base.name.startswith("hhh-")
    copy = str(prompts(tmp_path / "copy.jsonl", 2))
    assert load_inputs(config(script, prompts=copy)).default_out == base, "the same prompts in another file"
    for options in (
        {"rounds": 2},
        {"seed": 1},
        {"constitution": "short"},
        {"sampling": {"temperature": 0.5}},
        {"prompts": str(prompts(tmp_path / "more.jsonl", 3))},
    ):
        changed = load_inputs(config(script, **{"prompts": red, **options})).default_out
        assert changed.name[-8:] != base.name[-8:], options


def test_the_manifest_tells_what_was_done(tmp_path: Path, script: Path) -> None:
    red = str(prompts(tmp_path / "r.jsonl", 4))
    outcome = run(config(script, prompts=red, helpful_ratio=0.5), tmp_path / "run", command=("cai", "critique-revise"))
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["state"] == "finished"
    assert manifest["counts"] == {
        "prompts": 6, "red_team": 4, "helpful": 2, "rejected_rows": 0, "finished": 6, "failed": 0
    }  # fmt: skip
    chains = list(read_chains(tmp_path / "run"))
    written = sum(chain.usage.completion_tokens for chain in chains)
    assert manifest["usage"]["completion_tokens"] == written > 0
    assert manifest["engine"]["engine"] == "scripted"
    assert manifest["inputs"]["constitution"] == chains[0].constitution_sha256
    assert outcome.counts.rows("sft") == 6
    assert outcome.counts.rows("pairs") == 4


def test_failed_prompts_are_counted_exported_around_and_can_be_retried(tmp_path: Path, script: Path) -> None:
    red = str(prompts(tmp_path / "r.jsonl", 10, fails=(3, 4)))
    found = config(script, prompts=red, helpful_ratio=0)
    with pytest.raises(StageError, match=r"2 of 10 chains failed \(2 context_overflow\)"):
        run(found, tmp_path / "run")
    assert json.loads((tmp_path / "run/manifest.json").read_text())["state"] == "failed"
    assert len(list(read_chains(tmp_path / "run"))) == 8
    assert (tmp_path / "run/data").is_dir(), "what succeeded is exported all the same"

    tolerant = config(script, prompts=red, helpful_ratio=0, max_failure_share=0.5)
    assert run(tolerant, tmp_path / "run").manifest.state == "finished"
    failures = (tmp_path / "run/failures.jsonl").read_text().splitlines()
    assert len(failures) == 2, "the same command does not try failed prompts again"
    assert {json.loads(line)["step"] for line in failures} == {"draft"}

    script.write_text(SCRIPT.replace("FAIL_ME", "NEVER"))
    outcome = run(tolerant, tmp_path / "run", retry_failed=True)
    assert outcome.manifest.failures == {}
    assert [chain.id for chain in read_chains(tmp_path / "run")] == [f"red_team-{n}" for n in range(10)]


def test_rejected_rows_are_listed_with_their_reason(tmp_path: Path, script: Path) -> None:
    red = prompts(tmp_path / "r.jsonl", 3)
    red.write_text(red.read_text() + '{"id": "x", "prompt": ""}\nnot json\n')
    outcome = run(config(script, prompts=str(red), helpful_ratio=0), tmp_path / "run")
    rejects = [json.loads(line) for line in (tmp_path / "run/rejects.jsonl").read_text().splitlines()]
    assert [(reject["row"], reject["reason"]) for reject in rejects] == [(4, "empty_prompt"), (5, "not_json")]
    assert outcome.manifest.counts["rejected_rows"] == 2


def test_prompts_of_kind_helpful_in_the_main_file_are_only_answered(tmp_path: Path, script: Path) -> None:
    mixed = prompts(tmp_path / "r.jsonl", 2)
    mixed.write_text(mixed.read_text() + '{"id": "h", "kind": "helpful", "prompt": "hello"}\n')
    run(config(script, prompts=str(mixed), helpful_ratio=0), tmp_path / "run")
    assert [len(chain.rounds) for chain in read_chains(tmp_path / "run")] == [1, 1, 0]


def test_the_frozen_constitution_is_the_one_the_records_name(tmp_path: Path, script: Path) -> None:
    from cai.constitution import load_constitution

    red = str(prompts(tmp_path / "r.jsonl", 1))
    run(config(script, prompts=red, constitution="health", helpful_ratio=0), tmp_path / "run")
    frozen = load_constitution(str(tmp_path / "run/constitution.yaml"))
    assert frozen.sha256 == next(iter(read_chains(tmp_path / "run"))).constitution_sha256


def test_the_requests_that_are_exported_and_shown_are_those_the_model_was_asked(tmp_path: Path, script: Path) -> None:
    script.write_text('answers: [{when: "^question", say: "Draft."}, {say: "Asked: {request}"}]')
    (tmp_path / "own.yaml").write_text(
        "{name: own, version: '1', description: d, principles: [{id: p, "
        "critique: 'Round {{ round }} of {{ rounds }}: what is wrong about {{ topic }}?', "
        "revision: 'Round {{ round }}: mend {{ topic }}.'}]}"
    )
    (tmp_path / "prompts.jsonl").write_text('{"id": "q", "topic": "drugs", "prompt": "question 1 about drugs"}\n')
    templates = tmp_path / "templates"
    templates.mkdir()
    worded = (asset_dir("prompts") / "templates/critique.j2").read_text()
    (templates / "critique.j2").write_text(
        worded.replace("{{ principle.critique }}", "My words: {{ principle.critique }}")
    )
    found = config(
        script,
        constitution=str(tmp_path / "own.yaml"),
        prompts=str(tmp_path / "prompts.jsonl"),
        helpful_ratio=0,
        rounds=2,
        templates=templates,
    )
    out = tmp_path / "run"
    run(found, out)
    critiques = [
        "My words: Round 1 of 2: what is wrong about drugs?",
        "My words: Round 2 of 2: what is wrong about drugs?",
    ]
    [chain] = read_chains(out)
    for round_, critique, number in zip(chain.rounds, critiques, (1, 2), strict=True):
        assert round_.critique is not None
        assert round_.revision is not None
        assert critique in round_.critique.text
        assert f"Round {number}: mend drugs." in round_.revision.text

    [row] = rows(out, "llm_swarm")
    assert (row["critic_prompt"], row["revision_prompt"]) == (critiques[1], "Round 2: mend drugs.")
    shown = CliRunner().invoke(show, [str(out)], env={"COLUMNS": "99"})
    lines = [line.strip() for line in shown.stdout.splitlines()]
    assert [lines[place + 1] for place, line in enumerate(lines) if line == "Critique request"] == critiques
    assert shown.stderr == ""

    (templates / "critique.j2").unlink()
    again = CliRunner().invoke(show, [str(out)])
    assert "Round 2 of 2: what is wrong about drugs?" in again.stdout
    assert again.stderr == (
        "Note: the templates are no longer those of this run; its requests may have been worded otherwise.\n"
    )
    templates.rmdir()
    assert CliRunner().invoke(show, [str(out)]).stderr == again.stderr


def test_an_estimate_equals_the_run_where_every_reply_has_the_same_length(tmp_path: Path, script: Path) -> None:
    red = str(prompts(tmp_path / "r.jsonl", 30))
    found = config(script, prompts=red, helpful_ratio=0.5, rounds=3)
    estimate = estimate_run(load_inputs(found))
    outcome = run(found, tmp_path / "run")
    assert estimate.calls == 30 * 7 + 15 == sum(len(chain.steps) for chain in read_chains(tmp_path / "run"))
    assert estimate.usage.completion_tokens == outcome.manifest.usage.completion_tokens
    assert estimate.probe_calls == 8 * 3
    assert not (tmp_path / "runs").exists()


def test_an_estimate_tells_which_chains_of_the_probe_failed(tmp_path: Path, script: Path) -> None:
    red = str(prompts(tmp_path / "r.jsonl", 20, fails=(0, 5, 9)))
    inputs = load_inputs(config(script, prompts=red, helpful_ratio=0))
    estimate = estimate_run(inputs)
    assert estimate.probe_failures == {"context_overflow": 2}
    assert estimate.probe_calls == 6 * 3
    assert estimate.calls == 20 * 3


@pytest.mark.parametrize(("red_team", "helpful", "size"), [(3, 9, 3), (20, 9, 8), (0, 5, 5), (0, 30, 8)])
def test_the_probe_takes_red_team_prompts_where_there_are_any(
    tmp_path: Path, script: Path, red_team: int, helpful: int, size: int
) -> None:
    path = prompts(tmp_path / "r.jsonl", red_team)
    path.write_text(path.read_text() + prompts(tmp_path / "h.jsonl", helpful, "helpful").read_text())
    inputs = load_inputs(config(script, prompts=str(path), helpful_ratio=0))
    assert probe_size(inputs) == size
    assert estimate_run(inputs).probe_calls == size * (3 if red_team else 1)
