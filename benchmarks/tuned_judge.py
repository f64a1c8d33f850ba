"""A judge fine-tuned on a few hundred human labels: what its model can come to, as an upper baseline for judges.

A LoRA adapter is trained on the very requests that the judge of `cai judge-check` sends (system turn, worked examples,
fences, the drawn principle and the beginning of the answer), so that the same judge options certify it. One example is
one comparison, and its loss is −log σ(margin):

- pairwise: the margin is the log-odds of the option that the principle's sentence asks for, which is the worse response
  where its polarity is `worse`. The order of the responses is drawn for the first epoch and turned with every further
  one;
- pointwise: the log-odds of No about the better response minus those about the worse one.

Log-odds are taken over all spellings of the options, as the judge takes them, at the last place of the request. The
judge is tried on the first of these very comparisons before and after: that shows whether the training works and not
what the judge is worth, which comparisons that it has not seen must show.
"""

import argparse
import asyncio
import math
import random
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from common import Report, exit_status, machine, positive, public_info, publish, versions
from pydantic import Field

from cai.config import Positive, StrictModel, load_config
from cai.constitution import Constitution, frozen_yaml, load_constitution
from cai.engines import EngineInfo, open_engine
from cai.engines.weights import DEFAULT_MODEL, resolve_model
from cai.errors import ConfigError, EngineError, RecordError, StageError
from cai.feedback.certificate import Figures, measure
from cai.feedback.judge_config import PARTS
from cai.feedback.judging import JudgingConfig, JudgingInputs, judging_phase, load_judging
from cai.feedback.prompts import COMPARISON_FILES
from cai.feedback.scale import fitted_scale
from cai.principles import Principle
from cai.records import Comparison, Failure, Label, Message, stable_seed
from cai.stage import run_stage
from cai.statistics import percent

if TYPE_CHECKING:  # torch is loaded after the engine, which sets how its threads wait
    import torch

    from cai.engines.chat import ChatFormat

Protocol = Literal["pairwise", "pointwise"]

OPTIONS: dict[Protocol, tuple[str, str]] = {"pairwise": ("A", "B"), "pointwise": ("No", "Yes")}
"""Log-odds are those of the first option over the second."""
RANK = 8
"""Of the adapter's matrices, on all linear layers but the output layer (Hu et al. 2021, arXiv 2106.09685)."""
TRIED = 64
"""Comparisons on which the judge is tried before and after."""
MAX_GRADIENT = 1.0
"""Norm to which gradients are cut."""

Term = tuple[list[int], int]
"""Token ids of one request, and the sign of its log-odds."""


@dataclass(frozen=True)
class Example:
    """What is learned from one comparison."""

    id: str
    margins: tuple[tuple[Term, ...], ...]
    """Each is a sum of signed log-odds that is to be above 0: pairwise one for each order, pointwise one in all."""


class Training(StrictModel):
    """How the adapter is trained."""

    epochs: Positive
    batch: Positive
    """Examples in one step of the optimiser."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Learning rate at the beginning; it falls to 0 along half a cosine."""


class TunedJudgeReport(Report):
    """The report of this script."""

    engine: EngineInfo
    """Of the trained judge."""
    source: str
    skipped: int
    """Comparisons at its beginning that were passed over."""
    constitution: str
    protocol: Protocol
    principle: str | None
    """None where one is drawn for each comparison."""
    few_shot: int
    """Worked examples before each request."""
    examples: int
    """Comparisons that were learned from."""
    left_out: dict[str, int]
    """Comparisons that were not, by reason."""
    training: Training
    seed: int
    losses: tuple[float, ...]
    """Mean loss of each epoch, taken while it ran."""
    tokens: int
    """That were trained on."""
    tokens_per_s: float
    before: Figures
    """Of the judge without the adapter, on the first comparisons that it then learned from."""
    after: Figures
    """Of the judge with the adapter as it was saved, on the same comparisons."""


def examples_of(inputs: JudgingInputs, chat: "ChatFormat") -> tuple[list[Example], Counter[str]]:
    """Examples of all comparisons, and how many of these give none, by reason."""
    found: list[Example] = []
    left_out = Counter[str]()
    for item in judging_phase(inputs).items():
        try:
            found.append(Example(item.id, margins(inputs, chat, item.of)))
        except RecordError as error:
            left_out[error.reason] += 1
    return found, left_out


