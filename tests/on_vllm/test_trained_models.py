"""What `cai train` writes runs in vLLM as it is: whole models, LoRA adapters, reward models."""

import json
import os
import subprocess
import sys
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from running import greedy_text, running
from tiny_model import save_tiny_model
from vllm_server import NAME, VllmServer

ROOT = Path(__file__).resolve().parent.parent.parent
QUESTIONS = ("Question 7?", "What is this?")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose heads are as large as vLLM's attention on a CPU wants them."""
    return save_tiny_model(tmp_path_factory.mktemp("start") / "tiny", context=2048, hidden=128)


@pytest.fixture(scope="module")
def trainer() -> str:
    """A Python that can train. The environment of vLLM lacks TRL, so it is that of the checkout."""
    own = ROOT / os.environ.get("VENV", ".venv") / "bin" / "python"
    if find_spec("trl") is not None:
        return sys.executable
    if not own.is_file():
        pytest.skip(f"neither {sys.executable} nor {own} has TRL; run `make setup`")
    return str(own)


def trained(trainer: str, kind: str, start: Path, out: Path, *options: str) -> Path:
    """Train on a few rows; returns the run directory."""
    rows: list[dict[str, Any]] = [
        {"prompt": f"Question {n}?", "chosen": f"Yes, {n} it is.", "rejected": f"No, not {n}!"} for n in range(24)
    ]
    if kind == "sft":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
        options = (*options, "--collapse-prompts", "0")
    data = out.with_suffix(".jsonl")
    data.write_text("\n".join(map(json.dumps, rows)))
    command = [trainer, "-m", "cai", "train", kind, "--model", str(start), "--data", str(data), "--out", str(out)]
    command += ["--max-length", "128", "--report-to", "none", "--no-bf16", "--use-cpu", *options]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    return out


def whole(text: str) -> str:
    """A reply without the character that its last token begins: the tiny model writes bytes, and vLLM keeps those of an
    unfinished character back."""
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


def test_a_model_trained_whole_replies_as_in_transformers(trainer: str, start: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = trained(trainer, "sft", start, tmp_path / "run", "--learning-rate", "1e-3", "--num-train-epochs", "2")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    before, after = (AutoModelForCausalLM.from_pretrained(path, dtype="float32") for path in (start, run / "model"))
    with running(model=str(run)) as vllm:
        for question in QUESTIONS:
            found = whole(vllm.ask(question, max_tokens=12).text)
            assert found == whole(greedy_text(after, tokenizer, question, 12))
            assert found != whole(greedy_text(before, tokenizer, question, 12))


def test_an_adapter_that_was_trained_replies_as_in_peft(trainer: str, start: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = trained(trainer, "sft", start, tmp_path / "run", "--use-peft", "--learning-rate", "1e-2")
    assert not list((run / "model").glob("model*.safetensors"))
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    before = AutoModelForCausalLM.from_pretrained(start, dtype="float32")
    unadapted = [whole(greedy_text(before, tokenizer, question, 12)) for question in QUESTIONS]
    adapted = PeftModel.from_pretrained(before, str(run / "model"))
    with running(model=str(run)) as vllm:
        for question, without in zip(QUESTIONS, unadapted, strict=True):
            found = whole(vllm.ask(question, max_tokens=12).text)
            assert found == whole(greedy_text(adapted, tokenizer, question, 12))
            assert found != without


def test_a_reward_model_is_served_with_the_rewards_of_transformers(trainer: str, start: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = trained(trainer, "reward", start, tmp_path / "run", "--learning-rate", "1e-3") / "model"
    tokenizer = AutoTokenizer.from_pretrained(model)
    reference = AutoModelForSequenceClassification.from_pretrained(model, dtype="float32").eval()
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "Question 7?"}, {"role": "assistant", "content": reply}], tokenize=False
        )
        for reply in ("Yes, 7 it is.", "No, not 7!", "A reply of quite another length than the others.")
    ]
    with torch.inference_mode():
        expected = [float(reference(**tokenizer(text, return_tensors="pt")).logits) for text in texts]
    server = VllmServer(str(model), tmp_path / "log", "--runner", "pooling")
    try:
        server.wait_until_ready()
        asked = {"model": NAME, "input": texts, "use_activation": False}  # else a sigmoid is laid over the rewards
        request = urllib.request.Request(
            server.url.removesuffix("/v1") + "/classify",
            data=json.dumps(asked).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            rows = json.loads(answer.read())["data"]
    finally:
        server.kill()
    assert [row["probs"] for row in rows] == [[pytest.approx(reward, abs=1e-3)] for reward in expected]
    assert max(expected) - min(expected) > 0.1
