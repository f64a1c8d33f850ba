"""Runs TRL's PPOTrainer and writes down the numbers that it computes on the way; for a Python that has TRL 1.12.0.

    python trl_ppo_driver.py runs.json out.safetensors

runs.json holds arguments of PPOConfig by the name of a run. What is written is local variables of the trainer's
`train`, by `{run}/rollout/{variable}` and `{run}/{number of the micro-batch}/{variable}`, and beside them:

    rollout/context     number of prompt tokens
    rollout/unwhitened  what was passed to `masked_whiten`, stacked: rewards if they are whitened, and advantages
    {number}/logits     of the policy for the whole texts, before the temperature
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

ROLLOUT = (
    *("logprobs", "ref_logprobs", "values", "scores", "rewards", "kl", "advantages", "returns"),
    *("padding_mask", "padding_mask_p1"),
)
STEP = (
    *("micro_batch_inds", "mb_responses", "new_logprobs", "ratio", "vpred"),
    *("pg_loss_max", "pg_loss", "vf_loss_max", "vf_loss", "loss"),
)
STATISTICS = ("pg_clipfrac_stats", "vf_clipfrac_stats", "entropy_stats")
WORDS = 14
"""Few, so that many responses of random weights end by themselves."""
EPISODES = 16
"""Of one update. There are prompts for two: over the last batch of the data Accelerate accumulates no gradients."""


def tokenizer() -> Any:
    words = {"<pad>": 0, "<eos>": 1} | {f"w{n}": n + 2 for n in range(WORDS)}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
        model_input_names=["input_ids"],
    )


def tiny(kind: Any, seed: int, **settings: Any) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=WORDS + 2,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **settings,
    )
    return kind(config)


def recorded(name: str, settings: dict[str, Any], folder: Path) -> dict[str, torch.Tensor]:
    """What one update of PPO computes."""
    found: dict[str, torch.Tensor] = {}
    policy = tiny(LlamaForCausalLM, 0)
    generator = torch.Generator().manual_seed(0)
    lengths = [2 + n % 4 for n in range(2 * EPISODES)]
    prompts = [{"input_ids": torch.randint(2, WORDS + 2, (size,), generator=generator).tolist()} for size in lengths]
    trainer = PPOTrainer(
        PPOConfig(
            output_dir=str(folder / name),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            num_sample_generations=0,
            stop_token="eos",
            total_episodes=EPISODES,
            **settings,
        ),
        tokenizer(),
        model=policy,
        ref_model=tiny(LlamaForCausalLM, 1),
        reward_model=tiny(LlamaForSequenceClassification, 2, num_labels=1),
        value_model=tiny(LlamaForSequenceClassification, 3, num_labels=1),
        train_dataset=Dataset.from_list(prompts),
        eval_dataset=Dataset.from_list(prompts),
    )
    logits: list[torch.Tensor] = []
    policy.lm_head.register_forward_hook(lambda _module, _inputs, output: logits.append(output.detach().clone()))
    unwhitened: list[torch.Tensor] = []
    whiten, backward, log = ppo_trainer.masked_whiten, trainer.accelerator.backward, trainer.log
    steps = 0

    def keep(prefix: str, names: Iterable[str], variables: Any) -> None:
        for variable in names:
            found[f"{name}/{prefix}/{variable}"] = torch.as_tensor(variables[variable]).detach().clone().contiguous()

    def recording_whiten(values: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        unwhitened.append(values.clone())
        return whiten(values, *arguments, **named)

    def recording_backward(loss: torch.Tensor) -> None:
        nonlocal steps
        variables = sys._getframe(1).f_locals
        if not steps:
            keep("rollout", ROLLOUT, variables)
            found[f"{name}/rollout/context"] = torch.tensor(variables["context_length"])
            found[f"{name}/rollout/unwhitened"] = torch.stack(unwhitened)
        keep(str(steps), [*STEP, "logits"], {**variables, "logits": logits[-1]})
        steps += 1
        backward(loss)

    def recording_log(metrics: dict[str, float]) -> None:
        keep("rollout", STATISTICS, sys._getframe(1).f_locals)
        log(metrics)

    ppo_trainer.masked_whiten = recording_whiten
    trainer.accelerator.backward = recording_backward
    trainer.log = recording_log
    try:
        trainer.train()
    finally:
        ppo_trainer.masked_whiten = whiten
    return found


def main(runs: Path, out: Path) -> None:
    torch.set_num_threads(1)
    found: dict[str, torch.Tensor] = {}
    for name, settings in json.loads(runs.read_text()).items():
        found |= recorded(name, settings, out.parent)
    save_file(found, out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
