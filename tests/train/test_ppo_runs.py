"""PPO trainings by the real command: what they write, what they start from, and what they are rewarded by."""

import hashlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from cai_process import manifest
from peft import LoraConfig, PeftModel, get_peft_model
from ppo_jobs import OF_SESSIONS, STEPS, figures, job, policy_in, results, samples, without_drawings
from processes import Cai, complete, start
from reward_models import plain_reward, save_ensemble, save_reward_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_model import CHAT_TEMPLATE
from training_rows import furthest, metrics, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from cai.records import Message
from cai.train.monitor.records import CANNOT_SEE, MonitorReport, StepMetrics

pytestmark = pytest.mark.enable_socket  # processes are forked through a Unix socket

DOCUMENTED = {
    "step", "episodes", "score", "score_std", "rewards", "kl", "kl_k3", "kl_coef", "entropy", "length", "eos_rate",
    "unscored", "learning_rate", "policy_loss", "value_loss", "ratio", "approx_kl", "clip_fraction",
    "value_clip_fraction", "first_ratio_error", "surprise_gap", "grad_norm", "explained_variance", *OF_SESSIONS,
}  # fmt: skip
"""Columns of metrics.jsonl, beside one for each reward."""


@pytest.fixture
def no_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    without_drawings(monkeypatch)


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("rewards") / "judge", offset=0.5, max_position_embeddings=512)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ppo")


@pytest.fixture(scope="module")
def words(work: Path, tiny: Path, reward_model: Path) -> list[str]:
    """The command of `done`."""
    more = ("--weighted-reward", reward_model, 0.5, "--report-to", "tensorboard")
    return job(work, tiny, work / "run", *more)


