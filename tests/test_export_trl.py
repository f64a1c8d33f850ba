"""TRL's trainers take the exported tables as they are: a tiny model with random weights, two steps."""

from importlib import import_module
from pathlib import Path
from typing import Any

import datasets
import pytest
from chain_samples import REQUESTS, chain, facts, round_

from cai.data.export import export_chains

datasets.disable_progress_bars()

WORDS = ("hello", "hi", "question", "with", "a", "bent", "pin", "no", "not", "egg", "eight", "minutes", "With", ".")
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|> {{ message.content }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    chains = [
        chain(
            f"n{n}",
            round_("honesty", "It is vague.", f"with a bent pin {n}"),
            round_("harm", "It harms.", f"no not {n}"),
            prompt=("hello", "hi", f"question {n}") if n % 2 else (f"question {n}",),
        )
        for n in range(8)
    ]
    chains.append(chain("egg", prompt=("question egg",), draft="eight minutes", kind="helpful"))
    export_chains(chains, folder, requests=REQUESTS, test_share=0.0, seed=7, card=facts())
    return folder


@pytest.fixture
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [*WORDS, *"0123456789"]
    special = ["<unk>", "<pad>", "<|end|>", "<|user|>", "<|assistant|>"]
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(special + words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = import_module("transformers").PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def tiny_model(tokenizer: Any) -> Any:
    import torch

    transformers = import_module("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return transformers.LlamaForCausalLM(config)


def arguments(out: Path) -> dict[str, Any]:
    return {
        "output_dir": str(out),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
    }


def test_sft_trainer_takes_the_sft_table(run: Path, tokenizer: Any, tmp_path: Path) -> None:
    trl = import_module("trl")
    rows = datasets.load_dataset(str(run), "sft", split="train", cache_dir=str(tmp_path / "cache"))
    trainer = trl.SFTTrainer(
        model=tiny_model(tokenizer),
        args=trl.SFTConfig(**arguments(tmp_path / "out")),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    before = trainer.model.get_input_embeddings().weight.detach().clone()
    trainer.train()
    assert trainer.state.global_step == 2
    assert not before.equal(trainer.model.get_input_embeddings().weight.detach())
    assert len(trainer.train_dataset) == len(rows) == 8 * 2 + 1
    seen = tokenizer.decode(trainer.train_dataset[0]["input_ids"])
    assert seen == "<|user|> question 0 <|end|> <|assistant|> with a bent pin 0 <|end|>"


def test_dpo_trainer_takes_the_pairs_table(run: Path, tokenizer: Any, tmp_path: Path) -> None:
    trl = import_module("trl")
    rows = datasets.load_dataset(str(run), "pairs", split="train", cache_dir=str(tmp_path / "cache"))
    trainer = trl.DPOTrainer(
        model=tiny_model(tokenizer),
        ref_model=tiny_model(tokenizer),
        args=trl.DPOConfig(**arguments(tmp_path / "out")),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert len(trainer.train_dataset) == len(rows) == 8
    first = trainer.train_dataset[1]
    texts = {name: tokenizer.decode(first[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected")}
    assert texts == {
        "prompt": "<|user|> hello <|end|> <|assistant|> hi <|end|> <|user|> question 1 <|end|> <|assistant|>",
        "chosen": "no not 1 <|end|>",
        "rejected": "With a pin . <|end|>",
    }
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # Before the first step policy and reference agree, so the DPO loss is ln 2.
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
