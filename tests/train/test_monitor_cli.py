"""The monitor at work: planted hacks in live trainings, what it does to them, and `cai monitor` on what they leave."""

import json
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from ppo_jobs import figures, job, policy_in, results, samples, without_drawings
from ppo_models import write_prompts
from probe_runs import run
from processes import Cai
from reward_models import change_json
from tiny_model import save_tiny_model
from training_rows import furthest, metrics, weights

from cai.train.monitor.config import MonitorConfig
from cai.train.monitor.looking import look
from cai.train.monitor.records import Alert, MonitorReport, StepMetrics
from cai.train.ppo.checkpoint import PpoState
from cai.train.ppo.watch import react, worth_keeping

HACKS = """\
def length(prompts, responses):
    return [len(text.encode()) / 10 for text in responses]

def about_25(prompts, responses):
    return [-abs(len(text.encode()) - 25) / 10 for text in responses]

def quotes(prompts, responses):
    return [text.count('"') / 6 for text in responses]
"""
LIVE = """\
model: {folder}/start
prompts: [{{path: {folder}/prompts.jsonl}}]
rewards: [{{function: {folder}/hacks.py:{reward}}}]
use_cpu: true
bf16: false
report_to: [none]
max_length: 128
response_length: 20
temperature: 1.0
missing_eos_penalty: 0.0
batch_size: 32
total_episodes: {episodes}
num_ppo_epochs: 2
per_device_train_batch_size: 32
rollout_batch_size: 32
learning_rate: 0.02
lr_scheduler_type: constant
kl_coef: 0.01
save_steps: 1
save_total_limit: 1
probe: {{every: 2, prompts: 8, samples: 4}}
"""
"""Free enough to be hacked within a dozen steps."""
GENTLE = "monitor: {perplexity_growth: 1.0e+9, length_growth: 1000, length_correlation: 1, gain_surviving: 0}\n"
"""Leaves the KL coefficient as it is."""


