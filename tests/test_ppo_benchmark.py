"""The benchmark of PPO runs on a tiny model, counts what it says it counts, and knows when a target is missed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
SCRIPT = FOLDER / "ppo.py"
PYTHON = "CAI_TRL_PYTHON"
LOAD = {
    "data": "red-team",
    "prompts": 10,
    "batch_size": 4,
    "steps": 2,
    "response_length": 6,
    "epochs": 2,
    "micro_batch": 2,
    "bf16": False,
    "use_cpu": True,
}


@pytest.fixture
def ppo(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark, whose own arms run in this process."""
    monkeypatch.syspath_prepend(FOLDER)
    import ppo

    monkeypatch.setattr(ppo, "in_fresh_process", lambda function, *arguments: function(*arguments))
    return ppo


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_model import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("start") / "tiny", context=1024)


def workload(model: Path, **changes: Any) -> Any:
    from ppo_records import Workload

    return Workload.model_validate({"model": str(model), **LOAD, **changes})


def measured(ppo: Any, arm: str, seconds: float, peak: float, **changes: Any) -> Any:
    """The timing of a run on a GPU with 40 tokens, one tenth of the time for each of scoring and writing."""
    from ppo_records import Clocks, Measured

    def clocks(share: float) -> Clocks:
        return Clocks(wall_s=share * seconds, cpu_s=share * seconds * 3)

    fields = {
        "prompt_tokens": 100,
        "tokens": 40,
        "ended": 0,
        "whole": clocks(1),
        "writing": clocks(0.1),
        "scoring": clocks(0.1),
        "update": clocks(0.5),
        "peak_rss_mib": 2 * peak,
        "peak_cuda_mib": peak,
        "device": "GPU",
        "threads": 1,
        "versions": {},
    }
    found = Measured.model_validate({**fields, **changes})
    return ppo._timing(arm, 1, 1, workload(Path("tiny")), found)