@pytest.fixture(scope="module")
def done(work: Path, words: list[str]) -> Path:
    """A finished run with a reward model and a function, by a process of its own."""
    complete(words, work / "log")
    return work / "run"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A LoRA adapter of the tiny model that changes what it says."""
    torch.manual_seed(4)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    folder = tmp_path_factory.mktemp("adapter") / "sft"
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), lora).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def merged(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The weights of a model with an adapter merged in, by PEFT alone."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload()
    return dict(model.state_dict())


# What a run writes


def test_a_run_says_what_it_was_made_from(done: Path, work: Path) -> None:
    made = manifest(done)
    assert (made["stage"], made["state"], made["sessions"]) == ("train-ppo", "finished", 1)
    assert made["inputs"].keys() == {"model", "chat template", "prompts 1", "reward judge", "reward length"}
    for name, file in (("prompts 1", "prompts.jsonl"), ("reward length", "rewards.py")):
        assert made["inputs"][name] == hashlib.sha256((work / file).read_bytes()).hexdigest()
    assert made["inputs"]["chat template"] == hashlib.sha256(CHAT_TEMPLATE.encode()).hexdigest()
    assert (made["counts"]["train"], made["counts"]["held"]) == (9, 3)
    assert {"cai", "torch", "transformers", "peft", "accelerate"} < made["versions"].keys()


def test_metrics_have_a_line_a_step_with_the_documented_columns(done: Path) -> None:
    lines = metrics(done)
    assert [line["step"] for line in lines] == [*range(1, STEPS + 1)]
    for number, line in enumerate(lines, 1):
        assert line.keys() == DOCUMENTED | {"score/judge", "score/length"}
        assert line["episodes"] == 4 * number
        # By the definitions of the columns: parts by their weights less the penalty of 1 on those that were cut, and
        # the pull of β on top.
        assert line["score"] == pytest.approx(
            0.5 * line["score/judge"] + line["score/length"] - (1 - line["eos_rate"]), abs=1e-5
        )
        assert line["rewards"] == pytest.approx(line["score"] - line["kl_coef"] * line["kl"], abs=1e-5)
        assert line["learning_rate"] == pytest.approx(0.01 * (1 - (number - 1) / STEPS))
    assert set(StepMetrics.model_fields) < DOCUMENTED
    assert lines[0]["kl"] == lines[0]["kl_k3"] == 0
    assert all(line["kl"] != 0 for line in lines[1:])


def test_samples_are_those_of_the_held_out_prompts_at_each_look(done: Path, work: Path, reward_model: Path) -> None:
    prompts = {row["prompt"] for row in map(json.loads, (work / "prompts.jsonl").read_text().splitlines())}
    found = samples(done)
    assert [sample["step"] for sample in found] == [0] * 6 + [3] * 6 + [6] * 6
    asked = [sample["prompt"][-1]["content"] for sample in found]
    assert asked[:6] == asked[6:12] == asked[12:]
    assert len(set(asked)) == 3
    assert set(asked) < prompts
    for sample in found:
        messages = [Message(**turn) for turn in sample["prompt"]]
        replied = [*messages, Message(role="assistant", content=sample["response"])]
        by_hand = 0.5 * (plain_reward(reward_model, replied) - 0.5) + len(sample["response"].encode()) / 10
        assert sample["score"] == pytest.approx(by_hand, abs=1e-4)
        assert sample["gold"] is None
        assert 1 <= sample["tokens"] <= 6
        assert sample["ended"] or sample["tokens"] == 6
    assert all(sample["logprob"] == pytest.approx(sample["ref_logprob"], abs=1e-4) for sample in found[:6])
    assert any(abs(sample["logprob"] - sample["ref_logprob"]) > 0.1 for sample in found[12:])


@pytest.mark.usefixtures("no_drawings")
def test_looks_differ_by_the_policy_alone(tmp_path: Path, work: Path, tiny: Path, cai: Cai) -> None:
    done = cai(*job(work, tiny, tmp_path / "run", "--learning-rate", 0, "--total-episodes", 12))
    assert done.code == 0, done.err
    found = [{**sample, "step": 0} for sample in samples(tmp_path / "run")]
    assert found[:6] == found[6:]
    assert len({sample["response"] for sample in found}) > 3


def test_a_run_shows_its_course_and_its_outcome(done: Path, work: Path) -> None:
    report = MonitorReport.model_validate_json((done / "monitor.json").read_bytes())
    assert (report.step, report.prompts, [look.step for look in report.looks]) == (6, 3, [0, 3, 6])
    for drawing in ("curves.svg", "monitor.svg"):
        assert (done / drawing).read_text().lstrip().startswith("<?xml")
    outcome = results(done)
    assert (outcome["steps"], outcome["ended_by"], outcome["saved_step"]) == (6, "steps", 6)
    assert outcome["metrics"] == metrics(done)[-1]
    assert report.best is not None
    assert outcome["best"] == report.best.model_dump()
    card = (done / "model" / "README.md").read_text()
    assert "The weights are of step 6." in card
    assert manifest(done)["inputs"]["prompts 1"] in card
    events = EventAccumulator(str(done / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("score")] == [*range(1, STEPS + 1)]
    assert [event.value for event in events.Scalars("kl")] == pytest.approx([line["kl"] for line in metrics(done)])
    shown = (work / "log.out").read_text()
    assert "prompts: 9 to learn from, 3 for the monitor\n6 steps of 4 episodes\n" in shown
    assert "note: the values start at 0: the reward is not a single reward model\n" in shown
    assert shown.count("a response: ") == 3
    assert f"use it:    cai critique-revise --model {done}\n" in shown


def answers(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([[3, 40, 50, 60, 1, 4, 70, 80]])).logits
    return found


def test_others_load_the_adapter(done: Path, tiny: Path) -> None:
    saved = weights(done / "model")
    assert furthest(saved, policy_in(done / "checkpoints" / "checkpoint-6")) == 0
    assert not [path.name for path in (done / "model").iterdir() if path.is_dir()], "the values stay with the run"
    untouched = AutoModelForCausalLM.from_pretrained(tiny)
    before = answers(untouched)
    trained = PeftModel.from_pretrained(untouched, done / "model")
    assert not torch.allclose(answers(trained), before, atol=1e-2)
    assert AutoTokenizer.from_pretrained(done / "model").chat_template == CHAT_TEMPLATE


@pytest.mark.usefixtures("no_drawings")
def test_an_adapter_is_written_whole_where_that_is_asked_for(tmp_path: Path, work: Path, tiny: Path, cai: Cai) -> None:
    whole = cai(*job(work, tiny, tmp_path / "whole", "--merge-adapter", "--probe-prompts", 0))
    assert whole.code == 0, whole.err
    last = policy_in(tmp_path / "whole" / "checkpoints" / "checkpoint-6")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "model")
    # By hand: W + (α/r) B A, with α/r = 32/16.
    name = "model.layers.1.mlp.up_proj"
    a, b = (last[f"base_model.model.{name}.lora_{half}.weight"] for half in "AB")
    expected = weights(tiny)[f"{name}.weight"] + 2 * b @ a
    assert torch.allclose(model.state_dict()[f"{name}.weight"], expected, atol=1e-6)
    assert not torch.allclose(expected, weights(tiny)[f"{name}.weight"], atol=1e-3)


@pytest.mark.usefixtures("no_drawings")
def test_whole_models_are_trained_beside_an_untouched_reference(
    tmp_path: Path, work: Path, tiny: Path, cai: Cai
) -> None:
    out = tmp_path / "run"
    done = cai(*job(work, tiny, out, "--full", "--learning-rate", 0.003, "--total-episodes", 8))
    assert done.code == 0, done.err
    saved = weights(out / "model")
    last = policy_in(out / "checkpoints" / "checkpoint-2")
    assert furthest({name: saved[name] for name in last}, last) == 0
    assert furthest(saved, weights(tiny)) > 1e-3
    assert torch.isfinite(answers(AutoModelForCausalLM.from_pretrained(out / "model"))).all()
    assert figures(out)[0]["kl"] == 0


def contents(out: Path) -> dict[Path, bytes]:
    """All files of a run but its manifest and its lock."""
    return {
        path: path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name not in ("manifest.json", ".lock")
    }


def test_a_finished_run_is_left_as_it_is_and_another_configuration_is_refused(
    done: Path, work: Path, words: list[str], cai: Cai
) -> None:
    before = contents(done)
    again = cai(*words)
    assert again.code == 0
    assert contents(done) == before
    assert manifest(done)["sessions"] == 2
    first = (work / "log.out").read_text().splitlines()
    shown = again.out.splitlines()
    assert shown[-1] == first[-1]
    assert any(line.startswith("Checkpoint to keep: step ") for line in shown)
    other = cai(*words, "--kl-coef", 0.2, "--total-episodes", 12)
    assert other.code == 1
    assert other.err == (
        f"error: {done} holds a run with another configuration: kl_coef is 0.2, was 0.05; total_episodes is 12, was "
        "24. Give another --out, or --overwrite to start it anew\n"
    )
    rewarded = cai(*job(work, Path(words[3]), done, reward="letters"))
    assert rewarded.code == 1
    letters = work / "rewards.py"
    swapped = f'rewards[0].function is "{letters}:letters", was not set; rewards[0].model is not set, was "'
    assert swapped in rewarded.err
    assert contents(done) == before
    assert cai(*words, "--save-steps", 5, "--rollout-batch-size", 2).code == 0, "what the weights do not depend on"


@pytest.mark.usefixtures("no_drawings")
def test_overwrite_starts_anew(tmp_path: Path, work: Path, tiny: Path, cai: Cai) -> None:
    short = ("--total-episodes", 8)
    first = job(work, tiny, tmp_path / "run", *short, "--seed", 5)
    assert cai(*first).code == 0
    other = job(work, tiny, tmp_path / "run", *short, "--overwrite")
    assert cai(*other).code == 0
    assert cai(*job(work, tiny, tmp_path / "fresh", *short)).code == 0
    assert figures(tmp_path / "run") == figures(tmp_path / "fresh")
    assert samples(tmp_path / "run") == samples(tmp_path / "fresh")
    assert furthest(weights(tmp_path / "run" / "model"), weights(tmp_path / "fresh" / "model")) == 0


# What it starts from


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.usefixtures("no_drawings")
def test_an_adapter_to_start_from_is_merged_and_is_the_reference(
    lora: bool, tmp_path: Path, work: Path, tiny: Path, adapter: Path, cai: Cai
) -> None:
    out = tmp_path / "run"
    more = ("--adapter", adapter, "--total-episodes", 8, *(() if lora else ("--full", "--learning-rate", 0.003)))
    done = cai(*job(work, tiny, out, *more))
    assert done.code == 0, done.err
    expected = merged(tiny, adapter)
    assert furthest(expected, weights(tiny)) > 1e-3
    assert furthest(weights(out / "start"), expected) < 1e-6
    first, second = figures(out)
    assert first["kl"] == first["kl_k3"] == 0
    assert abs(second["kl"]) > 0
    if lora:
        described = json.loads((out / "model" / "adapter_config.json").read_bytes())
        assert described["base_model_name_or_path"] == str(out / "start")


def test_the_values_begin_as_the_reward_model_where_that_is_alone(
    tmp_path: Path, work: Path, tiny: Path, reward_model: Path, cai: Cai
) -> None:
    words = job(work, tiny, tmp_path / "run", "--full", "--reward", reward_model, reward="")
    done = cai(*words, "--estimate")
    assert "note: the values start as the reward model " in done.out
    assert not (tmp_path / "run").exists()


# What it is rewarded by


@pytest.mark.usefixtures("no_drawings")
def test_a_judge_a_function_and_an_ensemble_are_added_up_and_gold_watches(
    tmp_path: Path, work: Path, tiny: Path, reward_model: Path, cai: Cai
) -> None:
    ensemble = save_ensemble(tmp_path / "ensemble", 2, max_position_embeddings=512)
    (tmp_path / "script.yaml").write_text("answers:\n- {choices: {'9': 0.5, '4': 0.5}}\n")
    (tmp_path / "ppo.yaml").write_text(
        f"""\
