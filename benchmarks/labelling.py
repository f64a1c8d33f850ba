"""What a label of the whole constitution costs: ours against written verdicts and against no reuse of prefixes.

Up to four arms judge the same comparisons pairwise, in both orders, each comparison at once as `cai label` does:

- ensemble: option log-probs by every principle of the constitution; the principles share what they have in common;
- single: option log-probs by one drawn principle;
- generated: one written verdict for each order and principle of the ensemble, in place of log-probs;
- no-reuse: the ensemble, each request computed by itself (transformers alone; see below).

Every arm first judges one comparison unmeasured, then all of them once in each repeat, in rotated order. A mark at the
beginning of all its requests keeps the caches that other arms have filled from serving it; `ensemble` and `no-reuse`
have the same mark, and so the same requests.

Computed prompt tokens are those that no prefix cache served, by the engine's count or, where a server has vLLM's
metrics, by its own. Other engines than transformers cannot go without reuse in the same run: there `no-reuse` is left
out, and what it would compute is what the ensemble sends.
"""

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from urllib.parse import urljoin
from urllib.request import urlopen

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
from cai.engines import ChoiceLogprobs, Engine, EngineInfo, ReplyLogprob, open_engine
from cai.errors import RecordError, StageError
from cai.feedback.judging import JudgingConfig, JudgingInputs, judging_phase, load_judging
from cai.records import Comparison, Failure, Generation, Label, Message, Record, Sampling, Usage
from cai.stage import WorkItem, run_stage

ENSEMBLE, SINGLE, GENERATED, NO_REUSE = "ensemble", "single", "generated", "no-reuse"
JUDGES: Mapping[str, Mapping[str, object]] = {
    ENSEMBLE: {"principles": "all"},
    SINGLE: {"principles": 1},
    GENERATED: {"principles": "all", "sample_verdicts": 1},
    NO_REUSE: {"principles": "all"},
}
"""What the judge of each arm has beside the common options."""
MOST_TO_SINGLE = 3.0
"""Greatest cost of a label by the ensemble, in labels by one principle."""
LEAST_FROM_REUSE = 5.0
"""Least factor that reuse is to save of the ensemble's prompt tokens."""
TOLERANCE = 1e-4
"""Greatest difference between a probability with reuse and the same one without."""

Answers = dict[tuple[str, str, str | None], float]
"""p_a of each judgement, by comparison, principle and order."""


class Workload(Record):
    """What each arm judges."""

    comparisons: int
    source: str
    constitution: str
    principles: int
    """Of the ensemble."""
    few_shot: int
    """Worked examples before each request."""
    concurrency: int
    """Comparisons in flight."""


class Timing(ArmTiming):
    """One run of one arm."""

    labels_per_s: float
    """Comparisons worked through per second. Those that failed count too: their questions were asked."""
    computed_tokens_per_label: float
    """Prompt tokens that no cache served."""
    written_tokens_per_label: float
    calls: int
    """Requests that were answered."""
    failed: Mapping[str, int]
    """Comparisons without a verdict, by reason."""
    usage: Usage
    looked_up: int | None
    """Prompt tokens for which a server looked into its cache, by its metrics; it had other clients where they are more
    than `usage` has. None where the cached tokens are those of the replies."""


class LabellingReport(Report):
    """The report of this benchmark. Ratios are by repeat."""

    engine: EngineInfo
    workload: Workload
    timings: tuple[Timing, ...]
    ensemble_to_single_tokens: Spread
    """Computed prompt tokens of the ensemble over those of one principle."""
    no_reuse_to_ensemble_tokens: Spread
    """Computed prompt tokens without reuse over those of the ensemble."""
    no_reuse_measured: bool
    """False where the arm is left out and its tokens are taken to be all that the ensemble sends."""
    ensemble_to_single_speed: Spread
    """Labels per second of one over those of the other, here and below."""
    ensemble_to_generated_speed: Spread
    ensemble_to_no_reuse_speed: Spread | None
    greatest_difference: float | None
    """Between a judgement's p_a with reuse and without; None where `no-reuse` is left out."""
    same_verdicts: bool | None
    """Whether it is within the tolerance, and both arms failed on the same comparisons."""
    most_to_single: float
    least_from_reuse: float
    within_targets: bool
    """Both medians in computed prompt tokens reach their targets."""


