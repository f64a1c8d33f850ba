"""Speed and memory of our PPO against TRL 1.12.0's PPOTrainer, the last release that has it, on the same prompts.

Arms, three with a LoRA adapter and three with full fine-tuning:

- ours-lora: one base with an adapter for the policy and one for the values; the base alone is the reference;
- trl-lora: an adapter on the policy; the values are a whole model;
- ours-full, trl-full: policy, reference and values are models of their own;
- ours-lora-shared, ours-full-shared: the values are read off the policy (`shared_trunk`).

All have the same reward model beside that: the model itself with a random head. Each run is a process of its own, with
the same prompts in the same order, batch, micro-batch, epochs, response length, end token and precision; the arms take
turns in being first. The first step warms up and does not count; neither does the time of loading and saving. Memory is
the peak of the process from its beginning to the last step.

Figures of a CPU are in processor time, which says more than the wall clock where other programs share the machine; the
ratio by wall clock stands beside it. Exits with 1 where a target is missed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from common import (
    ArmTiming,
    Report,
    Spread,
    exit_status,
    in_fresh_process,
    in_turn,
    machine,
    positive,
    publish,
    ratios,
    versions,
)
from ppo_records import (
    ARMS,
    JOB,
    OURS_FULL,
    OURS_FULL_SHARED,
    OURS_LORA,
    OURS_LORA_SHARED,
    TRL_ARMS,
    TRL_FULL,
    TRL_LORA,
    Clocks,
    Measured,
    Workload,
)

from cai.engines.weights import DEFAULT_MODEL
from cai.errors import ConfigError, EngineError
from cai.records import Record

PYTHON = "CAI_TRL_PYTHON"
"""Environment variable that names the Python with TRL 1.12.0."""
DRIVER = Path(__file__).with_name("ppo_trl.py")


class Rivals(NamedTuple):
    """Two arms that do the same, and what is wanted of ours."""

    ours: str
    trl: str
    least_speed: float
    """In episodes per second of TRL."""
    most_memory: float
    """In peak memory of TRL."""


RIVALS: Mapping[str, Rivals] = {
    "lora": Rivals(OURS_LORA, TRL_LORA, 2.0, 0.5),
    "lora-shared": Rivals(OURS_LORA_SHARED, TRL_LORA, 2.0, 0.5),
    "full": Rivals(OURS_FULL, TRL_FULL, 1.0, 1.0),
    "full-shared": Rivals(OURS_FULL_SHARED, TRL_FULL, 1.0, 1.0),
}


class Timing(ArmTiming):
    """One run of one arm; `seconds` are those of all steps measured, by the clock of the report."""

    episodes_per_s: float
    tokens_per_s: float
    """Tokens of the responses."""
    mean_response: float
    """Tokens, with the end token."""
    peak_mib: float
    """Greatest memory: allocated on the CUDA device, or resident."""
    rollout_s: float
    """All that is neither scoring nor update: writing, and reading by policy, reference and values."""
    writing_s: float
    """The part of it that is generation."""
    scoring_s: float
    """The reward model."""
    update_s: float
    measured: Measured


class Comparison(Record):
    """Ours to TRL's, by repeat."""

    speed: Spread
    """In episodes per second by the clock of the report."""
    wall_speed: Spread
    """By the wall clock."""
    token_speed: Spread
    """In response tokens per second: where the arms' responses differ in length, read this one too."""
    memory: Spread
    least_speed: float
    most_memory: float
    within_targets: bool
    """The medians of `speed` and `memory` reach both."""


class PpoReport(Report):
    """The report of this benchmark; `versions` are those of our environment."""

    trl_versions: Mapping[str, str] | None
    """Of TRL's environment; None where none of its arms ran."""
    clock: str
    """`wall`, or `processor` on a CPU."""
    workload: Workload
    same_prompts: bool
    """All arms have read as many tokens of prompts."""
    timings: tuple[Timing, ...]
    comparisons: Mapping[str, Comparison]
    """By the names of `RIVALS`, where both arms ran."""

    @property
    def within_targets(self) -> bool:
        """Whether no comparison misses its targets."""
        return all(comparison.within_targets for comparison in self.comparisons.values())


