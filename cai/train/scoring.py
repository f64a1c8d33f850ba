"""The stage `score`: responses in, rewards of a reward model or an ensemble out.

    manifest.json    what was asked and by which versions, hashes of model and responses, state, counts, timings
    records.jsonl    the members' rewards of one response a line; from these a killed run goes on
    failures.jsonl   responses that have no reward, with the reason
    rejects.jsonl    input rows that cannot be used, with the reason
    scores.jsonl     all scored responses in the order of the input, with their combined reward
    summary.json     what it came to

The members' rewards are what is kept, so another way to combine them, in the same directory, runs no model again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rich.console import Console

from cai.data.responses import Responses, read_responses, scan_responses
from cai.data.rows import Reject, ignore
from cai.progress import StageProgress
from cai.records import Failure, Message, Usage
from cai.rundir import Manifest, RunDir, run_path
from cai.stage import sigterm_interrupts
from cai.train.combination import check_combination
from cai.train.reward_checkpoints import RewardCheckpoints, find_reward_models
from cai.train.score_config import STAGE, ScoreConfig
from cai.train.scores import SCORES, SUMMARY, ResponseScore, ScoreSummary, write_scores

_BATCHES_AT_ONCE = 8
"""Batches whose conversations are sorted by length together, and stored together."""
_SEED = 0
"""Nothing is drawn in a run."""


@dataclass(frozen=True)
class ScoringInputs:
    """All that a run works from; no weights are loaded yet."""

    config: ScoreConfig
    models: RewardCheckpoints
    total: int
    """Responses."""
    hashes: Mapping[str, str]
    rejects: tuple[Reject, ...]
    notes: Mapping[str, int]
    """Odd rows that are used all the same, by reason."""

    @property
    def default_out(self) -> Path:
        """`runs/score-HASH`: the same command finds its run again, another configuration gets its own."""
        return run_path(STAGE, self.config, self.hashes)


@dataclass(frozen=True)
class Scored:
    """What a run left behind."""

    path: Path
    manifest: Manifest
    summary: ScoreSummary


def load_scoring(config: ScoreConfig) -> ScoringInputs:
    """Find and check everything that scoring works from, before any weights are loaded.

    Raises:
        CaiError: the model is no reward model, or the responses cannot be read.
    """
    models = find_reward_models(config.model, max_length=config.max_length, trust_remote_code=config.trust_remote_code)
    check_combination(config.ensemble_by, len(models.members))
    rejects: list[Reject] = []
    scan = scan_responses(config.responses, on_reject=rejects.append)
    rows = islice(read_responses(config.responses, on_reject=ignore), config.limit)
    return ScoringInputs(
        config=config,
        models=models,
        total=scan.responses if config.limit is None else sum(len(row.responses) for row in rows),
        hashes={"model": models.sha256, "responses": scan.sha256},
        rejects=tuple(rejects),
        notes=scan.notes,
    )


def score_responses(
    inputs: ScoringInputs, out: Path, console: Console, *, command: Sequence[str] = (), overwrite: bool = False
) -> Scored:
    """Score the responses, or go on with it. Finished responses are not scored again.

    Raises:
        KeyboardInterrupt: interrupted by a signal; what is finished is kept.
        StageError: more than `max_failure_share` of the responses could not be scored; everything is written all the
            same.
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
            seed=_SEED,
            command=command,
            free_keys=config.free_keys,
            other_files=(SCORES, SUMMARY),
            overwrite=overwrite,
        ) as run,
    ):
        run.manifest.counts = {"responses": inputs.total, "rejected_rows": len(inputs.rejects)}
        run.write_rejects(inputs.rejects)
        with run.stopped_if_it_fails():
            _score(inputs, run, console)
            summary = write_scores(
                out,
                how=config.ensemble_by,
                penalty=config.penalty,
                members=len(inputs.models.members),
                name=config.responses,
            )
        run.conclude("responses", inputs.total, config.max_failure_share, "--max-failure-share allows more")
        return Scored(out, run.manifest, summary)


@dataclass(frozen=True)
class _Task:
    """One response to score."""

    id: str
    index: int
    row: Responses
    place: int

    @property
    def messages(self) -> tuple[Message, ...]:
        return (*self.row.prompt, Message(role="assistant", content=self.row.responses[self.place].text))

    @property
    def p_better(self) -> float | None:
        """The label is about the first response of a row and the last one."""
        if self.row.p_first is None or self.place not in (0, len(self.row.responses) - 1):
            return None
        return self.row.p_first if self.place == 0 else 1 - self.row.p_first


def _score(inputs: ScoringInputs, run: RunDir, console: Console) -> None:
    """Score what is not scored yet; the models are loaded only where there is anything."""
    waiting = (task for task in _tasks(inputs.config) if not run.is_finished(task.id) and not run.failed_tries(task.id))
    first = next(waiting, None)
    if first is None:
        return
    config = inputs.config
    progress = StageProgress(console, "responses", inputs.total, run.finished + run.failed)
    progress.note(f"loading {inputs.models.name} …")
    ensemble = inputs.models.load(device=config.device, dtype=config.dtype, batch_size=config.batch_size)
    run.manifest.engine = {"model": inputs.models.name, **ensemble.details}
    run.save("running")
    tasks = [first, *islice(waiting, _BATCHES_AT_ONCE * ensemble.batch_size - 1)]
    with progress, run.at_work():
        while tasks:
            scores = ensemble.score([task.messages for task in tasks])
            for task, rewards, reason, shortened in zip(
                tasks, scores.rewards.tolist(), scores.reasons, scores.shortened, strict=True
            ):
                if reason is None:
                    run.append(_record(task, rewards, shortened), Usage())
                    progress.finished()
                else:
                    message = f"{task.row.id}, response {task.place + 1}: {_FAILURES.get(reason, reason)}"
                    run.append_failure(
                        Failure(id=task.id, index=task.index, step=STAGE, reason=reason, message=message)
                    )
                    progress.failure()
            tasks = list(islice(waiting, _BATCHES_AT_ONCE * ensemble.batch_size))


_FAILURES = {
    "too_long": "the last turn and the response are longer than max_length",
    "request_refused": "the model's chat template does not take this conversation",
    "not_finite": "a reward is not a finite number",
}


def _tasks(config: ScoreConfig) -> Iterator[_Task]:
    index = 0
    for row in islice(read_responses(config.responses, on_reject=ignore), config.limit):
        for place in range(len(row.responses)):
            yield _Task(f"{row.id}/{place}", index, row, place)
            index += 1


def _record(task: _Task, rewards: Sequence[float], shortened: bool) -> ResponseScore:
    p_better = task.p_better
    return ResponseScore(
        id=task.id,
        index=task.index,
        row=task.row.id,
        origin=task.row.responses[task.place].origin,
        rewards=tuple(rewards),
        shortened=shortened,
        p_better=p_better,
        label_source=None if p_better is None else task.row.label_source,
        messages=task.messages,
    )
