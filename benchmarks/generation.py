"""How near `cai critique-revise` comes to the speed of its engine.

Three arms serve the same prompts on one engine that stays open:

- stage: our chains, with as many in flight as the command takes, each stored as it ends;
- bound: the requests of those chains handed to the bare engine all at once, like kinds together so that an engine
  that batches what came together finds prompts of like length. It needs no reply before the next request, which no
  real run can do, so it is an upper bound for a good scheduler;
- passes: the same requests with a barrier after each step: all drafts, then all critiques, then all revisions.

A first run of the stage records the requests. Then every arm runs once unmeasured, so that caches are equally warm,
and after that once in each repeat, in rotated order. Replies are the same in all arms where the engine honours seeds;
with others use `--temperature 0`, and compare the tokens that each arm reports.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from itertools import zip_longest
from pathlib import Path

from common import (
    ArmTiming,
    Report,
    Spread,
    add_engine_options,
    engine_keys,
    exit_status,
    in_turn,
    machine,
    positive,
    public_info,
    publish,
    ratios,
    versions,
)

from cai.config import load_config
from cai.critique import CritiqueReviseConfig, Reviser
from cai.critique_run import STAGE, Inputs, load_inputs, read_items
from cai.engines import Engine, EngineInfo, open_engine
from cai.errors import RecordError
from cai.records import Failure, Generation, Message, Prompt, Record, RevisionChain, Sampling, Usage
from cai.rundir import RunDir
from cai.stage import WorkItem, run_stage

Request = tuple[tuple[Message, ...], Sampling]

TARGET = 0.90
"""Least share of the bound's speed that the stage is to reach."""


class Workload(Record):
    """What each arm serves."""

    prompts: int
    rounds: int
    calls: int
    """Requests of one arm."""
    failed_chains: int
    """Chains of the recording run that failed; the requests they made are part of the workload."""
    few_shot: int
    """Worked examples before each critique and revision."""
    max_tokens: int
    temperature: float
    constitution: str
    concurrency: int
    """Chains in flight in the arm `stage`."""


class Timing(ArmTiming):
    """One run of one arm."""

    chains_per_s: float
    completion_tokens_per_s: float
    calls: int
    """Requests that were answered."""
    failed: int
    """Chains (of the stage) or requests (of the others) that failed."""
    usage: Usage


class GenerationReport(Report):
    """The report of this benchmark."""

    engine: EngineInfo
    workload: Workload
    timings: tuple[Timing, ...]
    same_replies: bool
    """Whether every arm wrote the same number of tokens each time, as it does where replies are fixed by seeds."""
    stage_to_bound: Spread
    """Chains per second of the stage over those of the bound, by repeat."""
    stage_to_passes: Spread
    stage_to_bound_tokens: Spread
    """The same in tokens written per second; to be read where `same_replies` is false."""
    stage_to_passes_tokens: Spread
    target_to_bound: float
    target_to_passes: float
    within_targets: bool
    """Both medians in chains per second reach their targets."""


