"""Comparisons whose better response is known by a rule, labelled by two sides, and ways to compare these."""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from cai.compare.config import CompareConfig
from cai.compare.run import Compared, compare_paths, plan_comparison

KIND = ("amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath")
"""Words of the responses that the rule prefers."""
OTHER = ("islet", "jetty", "knoll", "ledge", "marsh", "north", "oasis", "pond")

REWARD: Mapping[str, Any] = {
    "learning_rate": 1e-2,
    "max_length": 128,
    "bf16": False,
    "use_cpu": True,
    "logging_steps": 1,
    "report_to": ["none"],
    "num_train_epochs": 3,
}
"""A training that learns the rule in seconds."""


def comparisons(number: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Two responses to a prompt of its own; that under `kind` has words that the rule prefers, behind a figure that
    puts it first or second in the alphabet."""
    draw = random.Random(f"comparisons {seed}")
    for place in range(number):
        kind, other = (
            " ".join([draw.choice("0123456789"), *draw.choices(words, k=draw.randint(3, 6))]) for words in (KIND, OTHER)
        )
        yield {"prompt": f"{seed}-{place}: {draw.choice(KIND + OTHER)}?", "kind": kind, "other": other}


def labelled(
    rows: Iterable[Mapping[str, Any]], prefers: Callable[[int], bool | float], **columns: Any
) -> Iterator[dict[str, Any]]:
    """Rows of preferences; `prefers` says of each place whether, or how likely, the rule's response is the better."""
    for place, row in enumerate(rows):
        p = float(prefers(place))
        pair = (row["kind"], row["other"])
        chosen, rejected = pair if p >= 0.5 else pair[::-1]
        yield {
            "prompt": row["prompt"], "chosen": chosen, "rejected": rejected, "p_chosen": max(p, 1 - p), **columns,
        }  # fmt: skip


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def config(ai: Path, human: Path, model: Path | None = None, **settings: Any) -> CompareConfig:
    reward = {**REWARD, **settings.pop("reward", {}), **({} if model is None else {"model": str(model)})}
    given = {"ai": {"path": str(ai)}, "human": {"path": str(human)}, "reward": reward, "seeds": 1, "sizes": []}
    return CompareConfig.model_validate({**given, **settings})


def compare(out: Path, ai: Path, human: Path, model: Path, **settings: Any) -> Compared:
    """Compare in this process."""
    return compare_paths(plan_comparison(config(ai, human, model, **settings)), out, Console(quiet=True))
