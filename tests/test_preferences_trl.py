"""TRL's trainers take the exported preferences as they are."""

import json
from pathlib import Path
from typing import Any

import pytest
from labels import both, label
from test_preferences import export
from trl_trainers import first_loss, pair_texts, tokenizer, trained

__all__ = ["tokenizer"]


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


def test_dpo_trainer_takes_the_preferences(run: Path, tokenizer: Any, tmp_path: Path) -> None:
    trainer = trained("DPO", run, "preferences", tokenizer, tmp_path)
    assert len(trainer.train_dataset) == 8
    # By the second label the mean of 0.3 and 0.6 favours b.
    assert pair_texts(trainer, 1) == {
        "prompt": "<|user|> hello <|end|> <|assistant|> hi <|end|> <|user|> question 1 <|end|> <|assistant|>",
        "chosen": "no not 1 <|end|>",
        "rejected": "with a bent pin 1 <|end|>",
    }
    assert pair_texts(trainer, 7) == {
        "prompt": "<|user|> question egg <|end|> <|assistant|>",
        "chosen": "eight minutes <|end|>",
        "rejected": "no <|end|>",
    }
    # Before the first step policy and reference agree, so the DPO loss is ln 2.
    assert first_loss(trainer) == pytest.approx(0.6931, abs=1e-3)


def test_kto_trainer_takes_the_kto_table(run: Path, tokenizer: Any, tmp_path: Path) -> None:
    trainer = trained("KTO", run, "kto", tokenizer, tmp_path)
    # Of eight pairs two are ties, which have no rows.
    assert len(trainer.train_dataset) == 12
    assert sum(trainer.train_dataset["label"]) == 6
