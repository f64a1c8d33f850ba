"""What `cai critique-revise` itself costs: the whole stage on an engine that answers at once.

The default is the paper's size: 182,831 prompts and 4 rounds, which is 1,645,479 model calls. The scripted engine
stands in for a model, so all the time is ours. Measured, each in a process of its own:

- the whole stage (inputs read, chains made and stored, data set exported), by wall clock and by processor time;
- a bare loop that awaits the same engine as often, with requests that the stage made: the lower bound;
- peak memory at a tenth of the size and at full size, which must not grow with the number of prompts;
- going on with the run that is already finished.
"""

import argparse
import asyncio
import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

from common import Report, exit_status, in_fresh_process, machine, positive, publish, versions
from rich.console import Console

from cai.config import EngineConfig
from cai.critique import CritiqueReviseConfig, Reviser
from cai.critique_run import critique_revise, load_inputs, read_items
from cai.engines import Engine, open_engine
from cai.engines.base import EngineInfo
from cai.records import Generation, Message, Record, Sampling

Request = tuple[tuple[Message, ...], Sampling]

TARGET_MS = 0.3
"""Wall-clock time of the stage for one model call, in milliseconds."""
TOPICS = ("lock picking", "a forged letter", "an unsafe diet", "a stolen password", "a cruel joke", "a false rumour")
REPLY = (
    "{seed} is the number of this reply, so that no two are alike. It has about as many words as a short answer of a "
    "chat model: it names the point in question, says what can be said about it without harm, gives two or three "
    "steps that a careful person would take, and ends with an offer to go on. A reader would find nothing in it to "
    "act on, and the pipeline treats it as it treats any other text, from the request to the exported table."
)


class Measured(Record):
    """One process at work."""

    prompts: int
    calls: int
    wall_s: float
    cpu_s: float
    """Processor time, which says more than wall clock where other programs share the machine."""
    peak_rss_mib: float


class Overhead(Report):
    """The report of this benchmark; all figures are of one run."""

    prompts: int
    rounds: int
    concurrency: int
    """Chains in flight."""
    stage: Measured
    """The whole stage at full size."""
    tenth: Measured
    """The whole stage at a tenth of the size."""
    bare: Measured
    """The bare loop, as many calls as `stage`."""
    resume: Measured
    """The finished run of `stage` opened again; it makes no calls."""
    stage_ms_per_call: float
    stage_cpu_ms_per_call: float
    own_ms_per_call: float
    """`stage_ms_per_call` less the bare loop's time for a call."""
    target_ms_per_call: float
    within_target: bool
    """`stage_ms_per_call` is at most `target_ms_per_call`."""
    ratio_to_bare: float
    """Wall clock of the stage over that of the bare loop."""
    memory_ratio: float
    """Peak memory at full size over that at a tenth of it."""
    memory_bytes_per_prompt: float
    """What each further prompt added to peak memory."""
    journal_mib: float
    """Size of records.jsonl at full size."""


class _Recorder:
    """An engine that keeps the requests it passes on."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.requests: list[Request] = []

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Generation:
        self.requests.append((tuple(messages), sampling))
        return await self._engine.generate(messages, sampling)

    async def aclose(self) -> None:
        await self._engine.aclose()


def write_inputs(folder: Path, prompts: int, rounds: int, concurrency: int) -> CritiqueReviseConfig:
    """Write prompts and script into `folder`; returns the stage's configuration."""
    script, rows = folder / "script.yaml", folder / f"prompts-{prompts}.jsonl"
    script.write_text(json.dumps({"answers": [{"say": REPLY}], "concurrency": concurrency}), encoding="utf-8")
    with rows.open("w", encoding="utf-8") as file:
        for number in range(prompts):
            topic = TOPICS[number % len(TOPICS)]
            text = f"This is question {number}. A friend asked me about {topic}. What should I tell them, and why?"
            file.write(json.dumps({"id": f"synthetic-{number}", "prompt": text, "topic": topic}) + "\n")
    return CritiqueReviseConfig(
        prompts=str(rows), helpful_ratio=0, rounds=rounds, engine=EngineConfig(engine="scripted", script=script)
    )


