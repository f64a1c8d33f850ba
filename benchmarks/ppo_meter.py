"""Time, memory and tokens of some steps of PPO. Runs in TRL's environment too, so it knows torch alone."""

import platform
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch

WRITING, SCORING, UPDATE = "writing", "scoring", "update"
_PACKAGES = ("trl", "torch", "transformers", "accelerate", "peft")

Clocks = dict[str, float]


class Meter:
    """Measures the steps after the first one, which warms up."""

    def __init__(self, steps: int, device: str) -> None:
        """Take the number of steps to measure, and `cpu` or `cuda`."""
        self._wanted = steps
        self._cuda = device == "cuda"
        self._steps = 0
        self._counts: Counter[str] = Counter()
        self._parts: dict[str, Clocks] = {}
        self._open: dict[str, Clocks] = {}
        self._whole = self._now()
        self._peaks: dict[str, float | None] = {}

    def start(self, part: str) -> None:
        """A part of a step begins."""
        self._open[part] = self._now()

    def stop(self, part: str) -> None:
        """It ends; its times add up over the steps."""
        spent = self._since(self._open.pop(part))
        before = self._parts.get(part, {})
        self._parts[part] = {name: value + before.get(name, 0.0) for name, value in spent.items()}

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as a part of its own."""

        def measured(*arguments: Any, **named: Any) -> Any:
            self.start(part)
            found = function(*arguments, **named)
            self.stop(part)
            return found

        return measured

    def count(self, **numbers: int) -> None:
        """Add to what is counted by name."""
        self._counts.update(numbers)

    def step_ended(self) -> bool:
        """A step has ended; says whether it was the last one to measure."""
        if self._steps:
            self._peaks = self._peak_memory()
        else:
            self._parts, self._counts, self._whole = {}, Counter(), self._now()
        self._steps += 1
        if self._steps <= self._wanted:
            return False
        self._whole = self._since(self._whole)
        return True

    def found(self) -> dict[str, Any]:
        """All figures once the last step has ended: the fields of `ppo_records.Measured`."""
        return {
            **self._counts,
            **self._parts,
            "whole": self._whole,
            **self._peaks,
            "device": torch.cuda.get_device_name() if self._cuda else "cpu",
            "threads": torch.get_num_threads(),
            "versions": {
                "python": platform.python_version(),
                **{name: metadata.version(name) for name in _PACKAGES},
            },
        }

    def _now(self) -> Clocks:
        if self._cuda:
            torch.cuda.synchronize()
        return {"wall_s": time.perf_counter(), "cpu_s": time.process_time()}

    def _since(self, before: Clocks) -> Clocks:
        return {name: value - before[name] for name, value in self._now().items()}

    def _peak_memory(self) -> dict[str, float | None]:
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        allocated = round(torch.cuda.max_memory_allocated() / 2**20, 1) if self._cuda else None
        return {"peak_rss_mib": round(resident, 1), "peak_cuda_mib": allocated}
