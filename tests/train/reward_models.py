"""Small reward models with random weights, and their rewards by another way."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_model import byte_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaModel

from cai.records import Message
from cai.rundir import RunDir


def save_reward_model(
    folder: Path, *, seed: int = 0, offset: float | None = None, labels: int = 1, chat: bool = True, **settings: Any
) -> Path:
    """Save a two-layer Llama with a head that reads a random direction."""
    tokenizer = byte_tokenizer(chat=chat)
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "initializer_range": 0.5,
            "pad_token_id": tokenizer.pad_token_id,
            "num_labels": labels,
            **settings,
        }
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if offset is not None:
        change_json(folder / "config.json", reward_offset=offset)
    return folder


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def save_ensemble(out: Path, members: int, **settings: Any) -> Path:
    """The directory of a finished run of `cai train reward --ensemble`."""
    with RunDir.open(
        out, stage="train-reward", config={"ensemble": members}, inputs={}, seed=0, keeps_records=False
    ) as run:
        for number in range(members):
            save_reward_model(out / f"member-{number}" / "model", seed=number, **settings)
        run.save("finished")
    return out


def written(messages: Sequence[Message]) -> str:
    """A conversation as the tiny tokenizer's chat template writes it."""
    return "".join(f"<|{message.role}|>{message.content}<|end|>" for message in messages)


@torch.no_grad()
def plain_reward(folder: Path, messages: Sequence[Message]) -> float:
    """The head's direction times the last hidden state of this conversation alone, without padding and mask."""
    model = LlamaForSequenceClassification.from_pretrained(folder)
    backbone: LlamaModel = model.model
    ids = byte_tokenizer()(written(messages), return_tensors="pt")["input_ids"]
    hidden = backbone(input_ids=ids).last_hidden_state[0, -1]
    return float(hidden @ model.score.weight[0])
