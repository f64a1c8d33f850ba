"""The reward models of a comparison: a run of `cai train reward` for each side, number of labels and seed.

    pairs/      the rows that they learn from and are measured on, which `cai train reward` reads as any other file
    models/     their run directories; a killed one goes on from its checkpoint, a finished one is left as it is

Checkpoints of finished models are removed, since they are larger than the model.
"""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ValidationError
from rich.console import Console

from cai.compare.config import SIDES, CompareConfig, LabelSide
from cai.compare.matching import ComparedPair, Pairs
from cai.compare.measuring import Deltas
from cai.data.training_rows import LabelSource
from cai.errors import RunDirError
from cai.journal import first_problem, write_error, write_file
from cai.records import Message, Record
from cai.statistics import Floats
from cai.train.config import RewardConfig
from cai.train.lifecycle import CHECKPOINTS, RESULTS
from cai.train.plan import plan_reward
from cai.train.reward import HELD_OUT, train_reward

PAIRS, MODELS = "pairs", "models"
_HELD_OUT_ROWS = "held_out.jsonl"
_NEVER = 10**9
"""Steps between two evaluations of which the first never comes: held-out pairs are scored once, after training."""


class ModelAsked(NamedTuple):
    """One reward model of a comparison."""

    side: LabelSide
    labels: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.side}-{self.labels}-seed-{self.seed}"


class PairRow(Record):
    """A row of the files in `pairs`."""

    id: str
    prompt_id: str
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    """One message of the assistant; a text alone could be taken for a transcript."""
    rejected: tuple[Message, ...]
    p_chosen: float
    source: LabelSource


class _HeldOut(BaseModel):
    """What is read of a model's held_out.json."""

    held_out: tuple[tuple[float, float], ...]
    """Rewards of chosen and rejected."""


def models_asked(config: CompareConfig, sizes: Sequence[int]) -> tuple[ModelAsked, ...]:
    """All reward models, the small ones first, and the two sides in turn."""
    seeds = range(config.seed, config.seed + config.seeds)
    return tuple(ModelAsked(side, size, seed) for size in sizes for seed in seeds for side in SIDES)


def train_models(
    config: CompareConfig,
    pairs: Pairs,
    models: Sequence[ModelAsked],
    out: Path,
    console: Console,
    command: Sequence[str],
) -> Deltas:
    """Train the models that are not finished, and read what all of them make of the held-out pairs.

    Raises:
        KeyboardInterrupt, CaiError: as `train_reward`; finished models are kept.
    """
    _write_pairs(pairs, out / PAIRS)
    found: dict[tuple[LabelSide, int], list[Floats]] = {}
    for number, model in enumerate(models, 1):
        folder = out / MODELS / model.name
        if (folder / RESULTS).is_file():
            console.print(f"model {number} of {len(models)}: {model.name} is trained", markup=False)
        else:
            console.print(f"model {number} of {len(models)}: {model.name} …", markup=False)
            plan = plan_reward(model_config(config, model, out / PAIRS))
            train_reward(plan, folder, console, command=command)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        found.setdefault((model.side, model.labels), []).append(_deltas(folder, pairs.held_out))
    return {key: np.stack(rows) for key, rows in found.items()}


def model_config(config: CompareConfig, model: ModelAsked, folder: Path) -> RewardConfig:
    """The training of one model on rows in `folder`; its subset are the first of the side's rows."""
    asked = config.reward.model_dump(exclude_unset=True)
    return RewardConfig.model_validate(
        {
            "eval_steps": _NEVER,
            **asked,
            "data": [{"path": str(folder / f"{model.side}.jsonl"), "limit": model.labels}],
            "eval_data": [{"path": str(folder / _HELD_OUT_ROWS)}],
            "seed": model.seed,
        }
    )


def _write_pairs(pairs: Pairs, folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from None
    for side in SIDES:
        _write_rows(folder / f"{side}.jsonl", pairs.train, side)
    _write_rows(folder / _HELD_OUT_ROWS, pairs.held_out, "human")


def _write_rows(path: Path, pairs: Iterable[ComparedPair], side: LabelSide) -> None:
    write_file(path, "".join(f"{_row(pair, side).model_dump_json()}\n" for pair in pairs))


def _row(pair: ComparedPair, side: LabelSide) -> PairRow:
    row = pair.preference(side)
    chosen, rejected = ((Message(role="assistant", content=text),) for text in (row.chosen, row.rejected))
    return PairRow(
        id=row.id,
        prompt_id=row.prompt_id,
        prompt=row.prompt,
        chosen=chosen,
        rejected=rejected,
        p_chosen=row.p_chosen,
        source=row.source,
    )


def _deltas(folder: Path, held_out: Sequence[ComparedPair]) -> Floats:
    """Reward of response a minus that of b, for each held-out pair. Shape (n,)."""
    path = folder / HELD_OUT
    try:
        rewards = np.array(_HeldOut.model_validate_json(path.read_bytes()).held_out)
    except OSError as error:
        raise RunDirError(f"{path} cannot be read: {error.strerror}; remove {folder}, and it is trained anew") from None
    except ValidationError as error:
        raise RunDirError(
            f"{path} does not hold rewards ({first_problem(error)}); remove {folder}, and it is trained anew"
        ) from None
    if rewards.shape != (len(held_out), 2):
        raise RunDirError(
            f"{path} has rewards of {len(rewards)} pairs, and {len(held_out)} are held out; remove {folder}, and it is "
            "trained anew"
        )
    a_is_chosen = np.array([pair.preference("human").chosen == pair.a for pair in held_out])
    deltas: Floats = np.where(a_is_chosen, 1.0, -1.0) * (rewards[:, 0] - rewards[:, 1])
    return deltas