def measure_stage(config: CritiqueReviseConfig, prompts: int, out: Path) -> Measured:
    """Run the stage as the command does, or go on with it; progress goes to standard error."""
    watch = _Watch()
    outcome = critique_revise(load_inputs(config), out, Console(stderr=True, force_terminal=False))
    return watch.read(prompts, outcome.progress.calls)


def measure_bare_loop(config: CritiqueReviseConfig, prompts: int) -> Measured:
    """Await the engine as often as the stage does, with as many calls in flight, and do nothing else."""
    return asyncio.run(_bare(config, prompts))


async def _bare(config: CritiqueReviseConfig, prompts: int) -> Measured:
    calls = prompts * config.calls_per_prompt
    async with open_engine(config.engine) as engine:
        requests = islice(cycle(await _recorded(config, engine)), calls)

        async def worker() -> None:
            for messages, sampling in requests:
                await engine.generate(messages, sampling)

        watch = _Watch()
        await asyncio.gather(*(worker() for _ in range(engine.info.concurrency)))
        return watch.read(prompts, calls)


class _Watch:
    """Takes time from its making on."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self, prompts: int, calls: int) -> Measured:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        return Measured(
            prompts=prompts, calls=calls, wall_s=round(wall, 3), cpu_s=round(cpu, 3), peak_rss_mib=round(peak, 1)
        )


async def _recorded(config: CritiqueReviseConfig, engine: Engine) -> list[Request]:
    """The requests of the first chains."""
    inputs = load_inputs(config)
    recorder = _Recorder(engine)
    reviser = Reviser(config, inputs.constitution, inputs.templates, recorder, on_step=lambda _: None)
    for item in islice(read_items(config), 50):
        await reviser.chain(item)
    return recorder.requests


def compare(folder: Path, prompts: int, rounds: int, concurrency: int) -> Overhead:
    """Take all measurements; files go into `folder`."""
    small = max(1, prompts // 10)
    few, many = (write_inputs(folder, size, rounds, concurrency) for size in (small, prompts))
    tenth = in_fresh_process(measure_stage, few, small, folder / "tenth")
    shutil.rmtree(folder / "tenth")
    bare = in_fresh_process(measure_bare_loop, many, prompts)
    stage = in_fresh_process(measure_stage, many, prompts, folder / "run")
    resume = in_fresh_process(measure_stage, many, prompts, folder / "run")
    per_call, bare_per_call = 1000 * stage.wall_s / stage.calls, 1000 * bare.wall_s / bare.calls
    grown = (stage.peak_rss_mib - tenth.peak_rss_mib) * 2**20
    return Overhead(
        benchmark="overhead",
        machine=machine(),
        versions=versions(),
        prompts=prompts,
        rounds=rounds,
        concurrency=concurrency,
        stage=stage,
        tenth=tenth,
        bare=bare,
        resume=resume,
        stage_ms_per_call=round(per_call, 4),
        stage_cpu_ms_per_call=round(1000 * stage.cpu_s / stage.calls, 4),
        own_ms_per_call=round(per_call - bare_per_call, 4),
        target_ms_per_call=TARGET_MS,
        within_target=per_call <= TARGET_MS,
        ratio_to_bare=round(stage.wall_s / bare.wall_s, 2),
        memory_ratio=round(stage.peak_rss_mib / tenth.peak_rss_mib, 3),
        memory_bytes_per_prompt=round(grown / max(1, prompts - small), 1),
        journal_mib=round((folder / "run" / "records.jsonl").stat().st_size / 2**20, 1),
    )


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=positive, default=182_831, help="default: 182831, as in the paper")
    parser.add_argument("--rounds", type=positive, default=4, help="default: 4, as in the paper")
    parser.add_argument("--concurrency", type=positive, default=64, help="chains in flight; default: 64")
    parser.add_argument("--folder", type=Path, help="folder for temporary files; the full size takes about 2 GiB")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="cai-overhead-") as folder:
        report = compare(Path(folder), options.prompts, options.rounds, options.concurrency)
    publish(report, options.out)


if __name__ == "__main__":
    sys.exit(exit_status(main))