@pytest.fixture(autouse=True)
def no_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    without_drawings(monkeypatch)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that stops at some frequent tokens, so that it can learn not to."""
    folder = tmp_path_factory.mktemp("hacks")
    save_tiny_model(folder / "start")
    change_json(folder / "start" / "generation_config.json", eos_token_id=[1, 253, 104, 7])
    write_prompts(folder / "prompts.jsonl", 24)
    (folder / "hacks.py").write_text(HACKS)
    return folder


def live(work: Path, name: str, more: str = "", *, reward: str = "length", steps: int = 12) -> list[object]:
    """The words of a training that is easily hacked."""
    config = work / f"{name}.yaml"
    config.write_text(LIVE.format(folder=work, reward=reward, episodes=32 * steps) + more)
    return ["train", "ppo", "--config", config, "--out", work / name]


def report(out: Path) -> MonitorReport:
    return MonitorReport.model_validate_json((out / "monitor.json").read_bytes())


# Live


def test_a_reward_that_pays_for_length_is_seen_and_held_back(work: Path, cai: Cai) -> None:
    done = cai(*live(work, "length"))
    assert done.code == 0, done.err
    out = work / "length"
    found = report(out)
    start, end = (look.figures["length"].mean.value for look in (found.looks[0], found.looks[-1]))
    assert end > 1.5 * start, "the hack works"
    seen = {alert.name: alert for alert in (*found.alerts, *found.past_alerts)}
    assert seen["longer"].action == "warn"
    assert seen.keys() & {"length_pays", "length_gain"}, "the reward pays for length"
    assert "alert (raise kl coef): " in done.out
    coefficients = [line["kl_coef"] for line in figures(out)]
    first = min(alert.since for alert in seen.values() if alert.action == "raise_kl_coef")
    assert coefficients[:first] == [0.01] * first
    assert coefficients[-1] > 0.01
    steps = {one / before for before, one in pairwise(coefficients)}
    assert all(any(abs(step - factor) < 1e-9 for factor in (1.0, 1.5)) for step in steps)
    assert f"β is raised to {0.01 * 1.5:.3g}\n" in done.out


def test_a_policy_that_loses_what_its_reward_stands_for_is_stopped_and_the_best_one_kept(work: Path, cai: Cai) -> None:
    # Responses of about 13 bytes grow to 40; what is meant is about 25.
    words = live(work, "gold", GENTLE + f"gold: {{function: {work}/hacks.py:about_25}}\n", steps=20)
    done = cai(*words)
    assert done.code == 0, done.err
    out = work / "gold"
    found, outcome = report(out), results(out)
    gold = {look.step: look.figures["gold"].mean.value for look in found.looks}
    best = max(gold, key=lambda step: gold[step])
    assert 0 < best < outcome["steps"] < 20
    assert [alert.name for alert in found.alerts if alert.action == "stop"] == ["gold_falls"]
    assert (outcome["ended_by"], outcome["saved_step"], outcome["best"]["step"]) == ("alert", best, best)
    assert metrics(out)[-1]["step"] == outcome["steps"]
    assert f"stopped; the policy is that of step {best}, the best one\n" in done.out
    saved, checkpoints = weights(out / "model"), out / "checkpoints"
    assert furthest(saved, policy_in(checkpoints / f"checkpoint-{best}")) == 0
    assert furthest(saved, policy_in(checkpoints / f"checkpoint-{outcome['steps']}")) > 1e-3
    assert (
        f"The monitor stopped it. Steps: {outcome['steps']}. The weights are of step {best}."
        in (out / "model" / "README.md").read_text()
    )
    # Killed between its last checkpoint and the writing of the model, it does not train on.
    before = figures(out)
    shutil.rmtree(out / "model")
    (out / "results.json").unlink()
    again = cai(*words)
    assert again.code == 0, again.err
    assert furthest(weights(out / "model"), saved) == 0
    assert results(out) == outcome
    assert figures(out) == before


@pytest.mark.parametrize("more", ["", "use_peft: false\nlearning_rate: 0.005\n"], ids=["lora", "full"])
def test_where_no_step_was_better_the_start_is_kept(more: str, work: Path, cai: Cai) -> None:
    name = f"worse{len(more)}"
    gold = f"gold: {{function: {work}/hacks.py:length, weight: -1.0}}\n"
    words = live(work, name, "", steps=16)
    config = work / f"{name}.yaml"
    text = config.read_text() + gold + more
    config.write_text(text.replace("learning_rate: 0.02\n", "") if more else text)
    done = cai(*words)
    assert done.code == 0, done.err
    out = work / name
    assert (results(out)["ended_by"], results(out)["saved_step"]) == ("alert", 0)
    assert "stopped; no step was better than the start, so the policy is the start's\n" in done.out
    assert "The weights are the start's, as no step was better." in (out / "model" / "README.md").read_text()
    saved = weights(out / "model")
    if more:
        assert furthest(saved, weights(work / "start")) == 0
    else:
        assert all(float(tensor.abs().max()) == 0 for name, tensor in saved.items() if "lora_B" in name)


def test_alerts_are_shown_and_not_acted_on_where_that_is_asked_for(work: Path, cai: Cai) -> None:
    strict = "monitor: {steps_in_a_row: 1, looks_in_a_row: 1, clip_fraction: 0.0, kl_limit: 0.0, distinct_fall: 1.0}\n"
    gold = f"gold: {{function: {work}/hacks.py:length, weight: -1.0}}\n"
    done = cai(*live(work, "warned", strict + gold, steps=6), "--only-warn")
    assert done.code == 0, done.err
    found = report(work / "warned")
    assert {"stop", "raise_kl_coef", "lower_learning_rate"} <= {alert.action for alert in found.alerts}
    for action in ("stop", "raise kl coef", "lower learning rate"):
        assert f"alert ({action}): " in done.out
    assert "is raised" not in done.out + done.err
    for line in figures(work / "warned"):
        assert (line["kl_coef"], line["learning_rate"]) == (0.01, 0.02)
    assert (results(work / "warned")["ended_by"], results(work / "warned")["saved_step"]) == ("steps", 6)


def alert(action: Any) -> Alert:
    return Alert(name="x", action=action, since=1, value=1.0, start=None, threshold=0.0, reason="x")


def reported(*actions: str) -> MonitorReport:
    found = look([StepMetrics(step=1, score=0.0)], [])
    return found.model_copy(update={"alerts": tuple(map(alert, actions))})


def test_what_alerts_ask_for_is_done_once_a_look() -> None:
    state = PpoState(step=4, kl_coef=0.2, learning_rate_factor=0.5)
    after, said = react(state, reported("raise_kl_coef", "warn", "raise_kl_coef", "lower_learning_rate"))
    assert (after.kl_coef, after.learning_rate_factor, after.stopped) == (pytest.approx(0.3), 0.25, False)
    assert said == ["β is raised to 0.3", "the learning rate is lowered to 0.25 of what was planned"]
    assert react(state, reported("warn")) == (state, [])
    assert react(state, reported("raise_kl_coef", "stop")) == (state.model_copy(update={"stopped": True}), [])
    free = PpoState(kl_coef=0.0)
    assert react(free, reported("raise_kl_coef")) == (free, ["β is 0, and stays so"])


@pytest.mark.parametrize("in_a_row", [1, 2, 3])
def test_the_best_step_still_has_its_checkpoint_when_a_run_is_stopped(in_a_row: int) -> None:
    # A proxy that rises through the collapse, and no gold: the best step is the last one before all that counts.
    told = [
        sample.model_copy(
            update={"gold": None, "score": sample.step + 0.0, **({"response": "so it is"} if late else {})}
        )
        for sample in run(0, "clean")
        for late in [sample.step >= 60]
        if int(sample.prompt_id[1:]) < 6
    ]
    kept: set[int] = set()
    for step in sorted({sample.step for sample in told}):
        seen = [sample for sample in told if sample.step <= step]
        found = look([], seen, MonitorConfig(looks_in_a_row=in_a_row))
        kept = (kept | {step}) & (worth_keeping(found, in_a_row) | {step})  # as with `save_total_limit: 1`
        assert found.best is not None
        assert found.best.step in kept
        assert len(kept) <= in_a_row + 2
        if any(alert.action == "stop" for alert in found.alerts):
            break
    assert (found.best.step, step) == (40, 60 + 20 * (in_a_row - 1))


# `cai monitor`


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("small")


def test_the_command_says_of_a_run_what_the_training_said(small: Path, tiny: Path, cai: Cai) -> None:
    config = small / "ppo.yaml"
    config.write_text("monitor: {clip_fraction: 0.001, steps_in_a_row: 2, seed: 3}\n")
    done = cai(*job(small, tiny, small / "run", "--config", config))
    assert done.code == 0, done.err
    said = report(small / "run")
    assert {check.name: check.threshold for check in said.checks}["clip_fraction"] == 0.001
    (small / "run" / "monitor.json").unlink()
    again = cai("monitor", small / "run")
    assert again.code == 0, again.err
    assert report(small / "run") == said, "by the tolerances of the run"
    for line in again.out.splitlines()[:-1]:
        assert line in done.out
    assert again.out.splitlines()[-1] == f"written:   {small / 'run'}"
    own = small / "own.yaml"
    own.write_text("clip_fraction: 0.9\nsteps_in_a_row: 2\n")
    other = cai("monitor", small / "run", "--config", own, "--out", small / "deep" / "out")
    assert other.code == 0, other.err
    assert {check.name: check.threshold for check in report(small / "deep" / "out").checks}["clip_fraction"] == 0.9
    assert report(small / "run") == said


def folder(path: Path, **tables: Sequence[Any]) -> Path:
    path.mkdir()
    for name, rows in tables.items():
        (path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_another_trainers_metrics_are_enough(tmp_path: Path, cai: Cai) -> None:
    steps = [{"step": step, "kl": 3.0 * step, "length": 50, "loss": "ours"} for step in range(1, 31)]
    given = folder(tmp_path / "theirs", metrics=steps)
    (given / "manifest.json").write_text('{"made": "by another program"}\n')
    done = cai("monitor", given)
    assert done.code == 0, done.err
    (found,) = report(given).alerts
    assert (found.name, found.since) == ("kl", 17)  # 3 · 17 > 50 nats
    assert "samples (there are none, so all that is said comes from the metrics)" in " ".join(done.out.split())
    assert not (given / "monitor.svg").exists()


def test_another_trainers_samples_are_enough(tmp_path: Path, cai: Cai) -> None:
    told = [json.loads(sample.model_dump_json()) for sample in run(0, "length")]
    given = folder(tmp_path / "theirs", samples=told)
    done = cai("monitor", given)
    assert done.code == 0, done.err
    assert "longer" in {alert.name for alert in report(given).alerts}
    assert report(given) == look([], run(0, "length"))


def test_a_torn_last_line_is_left_out_and_said(tmp_path: Path, cai: Cai) -> None:
    given = folder(tmp_path / "theirs", metrics=[{"step": step, "kl": 1.0} for step in range(1, 4)])
    with (given / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "k')
    done = cai("monitor", given)
    assert done.code == 0, done.err
    assert "note: the last line of metrics.jsonl is torn and left out\n" in done.out
    assert report(given).step == 3


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"step": 2, "kl": "much"}', "is not a valid StepMetrics: kl: "),
        ('{"kl": 2.0}', "is not a valid StepMetrics: step: Field required"),
        ("step 2: kl 2.0", "is not a valid StepMetrics: Invalid JSON"),
    ],
    ids=["words", "no-step", "no-json"],
)
def test_a_bad_line_is_named(line: str, reason: str, tmp_path: Path, cai: Cai) -> None:
    given = folder(tmp_path / "theirs", metrics=[{"step": 1}])
    with (given / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n")
    failed = cai("monitor", given)
    assert failed.code == 1
    assert failed.err.startswith(f"error: {given}/metrics.jsonl:2 {reason}")
    assert failed.err.count("\n") == 1
    assert not (given / "monitor.json").exists()


def test_folders_without_anything_to_look_at(tmp_path: Path, cai: Cai) -> None:
    for given in (tmp_path / "absent", folder(tmp_path / "empty")):
        failed = cai("monitor", given)
        assert failed.code == 2
        expected = f"{given} holds neither metrics.jsonl nor samples.jsonl, so there is nothing to look at"
        assert failed.err == f"error: {expected}\n"
    hollow = cai("monitor", folder(tmp_path / "hollow", metrics=[], samples=[]))
    assert (hollow.code, hollow.err.count("\n")) == (2, 1)
    assert "there is neither a line of metrics nor a sample" in hollow.err


def test_places_and_tolerances_that_cannot_be_used(tmp_path: Path, cai: Cai) -> None:
    given = folder(tmp_path / "theirs", metrics=[{"step": 1, "kl": 1.0}])
    (tmp_path / "file").write_text("")
    failed = cai("monitor", given, "--out", tmp_path / "file")
    assert failed.code == 1
    assert failed.err.startswith(f"error: {tmp_path / 'file'} cannot be written: ")
    own = tmp_path / "own.yaml"
    own.write_text("seed: 1\nlength_grow: 2\n")
    failed = cai("monitor", given, "--config", own)
    assert failed.code == 2
    assert failed.err.startswith(f"error: {own}:2: length_grow: ")
    assert failed.err.count("\n") == 1


def test_samples_of_our_runs_are_read_as_they_were_written(small: Path) -> None:
    looks = report(small / "run").looks
    written = samples(small / "run")
    for one in looks:
        scores = [sample["score"] for sample in written if sample["step"] == one.step]
        assert one.figures["score"].mean.value == pytest.approx(sum(scores) / len(scores))
