"""TRL's trainers on exported tables: a tiny model with random weights, two steps."""

from importlib import import_module
from pathlib import Path
from typing import Any

import datasets
import pytest

datasets.disable_progress_bars()

WORDS = ("hello", "hi", "question", "with", "a", "bent", "pin", "no", "not", "egg", "eight", "minutes", "With", ".")
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|> {{ message.content }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


@pytest.fixture
def tokenizer() -> Any:
    """Knows the words of the tests alone."""
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


def trained(kind: str, run: Path, table: str, tokenizer: Any, folder: Path) -> Any:
    """TRL's `SFT`, `DPO` or `KTO` trainer after two steps on an exported table, of which it took every row."""
    trl = import_module("trl")
    rows = datasets.load_dataset(str(run), table, split="train", cache_dir=str(folder / "cache"))
    reference = {} if kind == "SFT" else {"ref_model": tiny_model(tokenizer)}
    arguments = getattr(trl, f"{kind}Config")(
        output_dir=str(folder / "out"),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    trainer = getattr(trl, f"{kind}Trainer")(
        model=tiny_model(tokenizer), args=arguments, train_dataset=rows, processing_class=tokenizer, **reference
    )
    before = trainer.model.get_input_embeddings().weight.detach().clone()
    trainer.train()
    assert trainer.state.global_step == 2
    assert not before.equal(trainer.model.get_input_embeddings().weight.detach())
    assert len(trainer.train_dataset) == len(rows)
    return trainer


def pair_texts(trainer: Any, number: int) -> dict[str, str]:
    """What a DPO trainer makes of a row."""
    row = trainer.train_dataset[number]
    names = ("prompt", "chosen", "rejected")
    return {name: trainer.processing_class.decode(row[f"{name}_ids"]) for name in names}


def first_loss(trainer: Any) -> float:
    """The loss before the first step."""
    return float(next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry))
