"""What a run would take: calls exactly, tokens and time by a probe of a few real chains. Nothing is written."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from cai.critique import Reviser
from cai.critique_run import Inputs, read_inputs
from cai.engines import open_engine
from cai.errors import StageError
from cai.records import Failure, Prompt, RevisionChain, Usage
from cai.stage import WorkItem, run_interruptible, run_stage

PROBE = 8
"""Chains in the probe, where there are so many: of red-team prompts, each with one round, if there are any."""


@dataclass(frozen=True)
class Estimate:
    """Figures of a whole run, extrapolated from a probe."""

    calls: int
    usage: Usage
    seconds: float
    """Generation alone; loading the model comes on top."""
    concurrency: int
    probe_calls: int
    probe_failures: Mapping[str, int]
    """Number of the probe's chains that failed, by reason; the figures are those of the others."""
    probe_usage: Usage
    probe_seconds: float


def probe_size(inputs: Inputs) -> int:
    """Number of chains in the probe."""
    return min(PROBE, inputs.red_team or inputs.helpful)


def estimate_run(inputs: Inputs) -> Estimate:
    """Make the first round of `PROBE` chains and extrapolate.

    Later rounds are taken to cost what the first costs, and the engine to be as fast on many chains as on `PROBE`:
    with a batching engine the time is an upper bound.

    Raises:
        StageError: every chain of the probe failed.
        EngineError: the engine cannot be used.
    """
    chains, failures, seconds, concurrency = run_interruptible(_probe(inputs))
    spent = sum((chain.usage for chain in chains), Usage())
    drafts = sum((chain.draft.usage for chain in chains), Usage())
    drafted, revised = inputs.total / len(chains), inputs.red_team * inputs.config.rounds / len(chains)
    usage = Usage(
        prompt_tokens=_scaled(drafts.prompt_tokens, drafted, spent.prompt_tokens, revised),
        cached_tokens=_scaled(drafts.cached_tokens, drafted, spent.cached_tokens, revised),
        completion_tokens=_scaled(drafts.completion_tokens, drafted, spent.completion_tokens, revised),
    )
    return Estimate(
        calls=inputs.calls,
        usage=usage,
        seconds=seconds * usage.completion_tokens / max(1, spent.completion_tokens),
        concurrency=concurrency,
        probe_calls=sum(len(chain.steps) for chain in chains),
        probe_failures=dict(Counter(failure.reason for failure in failures).most_common()),
        probe_usage=spent,
        probe_seconds=seconds,
    )


def _scaled(drafts: int, drafted: float, all_steps: int, revised: float) -> int:
    """Tokens of the run: the probe's drafts as often as prompts are drafted, its other steps as often as revised."""
    return round(drafts * drafted + (all_steps - drafts) * revised)


async def _probe(inputs: Inputs) -> tuple[list[RevisionChain], list[Failure], float, int]:
    config = inputs.config.model_copy(update={"rounds": 1})
    chains: list[RevisionChain] = []
    failures: list[Failure] = []
    async with open_engine(config.engine) as engine:
        reviser = Reviser(config, inputs.constitution, inputs.templates, engine, on_step=lambda _: None)
        concurrency = config.engine.concurrency or engine.info.concurrency
        began = time.monotonic()
        await run_stage(
            _items(inputs),
            reviser.chain,
            concurrency=min(PROBE, concurrency),
            on_result=chains.append,
            on_failure=failures.append,
        )
        seconds = time.monotonic() - began
    if not chains:
        raise StageError(f"no chain of the probe succeeded; the last failure: {failures[-1].message}")
    return chains, failures, seconds, concurrency


def _items(inputs: Inputs) -> Iterator[WorkItem[Prompt]]:
    kind = "red_team" if inputs.red_team else "helpful"
    prompts = (prompt for prompt in read_inputs(inputs.config) if prompt.kind == kind)
    return (WorkItem(index, prompt.id, prompt) for index, prompt in enumerate(islice(prompts, PROBE)))