class Marked:
    """An engine whose conversations all begin with a mark."""

    def __init__(self, engine: Engine, mark: str) -> None:
        self._engine = engine
        self._mark = mark

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Generation:
        if not self.info.seeded:  # the seed would fix nothing, and a vLLM server on a CPU dies of it
            sampling = sampling.model_copy(update={"seed": None})
        return await self._engine.generate(self._marked(messages), sampling)

    async def choice_logprobs(
        self, messages: Sequence[Message], prefill: str, choices: Sequence[str]
    ) -> ChoiceLogprobs:
        return await self._engine.choice_logprobs(self._marked(messages), prefill, choices)

    async def reply_logprob(self, messages: Sequence[Message], reply: str) -> ReplyLogprob:
        return await self._engine.reply_logprob(self._marked(messages), reply)

    async def aclose(self) -> None:
        await self._engine.aclose()

    def _marked(self, messages: Sequence[Message]) -> list[Message]:
        first, *rest = messages
        return [Message(role=first.role, content=f"{self._mark}\n{first.content}"), *rest]


@dataclass(frozen=True)
class CacheCount:
    """vLLM's prefix cache by its own metrics, in tokens."""

    looked_up: int
    found: int


def cache_count(urls: Sequence[str]) -> CacheCount | None:
    """Sums over the servers at these base URLs; None where there is none, or one has no such metrics."""
    totals = {"queries": 0.0, "hits": 0.0}
    for url in urls:
        try:
            with urlopen(urljoin(f"{url.rstrip('/')}/", "../metrics"), timeout=10) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return None
        for name in totals:
            found = [line for line in lines if line.startswith(f"vllm:prefix_cache_{name}_total")]
            if not found:
                return None
            totals[name] += sum(float(line.split()[-1]) for line in found)
    return CacheCount(int(totals["queries"]), int(totals["hits"])) if urls else None


class Arms:
    """The arms on opened engines."""

    def __init__(self, inputs: JudgingInputs, engines: Mapping[str, Engine]) -> None:
        """Take the inputs and the engine of each arm."""
        self._inputs = inputs
        self._engines = engines
        self._runs = 0
        self.names = list(engines)
        self.concurrency = engines[ENSEMBLE].info.concurrency
        self.answers: dict[tuple[str, int], Answers] = {}
        """By arm and repeat."""

    async def timed(self, arm: str, repeat: int, place: int, comparisons: int) -> Timing:
        """Have one arm judge the first `comparisons`.

        Raises:
            StageError: the engine answered none of its requests.
        """
        config = self._inputs.config
        judge = config.judge.model_copy(update=JUDGES[arm])
        phase = judging_phase(replace(self._inputs, config=config.model_copy(update={"judge": judge})))
        which = ENSEMBLE if arm == NO_REUSE else arm
        engine = Marked(self._engines[arm], f"Run {1000 + len(JUDGES) * repeat + self.names.index(which)}.")
        calls, usage, failed = 0, Usage(), Counter[str]()
        answers = self.answers[arm, repeat] = {}

        def count(step: Usage) -> None:
            nonlocal calls, usage
            calls, usage = calls + 1, usage + step

        label = phase.worker(engine, count)

        async def work(item: WorkItem[Comparison]) -> Label | Failure:
            # A weak model may fail at every written verdict, which is no reason to stop here.
            try:
                return await label(item)
            except RecordError as error:
                return Failure(id=item.id, index=item.index, step=error.step, reason=error.reason, message=str(error))

        def keep(result: Label | Failure) -> None:
            if isinstance(result, Failure):
                failed[result.reason] += 1
                return
            for one in result.verdict.judgements:
                answers[result.id, one.principle_id, one.order] = one.p_a

        before = await asyncio.to_thread(cache_count, config.engine.base_url)
        began = time.perf_counter()
        await run_stage(
            islice(phase.items(), comparisons),
            work,
            concurrency=self.concurrency,
            on_result=keep,
            on_failure=lambda _: None,
        )
        seconds = time.perf_counter() - began
        after = await asyncio.to_thread(cache_count, config.engine.base_url)
        if not calls:
            reasons = ", ".join(f"{number} {reason}" for reason, number in failed.items())
            raise StageError(f"no request of the arm {arm} was answered, its comparisons failed ({reasons})")
        if before and after:
            usage = usage.model_copy(update={"cached_tokens": after.found - before.found})
        return Timing(
            arm=arm,
            repeat=repeat,
            place=place,
            seconds=round(seconds, 4),
            labels_per_s=round(comparisons / seconds, 4),
            computed_tokens_per_label=round((usage.prompt_tokens - usage.cached_tokens) / comparisons, 2),
            written_tokens_per_label=round(usage.completion_tokens / comparisons, 2),
            calls=calls,
            failed=failed,
            usage=usage,
            looked_up=after.looked_up - before.looked_up if before and after else None,
        )

    def difference(self, repeats: int) -> tuple[float, bool]:
        """Greatest difference of p_a between `ensemble` and `no-reuse`, and whether their verdicts are the same."""
        pairs = [(self.answers[ENSEMBLE, repeat], self.answers[NO_REUSE, repeat]) for repeat in range(1, repeats + 1)]
        gaps = [abs(ours[key] - theirs[key]) for ours, theirs in pairs for key in ours.keys() & theirs.keys()]
        greatest = max(gaps, default=0.0)
        return greatest, greatest <= TOLERANCE and all(ours.keys() == theirs.keys() for ours, theirs in pairs)


