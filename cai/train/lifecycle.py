"""The life of a training's run directory, the same for all kinds of training.

manifest.json        what was asked and by which versions, hashes of model and data, state, counts, timings
rejects.jsonl        rows of the data that cannot be used, with the reason
checkpoints/         from which a killed run goes on
metrics.jsonl        all logged figures; curves.svg shows them
tensorboard/         the same for TensorBoard
start/               the start's weights with its adapter merged in, where training needs them so
model/               the trained model, or its adapter, with tokenizer and card
results.json         what became of it: see each kind's module
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers

from cai import __version__
from cai.data.rows import Reject
from cai.engines.weights import TRAINED
from cai.errors import StageError
from cai.rundir import Manifest, RunDir
from cai.train.config import TrainConfig
from cai.train.monitor.files import METRICS

RESULTS, CURVES, CHECKPOINTS, START, TENSORBOARD = "results.json", "curves.svg", "checkpoints", "start", "tensorboard"
FILES = (METRICS, RESULTS, CURVES, START, CHECKPOINTS, TENSORBOARD, TRAINED)
"""What every training writes into its run directory."""


@dataclass(frozen=True)
class TrainedModel:
    """What a training left behind."""

    path: Path
    """The run directory."""
    manifest: Manifest
    results: Mapping[str, Any]


class RunnablePlan(Protocol):
    """A training whose inputs are sound, as far as its run directory is concerned."""

    @property
    def kind(self) -> str:
        """Of the training, as the command names it."""
        ...

    @property
    def config(self) -> TrainConfig:
        """All that was asked."""
        ...

    @property
    def hashes(self) -> Mapping[str, str]:
        """Content hash of each input."""
        ...

    @property
    def row_counts(self) -> Mapping[str, int]:
        """Rows that are used, and those that are not, by reason."""
        ...

    @property
    def rejects(self) -> Sequence[Reject]:
        """Rows that cannot be used."""
        ...


def run_training(
    plan: RunnablePlan,
    out: Path,
    work: Callable[[], Mapping[str, Any]],
    write_cards: Callable[[Mapping[str, Any], Manifest], None],
    *,
    other_files: Sequence[str] = (),
    command: Sequence[str] = (),
    overwrite: bool = False,
) -> TrainedModel | None:
    """Open the run directory and do the `work`, which returns the results; a finished run is left as it is.

    `write_cards` describes the trained model beside its weights. Of several processes the first alone has the directory
    open; the others get None.

    Raises:
        KeyboardInterrupt: interrupted by a signal; the same command goes on from the last checkpoint.
        CaiError: the run cannot go on.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if os.environ.get("RANK", "0") != "0":
        if overwrite or not (out / RESULTS).is_file():
            work()
        return None
    config = plan.config
    with RunDir.open(
        out,
        stage=f"train-{plan.kind}",
        config=config.model_dump(mode="json"),
        inputs=plan.hashes,
        seed=config.seed,
        command=command,
        free_keys=config.free_keys,
        other_files=(*FILES, *other_files),
        keeps_records=False,
        overwrite=overwrite,
    ) as run:
        if (out / RESULTS).is_file():
            run.save("finished")
            return TrainedModel(out, run.manifest, json.loads((out / RESULTS).read_bytes()))
        run.manifest.versions = versions()
        run.manifest.counts = dict(plan.row_counts)
        run.write_rejects(plan.rejects)
        try:
            with run.stopped_if_it_fails():
                with run.at_work():
                    results = work()
                write_cards(results, run.manifest)
                run.write_text(RESULTS, json.dumps(results, indent=2) + "\n")
        except torch.OutOfMemoryError:
            raise StageError(
                "the memory of the device is full; a smaller per_device_train_batch_size, gradient_checkpointing or "
                "use_peft take less"
            ) from None
        run.save("finished")
        return TrainedModel(out, run.manifest, results)


def versions() -> dict[str, str]:
    """Versions of all that a training depends on, where it is installed: PPO does without TRL."""
    found = {"cai": __version__, "torch": str(torch.__version__), "transformers": transformers.__version__}
    for name in ("trl", "peft", "accelerate"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)  # not by importing it, which would take memory
    return found
