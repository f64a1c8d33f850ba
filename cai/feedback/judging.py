"""What labelling and certification share: comparisons in, a judge at work on them."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from cai.config import EngineConfig, StageConfig
from cai.constitution import JUDGES_BY, Constitution, load_constitution
from cai.data.comparisons import ComparisonInput, read_comparisons, scan_comparisons
from cai.data.rows import Reject, ignore
from cai.engines import Engine
from cai.engines.weights import DEFAULT_MODEL
from cai.errors import ConfigError
from cai.feedback.certificate import JudgeIdentity
from cai.feedback.judge import Judge
from cai.feedback.judge_config import PARTS, JudgeConfig, check_constitution
from cai.feedback.prompts import JudgePrompts
from cai.records import Comparison, Label
from cai.rundir import run_path
from cai.running import Phase
from cai.stage import OnStep, WorkItem


class JudgingConfig(StageConfig):
    """What `cai label` and `cai judge-check` have in common."""

    constitution: str = "hhh"
    """A constitution file, or the name of a shipped one."""
    comparisons: str
    """Pairs of responses: the directory of a run, a file, a shipped set, or `hub:owner/name[@config][:split]`."""
    prompt_column: str | None = None
    """Column that holds the prompt. Default: found by its name."""
    gold_column: str | None = None
    """Column that names the better of `response_a` and `response_b`. Default: `gold`, where there is one."""
    skip: Annotated[int, Field(ge=0)] = 0
    """Pass over the first comparisons, so that a judge chosen on those is measured on others; `limit` counts after."""
    judge: JudgeConfig = JudgeConfig()
    templates: Path | None = None
    """Folder with templates of your own; those it lacks are the shipped ones."""

    @model_validator(mode="after")
    def _no_system(self) -> Self:
        if self.engine.system is not None:
            raise ValueError("`engine.system` has no effect on a judge; its system prompts are templates")
        return self


@dataclass(frozen=True)
class JudgingInputs:
    """What a judge works from, loaded and checked."""

    config: JudgingConfig
    constitution: Constitution
    prompts: JudgePrompts
    source: ComparisonInput
    hashes: Mapping[str, str]
    """Content hash of each input."""
    total: int
    """Comparisons to be judged."""
    rejects: tuple[Reject, ...]
    """Input rows that cannot be used."""
    notes: Mapping[str, int]
    """Odd rows that are used all the same, by reason."""
    human_sha256: str | None = None
    """Content hash of the human choices that are mixed in; None where there are none."""

    @property
    def identity(self) -> JudgeIdentity:
        """What the judge's probabilities depend on."""
        config, constitution = self.config, self.constitution
        parts = sorted({PARTS[protocol] for protocol in config.judge.protocol})
        serving = {one.id for part in parts for one in constitution.select(part, config.judge.tags)}
        return JudgeIdentity(
            engine=config.engine.engine,
            model=model_name(config.engine),
            adapter=str(config.engine.adapter) if config.engine.adapter else None,
            dtype=config.engine.dtype,
            format=config.engine.format,
            settings=config.judge.model_dump(mode="json"),
            principle_ids=tuple(sorted(serving)),
            constitution_sha256=constitution.meaning(unread(config.templates)),
            templates_sha256=self.prompts.sha256,
        )

    def default_out(self, stage: str) -> Path:
        """Where the run goes that names no directory."""
        return run_path(f"{stage}-{self.constitution.name}", self.config, self.hashes)


def unread(templates: object) -> frozenset[str]:
    """Keys of principles that a judge does not read; it may read all of them by templates of one's own."""
    return JUDGES_BY if templates is None else frozenset()


def model_name(engine: EngineConfig) -> str:
    """The model as configured; where a script or a server decides what it is, their names stand for it."""
    if engine.engine == "scripted":
        return str(engine.script)
    if engine.engine == "openai":
        return engine.model or f"the model of {', '.join(engine.base_url)}"
    return engine.model or DEFAULT_MODEL


def load_judging(config: JudgingConfig, *, require_gold: bool) -> JudgingInputs:
    """Load and check everything a judge works from, before any model is loaded.

    With `require_gold`, rows that do not say which response is the better one are rejects.

    Raises:
        CaiError: a file is wrong; all problems of that file are named.
    """
    constitution = load_constitution(config.constitution)
    check_constitution(config.judge, constitution)
    prompts = JudgePrompts(config.templates)
    source = ComparisonInput(
        path=config.comparisons,
        column=config.prompt_column,
        gold_column=config.gold_column,
        require_gold=require_gold,
    )
    rejects: list[Reject] = []
    scan = scan_comparisons(source, on_reject=rejects.append)
    total = max(0, scan.comparisons - config.skip)
    if not total:
        raise ConfigError(
            f"{config.comparisons} has {scan.comparisons} comparisons, and `skip` passes over all of them"
        )
    return JudgingInputs(
        config=config,
        constitution=constitution,
        prompts=prompts,
        source=source,
        hashes={"constitution": constitution.sha256, "templates": prompts.sha256, "comparisons": scan.sha256},
        total=total if config.limit is None else min(total, config.limit),
        rejects=tuple(rejects),
        notes=scan.notes,
    )


def refuse_assumed(source: ComparisonInput, says_nothing_about: str) -> None:
    """Check that somebody has said which response is the better one.

    Raises:
        ConfigError: the comparisons come from `cai contrast`, so that their order is assumed.
    """
    if next(read_comparisons(source, on_reject=ignore)).source == "contrast":
        raise ConfigError(
            f"{source.path} is a run of `cai contrast`: which response is better was assumed there, so it says "
            f"nothing about {says_nothing_about}; name comparisons that people have labelled"
        )


def comparison_items(inputs: JudgingInputs) -> Iterator[WorkItem[Comparison]]:
    """The comparisons to be judged, those that `skip` and `limit` leave."""
    config = inputs.config
    found = read_comparisons(inputs.source, on_reject=ignore)
    end = None if config.limit is None else config.skip + config.limit
    return (WorkItem(index, one.id, one) for index, one in enumerate(islice(found, config.skip, end)))


def judging_phase(inputs: JudgingInputs) -> Phase[Comparison, Label]:
    """The work of the judge, for `running.Job`."""
    config = inputs.config

    def worker(engine: Engine, on_step: OnStep) -> Callable[[WorkItem[Comparison]], Awaitable[Label]]:
        judge = Judge(config.judge, inputs.constitution, inputs.prompts, engine, seed=config.seed, on_step=on_step)

        async def label(item: WorkItem[Comparison]) -> Label:
            return Label(
                id=item.id,
                index=item.index,
                comparison=item.of,
                verdict=await judge.verdict(item.of, item.attempt),
                constitution_sha256=inputs.constitution.sha256,
                templates_sha256=inputs.prompts.sha256,
                model=engine.info.model,
                seed=config.seed,
            )

        return label

    return Phase(engine=config.engine, items=lambda: comparison_items(inputs), worker=worker)