rewards:
- judge:
    engine: {{engine: scripted, script: {tmp_path / "script.yaml"}}}
  weight: 2.0
- function: {work / "rewards.py"}:letters
  weight: -0.5
  name: vowels
- model: {ensemble}
  ensemble_by: worst
gold: {{model: {reward_model}}}
kl_coef: 0.25
max_failure_share: 0.9   # the judge does not rate an empty response
missing_eos_penalty: 0
"""
    )
    out = tmp_path / "run"
    words = job(work, tiny, out, "--config", tmp_path / "ppo.yaml", "--total-episodes", 8, reward="")
    done = cai(*words)
    assert done.code == 0, done.err
    for line in figures(out):
        parts = 2 * line["score/judge"] - 0.5 * line["score/vowels"] + line["score/ensemble"]
        assert line["score/judge"] == pytest.approx((6.5 - 5.5) / 4.5)
        assert line["score"] == pytest.approx(parts, abs=1e-5)
        assert line["kl_coef"] == 0.25
    named = {"reward judge constitution", "reward judge templates", "reward vowels", "reward ensemble", "gold judge"}
    assert manifest(out)["inputs"].keys() > named
    for sample in samples(out):
        conversation = [*(Message(**turn) for turn in sample["prompt"])]
        conversation.append(Message(role="assistant", content=sample["response"]))
        members = [plain_reward(ensemble / f"member-{number}" / "model", conversation) for number in range(2)]
        assert sample["gold"] == pytest.approx(plain_reward(reward_model, conversation) - 0.5, abs=1e-4)
        assert sample["variance"] == pytest.approx((members[0] - members[1]) ** 2 / 4, rel=1e-3)
        if sample["response"]:
            letters = sum(letter in "aeiou" for letter in sample["response"])
            vowels = letters - len(conversation[-2].content) / 100
            assert sample["score"] == pytest.approx(2 / 4.5 - 0.5 * vowels + min(members), abs=1e-4)
        else:
            assert sample["score"] is None


@pytest.mark.usefixtures("no_drawings")
def test_without_prompts_for_the_monitor_there_is_none(tmp_path: Path, work: Path, tiny: Path, cai: Cai) -> None:
    out = tmp_path / "run"
    done = cai(*job(work, tiny, out, "--probe-prompts", 0, "--total-episodes", 8))
    assert done.code == 0, done.err
    assert "prompts: 12 to learn from, 0 for the monitor\n" in done.out
    assert "no gold reward" not in done.out
    assert samples(out) == []
    assert not (out / "monitor.json").exists()
    assert (results(out)["alerts"], results(out)["best"]) == (None, None)
    card = (out / "model" / "README.md").read_text()
    assert "\nThe monitor was left out (`probe.prompts: 0`), so nobody looked for reward hacking.\n" in card
    assert "alert" not in card.split("## What became of it")[1].split("\n## ")[0]
    assert CANNOT_SEE not in card


# Several processes


def both(words: list[str], folder: Path) -> None:
    """Run a command in two processes, as `torchrun` starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        start(
            words,
            folder / f"log-{rank}",
            {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"},
        )
        for rank in range(2)
    ]
    for process in processes:
        done = process.finish()
        assert done.code == 0, done.err


