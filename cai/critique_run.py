"""The stage `critique-revise`: prompts in, a run directory with chains and data sets out. Resumable at any byte."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rich.console import Console

from cai.constitution import Constitution, load_constitution
from cai.critique import CritiqueReviseConfig, Reviser
from cai.data.card import CardFacts, ExportCounts
from cai.data.card_parts import ConstitutionFacts
from cai.data.chains import read_chains
from cai.data.export import export_chains
from cai.data.prompts import PromptSource, read_prompts, scan_prompts
from cai.data.rows import Reject, SeenIds, ignore
from cai.engines import Engine
from cai.prompting import Templates
from cai.records import Prompt, RevisionChain
from cai.rundir import RunDir, run_path
from cai.running import Job, Outcome, Phase, run_facts, run_job
from cai.stage import OnStep, WorkItem

STAGE = "critique-revise"


@dataclass(frozen=True)
class Inputs:
    """What a run works from, loaded and checked."""

    config: CritiqueReviseConfig
    constitution: Constitution
    templates: Templates
    hashes: Mapping[str, str]
    """Content hash of each input."""
    red_team: int
    """Prompts that will be revised."""
    helpful: int
    """Prompts that will only be answered."""
    rejects: tuple[Reject, ...]
    """Input rows that cannot be used."""
    notes: Mapping[str, int]
    """Odd rows that are used all the same, by reason."""

    @property
    def total(self) -> int:
        """Chains of the run."""
        return self.red_team + self.helpful

    @property
    def calls(self) -> int:
        """Model calls of the run, where no chain stops early."""
        return self.red_team * self.config.calls_per_prompt + self.helpful

    @property
    def default_out(self) -> Path:
        """Where the run goes that names no directory."""
        return run_path(self.constitution.name, self.config, self.hashes)


def load_inputs(config: CritiqueReviseConfig) -> Inputs:
    """Load and check everything a run works from, before any model is loaded.

    Raises:
        CaiError: a file is wrong; all problems of that file are named.
    """
    constitution = load_constitution(config.constitution)
    constitution.select("critique", config.tags)
    templates = Templates(config.templates)
    rejects: list[Reject] = []
    seen = SeenIds()
    red_team = scan_prompts(_red_team(config), kind="red_team", on_reject=rejects.append, seen=seen)
    hashes = {"constitution": constitution.sha256, "templates": templates.sha256, "prompts": red_team.sha256}
    notes = Counter(red_team.notes)
    if config.helpful_ratio:
        helpful = scan_prompts(_helpful(config), kind="helpful", on_reject=rejects.append, seen=seen)
        hashes["helpful prompts"] = helpful.sha256
        notes.update(helpful.notes)
    kinds = Counter(prompt.kind for prompt in read_inputs(config)) if config.limit else Counter(red_team.kinds)
    if not config.limit and config.helpful_ratio:
        kinds["helpful"] += min(helpful.prompts, _due(config, red_team.prompts))
    return Inputs(
        config=config,
        constitution=constitution,
        templates=templates,
        hashes=hashes,
        red_team=kinds["red_team"],
        helpful=kinds["helpful"],
        rejects=tuple(rejects),
        notes=dict(notes),
    )


def _red_team(config: CritiqueReviseConfig) -> PromptSource:
    return PromptSource(path=config.prompts, column=config.prompt_column)


def _helpful(config: CritiqueReviseConfig) -> PromptSource:
    return PromptSource(path=config.helpful, kind="helpful")


def read_inputs(config: CritiqueReviseConfig) -> Iterator[Prompt]:
    """The prompts of a run in order: after each of `prompts` as many helpful ones as the ratio allows so far.

    So a smaller `limit` gives a beginning of what a larger one gives. Of an id that stands in both, the one of
    `prompts` is taken.
    """
    prompts = read_prompts(_red_team(config), kind="red_team", on_reject=ignore)
    helpful: Iterator[Prompt] = iter(())
    if config.helpful_ratio:
        seen = SeenIds()
        scan_prompts(_red_team(config), kind="red_team", seen=seen)
        helpful = read_prompts(_helpful(config), kind="helpful", on_reject=ignore, seen=seen)
    given = 0
    for number, prompt in enumerate(islice(prompts, config.limit), 1):
        yield prompt
        for extra in islice(helpful, _due(config, number) - given):
            given += 1
            yield extra


def _due(config: CritiqueReviseConfig, prompts: int) -> int:
    """Helpful prompts that go with so many others; the small term is for ratios that floats fall short of."""
    return int(prompts * config.helpful_ratio + 1e-9)


def read_items(config: CritiqueReviseConfig) -> Iterator[WorkItem[Prompt]]:
    """The prompts of `read_inputs` as items of work."""
    return (WorkItem(index, prompt.id, prompt) for index, prompt in enumerate(read_inputs(config)))


def critique_revise(
    inputs: Inputs,
    out: Path,
    console: Console,
    *,
    command: Sequence[str] = (),
    overwrite: bool = False,
    retry_failed: bool = False,
) -> Outcome[ExportCounts]:
    """Make, or go on with, the run in `out`; see `run_job` for what is raised."""
    config = inputs.config

    def worker(engine: Engine, on_step: OnStep) -> Callable[[WorkItem[Prompt]], Awaitable[RevisionChain]]:
        return Reviser(config, inputs.constitution, inputs.templates, engine, on_step).chain

    job = Job(
        stage=STAGE,
        noun="chains",
        config=config,
        hashes=inputs.hashes,
        constitution=inputs.constitution,
        counts={"prompts": inputs.total, "red_team": inputs.red_team, "helpful": inputs.helpful},
        total=inputs.total,
        rejects=inputs.rejects,
        phases=[Phase(config.engine, lambda: read_items(config), worker)],
        record=RevisionChain,
        counts_model=ExportCounts,
        other_files=(),
        export=lambda run: _export(inputs, run),
    )
    return run_job(job, out, console, command=command, overwrite=overwrite, retry_failed=retry_failed)


def _export(inputs: Inputs, run: RunDir) -> ExportCounts:
    """Write the data sets and their card."""
    config, constitution = inputs.config, inputs.constitution
    requests = inputs.templates.requests(constitution, config.rounds)
    card = CardFacts(
        run=run_facts(run, f"Critiques and revisions by the constitution {constitution.name}", inputs.rejects),
        constitution=ConstitutionFacts.of(constitution, inputs.templates.sha256),
        model=str(run.manifest.engine.get("model", "")),
        engine=config.engine.engine,
        sampling=config.sampling.sampling(),
        rounds=config.rounds,
        critiques=config.critique,
        prompt_sources=(config.prompts, config.helpful) if config.helpful_ratio else (config.prompts,),
    )
    return export_chains(
        read_chains(run.path), run.path, requests=requests, test_share=config.test_share, seed=config.seed, card=card
    )
