"""All that must be seen on a GPU, in one go of a few minutes: the transformers engine, the stage, training, PPO, tests.

Needs only torch, transformers, accelerate and the core dependencies of cai; without trl, peft and datasets training is
left out. Without `--model` it makes a model of SmolLM2-135M's shape with random weights: speed does not depend on what
the weights say, and such a model seldom ends a reply, so that token counts are even. Exact equality is asked for in
float32; in bfloat16 batches of another shape round differently, so there the share of equal replies is reported.

Exit code 0: all checks passed, or there is no such device (the JSON says so). 1: a check failed.
"""

import argparse
import asyncio
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from common import Check, Report, machine, publish, versions
from gpu_ppo import check_ppo
from gpu_training import check_trainings
from rich.console import Console

from cai.config import EngineConfig, SamplingConfig
from cai.critique import CritiqueReviseConfig
from cai.critique_run import critique_revise, load_inputs
from cai.engines import open_engine
from cai.engines.base import Engine
from cai.errors import CaiError
from cai.records import Generation, Message, Record, Sampling

Dtype = Literal["float32", "bfloat16"]

ROOT = Path(__file__).resolve().parent.parent
TEST_SECONDS = 240
HEAVY_EXTRAS = ("datasets", "peft", "trl", "vllm")
"""What a machine that only generates need not have."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Speed(Record):
    """Tokens written per second by one batch, and how the engine compares with a plain call of the library."""

    batch: int
    tokens: int
    """Written by each side in one run."""
    engine_tokens_per_s: float
    plain_tokens_per_s: float
    ratio: float
    """Engine over plain; the better of two runs each."""


class GpuReport(Report):
    """The report of this script."""

    device: str
    model: str
    skipped: str | None = None
    """Why nothing was run."""
    checks: tuple[Check, ...] = ()
    speed: Speed | None = None
    """In bfloat16."""
    seconds: float = 0.0
    """All of it."""


class Workload(Record):
    """Sizes of the checks."""

    batch: int
    tokens: int
    episodes: int
    """In a step of PPO."""
    layers: int
    hidden: int
    vocabulary: int


FULL = Workload(batch=64, tokens=128, episodes=64, layers=30, hidden=576, vocabulary=49_152)
SMALL = Workload(batch=4, tokens=8, episodes=16, layers=2, hidden=64, vocabulary=512)
LETTERS = 262
"""Size of a vocabulary of single bytes."""


def questions(number: int) -> list[list[Message]]:
    """Conversations of unlike lengths with a common opening that is long enough for the prefix cache."""
    rules = "You answer in plain words, name what is uncertain, and harm no one. " * 4
    return [
        [
            Message(role="system", content=rules),
            Message(role="user", content=f"Question {place}: what comes {'long ' * (place % 7)}after {place * place}?"),
        ]
        for place in range(number)
    ]


def save_random_model(folder: Path, size: Workload) -> None:
    """Save a Llama of SmolLM2-135M's proportions with random weights.

    Its tokenizer reads one token a byte. Of the vocabulary's many other words a reply can be made, and the last layer
    and the sampling are as much work as with the real model.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|pad|>", "<|end|>", "<|unk|>", "<|system|>", "<|user|>", "<|assistant|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"Ġw{number}" for number in range(size.vocabulary - len(special) - len(letters))]
    core = Tokenizer(models.BPE({token: place for place, token in enumerate([*special, *letters, *words])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=special[0], eos_token=special[1], unk_token=special[2]
    )
    tokenizer.add_special_tokens({"extra_special_tokens": special[3:]})
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 8 // 3,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 64 or 1,
        num_key_value_heads=max(1, size.hidden // 192),
        max_position_embeddings=32_768,
        # Large enough that the likeliest token stands out; with the usual 0.02 rounding alone would choose it.
        initializer_range=0.1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class PlainModel:
    """The same model, run by nothing but the library's `generate`."""

    def __init__(self, model: str, device: str, dtype: Dtype) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left")
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        self._model: Any = loaded.to(device).eval()

    def generate(self, chats: Sequence[Sequence[Message]], tokens: int, sample: bool) -> list[tuple[str, int]]:
        """Text and number of tokens of the reply to each chat, all in one batch."""
        import torch

        rows = [[message.model_dump() for message in chat] for chat in chats]
        texts = self._tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
        batch = self._tokenizer(texts, add_special_tokens=False, return_tensors="pt", padding=True)
        batch = batch.to(self._model.device)
        batch.pop("token_type_ids", None)
        options = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0} if sample else {"do_sample": False}
        with torch.inference_mode():
            output = self._model.generate(**batch, max_new_tokens=tokens, **options)
        replies = output[:, batch["input_ids"].shape[1] :].tolist()
        end = self._tokenizer.eos_token_id
        counts = [reply.index(end) + 1 if end in reply else len(reply) for reply in replies]
        return list(zip(self._tokenizer.batch_decode(replies, skip_special_tokens=True), counts, strict=True))


async def together(
    engine: Engine, chats: Sequence[Sequence[Message]], samplings: Sequence[Sampling]
) -> list[Generation]:
    """All requests at once."""
    return await asyncio.gather(*(engine.generate(*pair) for pair in zip(chats, samplings, strict=True)))


async def alone(engine: Engine, chats: Sequence[Sequence[Message]], samplings: Sequence[Sampling]) -> list[Generation]:
    """One request after the other."""
    return [await engine.generate(*pair) for pair in zip(chats, samplings, strict=True)]


async def check_engine(config: EngineConfig, model: str, size: Workload) -> list[Check]:
    """Greedy replies, prefix reuse and seeds, in the dtype of `config`."""
    assert config.dtype in ("float32", "bfloat16")
    exact = config.dtype == "float32"
    chats = questions(8)
    greedy = [Sampling(max_tokens=size.tokens, temperature=0) for _ in chats]
    seeded = [Sampling(max_tokens=size.tokens, seed=seed) for seed in range(len(chats))]
    checks = []
    async with open_engine(config) as engine:
        device = engine.info.details["device"]
        began = time.perf_counter()
        plain = PlainModel(model, device, config.dtype)
        wanted = [plain.generate([chat], size.tokens, sample=False)[0][0] for chat in chats]
        single = await alone(engine, chats, greedy)
        checks.append(_alike(f"greedy replies equal a plain generate ({config.dtype})", single, wanted, exact, began))

        began = time.perf_counter()
        fresh = not any(reply.usage.cached_tokens for reply in single)
        batched = await together(engine, chats, greedy)
        reused = [reply.usage.cached_tokens for reply in batched]
        check = _alike(
            f"prefix reuse does not change replies ({config.dtype})", batched, [r.text for r in single], exact, began
        )
        seen = f"{check.seen}; cached prompt tokens {min(reused)} to {max(reused)}, one by one {0 if fresh else 'some'}"
        checks.append(check.model_copy(update={"passed": check.passed and fresh and min(reused) > 0, "seen": seen}))

        began = time.perf_counter()
        first, second = await together(engine, chats, seeded), await alone(engine, chats, seeded)
        check = _alike(
            f"seeds fix replies, whatever else is in the batch ({config.dtype})",
            second,
            [reply.text for reply in first],
            exact,
            began,
        )
        other = await engine.generate(chats[0], Sampling(max_tokens=size.tokens, seed=1234))
        differs = other.text != first[0].text
        seen = f"{check.seen}; another seed gives {'another' if differs else 'the same'} reply"
        checks.append(check.model_copy(update={"passed": check.passed and differs, "seen": seen}))
    return checks


def _alike(name: str, replies: Sequence[Generation], wanted: Sequence[str], exact: bool, began: float) -> Check:
    """With `exact` all replies must be as wanted. If most were the same, equality would say little."""
    equal = sum(reply.text == text for reply, text in zip(replies, wanted, strict=True))
    distinct = len({reply.text for reply in replies})
    return Check(
        name=name,
        passed=2 * distinct > len(replies) and (equal == len(wanted) or not exact),
        seen=f"{equal} of {len(wanted)} replies equal, {distinct} of them distinct",
        seconds=round(time.perf_counter() - began, 2),
    )


async def measure_speed(config: EngineConfig, model: str, size: Workload) -> Speed:
    """One full batch, sampled at temperature 1, by the engine and by a plain call, in turn."""
    chats = questions(size.batch)
    samplings = [Sampling(max_tokens=size.tokens, seed=seed) for seed in range(size.batch)]
    rates: dict[str, list[float]] = {"engine": [], "plain": []}
    async with open_engine(config) as engine:
        plain = PlainModel(model, engine.info.details["device"], "bfloat16")
        for _ in range(3):  # the first is a warm-up
            began = time.perf_counter()
            replies = await together(engine, chats, samplings)
            written = sum(reply.usage.completion_tokens for reply in replies)
            rates["engine"].append(written / (time.perf_counter() - began))
            began = time.perf_counter()
            counts = [count for _, count in plain.generate(chats, size.tokens, sample=True)]
            rates["plain"].append(sum(counts) / (time.perf_counter() - began))
    ours, theirs = max(rates["engine"][1:]), max(rates["plain"][1:])
    return Speed(
        batch=size.batch,
        tokens=written,
        engine_tokens_per_s=round(ours, 1),
        plain_tokens_per_s=round(theirs, 1),
        ratio=round(ours / theirs, 3),
    )


def check_stage(config: EngineConfig, folder: Path, size: Workload) -> Check:
    """`critique-revise` from shipped prompts to exported tables."""
    began = time.perf_counter()
    stage = CritiqueReviseConfig(
        limit=size.batch, rounds=2, few_shot=1, engine=config, sampling=SamplingConfig(max_tokens=size.tokens)
    )
    inputs = load_inputs(stage)
    outcome = critique_revise(inputs, folder / "run", Console(stderr=True, force_terminal=False))
    seconds = time.perf_counter() - began
    written = outcome.manifest.usage.completion_tokens
    rows = outcome.counts.rows("sft")
    return Check(
        name="the stage runs end to end",
        passed=outcome.counts.chains == inputs.total and rows > 0 and not outcome.manifest.failures,
        seen=f"{outcome.counts.chains} of {inputs.total} chains, {rows} SFT rows, {written:,} tokens "
        f"({written / seconds:.0f}/s with loading and export), {outcome.manifest.usage.cached_tokens:,} cached",
        seconds=round(seconds, 2),
    )


def check_imports() -> Check:
    """The engine and the stage load where only the core and torch, transformers and accelerate are installed."""
    began = time.perf_counter()
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({HEAVY_EXTRAS!r}))\n"
        "import cai.cli, cai.critique_run, cai.engines.transformers"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    return Check(
        name=f"cai imports without {', '.join(HEAVY_EXTRAS)}",
        passed=ran.returncode == 0,
        seen=_last_line(ran.stderr) or "imported",
        seconds=round(time.perf_counter() - began, 2),
    )


def check_marked_tests() -> Check:
    """The tests marked `gpu`, without the project's pytest plugins, which the machine may lack."""
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text("utf-8")]
    name = "tests marked gpu"
    if not marked or importlib.util.find_spec("pytest") is None:
        why = "pytest is not installed" if marked else "there are none"
        return Check(name=name, passed=True, seen=f"not run: {why}", seconds=0)
    began = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(ROOT), "-q", "-m", "gpu"]
    command += sorted(map(str, marked))
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=TEST_SECONDS)
        passed, seen = ran.returncode == 0, _last_line(ran.stdout) or _last_line(ran.stderr)
    except subprocess.TimeoutExpired:
        passed, seen = False, f"not done after {TEST_SECONDS} s"
    return Check(name=name, passed=passed, seen=seen, seconds=round(time.perf_counter() - began, 2))


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def run_all(device: str, model: str | None, size: Workload, folder: Path) -> GpuReport:
    """All checks in turn; files go into `folder`."""
    began = time.perf_counter()
    if model is None:
        save_random_model(folder / "model", size)
    name = model or str(folder / "model")
    single = EngineConfig(model=name, device=device, dtype="float32", batch_size=size.batch)
    half = single.model_copy(update={"dtype": "bfloat16"})
    checks = [check_imports()]
    for config in (single, half):
        checks += asyncio.run(check_engine(config, name, size))
    speed = asyncio.run(measure_speed(half, name, size))
    checks.append(check_stage(half, folder, size))
    checks += check_trainings(name, device, folder / "trained")
    save_random_model(folder / "letters", SMALL.model_copy(update={"vocabulary": LETTERS}))
    checks += check_ppo(name, str(folder / "letters"), device, size.episodes, folder / "ppo")
    checks.append(check_marked_tests())
    return GpuReport(
        benchmark="gpu",
        machine=machine(),
        versions=versions(),
        device=device,
        model=Path(model).name if model else f"random Llama, {size.layers} layers of {size.hidden}",
        checks=tuple(checks),
        speed=speed,
        seconds=round(time.perf_counter() - began, 1),
    )


def why_skipped(device: str) -> str | None:
    """Why nothing can be run on `device`; None where it can."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        return "torch or transformers is not installed"
    import torch

    return "torch finds no CUDA device" if device.startswith("cuda") and not torch.cuda.is_available() else None


def main() -> int:
    """Read the options, check, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="default: cuda; `cpu` tries the script out")
    parser.add_argument("--model", help="directory or hub id; default: random weights")
    parser.add_argument("--small", action="store_true", help="two layers and few tokens, to try the script out")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    if (reason := why_skipped(options.device)) is not None:
        skipped = GpuReport(
            benchmark="gpu",
            machine=machine(),
            versions=versions(),
            device=options.device,
            model=options.model or "none",
            skipped=reason,
        )
        publish(skipped, options.out)
        return 0
    try:
        with tempfile.TemporaryDirectory(prefix="cai-gpu-") as folder:
            report = run_all(options.device, options.model, SMALL if options.small else FULL, Path(folder))
    except CaiError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    publish(report, options.out)
    return 0 if all(check.passed for check in report.checks) else 1


if __name__ == "__main__":
    sys.exit(main())
