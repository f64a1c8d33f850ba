"""Speed and memory of our SFT, reward and DPO training against TRL's own trainers, on the same rows.

Arms of each kind of training:

- trl: TRL's trainer on conversational rows;
- plain: ours without `group_by_length`, which has the same rows in the same batches;
- grouped: ours as by default, with rows of like length in one batch;
- packed: ours with several conversations in one row (SFT alone).

Each run trains for some steps on the same rows from the same weights, in a process of its own; the arms take turns in
being first. A few steps may draw long batches or short ones. So the speed is that of an epoch: time for each position
in the steps measured × positions (padding included) for each real token in all batches of the epoch, which are counted.
The reference's pass over the rows (DPO) counts too; loading, encoding and checkpoints do not. Ours is `cai train` with
its run directory.

Figures of a CPU are in processor time, which says more than the wall clock where other programs share the machine.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from common import (
    ArmTiming,
    Report,
    Spread,
    exit_status,
    in_fresh_process,
    in_turn,
    positive,
    publish,
    ratios,
    versions,
)
from training_records import GROUPED, PACKED, PLAIN, TRL, Arm, Measured, Rows, Workload

from cai.engines.weights import DEFAULT_MODEL
from cai.records import Record

KINDS = ("sft", "reward", "dpo")
LEAST_PLAIN = 0.98
"""Least speed of `plain`, in those of TRL."""
LEAST_GROUPED = 1.5
"""What the speed of `grouped` and `packed` is to be above."""
LOSS_TOLERANCE = 1e-2
"""Relative difference of first losses that rounding in bfloat16 explains; other batches differ by more."""


class Timing(ArmTiming):
    """One run of one arm; `seconds` are those of all that was measured."""

    kind: str
    tokens_per_s: float
    measured: Measured


class Comparison(Record):
    """The arms of one kind of training; ratios are by repeat."""

    plain_to_trl_speed: Spread
    grouped_to_trl_speed: Spread
    packed_to_trl_speed: Spread | None
    plain_to_trl_memory: Spread
    grouped_to_trl_memory: Spread
    same_batches: bool
    """`plain` and `trl` have read as many tokens, with as much padding, and begin with the same loss."""
    within_targets: bool
    """The medians of all speeds reach their targets."""


class TrainingReport(Report):
    """The report of this benchmark."""

    clock: str
    """`wall`, or `processor` on a CPU."""
    bf16: bool
    workload: Workload
    rows: Rows
    timings: tuple[Timing, ...]
    comparisons: Mapping[str, Comparison]
    """By kind of training."""
    least_plain: float
    least_grouped: float


def choose_rows(load: Workload, source: str, folder: Path) -> Rows:
    """See `training_arms`, which this process does not load: its memory would count in that of its children."""
    import training_arms

    return training_arms.choose_rows(load, source, folder)


def measure(arm: Arm, load: Workload, rows: Rows, data: Path) -> Measured:
    """See `training_arms`."""
    import training_arms

    with tempfile.TemporaryDirectory(dir=data) as folder:
        return training_arms.measure(arm, load, rows, data, Path(folder))


def compare(load: Workload, source: str, kinds: Sequence[str], repeats: int, folder: Path) -> TrainingReport:
    """Take all measurements; files go into `folder`."""
    rows = in_fresh_process(choose_rows, load, source, folder)
    timings: list[Timing] = []
    for repeat in range(1, repeats + 1):
        for kind in kinds:
            arms = [TRL, PLAIN, GROUPED, *([PACKED] if kind == "sft" else [])]
            for place, name in enumerate(in_turn(arms, repeat), 1):
                found = in_fresh_process(measure, Arm(kind=kind, name=name), load, rows, folder)
                timing = _timing(kind, name, repeat, place, found)
                timings.append(timing)
                said = f"{timing.seconds:.1f} s, {timing.tokens_per_s:.1f} tokens/s"
                print(f"repeat {repeat}: {kind} {name} {said}", file=sys.stderr)
    last = timings[-1].measured
    return TrainingReport(
        benchmark="training",
        machine=last.machine,
        versions=versions(),
        clock=_clock(last),
        bf16=last.bf16,
        workload=load.model_copy(update={"model": Path(load.model).name}),
        rows=rows,
        timings=tuple(timings),
        comparisons={kind: _comparison([timing for timing in timings if timing.kind == kind]) for kind in kinds},
        least_plain=LEAST_PLAIN,
        least_grouped=LEAST_GROUPED,
    )


def _clock(found: Measured) -> str:
    return "processor" if found.machine.accelerator is None else "wall"


def _timing(kind: str, arm: str, repeat: int, place: int, found: Measured) -> Timing:
    processor = _clock(found) == "processor"
    return Timing(
        kind=kind,
        arm=arm,
        repeat=repeat,
        place=place,
        seconds=round(sum(part.cpu_s if processor else part.wall_s for part in found.parts), 4),
        tokens_per_s=round(
            1e6 / sum(part.cpu_us_per_token if processor else part.wall_us_per_token for part in found.parts), 3
        ),
        measured=found,
    )


def _comparison(timings: Sequence[Timing]) -> Comparison:
    by_arm = {name: [timing for timing in timings if timing.arm == name] for name in (TRL, PLAIN, GROUPED, PACKED)}
    speeds = {name: [timing.tokens_per_s for timing in found] for name, found in by_arm.items()}
    peaks = {name: [timing.measured.peak_mib for timing in found] for name, found in by_arm.items()}
    plain, grouped = (ratios(speeds[name], speeds[TRL]) for name in (PLAIN, GROUPED))
    packed = ratios(speeds[PACKED], speeds[TRL]) if by_arm[PACKED] else None
    pairs = [(ours.measured, theirs.measured) for ours, theirs in zip(by_arm[PLAIN], by_arm[TRL], strict=True)]
    faster = [grouped, *([packed] if packed else [])]
    return Comparison(
        plain_to_trl_speed=plain,
        grouped_to_trl_speed=grouped,
        packed_to_trl_speed=packed,
        plain_to_trl_memory=ratios(peaks[PLAIN], peaks[TRL]),
        grouped_to_trl_memory=ratios(peaks[GROUPED], peaks[TRL]),
        same_batches=all(_same_batches(ours, theirs) for ours, theirs in pairs),
        within_targets=plain.median >= LEAST_PLAIN and all(speed.median > LEAST_GROUPED for speed in faster),
    )


def _same_batches(ours: Measured, theirs: Measured) -> bool:
    sizes = [(part.steps.tokens, part.steps.padding) for part in (ours, theirs)]
    return sizes[0] == sizes[1] and abs(ours.first_loss - theirs.first_loss) <= LOSS_TOLERANCE * abs(theirs.first_loss)


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"directory or hub id; default: {DEFAULT_MODEL}")
    parser.add_argument("--data", default="planted", help="file or shipped set of comparisons; default: planted")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="default: all")
    parser.add_argument("--steps", type=positive, default=50, help="that are measured; default: 50")
    parser.add_argument("--limit", type=positive, help="most rows of an epoch; default: all that fit")
    parser.add_argument("--batch-size", type=positive, default=8, help="rows of a step; default: 8")
    parser.add_argument("--max-length", type=positive, default=1024, help="longer rows are passed over; default: 1024")
    parser.add_argument("--repeats", type=positive, default=3, help="default: 3")
    parser.add_argument("--use-cpu", action="store_true", help="train on the CPU even where there is a GPU")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    load = Workload(
        model=options.model,
        batch_size=options.batch_size,
        steps=options.steps,
        max_length=options.max_length,
        limit=options.limit,
        use_cpu=options.use_cpu,
    )
    with tempfile.TemporaryDirectory(prefix="cai-training-") as folder:
        report = compare(load, options.data, options.kinds, options.repeats, Path(folder))
    publish(report, options.out)


if __name__ == "__main__":
    sys.exit(exit_status(main))
