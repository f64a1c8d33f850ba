"""The benchmarks run, at sizes that say nothing about speed, and print one JSON document."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from servers import Answer, ChatServer, Request, listed, reply

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


def run(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(FOLDER / script), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def report(script: str, *options: str) -> dict[str, Any]:
    done = run(script, *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Answers that name their seed, so that every reply differs."""
    path = tmp_path / "script.yaml"
    path.write_text("answers:\n- say: Reply {seed} to a request.\nconcurrency: 3\n")
    return path


def test_overhead_counts_every_call_of_stage_and_bare_loop(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    found = report("overhead.py", "--prompts", "20", "--rounds", "2", "--folder", str(tmp_path), "--out", str(out))
    # A draft, two critiques and two revisions for each prompt.
    calls = {name: found[name]["calls"] for name in ("tenth", "stage", "bare", "resume")}
    assert calls == {"tenth": 10, "stage": 100, "bare": 100, "resume": 0}
    assert found["stage_ms_per_call"] == pytest.approx(1000 * found["stage"]["wall_s"] / 100, abs=0.006)
    assert found["within_target"] == (found["stage_ms_per_call"] <= found["target_ms_per_call"])
    assert json.loads(out.read_text()) == found
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_generation_gives_every_arm_the_same_requests_and_each_place_in_turn(script: Path) -> None:
    found = report("generation.py", "--engine", "scripted", "--script", str(script), "--prompts", "4", "--rounds", "2")
    assert found["workload"]["calls"] == 4 * 5
    assert [timing["calls"] for timing in found["timings"]] == [20] * 9
    usages = [timing["usage"] for timing in found["timings"]]
    assert usages == [usages[0]] * 9
    assert found["same_replies"] is True
    places = {(timing["arm"], timing["place"]) for timing in found["timings"]}
    assert places == {(arm, place) for arm in ("stage", "bound", "passes") for place in (1, 2, 3)}


def test_generation_ratios_are_those_of_the_same_repeat(script: Path) -> None:
    found = report("generation.py", "--engine", "scripted", "--script", str(script), "--prompts", "2", "--repeats", "2")
    seconds = {(timing["repeat"], timing["arm"]): timing["chains_per_s"] for timing in found["timings"]}
    for other in ("bound", "passes"):
        expected = [seconds[repeat, "stage"] / seconds[repeat, other] for repeat in (1, 2)]
        assert found[f"stage_to_{other}"]["each"] == pytest.approx(expected, abs=1e-3)


def test_generation_counts_chains_that_fail_and_serves_their_requests_in_every_arm(tmp_path: Path) -> None:
    script = tmp_path / "script.yaml"
    script.write_text('answers:\n- {when: "(?i)rewrite|revis", fail: server_error}\n- say: Reply {seed}.\n')
    found = report("generation.py", "--engine", "scripted", "--script", str(script), "--prompts", "3", "--repeats", "1")
    assert found["workload"]["failed_chains"] == 3
    assert found["workload"]["calls"] == 9
    assert [(timing["calls"], timing["failed"]) for timing in found["timings"]] == [(6, 3)] * 3


def test_generation_names_no_path_of_a_model_directory(tmp_path: Path) -> None:
    from tiny_model import save_tiny_model

    model = save_tiny_model(tmp_path / "tiny", context=32_768)
    found = report(
        "generation.py",
        "--model",
        str(model),
        "--prompts",
        "2",
        "--few-shot",
        "0",
        "--max-tokens",
        "4",
        "--repeats",
        "1",
    )
    assert found["engine"]["model"] == "tiny"
    assert found["engine"]["seeded"] is True
    assert found["same_replies"] is True
    assert str(tmp_path) not in json.dumps(found)


class CachingServer(ChatServer):
    """Says A. Its cache finds 18 of a request's 20 prompt tokens where another began with the same up to the rule."""

    def __init__(self, *, metrics: bool) -> None:
        super().__init__()
        self._metrics = metrics
        self._known: set[str] = set()
        self._requests = 0
        self._hits = 0
        self._lock = threading.Lock()

    def answer_to(self, request: Request) -> Answer:
        with self._lock:
            if request.path == "/metrics":
                # Another client has looked up 1,000 tokens before, and found 7 of them.
                text = (
                    "# HELP vllm:prefix_cache_queries_total Tokens.\n"
                    f'vllm:prefix_cache_queries_total{{engine="0"}} {1000 + 20 * self._requests}.0\n'
                    f'vllm:prefix_cache_hits_total{{engine="0"}} {7 + self._hits}.0\n'
                )
                return Answer(body=text) if self._metrics else Answer(404)
            if request.path.endswith("/models"):
                return self.models_answer
            if "seed" in request.body:  # of this a vLLM server on a CPU dies
                return Answer(500)
            messages = request.body["messages"]
            before = json.dumps([messages[:-1], messages[-1]["content"].partition("Rule:")[0]])
            cached = 18 if before in self._known else 0
            self._known.add(before)
            self._requests += 1
            self._hits += cached
            answer = listed({"A": 0.6, "B": 0.4}) if "logprobs" in request.body else reply("A")
            body = json.loads(answer.body)
            found = 0 if self._metrics else cached
            body["usage"] = {"prompt_tokens": 20, "completion_tokens": 3}
            body["usage"]["prompt_tokens_details"] = {"cached_tokens": found}
            return replace(answer, body=json.dumps(body))


@pytest.mark.parametrize("metrics", [True, False], ids=["metrics", "usage"])
def test_labelling_reads_what_a_cache_served_and_no_arm_profits_from_another(metrics: bool) -> None:
    with CachingServer(metrics=metrics) as server:
        found = report("labelling.py", "--engine", "openai", "--base-url", server.url, "--limit", "3", "--repeats", "2")
    # Each order is read once, 20 tokens, and 2 tokens for each further principle of 16.
    costs = {"ensemble": 2 * 20 + 30 * 2, "single": 2 * 20, "generated": 2 * 20 + 30 * 2}
    assert found["workload"]["principles"] == 16
    assert len(found["timings"]) == 6
    for timing in found["timings"]:
        asked = 3 * (2 if timing["arm"] == "single" else 32)
        assert timing["computed_tokens_per_label"] == costs[timing["arm"]]
        assert timing["written_tokens_per_label"] == asked // 3 * 3
        assert timing["calls"] == asked
        assert timing["looked_up"] == (20 * asked if metrics else None)
    assert found["ensemble_to_single_tokens"]["each"] == [2.5, 2.5]
    assert found["no_reuse_to_ensemble_tokens"]["each"] == [6.4, 6.4]
    assert found["within_targets"] is True
    assert found["no_reuse_measured"] is False
    assert found["ensemble_to_no_reuse_speed"] is found["same_verdicts"] is None
    assert server.url.removesuffix("/v1") not in json.dumps(found)


def test_labelling_misses_its_targets_without_a_cache_and_compares_within_a_repeat(tmp_path: Path) -> None:
    script = tmp_path / "script.yaml"
    # A written verdict that names no option fails its comparison; the questions have been asked all the same.
    script.write_text("answers:\n- {say: Neither., choices: {A: 0.6, B: 0.3}}\n")
    found = report("labelling.py", "--engine", "scripted", "--script", str(script), "--limit", "2", "--repeats", "3")
    failed = {(timing["arm"], tuple(timing["failed"].items())) for timing in found["timings"]}
    assert failed == {("ensemble", ()), ("single", ()), ("generated", (("off_option", 2),))}
    assert {timing["calls"] for timing in found["timings"] if timing["arm"] == "generated"} == {64}
    speeds = {(timing["repeat"], timing["arm"]): timing["labels_per_s"] for timing in found["timings"]}
    for other in ("single", "generated"):
        expected = [speeds[repeat, "ensemble"] / speeds[repeat, other] for repeat in (1, 2, 3)]
        assert found[f"ensemble_to_{other}_speed"]["each"] == pytest.approx(expected, abs=1e-3)
    places = {(timing["arm"], timing["place"]) for timing in found["timings"]}
    assert places == {(arm, place) for arm in ("ensemble", "single", "generated") for place in (1, 2, 3)}
    assert found["no_reuse_to_ensemble_tokens"]["median"] == 1
    assert found["ensemble_to_single_tokens"]["median"] > 10
    assert found["within_targets"] is False


def test_labelling_without_reuse_computes_every_token_and_comes_to_the_same_verdicts(tmp_path: Path) -> None:
    from tiny_model import save_tiny_model

    model = save_tiny_model(tmp_path / "tiny", context=8192)
    comparisons = tmp_path / "comparisons.jsonl"
    comparisons.write_text(json.dumps({"prompt": "Hello?", "response_a": "Hello.", "response_b": "No."}))
    found = report("labelling.py", "--model", str(model), "--comparisons", str(comparisons), "--repeats", "1")
    runs = {timing["arm"]: timing for timing in found["timings"]}
    assert runs["no-reuse"]["usage"] == {**runs["ensemble"]["usage"], "cached_tokens": 0}
    assert runs["ensemble"]["usage"]["cached_tokens"] > 0
    assert runs["ensemble"]["calls"] == runs["no-reuse"]["calls"] == 32
    saved = runs["no-reuse"]["computed_tokens_per_label"] / runs["ensemble"]["computed_tokens_per_label"]
    assert found["no_reuse_to_ensemble_tokens"]["each"] == [pytest.approx(saved, abs=1e-3)]
    assert found["no_reuse_measured"] is True
    assert found["same_verdicts"] is True
    assert found["greatest_difference"] < 1e-4
    assert str(tmp_path) not in json.dumps(found)


def test_labelling_stops_where_no_request_is_answered(tmp_path: Path) -> None:
    script = tmp_path / "script.yaml"
    script.write_text("answers:\n- {fail: server_error}\n")
    done = run("labelling.py", "--engine", "scripted", "--script", str(script), "--limit", "2")
    assert done.returncode != 0
    assert done.stderr == (
        "error: no request of the arm ensemble was answered, its comparisons failed (1 server_error)\n"
    )


def test_wrong_options_are_one_line_of_error(script: Path) -> None:
    done = run("generation.py", "--engine", "scripted", "--script", str(script), "--temperature", "-1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "temperature" in done.stderr
    assert "Traceback" not in done.stderr


def test_gpu_says_why_it_runs_nothing_without_a_device() -> None:
    found = report("gpu.py")
    assert found["skipped"] == "torch finds no CUDA device"
    assert found["checks"] == []


def test_gpu_checks_hold_on_a_cpu() -> None:
    found = report("gpu.py", "--device", "cpu", "--small")
    assert [check["name"] for check in found["checks"] if not check["passed"]] == []
    kinds = {check["name"].split(" (")[0] for check in found["checks"]}
    assert "greedy replies equal a plain generate" in kinds
    assert "prefix reuse does not change replies" in kinds
    trained = {f"{kind} trains, saves and loads back" for kind in ("sft", "reward", "dpo")}
    assert {*trained, *(f"PPO {what}, saves and is found again" for what in ("learns", "trains"))} <= kinds
    assert found["speed"]["tokens"] == 4 * 8


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark of training, whose arms run in this process."""
    monkeypatch.syspath_prepend(FOLDER)
    import training

    monkeypatch.setattr(training, "in_fresh_process", lambda function, *arguments: function(*arguments))
    return training


def train_all(training: Any, folder: Path, lengths: list[tuple[int, int]], **load: Any) -> Any:
    """All arms on pairs with responses of these lengths in bytes; a conversation has 5 tokens more."""
    from tiny_model import save_tiny_model
    from training_records import Workload

    model = save_tiny_model(folder / "tiny")
    data = folder / "pairs.jsonl"
    rows = [
        {"prompt": str(n % 10), "chosen": "+" * chosen, "rejected": "-" * rejected}
        for n, (chosen, rejected) in enumerate(lengths)
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    work = {"batch_size": 2, "steps": 3, "max_length": 128, "limit": None, "use_cpu": True, **load}
    (folder / "work").mkdir()
    return training.compare(Workload(model=str(model), **work), str(data), ["sft", "reward", "dpo"], 1, folder / "work")


def test_training_counts_the_tokens_of_its_steps(training: Any, tmp_path: Path) -> None:
    found = train_all(training, tmp_path, [(15, 15)] * 16)
    assert found.rows.model_dump() == {"rows": 16, "mean_tokens": 20.0, "longest": 20}
    for timing in found.timings:
        steps, reference = timing.measured.steps, timing.measured.reference
        if timing.arm == "packed":  # rows of 6 conversations, as 7 do not fit into 128 tokens
            assert steps.tokens == 120 + 120 + 80
            continue
        pairs = 1 if timing.kind == "sft" else 2
        assert (steps.tokens, steps.padding, steps.epoch_padding) == (3 * 2 * 20 * pairs, 0, 0)
        assert (reference is not None) == (timing.kind == "dpo")
        if reference is not None:
            assert (reference.tokens, reference.padding, reference.epoch_padding) == (3 * 2 * 20 * 2, 0, 0)
    assert {(timing.kind, timing.arm) for timing in found.timings} == {
        (kind, arm)
        for kind in ("sft", "reward", "dpo")
        for arm in ("trl", "plain", "grouped", *(["packed"] if kind == "sft" else []))
    }
    assert all(comparison.same_batches for comparison in found.comparisons.values())
    assert str(tmp_path) not in found.model_dump_json()


def test_training_has_trl_and_plain_read_the_same_batches_and_grouped_less_padding(
    training: Any, tmp_path: Path
) -> None:
    found = train_all(training, tmp_path, [(10 + 90 * (n * 7 % 16 < 5), 12) for n in range(64)], limit=48)
    assert found.rows.rows == 48
    for kind, comparison in found.comparisons.items():
        runs = {timing.arm: timing.measured for timing in found.timings if timing.kind == kind}
        assert comparison.same_batches
        assert runs["trl"].first_loss == pytest.approx(runs["plain"].first_loss, rel=1e-4)
        assert runs["trl"].steps.padding == runs["plain"].steps.padding
        assert runs["trl"].steps.epoch_padding == runs["plain"].steps.epoch_padding > 0
        # Of a pair of unlike responses one is padding whatever stands beside it.
        least = 0.0 if kind == "sft" else 0.2
        assert least <= runs["grouped"].steps.epoch_padding < 0.8 * runs["plain"].steps.epoch_padding
    assert runs["trl"].reference.epoch_padding == runs["trl"].steps.epoch_padding


def test_training_says_how_many_rows_are_missing(training: Any, tmp_path: Path) -> None:
    from cai.errors import DataError

    with pytest.raises(DataError, match=r"has 4 rows of at most 128 tokens, and 3 steps need 6$"):
        train_all(training, tmp_path, [(15, 15)] * 4 + [(15, 124)] * 8)


@pytest.mark.usefixtures("training")
def test_training_speed_is_that_of_an_epoch_whatever_batches_were_drawn() -> None:
    from training_arms import Stretch

    drawn, epoch = Stretch(), Stretch()
    drawn.tokens, drawn.positions, drawn.wall, drawn.cpu = 100, 200, 2.0, 1.0
    epoch.tokens, epoch.positions = 2000, 3000
    part = drawn.part(epoch)
    # 10 ms for a position, 1.5 positions for each real token.
    assert (part.wall_us_per_token, part.cpu_us_per_token) == (15_000, 7_500)
    assert (part.padding, part.epoch_padding) == (0.5, 0.3333)


def test_training_compares_arms_of_the_same_repeat(training: Any) -> None:
    from common import Machine
    from training_records import Measured, Part

    machine = Machine(cpu="", cores=1, memory_gib=1, accelerator="GPU", system="")
    part = Part(tokens=10, padding=0, wall_s=1, cpu_s=3, epoch_padding=0, wall_us_per_token=1, cpu_us_per_token=1)

    def timing(arm: str, repeat: int, micros: tuple[float, float], peak: float, loss: float = 1.0) -> Any:
        steps, reference = (part.model_copy(update={"wall_us_per_token": each}) for each in micros)
        found = Measured(steps=steps, reference=reference, peak_mib=peak, first_loss=loss, bf16=True, machine=machine)
        return training._timing("dpo", arm, repeat, 1, found)

    runs = [
        timing("trl", 1, (300, 100), 100),
        timing("plain", 1, (310, 90), 110),
        timing("grouped", 1, (150, 50), 90),
        timing("trl", 2, (600, 200), 100),
        timing("plain", 2, (700, 300), 100),
        timing("grouped", 2, (300, 200), 80),
    ]
    assert [(run.seconds, run.tokens_per_s) for run in runs[:2]] == [(2, 2500), (2, 2500)]
    found = training._comparison(runs)
    assert found.plain_to_trl_speed.each == (1.0, 0.8)
    assert found.grouped_to_trl_speed.each == (2.0, 1.6)
    assert found.plain_to_trl_memory.each == (1.1, 1.0)
    assert found.packed_to_trl_speed is None
    assert (found.same_batches, found.within_targets) == (True, False)
    assert training._comparison(runs[:3]).within_targets
    assert not training._comparison([*runs[:2], timing("grouped", 1, (200, 80), 90)]).within_targets
    assert not training._comparison([*runs[:1], timing("plain", 1, (300, 100), 100, 1.1), runs[2]]).same_batches


MARKS = """\
name: marks
version: "1"
principles:
- {id: spoilt, comparison: Choose the spoilt one., question: Is it spoilt?, polarity: worse}
"""


def save_judge(folder: Path) -> Path:
    """The tiny model, with Yes and No as tokens of their own."""
    import torch
    from tiny_model import save_tiny_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    save_tiny_model(folder, context=2048)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["Yes", "No"])
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    torch.manual_seed(0)
    for rows in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        torch.nn.init.normal_(rows.data[-2:], std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("protocol", ["pairwise", "pointwise"])
def test_a_tuned_judge_finds_the_marks_that_it_was_taught(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cai.cli import main

    judge = save_judge(tmp_path / "judge")
    constitution = tmp_path / "marks.yaml"
    constitution.write_text(MARKS)
    rows = []
    for n in range(9):
        marked, plain = "#" * (20 + 20 * (n % 2)), "~" * (20 + 20 * (n % 3))
        gold = "ab"[n % 3 == 0]
        a, b = (marked, plain) if gold == "a" else (plain, marked)
        # The last one is longer than the context.
        rows.append(
            {"prompt": f"Question {n}?" * (200 if n == 8 else 1), "response_a": a, "response_b": b, "gold": gold}
        )
    comparisons = tmp_path / "marks.jsonl"
    comparisons.write_text("\n".join(map(json.dumps, rows)))
    same = ["--model", str(judge), "--dtype", "float32", "--constitution", str(constitution), "--protocol", protocol]
    same += ["--comparisons", str(comparisons), "--few-shot", "0"]
    adapter = tmp_path / "adapter"
    training = ("--epochs", "16", "--batch", "2", "--lr", "0.003")
    found = report("tuned_judge.py", *same, *training, "--out", str(adapter))
    assert found["examples"] == 8
    assert found["left_out"] == {"context_overflow": 1}
    assert len(found["losses"]) == 16
    assert found["losses"][-1] < found["losses"][0]
    assert found["after"]["accuracy"]["value"] > max(0.8, found["before"]["accuracy"]["value"])
    assert found["after"]["log_loss"] < found["before"]["log_loss"]
    assert json.loads((adapter / "report.json").read_text()) == found
    assert str(tmp_path) not in json.dumps(found)

    # The certificate is that of the same judge.
    options = ["--adapter", str(adapter), "--min-option-mass", "0", "--max-failure-share", "0.2"]
    options += ["--out", str(tmp_path / "check")]
    monkeypatch.setattr(sys, "argv", ["cai", "judge-check", *same, *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    certificate = json.loads((tmp_path / "check" / "certificate.json").read_text())
    assert certificate["figures"]["accuracy"] == found["after"]["accuracy"]
    assert certificate["figures"]["log_loss"] == pytest.approx(found["after"]["log_loss"], abs=1e-4)


@pytest.mark.parametrize("protocol", ["pairwise", "pointwise"])
def test_a_tuned_judge_learns_from_the_requests_of_the_judge(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    import asyncio

    import tuned_judge
    from stub_engine import StubEngine

    from cai.config import load_config
    from cai.feedback.judge import Judge
    from cai.feedback.judging import JudgingConfig, judging_phase, load_judging
    from cai.records import Message

    class Recorder(StubEngine):
        """Answers A or No, and keeps whole conversations."""

        seen: list[tuple[tuple[Message, ...], str]]

        async def choice_logprobs(self, messages: Any, prefill: str, choices: Any) -> Any:
            self.seen.append((tuple(messages), prefill))
            return await super().choice_logprobs(messages, prefill, choices)

    class Chat:
        """Encodes each request as its number."""

        def __init__(self) -> None:
            self.seen: list[tuple[tuple[Message, ...], str]] = []

        def encode(self, messages: Any, max_tokens: int, prefill: str) -> list[int]:
            assert max_tokens == 0
            self.seen.append((tuple(messages), prefill))
            return [len(self.seen) - 1]

    judge = {"protocol": [protocol], "few_shot": 1}
    config = load_config(JudgingConfig, None, {"comparisons": "planted", "limit": 40, "seed": 7, "judge": judge})
    inputs = load_judging(config, require_gold=True)
    engine = Recorder(odds=lambda _request, _prefill: {"A": 0.9, "B": 0.1, "No": 0.9, "Yes": 0.1})
    judging = Judge(config.judge, inputs.constitution, inputs.prompts, engine, seed=7, on_step=lambda _: None)
    signs = set()
    for item in judging_phase(inputs).items():
        engine.seen, chat = [], Chat()
        verdict = asyncio.run(judging.verdict(item.of))
        margins = tuned_judge.margins(inputs, chat, item.of)
        terms = [(chat.seen[ids[0]], sign) for margin in margins for ids, sign in margin]
        if protocol == "pairwise":
            # What makes the judge, who says A, right is to be learned.
            right = [(one.p_a > 0.5) == (item.of.gold == "a") for one in verdict.judgements]
            assert [len(margin) for margin in margins] == [1, 1]
        else:
            right = [item.of.gold == "a", item.of.gold == "b"]
            assert [len(margin) for margin in margins] == [2]
        assert sorted(terms, key=str) == sorted(
            ((request, 1 if good else -1) for request, good in zip(engine.seen, right, strict=True)), key=str
        )
        signs.add((tuple(right), item.of.gold))
    assert len(signs) == (4 if protocol == "pairwise" else 2)  # both polarities, both golds


def test_a_tuned_judge_keeps_to_one_principle_where_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    from tuned_judge import with_one_principle

    from cai.constitution import load_constitution
    from cai.errors import ConfigError

    constitution = load_constitution("hhh")
    one = constitution.select("comparison")[3].id
    chosen = with_one_principle(constitution, one, "pairwise")
    assert {chosen.draw("comparison", 0, str(n)).id for n in range(50)} == {one}
    assert chosen.examples == constitution.examples
    with pytest.raises(ConfigError, match="does not serve the protocol pairwise"):
        with_one_principle(constitution, constitution.select("critique")[0].id, "pairwise")


def test_a_tuned_judge_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").touch()
    done = run("tuned_judge.py", "--comparisons", "planted", "--out", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == f"error: --out {tmp_path} is not empty; name a new folder\n"