class Meter:
    """An engine that passes requests on, counts what they cost and, for each chain, keeps them in order."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.chain: ContextVar[str] = ContextVar("chain")
        """Id of the chain that the running task works on; to be set before its first request."""
        self.reset()

    def reset(self) -> None:
        """Forget all requests and counts."""
        self.requests: dict[str, list[Request]] = {}
        self.calls = 0
        self.failed = 0
        self.usage = Usage()

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Generation:
        self.requests.setdefault(self.chain.get(), []).append((tuple(messages), sampling))
        return self.count(await self._engine.generate(messages, sampling))

    async def replay(self, request: Request) -> None:
        """Serve a request on its own; one that failed in its chain fails again and is counted."""
        try:
            self.count(await self._engine.generate(*request))
        except RecordError:
            self.failed += 1

    def count(self, generation: Generation) -> Generation:
        self.calls += 1
        self.usage = self.usage + generation.usage
        return generation

    async def aclose(self) -> None:
        await self._engine.aclose()


class Comparison:
    """The three arms on one open engine."""

    def __init__(self, inputs: Inputs, engine: Engine, folder: Path) -> None:
        self._inputs = inputs
        self._meter = Meter(engine)
        self._folder = folder
        self._runs = 0
        self.concurrency = inputs.config.engine.concurrency or engine.info.concurrency
        self.failures: list[Failure] = []
        """Of the last run of the stage."""
        self._recorded: list[list[Request]] = []
        self.arms: dict[str, Callable[[], Awaitable[None]]] = {
            "stage": self._stage,
            "bound": self._bound,
            "passes": self._passes,
        }

    async def record(self) -> int:
        """Run the stage once and keep its requests; returns their number."""
        await self._stage()
        self._recorded = list(self._meter.requests.values())
        return sum(map(len, self._recorded))

    async def timed(self, arm: str, repeat: int, place: int) -> Timing:
        """Run one arm and take its time."""
        self._meter.reset()
        began = time.perf_counter()
        await self.arms[arm]()
        seconds = time.perf_counter() - began
        return Timing(
            arm=arm,
            repeat=repeat,
            place=place,
            seconds=round(seconds, 4),
            chains_per_s=round(self._inputs.total / seconds, 4),
            completion_tokens_per_s=round(self._meter.usage.completion_tokens / seconds, 2),
            calls=self._meter.calls,
            failed=len(self.failures) if arm == "stage" else self._meter.failed,
            usage=self._meter.usage,
        )

    async def _stage(self) -> None:
        config, self._runs = self._inputs.config, self._runs + 1
        reviser = Reviser(config, self._inputs.constitution, self._inputs.templates, self._meter, lambda _: None)
        self.failures = []

        async def work(item: WorkItem[Prompt]) -> RevisionChain:
            self._meter.chain.set(item.id)
            return await reviser.chain(item)

        with RunDir.open(
            self._folder / f"run-{self._runs}",
            stage=STAGE,
            config=config.model_dump(mode="json"),
            inputs=self._inputs.hashes,
            seed=config.seed,
        ) as run:

            def fail(failure: Failure) -> None:
                run.append_failure(failure)
                self.failures.append(failure)

            await run_stage(
                read_items(config),
                work,
                concurrency=self.concurrency,
                on_result=lambda chain: run.append(chain, chain.usage),
                on_failure=fail,
            )

    async def _bound(self) -> None:
        steps = zip_longest(*self._recorded)
        requests = (request for step in steps for request in step if request is not None)
        await asyncio.gather(*(self._meter.replay(request) for request in requests))

    async def _passes(self) -> None:
        for step in zip_longest(*self._recorded):
            await asyncio.gather(*(self._meter.replay(request) for request in step if request is not None))


async def compare(inputs: Inputs, repeats: int, folder: Path) -> GenerationReport:
    """Take all measurements on one opened engine; run directories go into `folder`."""
    config = inputs.config
    async with open_engine(config.engine) as engine:
        comparison = Comparison(inputs, engine, folder)
        calls = await comparison.record()
        failed = len(comparison.failures)
        names = list(comparison.arms)
        for name in names:
            await comparison.timed(name, 0, 0)
        timings: list[Timing] = []
        for repeat in range(1, repeats + 1):
            for place, name in enumerate(in_turn(names, repeat), 1):
                timings.append(await comparison.timed(name, repeat, place))
                print(f"repeat {repeat}: {name} {timings[-1].seconds:.2f} s", file=sys.stderr)
        info, concurrency = engine.info, comparison.concurrency
        used = machine()
    rates = {name: [timing.chains_per_s for timing in timings if timing.arm == name] for name in names}
    tokens = {name: [timing.completion_tokens_per_s for timing in timings if timing.arm == name] for name in names}
    to_bound, to_passes = ratios(rates["stage"], rates["bound"]), ratios(rates["stage"], rates["passes"])
    return GenerationReport(
        benchmark="generation",
        machine=used,
        versions=versions(),
        engine=public_info(info),
        workload=Workload(
            prompts=inputs.total,
            rounds=config.rounds,
            calls=calls,
            failed_chains=failed,
            few_shot=len(inputs.constitution.examples.critique_revision[: config.few_shot]),
            max_tokens=config.sampling.max_tokens,
            temperature=config.sampling.temperature,
            constitution=inputs.constitution.name,
            concurrency=concurrency,
        ),
        timings=tuple(timings),
        same_replies=len({timing.usage.completion_tokens for timing in timings}) == 1,
        stage_to_bound=to_bound,
        stage_to_passes=to_passes,
        stage_to_bound_tokens=ratios(tokens["stage"], tokens["bound"]),
        stage_to_passes_tokens=ratios(tokens["stage"], tokens["passes"]),
        target_to_bound=TARGET,
        target_to_passes=1.0,
        within_targets=to_bound.median >= TARGET and to_passes.median >= 1.0,
    )


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_engine_options(parser)
    parser.add_argument("--concurrency", type=positive, help="chains in flight; default: the engine's")
    parser.add_argument("--batch-size", type=positive, help="rows in a forward pass (transformers)")
    parser.add_argument("--max-model-len", type=positive, help="context length in tokens")
    parser.add_argument("--prompts", type=positive, default=24, help="number of shipped red-team prompts; default: 24")
    parser.add_argument("--rounds", type=positive, default=1, help="default: 1")
    parser.add_argument("--few-shot", type=int, default=1, help="worked examples before each request; default: 1")
    parser.add_argument("--max-tokens", type=positive, default=48, help="default: 48")
    parser.add_argument("--temperature", type=float, default=1.0, help="default: 1")
    parser.add_argument("--repeats", type=positive, default=3, help="default: 3, in which each arm is first once")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    config = load_config(
        CritiqueReviseConfig,
        None,
        {
            "limit": options.prompts,
            "helpful_ratio": 0,
            "rounds": options.rounds,
            "few_shot": options.few_shot,
            "engine": {
                **engine_keys(options),
                "concurrency": options.concurrency,
                "batch_size": options.batch_size,
                "max_model_len": options.max_model_len,
            },
            "sampling": {"max_tokens": options.max_tokens, "temperature": options.temperature},
        },
    )
    inputs = load_inputs(config)
    with tempfile.TemporaryDirectory(prefix="cai-generation-") as folder:
        report = asyncio.run(compare(inputs, options.repeats, Path(folder)))
    publish(report, options.out)


if __name__ == "__main__":
    sys.exit(exit_status(main))