def margins(inputs: JudgingInputs, chat: "ChatFormat", comparison: Comparison) -> tuple[tuple[Term, ...], ...]:
    """The margins of one comparison, whose principle is drawn as `Judge` draws it.

    Raises:
        RecordError: a request cannot be encoded, or is longer than the context.
    """
    config, prompts = inputs.config, inputs.prompts
    protocol = protocol_of(config)
    drawn = inputs.constitution.draw(PARTS[protocol], config.seed, comparison.id)
    principle = prompts.phrase(drawn, comparison.prompt.topic)
    file = "question.j2" if protocol == "pointwise" else COMPARISON_FILES[config.judge.layout]
    opening = prompts.opening(file, inputs.constitution, config.judge.few_shot, cot=False)

    def encoded(request: Message) -> list[int]:
        return chat.encode([*opening, request], 0, prompts.answer(file, None))

    def in_order(shown: Comparison) -> tuple[Term, ...]:
        replies = (shown.a.text, shown.b.text)
        request = prompts.comparison(config.judge.layout, shown.prompt.messages, replies, principle, cot=False)
        return ((encoded(request), 1 if asks_for_a(shown, principle) else -1),)

    if protocol == "pairwise":
        return in_order(comparison), in_order(comparison.swap())
    better, worse = (
        encoded(prompts.alone("question.j2", comparison.prompt.messages, one.text, principle, cot=False))
        for one in ((comparison.a, comparison.b) if comparison.gold == "a" else (comparison.b, comparison.a))
    )
    return (((better, 1), (worse, -1)),)


def asks_for_a(shown: Comparison, principle: Principle) -> bool:
    """Whether the principle's sentence asks for the first response, if the gold label is right."""
    return (shown.gold == "a") == (principle.polarity == "better")


def protocol_of(config: JudgingConfig) -> Protocol:
    """The one protocol of this script's configurations."""
    return "pairwise" if config.judge.protocol == ("pairwise",) else "pointwise"


