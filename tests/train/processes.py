"""Real `cai` processes that train, forked from one that has loaded the modules already, which takes seconds."""

import gc
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from cai_process import Finished

Cai = Callable[..., Finished]
"""Runs `cai` with the words given."""

_SERVER = get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["cai.cli.train", "cai.train.policy", "cai.train.ppo.run", "cai.train.reward", "matplotlib.pyplot"]
)


@dataclass(frozen=True)
class CaiProcess:
    """A process that runs, or has ended."""

    process: ForkServerProcess
    log: Path
    """Beginning of the names of the files with what it prints."""

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def finish(self) -> Finished:
        """Wait for its end."""
        self.process.join(120)
        assert self.process.exitcode is not None, "the process has ended"
        out, err = (self.log.with_suffix(suffix).read_text() for suffix in (".out", ".err"))
        assert "Traceback" not in out + err, err
        return Finished(self.process.exitcode, out, err)


def start(words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> CaiProcess:
    """Start `cai` with these words."""
    process = _SERVER.Process(target=_cai, args=(list(words), log, dict(environment or {})))
    process.start()
    return CaiProcess(process, log)


def run(words: Sequence[str], log: Path) -> Finished:
    return start(words, log).finish()


def complete(words: Sequence[str], log: Path) -> Finished:
    """Run `cai` and expect it to succeed."""
    done = run(words, log)
    assert done.code == 0, done.err
    return done


def _cai(words: list[str], log: Path, environment: Mapping[str, str]) -> None:
    for number, suffix in ((1, ".out"), (2, ".err")):
        with log.with_suffix(suffix).open("w") as file:
            os.dup2(file.fileno(), number)
    os.environ.update({"COLUMNS": "120", "OMP_NUM_THREADS": "1", **environment})
    sys.argv = ["cai", *words]
    import torch

    from cai.cli import main

    gc.freeze()  # trainers ask for collections, which then pass over all that the modules hold
    torch.set_num_threads(1)
    try:
        main()
    except Exception:
        traceback.print_exc()
        raise