def test_our_arms_meet_the_same_prompts_and_their_parts_make_up_the_time(
    ppo: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cai.train.ppo import trainer
    from cai.train.ppo.rewards import ModelReward

    monkeypatch.delenv(PYTHON, raising=False)
    hooked = (trainer.write_responses, trainer.optimise, trainer.PpoTrainer.step, ModelReward.score)
    arms = ["ours-lora", "ours-full", "ours-lora-shared", "ours-full-shared"]
    found = ppo.compare(workload(tiny), arms, 1, tmp_path)
    assert (trainer.write_responses, trainer.optimise, trainer.PpoTrainer.step, ModelReward.score) == hooked

    job = json.loads((tmp_path / "job.json").read_text())
    # The warm-up, two steps, and a batch that TRL's loader never comes to.
    assert len(job["prompts"]) == (1 + 2 + 1) * 4
    assert [timing.measured.prompt_tokens for timing in found.timings] == [sum(map(len, job["prompts"][4:12]))] * 4
    assert found.same_prompts
    for timing in found.timings:
        assert 8 <= timing.measured.tokens <= 8 * 6
        assert timing.mean_response == pytest.approx(timing.measured.tokens / 8, abs=0.006)
        assert timing.episodes_per_s == pytest.approx(8 / timing.measured.whole.cpu_s, abs=1e-4)
        assert timing.rollout_s + timing.scoring_s + timing.update_s == pytest.approx(timing.seconds, abs=2e-4)
        assert 0 < timing.writing_s < timing.rollout_s
        assert min(timing.scoring_s, timing.update_s) > 0
        assert (timing.measured.device, timing.measured.peak_cuda_mib) == ("cpu", None)
    assert (found.clock, found.comparisons, found.trl_versions) == ("processor", {}, None)
    assert found.within_targets
    assert str(tmp_path) not in found.model_dump_json()
    assert str(tiny.parent) not in found.model_dump_json()


def test_trl_gets_our_settings_our_prompts_and_the_same_reward_model(ppo: Any, tiny: Path, tmp_path: Path) -> None:
    from ppo_ours import ppo_config
    from tiny_model import byte_tokenizer
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from cai.data.prompts import PromptSource, read_prompts

    load = workload(tiny, prompts=5, response_length=7, epochs=3)
    ppo.prepare(load, tmp_path)
    job = json.loads((tmp_path / "job.json").read_text())
    arguments = job["arguments"]
    assert arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"] == 4
    assert arguments["num_mini_batches"] == 1
    assert (arguments["response_length"], arguments["num_ppo_epochs"], arguments["total_episodes"]) == (7, 3, 12)
    assert arguments["local_rollout_forward_batch_size"] == 16  # ours on a CPU
    assert (arguments["bf16"], arguments["use_cpu"]) == (False, True)
    ours = ppo_config(load, tmp_path, "ours-lora")
    assert [arguments[name] for name in ("temperature", "learning_rate", "missing_eos_penalty", "kl_coef")] == [
        *(ours.temperature, ours.learning_rate, ours.missing_eos_penalty, ours.kl_coef)
    ]
    assert job["lora"] == {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}

    asked = {arm: ppo_config(load, tmp_path, arm) for arm in ppo.ARMS if arm.startswith("ours")}
    assert {arm: (one.use_peft, one.shared_trunk) for arm, one in asked.items()} == {
        "ours-lora": (True, False),
        "ours-lora-shared": (True, True),
        "ours-full": (False, False),
        "ours-full-shared": (False, True),
    }

    # The first five of the set, as the chat template writes them; each once before any comes again.
    rows = read_prompts(PromptSource(path="red-team"), kind="red_team", on_reject=pytest.fail)
    written = {
        "".join(f"<|{message.role}|>{message.content}<|end|>" for message in next(rows).messages) + "<|assistant|>"
        for _ in range(5)
    }
    said = [byte_tokenizer().decode(ids) for ids in job["prompts"]]
    assert set(said[:5]) == written == set(said[5:10])

    policy = AutoModelForCausalLM.from_pretrained(job["model"])
    reward = AutoModelForSequenceClassification.from_pretrained(job["reward"])
    assert job["reward"] == ours.rewards[0].model
    assert reward.model.layers[1].mlp.up_proj.weight.equal(policy.model.layers[1].mlp.up_proj.weight)
    assert reward.score.weight.shape == (1, 32)
    assert float(reward.score.weight.detach().std()) == pytest.approx(33**-0.5, rel=0.3)


def test_prompts_of_a_file_come_without_rows_that_are_none(ppo: Any, tiny: Path, tmp_path: Path) -> None:
    from tiny_model import byte_tokenizer

    rows = [{"prompt": "one"}, {"prompt": ""}, {"prompt": "one"}, {"prompt": "and two"}, {"prompt": "three"}]
    (tmp_path / "mine.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    ppo.prepare(workload(tiny, data=str(tmp_path / "mine.jsonl"), prompts=2, batch_size=2), tmp_path)
    said = [byte_tokenizer().decode(ids) for ids in json.loads((tmp_path / "job.json").read_text())["prompts"]]
    assert set(said) == {f"<|user|>{text}<|end|><|assistant|>" for text in ("one", "and two")}


def test_the_meter_leaves_the_first_step_out(ppo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    del ppo
    import ppo_meter

    clock = [0.0]
    monkeypatch.setattr(ppo_meter.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(ppo_meter.time, "process_time", lambda: 2 * clock[0])

    def work(seconds: float) -> None:
        clock[0] += seconds

    meter = ppo_meter.Meter(2, "cpu")
    scored = meter.timed("scoring", work)
    done = []
    for seconds in (100, 1, 2):
        scored(seconds)
        work(10 * seconds)
        scored(seconds)
        meter.start("update")
        work(seconds / 2)
        meter.stop("update")
        meter.count(tokens=seconds)
        done.append(meter.step_ended())
    work(1000)
    found = meter.found()
    assert done == [False, False, True]
    assert found["tokens"] == 3
    assert found["scoring"] == {"wall_s": 6, "cpu_s": 12}
    assert found["update"] == {"wall_s": 1.5, "cpu_s": 3}
    assert found["whole"] == {"wall_s": 37.5, "cpu_s": 75}
    assert found["peak_rss_mib"] > 0


def test_a_gpu_is_timed_by_the_wall_clock_and_its_own_memory(ppo: Any) -> None:
    gpu, cpu = (
        measured(ppo, "ours-lora", 20, 50),
        measured(ppo, "ours-lora", 20, 50, device="cpu", peak_cuda_mib=None),
    )
    assert (gpu.seconds, gpu.peak_mib) == (20, 50)
    assert (gpu.rollout_s, gpu.writing_s, gpu.scoring_s, gpu.update_s) == (8, 2, 2, 10)
    assert (gpu.episodes_per_s, gpu.tokens_per_s, gpu.mean_response) == (0.4, 2, 5)  # 8 episodes
    assert (cpu.seconds, cpu.peak_mib) == (60, 100)
    assert (cpu.rollout_s, cpu.writing_s, cpu.scoring_s, cpu.update_s) == (24, 6, 6, 30)


def test_ratios_are_ours_to_trl_and_both_targets_count(ppo: Any) -> None:
    lora, full = ppo.RIVALS["lora"], ppo.RIVALS["full"]
    runs = [
        measured(ppo, "ours-lora", 10, 40),
        measured(ppo, "trl-lora", 20, 100, tokens=10),
        measured(ppo, "ours-full", 20, 100),
        measured(ppo, "trl-full", 20, 100),
        measured(ppo, "ours-lora", 10, 50),
        measured(ppo, "trl-lora", 30, 100, tokens=10),
    ]
    found = ppo._comparison(lora, runs)
    assert found.speed.each == (2, pytest.approx(3, abs=1e-3))
    assert found.wall_speed.each == (2, 3)
    assert found.token_speed.each == (8, pytest.approx(12, abs=0.02))
    assert found.memory.each == (0.4, 0.5)
    assert found.within_targets
    assert ppo._comparison(full, runs).within_targets  # 1 and 1: not below, not above
    slow, large = measured(ppo, "ours-lora", 11, 40), measured(ppo, "ours-lora", 10, 51)
    assert not ppo._comparison(lora, [slow, runs[1]]).within_targets
    assert not ppo._comparison(lora, [large, runs[1]]).within_targets
    assert not ppo._comparison(full, [measured(ppo, "ours-full", 20, 101), runs[3]]).within_targets
    assert not ppo._comparison(full, [measured(ppo, "ours-full", 21, 100), runs[3]]).within_targets


def test_arms_on_other_devices_or_threads_are_not_compared(ppo: Any) -> None:
    from cai.errors import ConfigError

    ours = measured(ppo, "ours-lora", 1, 1)
    ppo._check_alike([ours, measured(ppo, "trl-lora", 1, 1)])
    for other in ({"device": "cpu"}, {"threads": 2}):
        with pytest.raises(
            ConfigError, match=r"^the arms cannot be compared: ours-lora on GPU with 1 threads, trl-lora"
        ):
            ppo._check_alike([ours, measured(ppo, "trl-lora", 1, 1, **other)])


@pytest.mark.parametrize("ours", [10, 11])
def test_a_missed_target_is_an_exit_status(
    ours: float, ppo: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from common import exit_status

    times = {"ours-lora": ours, "trl-lora": 20}
    monkeypatch.setattr(ppo, "prepare", lambda *_: None)
    monkeypatch.setattr(ppo, "measure_ours", lambda arm, *_: measured(ppo, arm, times[arm], 10).measured)
    monkeypatch.setattr(
        ppo, "measure_trl", lambda arm, *_: measured(ppo, arm, times[arm], 20, prompt_tokens=99).measured
    )
    monkeypatch.setenv(PYTHON, "python-with-trl")
    words = ["ppo.py", "--arms", "trl-lora", "ours-lora", "--episodes", "4", "--steps", "2", "--repeats", "2"]
    monkeypatch.setattr(sys, "argv", words)
    assert exit_status(ppo.main) == (0 if ours == 10 else 1)
    printed = json.loads(capsys.readouterr().out)
    assert printed["comparisons"]["lora"]["within_targets"] is (ours == 10)
    assert printed["same_prompts"] is False
    assert [(timing["arm"], timing["repeat"], timing["place"]) for timing in printed["timings"]] == [
        *(("trl-lora", 1, 1), ("ours-lora", 1, 2), ("ours-lora", 2, 1), ("trl-lora", 2, 2))
    ]


def test_what_cannot_be_measured_is_an_error(
    ppo: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cai.errors import ConfigError, EngineError

    monkeypatch.delenv(PYTHON, raising=False)
    with pytest.raises(ConfigError, match=f"^{PYTHON} is not set; .ci/trl-env prints what it is to be$"):
        ppo.compare(workload(tiny), ["ours-full", "trl-full"], 1, tmp_path)
    with pytest.raises(ConfigError, match=r"^--prompts 1000 are more than the 148 of red-team$"):
        ppo.prepare(workload(tiny, prompts=1000), tmp_path)
    stops = json.loads((tiny / "generation_config.json").read_text())
    (tmp_path / "two").mkdir()
    for file in tiny.iterdir():
        (tmp_path / "two" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "two" / "generation_config.json").write_text(json.dumps({**stops, "eos_token_id": [1, 9]}))
    with pytest.raises(ConfigError, match=r"stops at the tokens \[1, 9\]; TRL's PPOTrainer knows one, 1$"):
        ppo.prepare(workload(tmp_path / "two"), tmp_path)
    monkeypatch.setattr(sys, "argv", ["ppo.py", "--episodes", "8", "--micro-batch", "3"])
    with pytest.raises(ConfigError, match=r"^--micro-batch 3 does not divide --episodes 8$"):
        ppo.main()

    # A Python that fails, and one that is not there.
    with pytest.raises(EngineError, match=r"^TRL's trainer ended with status 1 \(arm trl-full\)"):
        ppo.measure_trl("trl-full", False, "/bin/false", tmp_path)
    with pytest.raises(EngineError, match=f"^{PYTHON}=/no/python cannot be run: No such file or directory$"):
        ppo.measure_trl("trl-full", False, "/no/python", tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.trl
@pytest.mark.skipif(PYTHON not in os.environ, reason=f"{PYTHON} is not set; .ci/trl-env prints what it is to be")
def test_all_arms_train_on_the_same_prompts(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    words = ["--model", tiny, "--prompts", 10, "--episodes", 8, "--steps", 1, "--response-length", 6, "--epochs", 2]
    words += ["--micro-batch", 4, "--repeats", 1, "--use-cpu", "--out", out]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    assert json.loads(out.read_text()) == found
    assert [timing["arm"] for timing in found["timings"]] == [
        *("ours-lora", "ours-lora-shared", "trl-lora", "ours-full", "ours-full-shared", "trl-full")
    ]
    assert list(found["comparisons"]) == ["lora", "lora-shared", "full", "full-shared"]
    assert found["same_prompts"]
    assert found["trl_versions"]["trl"] == "1.12.0"
    assert found["versions"]["trl"] != "1.12.0"
    assert found["versions"]["peft"] == found["trl_versions"]["peft"]
    met = [comparison["within_targets"] for comparison in found["comparisons"].values()]
    assert done.returncode == (0 if all(met) else 1)
    for timing in found["timings"]:
        assert 8 <= timing["measured"]["tokens"] <= 8 * 6
        assert timing["writing_s"] < timing["rollout_s"]
        assert timing["measured"]["threads"] == 1
