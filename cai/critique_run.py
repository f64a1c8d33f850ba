"""The stage `critique-revise`: prompts in, a run directory with chains and data sets out. Resumable at any byte."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from cai import __version__
from cai.constitution import Constitution, frozen_yaml, load_constitution
from cai.critique import ChainItem, CritiqueReviseConfig, Reviser
from cai.data.card import CardFacts, ExportCounts
from cai.data.chains import read_chains
from cai.data.export import export_chains
from cai.data.prompts import PromptSource, Reject, RowNote, SeenIds, read_prompts, scan_prompts
from cai.engines import open_engine
from cai.errors import RunDirError, StageError
from cai.progress import StageProgress
from cai.prompting import Templates
from cai.records import Failure, Prompt, RevisionChain
from cai.rundir import Manifest, RunDir, shared_keys_digest
from cai.stage import run_interruptible, run_stage, sigterm_interrupts

STAGE = "critique-revise"
REJECTS = "rejects.jsonl"


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
        """`runs/NAME-HASH`: the same command finds its run again, another configuration gets its own."""
        config = self.config.model_dump(mode="json")
        digest = shared_keys_digest(config, self.hashes, CritiqueReviseConfig.FREE_KEYS)
        return Path("runs") / f"{self.constitution.name}-{digest[:8]}"


@dataclass(frozen=True)
class Outcome:
    """What a run left behind."""

    path: Path
    manifest: Manifest
    counts: ExportCounts
    progress: StageProgress
    """Of this session."""


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


def _ignore(_: RowNote) -> None:
    pass


def read_inputs(config: CritiqueReviseConfig) -> Iterator[Prompt]:
    """The prompts of a run in order: after each of `prompts` as many helpful ones as the ratio allows so far.

    So a smaller `limit` gives a beginning of what a larger one gives.
    """
    seen = SeenIds()
    prompts = read_prompts(_red_team(config), kind="red_team", on_reject=_ignore, seen=seen)
    helpful: Iterator[Prompt] = iter(())
    if config.helpful_ratio:
        helpful = read_prompts(_helpful(config), kind="helpful", on_reject=_ignore, seen=seen)
    given = 0
    for number, prompt in enumerate(islice(prompts, config.limit), 1):
        yield prompt
        for extra in islice(helpful, _due(config, number) - given):
            given += 1
            yield extra


def _due(config: CritiqueReviseConfig, prompts: int) -> int:
    """Helpful prompts that go with so many others; the small term is for ratios that floats fall short of."""
    return int(prompts * config.helpful_ratio + 1e-9)


def critique_revise(
    inputs: Inputs,
    out: Path,
    console: Console,
    *,
    command: Sequence[str] = (),
    overwrite: bool = False,
    retry_failed: bool = False,
) -> Outcome:
    """Make, or go on with, the run in `out`.

    Raises:
        KeyboardInterrupt: interrupted by a signal; what is finished is kept.
        StageError: more than `max_failure_share` of the prompts failed; everything is written all the same.
        CaiError: the run cannot go on; what is finished is kept.
    """
    config = inputs.config
    with (
        sigterm_interrupts(),
        RunDir.open(
            out,
            stage=STAGE,
            config=config.model_dump(mode="json"),
            inputs=inputs.hashes,
            seed=config.seed,
            command=command,
            free_keys=CritiqueReviseConfig.FREE_KEYS,
            overwrite=overwrite,
        ) as run,
    ):
        run.write_text("constitution.yaml", frozen_yaml(inputs.constitution))
        run.manifest.counts = {
            "prompts": inputs.total,
            "red_team": inputs.red_team,
            "helpful": inputs.helpful,
            "rejected_rows": len(inputs.rejects),
        }
        if inputs.rejects:
            run.write_text(REJECTS, "".join(f"{reject.model_dump_json()}\n" for reject in inputs.rejects))
        progress = StageProgress(console, inputs.total, run.finished + (0 if retry_failed else run.failed))
        try:
            if _some_wait(inputs, run, retry_failed):
                run_interruptible(_generate(inputs, run, progress, retry_failed))
            counts = _last_export(run)
            if counts is None:
                counts = _export(inputs, run)
                run.manifest.export = {**_exportable(run), "counts": counts.model_dump(mode="json")}
        except BaseException:
            with contextlib.suppress(RunDirError):
                run.save("stopped")
            raise
        allowed = config.max_failure_share * inputs.total
        run.save("failed" if run.failed > allowed else "finished")
        if run.failed > allowed:
            reasons = ", ".join(f"{number} {reason}" for reason, number in run.manifest.failures.items())
            raise StageError(
                f"{run.failed} of {inputs.total} prompts failed ({reasons}), more than the share of "
                f"{config.max_failure_share:g} that is allowed; {out}/failures.jsonl has each. "
                "--retry-failed tries them again, --max-failure-share allows more"
            )
        return Outcome(out, run.manifest, counts, progress)


async def _generate(inputs: Inputs, run: RunDir, progress: StageProgress, retry_failed: bool) -> None:
    """Make the chains that are not there yet."""
    config = inputs.config
    progress.note(f"opening the engine {config.engine.engine} …")
    async with open_engine(config.engine) as engine:
        progress.note(f"model: {engine.info.model}")
        run.manifest.engine = engine.info.model_dump(mode="json")
        run.save("running")
        reviser = Reviser(config, inputs.constitution, inputs.templates, engine, progress.step)

        def keep(chain: RevisionChain) -> None:
            run.append(chain, chain.usage)
            progress.finished()

        def fail(failure: Failure) -> None:
            run.append_failure(failure)
            progress.failure()

        with progress:
            await run_stage(
                _items(config, run, retry_failed),
                reviser.chain,
                concurrency=config.engine.concurrency or engine.info.concurrency,
                on_result=keep,
                on_failure=fail,
            )


def _some_wait(inputs: Inputs, run: RunDir, retry_failed: bool) -> bool:
    """Whether any prompt waits for its chain."""
    if inputs.config.limit is None:  # all that was tried is among the inputs, so counting is enough, and quick
        return inputs.total > run.finished + (0 if retry_failed else run.failed)
    return any(True for _ in _items(inputs.config, run, retry_failed))


def _items(config: CritiqueReviseConfig, run: RunDir, retry_failed: bool) -> Iterator[ChainItem]:
    """The prompts that wait for their chain."""
    for index, prompt in enumerate(read_inputs(config)):
        tries = run.failed_tries(prompt.id)
        if not run.is_finished(prompt.id) and (retry_failed or not tries):
            yield ChainItem(index, prompt, tries)


def _exportable(run: RunDir) -> dict[str, Any]:
    """What an export is made from; where it is the same, so is the export."""
    return {"cai": __version__, "records": run.finished, "failures": run.failures}


def _last_export(run: RunDir) -> ExportCounts | None:
    """Counts of the last export, where it is still there and nothing came since."""
    export = run.manifest.export
    if not _exportable(run).items() <= export.items():
        return None
    counts = ExportCounts.model_validate(export["counts"])
    files = ("README.md", *(file.path for file in counts.files))
    return counts if all((run.path / name).is_file() for name in files) else None


def _export(inputs: Inputs, run: RunDir) -> ExportCounts:
    """Write the data sets and their card."""
    config, constitution, manifest = inputs.config, inputs.constitution, run.manifest
    requests = inputs.templates.requests(constitution, config.rounds)
    card = CardFacts(
        title=f"Critiques and revisions by the constitution {constitution.name}",
        command=" ".join(manifest.command),
        cai_version=__version__,
        created=manifest.created,
        model=str(manifest.engine.get("model", "")),
        engine=config.engine.engine,
        sampling=config.sampling.sampling(),
        constitution=constitution.name,
        constitution_version=constitution.version,
        constitution_description=constitution.description,
        constitution_sha256=constitution.sha256,
        templates_sha256=inputs.templates.sha256,
        rounds=config.rounds,
        critiques=config.critique,
        prompt_sources=(config.prompts, config.helpful) if config.helpful_ratio else (config.prompts,),
        failures=run.failures,
        rejects=len(inputs.rejects),
    )
    return export_chains(
        read_chains(run.path), run.path, requests=requests, test_share=config.test_share, seed=config.seed, card=card
    )
