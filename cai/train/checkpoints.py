"""Checkpoints that a killed run goes on from: one counts once it is whole.

The trainer writes a checkpoint file by file, so that one may be torn when the process dies. A mark is written into each
as the last file; a checkpoint without it is never used, and removed when the run goes on. Older ones are removed only
after the mark of a newer one stands, so that there is always one to go on from.
"""

import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from cai.journal import write_file

_MARK = "whole"
_NAME = re.compile(r"checkpoint-(\d+)")


class CheckpointKeeper(TrainerCallback):  # type: ignore[misc]
    """Marks checkpoints that are whole, and removes those that are not needed any more."""

    def __init__(self, kept: int, tokens: Callable[[], int]) -> None:
        """Keep so many checkpoints beside the best; `tokens` gives the tokens trained on so far."""
        self._kept = kept
        self._tokens = tokens

    def on_save(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """The trainer has written a checkpoint; all processes come here after it."""
        del control
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir)
        best = {Path(state.best_model_checkpoint).name} if state.best_model_checkpoint else ()
        finish_checkpoint(checkpoint_path(folder, state.global_step), f"{self._tokens()} tokens\n", self._kept, best)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after a step lies."""
    return folder / f"checkpoint-{step}"


def finish_checkpoint(checkpoint: Path, mark: str, kept: int, spared: Collection[str]) -> None:
    """Mark a written checkpoint as whole, and remove all but so many of the newest and those whose names are spared."""
    write_file(checkpoint / _MARK, mark)
    for path in _whole(checkpoint.parent)[:-kept]:
        if path.name not in spared:
            shutil.rmtree(path)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run."""
    return next(iter(reversed(_whole(folder))), None)


def tokens_before(checkpoint: Path) -> int:
    """Tokens that were trained on until a checkpoint."""
    return int((checkpoint / _MARK).read_text().split()[0])


def remove_torn(folder: Path) -> list[str]:
    """Remove the checkpoints that are not whole; returns their names."""
    torn = [path for path in _checkpoints(folder) if not (path / _MARK).is_file()]
    for path in torn:
        shutil.rmtree(path)
    return [path.name for path in torn]


def _whole(folder: Path) -> list[Path]:
    return [path for path in _checkpoints(folder) if (path / _MARK).is_file()]


def _checkpoints(folder: Path) -> list[Path]:
    """By step."""
    found = [(int(name[1]), path) for path in folder.glob("*") if (name := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]
