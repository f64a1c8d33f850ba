"""The stage `contrast`: preference pairs without a judge, by prompts that ask for opposites.

RLCD (Yang et al. 2023, arXiv 2307.12950): the same policy answers each prompt twice, asked by its system prompt to keep
to a principle and to go against it, and the first reply is taken for the better one. Departures: the two system prompts
come from a principle of the constitution, where the paper writes pairs of them by hand; pairs whose replies say the
same are dropped, and counted.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import ClassVar

from rich.console import Console

from cai.author import Author
from cai.config import Positive, SamplingConfig, Share, StageConfig
from cai.constitution import Constitution, Principle, load_constitution
from cai.data.card_parts import ConstitutionFacts
from cai.data.comparisons import SAMPLED
from cai.data.contrast_card import ContrastCounts, ContrastFacts, render_contrast_card
from cai.data.dataset import DatasetWriter
from cai.data.preference_tables import PREFERENCE_TABLES, gold_row
from cai.data.preferences import add_pair
from cai.data.prompts import PromptSource, read_prompts, scan_prompts
from cai.data.rows import Reject, ignore
from cai.data.tables import split_of
from cai.engines import Engine
from cai.errors import RecordError
from cai.feedback.pairing import distinct
from cai.feedback.prompts import JudgePrompts
from cai.prompting import with_system
from cai.records import Comparison, ContrastSample, Prompt, Response, Side, stable_seed
from cai.rundir import RunDir, read_records, run_path
from cai.running import Job, Outcome, Phase, run_facts, run_job
from cai.stage import OnStep, WorkItem, gather_all

STAGE = "contrast"
FOLLOW, OPPOSE = "follow", "oppose"
"""The two replies of a pair: names of their steps, and their origins in the data."""


class ContrastConfig(StageConfig):
    """Configuration of `cai contrast`; its `limit` counts prompts."""

    prompts: str = "red-team"
    """Prompts to be answered: a file, a shipped set, or `hub:owner/name[@config][:split]`."""
    prompt_column: str | None = None
    """Column of `prompts` that holds the prompt. Default: found by its name."""
    constitution: str = "hhh"
    """A constitution file, or the name of a shipped one."""
    principles: Positive = 1
    """How many principles are drawn for each prompt; each makes a pair of its own."""
    tags: tuple[str, ...] = ()
    """Draw only principles that have one of these tags."""
    templates: Path | None = None
    """Folder with templates of your own; `contrast.j2` holds the two system prompts."""
    test_share: Share = 0.05
    """Share of the prompts whose rows go to the test splits."""
    sampling: SamplingConfig = SamplingConfig()

    FREE_KEYS: ClassVar[frozenset[str]] = StageConfig.FREE_KEYS | {"prompts", "constitution", "templates"}


@dataclass(frozen=True)
class Task:
    """What one pair is about."""

    prompt: Prompt
    principle: Principle


class Contraster:
    """Makes pairs with one engine, one constitution and one set of templates."""

    def __init__(
        self,
        config: ContrastConfig,
        constitution: Constitution,
        prompts: JudgePrompts,
        engine: Engine,
        on_step: OnStep,
    ) -> None:
        """Take what the pairs share; `on_step` is called after every model call."""
        self._config = config
        self._constitution = constitution
        self._prompts = prompts
        self._engine = engine
        self._author = Author(engine, config.sampling, config.seed, on_step)

    async def pair(self, item: WorkItem[Task]) -> ContrastSample:
        """Sample both replies at once. A system prompt of the policy or of the conversation follows the principle's.

        Raises:
            RecordError: a reply failed; `step` names it. `empty_reply` where the model said nothing.
        """
        prompt, principle = item.of.prompt, item.of.principle
        talk = with_system(prompt.messages, self._config.engine.system or "")
        systems = self._prompts.contrast(self._prompts.phrase(principle, prompt.topic))
        follow, oppose = await gather_all(
            [
                self._author.reply(item, name, with_system(talk, system))
                for name, system in zip((FOLLOW, OPPOSE), systems, strict=True)
            ]
        )
        for name, reply in ((FOLLOW, follow), (OPPOSE, oppose)):
            if not reply.text:
                raise RecordError("empty_reply", "the model's reply has no text", name)
        return ContrastSample(
            id=item.id,
            index=item.index,
            prompt=prompt,
            principle_id=principle.id,
            follow=follow,
            oppose=oppose,
            constitution_sha256=self._constitution.sha256,
            templates_sha256=self._prompts.sha256,
            model=self._engine.info.model,
            seed=self._config.seed,
        )


@dataclass(frozen=True)
class ContrastInputs:
    """What a run works from, loaded and checked."""

    config: ContrastConfig
    constitution: Constitution
    judge_prompts: JudgePrompts
    hashes: Mapping[str, str]
    """Content hash of each input."""
    prompts: int
    """Prompts that will be answered."""
    rejects: tuple[Reject, ...]
    """Input rows that cannot be used."""
    notes: Mapping[str, int]
    """Odd rows that are used all the same, by reason."""

    @property
    def pairs(self) -> int:
        """Pairs of the run: one for each prompt and principle."""
        return self.prompts * self.config.principles

    @property
    def default_out(self) -> Path:
        """Where the run goes that names no directory."""
        return run_path(f"{STAGE}-{self.constitution.name}", self.config, self.hashes)


def load_contrast_inputs(config: ContrastConfig) -> ContrastInputs:
    """Load and check everything a run works from, before any model is loaded.

    Raises:
        CaiError: a file is wrong; all problems of that file are named.
    """
    constitution = load_constitution(config.constitution)
    constitution.sample("question", config.principles, tags=config.tags)
    judge_prompts = JudgePrompts(config.templates)
    for principle in constitution.select("question", config.tags):
        judge_prompts.contrast(judge_prompts.phrase(principle, None))
    rejects: list[Reject] = []
    scan = scan_prompts(_source(config), kind="red_team", on_reject=rejects.append)
    return ContrastInputs(
        config=config,
        constitution=constitution,
        judge_prompts=judge_prompts,
        hashes={"constitution": constitution.sha256, "templates": judge_prompts.sha256, "prompts": scan.sha256},
        prompts=scan.prompts if config.limit is None else min(scan.prompts, config.limit),
        rejects=tuple(rejects),
        notes=scan.notes,
    )


def _source(config: ContrastConfig) -> PromptSource:
    return PromptSource(path=config.prompts, column=config.prompt_column)


def contrast_comparison(sample: ContrastSample) -> Comparison:
    """The pair as a comparison whose gold side is the reply that was asked to follow; its side is drawn."""
    follow, oppose = Response(text=sample.follow.text, origin=FOLLOW), Response(text=sample.oppose.text, origin=OPPOSE)
    gold: Side = "b" if stable_seed(sample.seed, "sides", sample.id) % 2 else "a"
    a, b = (follow, oppose) if gold == "a" else (oppose, follow)
    return Comparison(id=sample.id, prompt=sample.prompt, a=a, b=b, source="contrast", gold=gold)


def contrast(
    inputs: ContrastInputs,
    out: Path,
    console: Console,
    *,
    command: Sequence[str] = (),
    overwrite: bool = False,
    retry_failed: bool = False,
) -> Outcome[ContrastCounts]:
    """Make, or go on with, the run in `out`; see `run_job` for what is raised."""
    config = inputs.config
    job = Job(
        stage=STAGE,
        noun="pairs",
        config=config,
        hashes=inputs.hashes,
        constitution=inputs.constitution,
        counts={"prompts": inputs.prompts},
        total=inputs.pairs,
        rejects=inputs.rejects,
        phases=[_phase(inputs)],
        record=ContrastSample,
        counts_model=ContrastCounts,
        other_files=(SAMPLED,),
        export=partial(_export, inputs),
    )
    return run_job(job, out, console, command=command, overwrite=overwrite, retry_failed=retry_failed)


def _phase(inputs: ContrastInputs) -> Phase[Task, ContrastSample]:
    config, constitution = inputs.config, inputs.constitution

    def items() -> Iterator[WorkItem[Task]]:
        prompts = read_prompts(_source(config), kind="red_team", on_reject=ignore)
        for number, prompt in enumerate(islice(prompts, config.limit)):
            drawn = constitution.sample("question", config.principles, config.seed, prompt.id, tags=config.tags)
            for place, principle in enumerate(drawn):
                index = number * config.principles + place
                yield WorkItem(index, f"{prompt.id}/{principle.id}", Task(prompt, principle))

    def worker(engine: Engine, on_step: OnStep) -> Callable[[WorkItem[Task]], Awaitable[ContrastSample]]:
        return Contraster(config, constitution, inputs.judge_prompts, engine, on_step).pair

    return Phase(config.engine, items, worker)


def _export(inputs: ContrastInputs, run: RunDir) -> ContrastCounts:
    """Write the tables, the comparisons and their card. Memory does not grow with their number."""
    config, constitution = inputs.config, inputs.constitution
    pairs = cut = 0
    dropped: Counter[str] = Counter()
    principles: Counter[str] = Counter()
    with DatasetWriter(run.path, PREFERENCE_TABLES, (SAMPLED,)) as dataset:
        for sample in read_records(run.path, ContrastSample):
            pairs += 1
            cut += "length" in (sample.follow.finish_reason, sample.oppose.finish_reason)
            comparison = contrast_comparison(sample)
            _, same = distinct((comparison.a, comparison.b))
            dropped.update(same)
            if same:
                continue
            principles[sample.principle_id] += 1
            row = gold_row(
                comparison,
                sample.seed,
                principle_ids=(sample.principle_id,),
                constitution_sha256=sample.constitution_sha256,
            )
            add_pair(dataset, row, split_of(sample.prompt, config.test_share, config.seed), tie=False)
            dataset.write_line(SAMPLED, comparison.model_dump_json())
        counts = ContrastCounts(
            files=dataset.finish(),
            pairs=pairs,
            cut=cut,
            dropped=dict(dropped),
            principles=dict(principles),
        )
        facts = ContrastFacts(
            run=run_facts(run, f"Contrasting replies by the constitution {constitution.name}", inputs.rejects),
            constitution=ConstitutionFacts.of(constitution, inputs.judge_prompts.sha256),
            model=str(run.manifest.engine.get("model", "")),
            engine=config.engine.engine,
            sampling=config.sampling.sampling(),
            prompt_source=config.prompts,
        )
        dataset.publish(render_contrast_card(facts, counts, test_share=config.test_share, seed=config.seed))
    return counts