async def compare(inputs: JudgingInputs, repeats: int) -> LabellingReport:
    """Take all measurements on opened engines."""
    config = inputs.config
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(open_engine(config.engine))
        engines: dict[str, Engine] = dict.fromkeys((ENSEMBLE, SINGLE, GENERATED), engine)
        if config.engine.engine == "transformers":
            from cai.engines.transformers import open_transformers

            engines[NO_REUSE] = await open_transformers(config.engine, share_prefixes=False)
            stack.push_async_callback(engines[NO_REUSE].aclose)
        arms = Arms(inputs, engines)
        for arm in arms.names:
            await arms.timed(arm, 0, 0, 1)
        timings: list[Timing] = []
        for repeat in range(1, repeats + 1):
            for place, arm in enumerate(in_turn(arms.names, repeat), 1):
                timings.append(await arms.timed(arm, repeat, place, inputs.total))
                print(f"repeat {repeat}: {arm} {timings[-1].seconds:.2f} s", file=sys.stderr)
        used = machine()
    measured = NO_REUSE in arms.names
    to_single = ratios(_tokens(timings, ENSEMBLE), _tokens(timings, SINGLE))
    without = _tokens(timings, NO_REUSE) if measured else [run.usage.prompt_tokens for run in _of(timings, ENSEMBLE)]
    from_reuse = ratios(without, _tokens(timings, ENSEMBLE))
    difference, same = arms.difference(repeats) if measured else (None, None)
    return LabellingReport(
        benchmark="labelling",
        machine=used,
        versions=versions(),
        engine=public_info(engine.info),
        workload=Workload(
            comparisons=inputs.total,
            source=Path(config.comparisons).name,
            constitution=inputs.constitution.name,
            principles=len(inputs.identity.principle_ids),
            few_shot=len(inputs.constitution.examples.comparison[: config.judge.few_shot]),
            concurrency=arms.concurrency,
        ),
        timings=tuple(timings),
        ensemble_to_single_tokens=to_single,
        no_reuse_to_ensemble_tokens=from_reuse,
        no_reuse_measured=measured,
        ensemble_to_single_speed=ratios(_speeds(timings, ENSEMBLE), _speeds(timings, SINGLE)),
        ensemble_to_generated_speed=ratios(_speeds(timings, ENSEMBLE), _speeds(timings, GENERATED)),
        ensemble_to_no_reuse_speed=ratios(_speeds(timings, ENSEMBLE), _speeds(timings, NO_REUSE)) if measured else None,
        greatest_difference=difference,
        same_verdicts=same,
        most_to_single=MOST_TO_SINGLE,
        least_from_reuse=LEAST_FROM_REUSE,
        within_targets=to_single.median <= MOST_TO_SINGLE and from_reuse.median >= LEAST_FROM_REUSE,
    )


def _of(timings: Sequence[Timing], arm: str) -> list[Timing]:
    """The runs of an arm, by repeat."""
    return [timing for timing in timings if timing.arm == arm]


def _tokens(timings: Sequence[Timing], arm: str) -> list[int]:
    """Computed prompt tokens of an arm, by repeat."""
    return [timing.usage.prompt_tokens - timing.usage.cached_tokens for timing in _of(timings, arm)]


def _speeds(timings: Sequence[Timing], arm: str) -> list[float]:
    return [timing.labels_per_s for timing in _of(timings, arm)]


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_engine_options(parser)
    parser.add_argument("--dtype", help="default: float32 with transformers, in which reuse changes nothing; else auto")
    parser.add_argument("--comparisons", default="planted", help="file or shipped set; default: planted")
    parser.add_argument("--limit", type=positive, help="number of comparisons; default: all")
    parser.add_argument("--few-shot", type=int, default=0, help="worked examples before each request; default: 0")
    parser.add_argument("--repeats", type=positive, default=4, help="default: 4, in which each arm is first once")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    config = load_config(
        JudgingConfig,
        None,
        {
            "comparisons": options.comparisons,
            "limit": options.limit,
            # What is measured is speed: an answer that is unlikely as a whole takes as long as any other.
            "judge": {"few_shot": options.few_shot, "min_option_mass": 0},
            "engine": {
                **engine_keys(options),
                "dtype": options.dtype or ("float32" if options.engine == "transformers" else None),
            },
        },
    )
    report = asyncio.run(compare(load_judging(config, require_gold=False), options.repeats))
    publish(report, options.out)


if __name__ == "__main__":
    sys.exit(exit_status(main))
