"""TRL's trainers take the exported tables as they are."""

from pathlib import Path
from typing import Any

import pytest
from chain_samples import chain, facts, requests, round_
from trl_trainers import first_loss, pair_texts, tokenizer, trained

from cai.data.export import export_chains

__all__ = ["tokenizer"]


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
    export_chains(chains, folder, requests=requests, test_share=0.0, seed=7, card=facts())
    return folder


def test_sft_trainer_takes_the_sft_table(run: Path, tokenizer: Any, tmp_path: Path) -> None:
    trainer = trained("SFT", run, "sft", tokenizer, tmp_path)
    assert len(trainer.train_dataset) == 8 * 2 + 1
    seen = tokenizer.decode(trainer.train_dataset[0]["input_ids"])
    assert seen == "<|user|> question 0 <|end|> <|assistant|> with a bent pin 0 <|end|>"


def test_dpo_trainer_takes_the_pairs_table(run: Path, tokenizer: Any, tmp_path: Path) -> None:
    trainer = trained("DPO", run, "pairs", tokenizer, tmp_path)
    assert len(trainer.train_dataset) == 8
    assert pair_texts(trainer, 1) == {
        "prompt": "<|user|> hello <|end|> <|assistant|> hi <|end|> <|user|> question 1 <|end|> <|assistant|>",
        "chosen": "no not 1 <|end|>",
        "rejected": "With a pin . <|end|>",
    }
    # Before the first step policy and reference agree, so the DPO loss is ln 2.
    assert first_loss(trainer) == pytest.approx(0.6931, abs=1e-3)