@pytest.mark.usefixtures("no_drawings")
@pytest.mark.parametrize("shared", [(), ("--shared-trunk",)], ids=["apart", "shared"])
def test_two_processes_train_like_one_and_go_on_like_one(
    shared: tuple[str, ...], tmp_path: Path, work: Path, tiny: Path, adapter: Path, cai: Cai
) -> None:
    # With the usual epsilon, rounding in a gradient of almost nothing moves a weight by a whole step. Mini-batches are
    # drawn in each process, so there is one.
    (tmp_path / "config.yaml").write_text("adam_epsilon: 1.0e-2\n")
    more = ("--config", tmp_path / "config.yaml", "--num-mini-batches", 1, "--adapter", adapter, *shared)
    one = cai(*job(work, tiny, tmp_path / "one", *more))
    assert one.code == 0, one.err
    words = job(work, tiny, tmp_path / "two", *more)
    both(words, tmp_path)
    one_file, two_files = (figures(tmp_path / name) for name in ("one", "two"))
    for alone, together in zip(one_file, two_files, strict=True):
        assert together == pytest.approx(alone, rel=1e-3, abs=1e-4)
    assert [sample["response"] for sample in samples(tmp_path / "two")] == [
        sample["response"] for sample in samples(tmp_path / "one")
    ]
    trained = weights(tmp_path / "two" / "model")
    assert furthest(trained, weights(tmp_path / "one" / "model")) < 1e-4
    (tmp_path / "two" / "results.json").unlink()  # as if both had died before the last checkpoint was whole
    (tmp_path / "two" / "checkpoints" / "checkpoint-6" / "whole").unlink()
    both(words, tmp_path)
    assert furthest(weights(tmp_path / "two" / "model"), trained) == 0
    assert figures(tmp_path / "two") == two_files
    told = [(tmp_path / f"log-{rank}.out").read_text() for rank in range(2)]
    assert [text.count("checkpoint-6 is torn") for text in told] == [1, 0]
    assert [text.count("going on from checkpoint-4") for text in told] == [1, 0]