def prepare(load: Workload, folder: Path) -> None:
    """See `ppo_ours`, which this process does not load: its memory would count in that of its children."""
    import ppo_ours

    ppo_ours.prepare(load, folder)


def measure_ours(arm: str, load: Workload, folder: Path) -> Measured:
    """See `ppo_ours`."""
    import ppo_ours

    return ppo_ours.measure(arm, load, folder)


def measure_trl(arm: str, bf16: bool, python: str, folder: Path) -> Measured:
    """Run TRL's trainer in its own environment, on the job in `folder`.

    Raises:
        EngineError: it failed; what it said is on stderr.
    """
    found = folder / f"{arm}.json"
    environment = {
        **os.environ,
        "PYTHONPATH": str(lend_peft(folder / "lent")),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),  # as cai has it
        # The trainer leaves its precision to Accelerate, which takes it from here.
        "ACCELERATE_MIXED_PRECISION": "bf16" if bf16 else "no",
    }
    command = [python, str(DRIVER), str(folder / JOB), arm, str(found)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise EngineError(f"{PYTHON}={python} cannot be run: {error.strerror}") from None
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        raise EngineError(f"TRL's trainer ended with status {done.returncode} (arm {arm}); what it said is above")
    return Measured.model_validate_json(found.read_text(encoding="utf-8"))


def lend_peft(folder: Path) -> Path:
    """A folder with nothing but our PEFT: TRL's environment need not have one, and so both have the same."""
    peft = metadata.distribution("peft")
    folder.mkdir(exist_ok=True)
    for name in ("peft", f"peft-{peft.version}.dist-info"):
        link = folder / name
        if not link.exists():
            link.symlink_to(Path(str(peft.locate_file(name))).resolve())
    return folder


def compare(load: Workload, arms: Sequence[str], repeats: int, folder: Path) -> PpoReport:
    """Take all measurements; files go into `folder`.

    Raises:
        ConfigError: TRL's Python is not named; the arms compute with other devices or numbers of threads.
        EngineError: TRL's trainer failed.
    """
    python = os.environ.get(PYTHON, "")
    if not python and any(arm in TRL_ARMS for arm in arms):
        raise ConfigError(f"{PYTHON} is not set; .ci/trl-env prints what it is to be")
    in_fresh_process(prepare, load, folder)
    timings: list[Timing] = []
    for repeat in range(1, repeats + 1):
        for place, arm in enumerate(in_turn(arms, repeat), 1):
            if arm in TRL_ARMS:
                found = measure_trl(arm, load.bf16, python, folder)
            else:
                found = in_fresh_process(measure_ours, arm, load, folder)
            timings.append(_timing(arm, repeat, place, load, found))
            _check_alike(timings)
            said = f"{timings[-1].seconds:.1f} s, {timings[-1].episodes_per_s:.3f} episodes/s"
            print(f"repeat {repeat}: {arm} {said}, {timings[-1].peak_mib:.0f} MiB", file=sys.stderr)
    device = timings[0].measured.device
    environments = {timing.arm: dict(timing.measured.versions) for timing in timings}
    ours, theirs = (
        next((found for arm, found in environments.items() if (arm in TRL_ARMS) == of_trl), None)
        for of_trl in (False, True)
    )
    return PpoReport(
        benchmark="ppo",
        machine=machine().model_copy(update={"accelerator": None if device == "cpu" else device}),
        versions={**versions(), **(ours or {})},
        trl_versions=theirs,
        clock=_clock(timings[0].measured),
        workload=load.model_copy(update={"model": Path(load.model).name, "data": Path(load.data).name}),
        same_prompts=len({timing.measured.prompt_tokens for timing in timings}) == 1,
        timings=tuple(timings),
        comparisons={
            kind: _comparison(rivals, timings)
            for kind, rivals in RIVALS.items()
            if rivals.ours in arms and rivals.trl in arms
        },
    )


def _check_alike(timings: Sequence[Timing]) -> None:
    places = {timing.arm: f"{timing.measured.device} with {timing.measured.threads} threads" for timing in timings}
    if len(set(places.values())) > 1:
        said = ", ".join(f"{arm} on {place}" for arm, place in places.items())
        raise ConfigError(f"the arms cannot be compared: {said}; see --use-cpu, OMP_NUM_THREADS and {PYTHON}")


def _clock(found: Measured) -> str:
    return "processor" if found.device == "cpu" else "wall"


def _timing(arm: str, repeat: int, place: int, load: Workload, found: Measured) -> Timing:
    processor = _clock(found) == "processor"

    def seconds(clocks: Clocks) -> float:
        return clocks.cpu_s if processor else clocks.wall_s

    episodes = load.steps * load.batch_size
    whole, writing, scoring, update = map(seconds, (found.whole, found.writing, found.scoring, found.update))
    return Timing(
        arm=arm,
        repeat=repeat,
        place=place,
        seconds=round(whole, 4),
        episodes_per_s=round(episodes / whole, 4),
        tokens_per_s=round(found.tokens / whole, 3),
        mean_response=round(found.tokens / episodes, 2),
        peak_mib=found.peak_rss_mib if found.peak_cuda_mib is None else found.peak_cuda_mib,
        rollout_s=round(whole - scoring - update, 4),
        writing_s=round(writing, 4),
        scoring_s=round(scoring, 4),
        update_s=round(update, 4),
        measured=found,
    )


def _comparison(rivals: Rivals, timings: Sequence[Timing]) -> Comparison:
    ours, theirs = ([timing for timing in timings if timing.arm == arm] for arm in (rivals.ours, rivals.trl))
    speed = ratios([one.episodes_per_s for one in ours], [one.episodes_per_s for one in theirs])
    memory = ratios([one.peak_mib for one in ours], [one.peak_mib for one in theirs])
    return Comparison(
        speed=speed,
        # The work is the same, so the ratio of speeds is that of times upside down.
        wall_speed=ratios([one.measured.whole.wall_s for one in theirs], [one.measured.whole.wall_s for one in ours]),
        token_speed=ratios([one.tokens_per_s for one in ours], [one.tokens_per_s for one in theirs]),
        memory=memory,
        least_speed=rivals.least_speed,
        most_memory=rivals.most_memory,
        within_targets=speed.median >= rivals.least_speed and memory.median <= rivals.most_memory,
    )


def main() -> int:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"directory or hub id; default: {DEFAULT_MODEL}")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all")
    parser.add_argument("--data", default="red-team", help="file or shipped set of prompts; default: red-team")
    parser.add_argument("--prompts", type=positive, default=64, help="the first ones of it; default: 64")
    parser.add_argument("--episodes", type=positive, default=16, help="of a step; default: 16")
    parser.add_argument("--steps", type=positive, default=3, help="that are measured; default: 3")
    parser.add_argument("--response-length", type=positive, default=64, help="longest response; default: 64 tokens")
    parser.add_argument("--epochs", type=positive, default=4, help="PPO epochs of a step; default: 4")
    parser.add_argument("--micro-batch", type=positive, default=4, help="episodes in a pass of the update; default: 4")
    parser.add_argument("--repeats", type=positive, default=3, help="default: 3")
    parser.add_argument("--bf16", action="store_true", help="mixed precision in all arms; default: float32")
    parser.add_argument("--use-cpu", action="store_true", help="train on the CPU even where there is a GPU")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    if options.episodes % options.micro_batch:
        raise ConfigError(f"--micro-batch {options.micro_batch} does not divide --episodes {options.episodes}")
    load = Workload(
        model=options.model,
        data=options.data,
        prompts=options.prompts,
        batch_size=options.episodes,
        steps=options.steps,
        response_length=options.response_length,
        epochs=options.epochs,
        micro_batch=options.micro_batch,
        bf16=options.bf16,
        use_cpu=options.use_cpu,
    )
    with tempfile.TemporaryDirectory(prefix="cai-ppo-") as folder:
        report = compare(load, list(dict.fromkeys(options.arms)), options.repeats, Path(folder))
    publish(report, options.out)
    return 0 if report.within_targets else 1


if __name__ == "__main__":
    sys.exit(exit_status(main))
