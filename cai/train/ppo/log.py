"""What a PPO run writes down at each step, and the lines it shows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from cai.errors import RunDirError
from cai.journal import write_file

COLUMNS = (
    ("step", "step", "{:.0f}", 6),
    ("score", "score", "{:.3f}", 8),
    ("kl", "KL k1", "{:.3f}", 8),
    ("kl_k3", "KL k3", "{:.3f}", 8),
    ("kl_coef", "β", "{:.3g}", 8),
    ("entropy", "entropy", "{:.3f}", 8),
    ("clip_fraction", "clipped", "{:.1%}", 8),
    ("explained_variance", "expl.var.", "{:.2f}", 10),
    ("length", "length", "{:.1f}", 7),
    ("eos_rate", "ended", "{:.0%}", 6),
    ("tokens_per_second", "tok/s", "{:.0f}", 7),
)
"""Figures of a step that are shown: key, heading, format and width."""
REPEAT = 20
"""Lines after which the headings are shown again."""


class StepLog:
    """A JSONL file with lines that have a `step`; what stands after the step that a run goes on from is cut off."""

    def __init__(self, path: Path, step: int) -> None:
        """Open the file for the lines after `step`; a run that has taken none begins again, without any."""
        self.path = path
        kept = [entry for entry in read_log(path) if entry["step"] <= step] if step else []
        write_file(path, "".join(f"{json.dumps(entry)}\n" for entry in kept))
        self._file: IO[str] = path.open("a")

    def write(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Append lines; they outlive the process."""
        self._file.write("".join(f"{json.dumps(entry)}\n" for entry in entries))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a log; a torn last one is left out.

    Raises:
        RunDirError: a line is broken.
    """
    if not path.is_file():
        return []
    lines = path.read_text(errors="replace").split("\n")[:-1]
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            raise RunDirError(f"{path}:{number}: broken line; remove it, and the same command goes on") from None
    return found


def headings() -> str:
    """The headings of the figures of a step."""
    return "".join(f"{name:>{width}}" for _, name, _, width in COLUMNS)


def line(metrics: Mapping[str, float]) -> str:
    """The figures of a step below their headings; `–` for one that is not there."""
    shown = [
        f"{form.format(metrics[key]) if metrics.get(key) is not None else '–':>{width}}"
        for key, _, form, width in COLUMNS
    ]
    return "".join(shown)
