"""TRL's trainers take the exported preferences as they are: a tiny model with random weights, two steps."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets
import pytest
from labels import both, label
from test_export_trl import arguments, tiny_model, tokenizer
from test_preferences import export

__all__ = ["tokenizer"]

datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven labels, of which the first and the third are ties, and a human choice."""
    folder = tmp_path_factory.mktemp("run")
    labels = [
        label(
            f"n{n}",
            *both(0.1 * n + 0.2, 0.8 - 0.2 * bool(n)),
            prompt=("hello", "hi", f"question {n}") if n % 2 else (f"question {n}",),
            a=f"with a bent pin {n}",
            b=f"no not {n}",
        )
        for n in range(7)
    ]
    human = {"prompt": "question egg", "chosen": "eight minutes", "rejected": "no"}
    path = folder / "human.jsonl"
    path.write_text(json.dumps(human) + "\n")
    export(folder, labels, human=str(path))
    return folder


def loaded(run: Path, table: str, tmp_path: Path) -> Any:
    return datasets.load_dataset(str(run), table, split="train", cache_dir=str(tmp_path / "cache"))


def test_dpo_trainer_takes_the_preferences(run: Path, tokenizer: Any, tmp_path: Path) -> None:
    trl = import_module("trl")
    rows = loaded(run, "preferences", tmp_path)
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
    texts = [
        {name: tokenizer.decode(trainer.train_dataset[n][f"{name}_ids"]) for name in ("prompt", "chosen", "rejected")}
        for n in (1, 7)
    ]
    # By the second label the mean of 0.3 and 0.6 favours b.
    assert texts == [
        {
            "prompt": "<|user|> hello <|end|> <|assistant|> hi <|end|> <|user|> question 1 <|end|> <|assistant|>",
            "chosen": "no not 1 <|end|>",
            "rejected": "with a bent pin 1 <|end|>",
        },
        {
            "prompt": "<|user|> question egg <|end|> <|assistant|>",
            "chosen": "eight minutes <|end|>",
            "rejected": "no <|end|>",
        },
    ]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # Before the first step policy and reference agree, so the DPO loss is ln 2.
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)


def test_kto_trainer_takes_the_kto_table(run: Path, tokenizer: Any, tmp_path: Path) -> None:
    trl = import_module("trl")
    rows = loaded(run, "kto", tmp_path)
    trainer = trl.KTOTrainer(
        model=tiny_model(tokenizer),
        ref_model=tiny_model(tokenizer),
        args=trl.KTOConfig(**arguments(tmp_path / "out")),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    assert trainer.state.global_step == 2
    # Of eight pairs two are ties, which have no rows.
    assert len(trainer.train_dataset) == len(rows) == 12
    assert sum(trainer.train_dataset["label"]) == 6
