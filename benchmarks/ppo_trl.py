"""One run of TRL's PPOTrainer for `ppo.py`; for a Python that has TRL 1.12.0.

    python ppo_trl.py job.json trl-full found.json

job.json is a `ppo_records.TrlJob`; found.json becomes a `ppo_records.Measured`. The full arm has four models: policy,
reference, values and rewards. The LoRA arm has an adapter on the policy, whose base is the reference; values and
rewards stay models of their own.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from ppo_meter import SCORING, UPDATE, WRITING, Meter
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    set_seed,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


def make_trainer(job: dict[str, Any], lora: bool, folder: str) -> Any:
    """The trainer on the prompts in their order."""
    arguments = PPOConfig(
        output_dir=folder,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        num_sample_generations=0,
        stop_token="eos",
        **job["arguments"],
    )
    # As in our trainer: frozen weights are in the type that is computed in, those that learn in float32.
    frozen = torch.bfloat16 if arguments.bf16 else torch.float32
    prompts = [{"input_ids": ids} for ids in job["prompts"]]
    set_seed(arguments.seed)
    trainer = PPOTrainer(
        arguments,
        AutoTokenizer.from_pretrained(job["reward"], padding_side="left"),
        model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=frozen if lora else torch.float32),
        ref_model=None if lora else AutoModelForCausalLM.from_pretrained(job["model"], dtype=frozen),
        reward_model=AutoModelForSequenceClassification.from_pretrained(job["reward"], dtype=frozen),
        value_model=AutoModelForSequenceClassification.from_pretrained(job["reward"], dtype=torch.float32),
        train_dataset=prompts,
        eval_dataset=prompts,
        peft_config=LoraConfig(**job["lora"], task_type="CAUSAL_LM") if lora else None,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.dataloader = trainer.accelerator.prepare(
        DataLoader(prompts, batch_size=arguments.batch_size, collate_fn=trainer.data_collator, drop_last=True)
    )
    return trainer


def watch(trainer: Any, meter: Meter) -> None:
    """Measure what the trainer does. The whitening of the advantages comes last before the update, the log after it."""
    generate, whiten = meter.timed(WRITING, ppo_trainer.batch_generation), ppo_trainer.masked_whiten
    read, cut, log = ppo_trainer.get_reward, ppo_trainer.truncate_response, trainer.log
    score = meter.timed(SCORING, read)

    def generated(model: Any, queries: torch.Tensor, rows: int, pad: int, *others: Any) -> Any:
        meter.count(prompt_tokens=int((queries != pad).sum()))
        return generate(model, queries, rows, pad, *others)

    def truncated(stop: int, pad: int, responses: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = cut(stop, pad, responses)
        real = (found != pad).long().cumprod(-1)
        meter.count(tokens=int(real.sum()), ended=int(((found == stop) & (real == 1)).sum()))
        return found

    def whitened(*arguments: Any, **named: Any) -> torch.Tensor:
        found: torch.Tensor = whiten(*arguments, **named)
        meter.start(UPDATE)
        return found

    def logged(metrics: dict[str, float]) -> None:
        meter.stop(UPDATE)
        log(metrics)
        meter.step_ended()

    ppo_trainer.batch_generation, ppo_trainer.truncate_response = generated, truncated
    ppo_trainer.masked_whiten = whitened
    ppo_trainer.get_reward = lambda model, *others: (score if model is trainer.reward_model else read)(model, *others)
    trainer.log = logged


def main(job_file: Path, arm: str, out: Path) -> None:
    """Train, and write down what was measured."""
    job = json.loads(job_file.read_text())
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(job, arm == "trl-lora", folder)
        meter = Meter(job["steps"], trainer.accelerator.device.type)
        watch(trainer, meter)
        trainer.train()
    out.write_text(json.dumps(meter.found()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