class Trainer:
    """A model with a new adapter."""

    def __init__(self, inputs: JudgingInputs) -> None:
        """Load the model of `inputs`, which the engine has opened before, and encode the comparisons.

        Raises:
            EngineError: the vocabulary splits an option.
            StageError: there is no example.
        """
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from cai.engines.chat import ChatFormat
        from cai.engines.transformers import choose_device, choose_dtype

        config = inputs.config.engine
        name, device = resolve_model(config.model), choose_device(config.device)
        base = AutoModelForCausalLM.from_pretrained(
            name, dtype=choose_dtype(config.dtype, device), use_safetensors=True
        ).to(device)
        max_len = min(filter(None, (config.max_model_len, base.config.get_text_config().max_position_embeddings)))
        chat = ChatFormat(AutoTokenizer.from_pretrained(name), config.format, max_len)
        self.examples, self.left_out = examples_of(inputs, chat)
        if not self.examples:
            reasons = ", ".join(f"{reason} {number}" for reason, number in self.left_out.items())
            raise StageError(f"no comparison can be learned from ({reasons}); take another model or shorter ones")
        self._options = chat.choice_tokens(OPTIONS[protocol_of(inputs.config)])
        self._seed = inputs.config.seed
        torch.manual_seed(self._seed)  # of the adapter's first values and of any dropout
        lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        self._model: Any = get_peft_model(base, lora)  # its own weights are float32 beside bfloat16 ones
        self._device = device
        self.tokens = 0
        """Trained on so far."""

    def train(self, training: Training) -> list[float]:
        """Train on all examples, and give the mean loss of each epoch.

        Raises:
            EngineError: out of memory, or the loss is no number.
        """
        import torch

        weights = [weight for weight in self._model.parameters() if weight.requires_grad]
        optimiser = torch.optim.AdamW(weights, lr=training.lr, weight_decay=0.0)
        steps = training.epochs * math.ceil(len(self.examples) / training.batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        self._model.train()
        losses = []
        for epoch in range(training.epochs):
            order = list(self.examples)
            random.Random(stable_seed(self._seed, "epoch", epoch)).shuffle(order)
            total, done = 0.0, 0
            for start in range(0, len(order), training.batch):
                batch = order[start : start + training.batch]
                began, tokens = time.perf_counter(), self.tokens
                total += sum(self._backward(example, epoch, 1 / len(batch)) for example in batch)
                torch.nn.utils.clip_grad_norm_(weights, MAX_GRADIENT)
                optimiser.step()
                schedule.step()
                optimiser.zero_grad()
                done += len(batch)
                speed = (self.tokens - tokens) / (time.perf_counter() - began)
                say(f"epoch {epoch + 1}: {done}/{len(order)} examples, loss {total / done:.4f}, {speed:.0f} tokens/s")
            losses.append(total / len(order))
        return losses

    def save(self, folder: Path) -> None:
        """Save the adapter as PEFT does."""
        self._model.save_pretrained(folder, save_embedding_layers=False)  # or the hub is asked about the base model

    def _backward(self, example: Example, epoch: int, share: float) -> float:
        """Add `share` of the gradient of an example's loss, and give the loss."""
        import torch

        first = stable_seed(self._seed, example.id, "order")
        margin = example.margins[(first + epoch) % len(example.margins)]
        try:
            value = torch.stack([sign * self._log_odds(ids) for ids, sign in margin]).sum()
            loss = torch.nn.functional.softplus(-value)
            (share * loss).backward()
        except torch.OutOfMemoryError:
            longest = max(len(ids) for ids, _ in margin)
            raise EngineError(
                f"out of memory with a request of {longest:,} tokens; leave longer ones out by a lower --max-model-len"
            ) from None
        if not math.isfinite(loss.item()):
            raise EngineError(f"the loss of {example.id} is {loss.item()}; try a lower --lr or --dtype float32")
        return float(loss.item())

    def _log_odds(self, ids: Sequence[int]) -> "torch.Tensor":
        """Log-odds of the first option over the second as what follows `ids`; a scalar, float32.

        From the model's own logits, unlike the judge's: that bfloat16 ones come in steps moves a gradient little.
        """
        import torch

        self.tokens += len(ids)
        inputs = torch.tensor([ids], device=self._device)
        logits = self._model(input_ids=inputs, use_cache=False, logits_to_keep=1).logits[0, -1].float()
        first, second = (logits[list(tokens)].logsumexp(0) for tokens in self._options)
        return first - second


async def tried(inputs: JudgingInputs) -> tuple[Figures, EngineInfo]:
    """Figures of the judge of `inputs` on the first comparisons, as in a certificate.

    Raises:
        EngineError: the model or its adapter cannot be used.
        StageError: no comparison gets a verdict.
    """
    labels: list[Label] = []
    failures: list[Failure] = []
    phase = judging_phase(inputs)
    async with open_engine(inputs.config.engine) as engine:
        await run_stage(
            islice(phase.items(), TRIED),
            phase.worker(engine, lambda _: None),
            concurrency=engine.info.concurrency,
            on_result=labels.append,
            on_failure=failures.append,
        )
        info = engine.info
    reasons = Counter(failure.reason for failure in failures)
    scale = fitted_scale(labels, inputs.config.judge, inputs.constitution)
    return measure(labels, fitted_scale=scale, failures=reasons, seconds=0, seed=inputs.config.seed), info


def tune(inputs: JudgingInputs, training: Training, principle: str | None, out: Path) -> TunedJudgeReport:
    """Train and save the adapter; the judge is tried before and after."""
    config = inputs.config
    say("trying the judge before …")
    before, _ = asyncio.run(tried(inputs))
    trainer = Trainer(inputs)
    left = f", {trainer.left_out.total()} left out" if trainer.left_out else ""
    say(f"accuracy before: {percent(before.accuracy)}; {len(trainer.examples)} examples{left}")
    began = time.perf_counter()
    losses = trainer.train(training)
    seconds = time.perf_counter() - began
    trainer.save(out)
    examples, left_out, tokens = len(trainer.examples), trainer.left_out, trainer.tokens
    del trainer  # the engine needs the memory
    adapted = config.engine.model_copy(update={"adapter": out})
    after, info = asyncio.run(tried(replace(inputs, config=config.model_copy(update={"engine": adapted}))))
    say(f"accuracy after: {percent(after.accuracy)}, on {after.comparisons} comparisons that it has learned from")
    return TunedJudgeReport(
        benchmark="tuned_judge",
        machine=machine(),
        versions=versions(),
        engine=public_info(info),
        source=Path(config.comparisons).name,
        skipped=config.skip,
        constitution=inputs.constitution.name,
        protocol=protocol_of(config),
        principle=principle,
        few_shot=config.judge.few_shot or 0,
        examples=examples,
        left_out=left_out,
        training=training,
        seed=config.seed,
        losses=tuple(round(loss, 5) for loss in losses),
        tokens=tokens,
        tokens_per_s=round(tokens / seconds, 1),
        before=before,
        after=after,
    )


def with_one_principle(constitution: Constitution, id_: str, protocol: Protocol) -> Constitution:
    """The constitution with all other principles switched off.

    Raises:
        ConfigError: there is no such principle, or it does not serve the protocol.
    """
    part = PARTS[protocol]
    if not constitution.principle(id_).serves(part):
        raise ConfigError(f"the principle `{id_}` does not serve the protocol {protocol}: it has no {part}")
    principles = [one.model_copy(update={"weight": 1.0 if one.id == id_ else 0.0}) for one in constitution.principles]
    return Constitution.model_validate({**dict(constitution), "principles": principles})


def new_folder(path: Path) -> None:
    """Make the folder of the adapter.

    Raises:
        ConfigError: it cannot be made, or holds files.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        taken = next(path.iterdir(), None)
    except OSError as error:
        raise ConfigError(f"--out {path} cannot be used: {error.strerror}") from None
    if taken:
        raise ConfigError(f"--out {path} is not empty; name a new folder")


def certifying(inputs: JudgingInputs, constitution: str, out: Path) -> str:
    """The command that certifies the tuned judge on the comparisons after those that it has learned from."""
    config = inputs.config
    engine = config.engine
    words = ["cai", "judge-check", "--model", engine.model or DEFAULT_MODEL, "--adapter", str(out)]
    words += ["--dtype", engine.dtype, "--constitution", constitution, "--protocol", protocol_of(config)]
    words += ["--few-shot", str(config.judge.few_shot), "--seed", str(config.seed)]
    words += ["--max-model-len", str(engine.max_model_len)] if engine.max_model_len else []
    words += ["--comparisons", config.comparisons, "--skip", str(config.skip + inputs.total)]
    return shlex.join(words)


def say(text: str) -> None:
    """Show progress."""
    print(text, file=sys.stderr)


def main() -> None:
    """Read the options, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new folder for the adapter and report.json")
    parser.add_argument(
        "--comparisons", required=True, help="labelled pairs: file, shipped set, hub:owner/name[:split]"
    )
    parser.add_argument("--skip", type=int, default=0, help="pass over the first comparisons; default: 0")
    parser.add_argument("--limit", type=positive, default=300, help="learn from so many; default: 300")
    parser.add_argument("--protocol", choices=get_args(Protocol), default="pairwise", help="default: pairwise")
    parser.add_argument("--constitution", default="hhh", help="file or shipped name; default: hhh")
    parser.add_argument("--principle", metavar="ID", help="always this one; default: drawn for each comparison")
    parser.add_argument("--few-shot", type=int, default=0, help="worked examples before each request; default: 0")
    parser.add_argument("--model", help="directory or hub id; default: SmolLM2-135M-Instruct")
    parser.add_argument("--dtype", help="of the model's weights; the adapter's are float32; default: auto")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1; default: auto")
    parser.add_argument("--max-model-len", type=positive, help="longest request in tokens; default: the model's own")
    parser.add_argument("--epochs", type=positive, default=2, help="default: 2, so that both orders are seen")
    parser.add_argument("--batch", type=positive, default=8, help="examples in one step of the optimiser; default: 8")
    parser.add_argument("--lr", type=float, default=2e-4, help="learning rate at the beginning; default: 2e-4")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    options = parser.parse_args()
    config = load_config(
        JudgingConfig,
        None,
        {
            "comparisons": options.comparisons,
            "constitution": options.constitution,
            "skip": options.skip,
            "limit": options.limit,
            "seed": options.seed,
            # A model that has not been tuned may give most of its probability to other answers.
            "judge": {"protocol": [options.protocol], "few_shot": options.few_shot, "min_option_mass": 0},
            "engine": {
                "model": options.model,
                "dtype": options.dtype,
                "device": options.device,
                "max_model_len": options.max_model_len,
            },
        },
    )
    training = load_config(Training, None, {"epochs": options.epochs, "batch": options.batch, "lr": options.lr})
    constitution = options.constitution
    inputs = load_judging(config, require_gold=True)
    if options.principle:
        chosen = with_one_principle(load_constitution(constitution), options.principle, options.protocol)
        inputs = replace(inputs, constitution=chosen)
    new_folder(options.out)
    report = tune(inputs, training, options.principle, options.out)
    if options.principle:
        constitution = str(options.out / "constitution.yaml")
        Path(constitution).write_text(frozen_yaml(inputs.constitution), encoding="utf-8")
    say(f"certify it: {certifying(inputs, constitution, options.out)}")
    publish(report, options.out / "report.json")


if __name__ == "__main__":
    sys.exit(exit_status(main))
