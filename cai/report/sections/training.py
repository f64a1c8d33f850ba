"""Trained models: how training went, what the models are worth, and what the monitor of reinforcement learning saw."""

import math
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from cai.report.blocks import Block, Chapter, Folded, Note, Paragraph, Part, Picture, TableBlock
from cai.report.collecting import Collected, Run
from cai.report.wording import NOTHING, amount, number, share
from cai.train.collapse import CollapseCheck, brief_rows
from cai.train.evaluation import RewardEvaluation, SourceEvaluation
from cai.train.evaluation_files import draw_evaluation
from cai.train.monitor.files import DRAWING, METRICS, REPORT
from cai.train.monitor.page import ADVICE
from cai.train.monitor.records import MonitorReport
from cai.train.ppo.log import read_log

# `cai.train.lifecycle` and `cai.train.models` have these names too, but load torch, which reading a run does without.
_RESULTS, _CURVES = "results.json", "curves.svg"
_TRAININGS = ("train-sft", "train-reward", "train-dpo", "train-ppo")
_SHOWN = 6
"""Figures of the latest step that are named of a training without curves."""


class _Results(BaseModel):
    """What the report reads of results.json."""

    model_config = ConfigDict(extra="ignore")

    evaluation: RewardEvaluation | None = None
    collapse: CollapseCheck | None = None


def training_chapter(collected: Collected) -> Chapter | None:
    """Trainings and the scoring of responses.

    Raises:
        RunDirError: a file of a run cannot be read.
    """
    parts = [Part(f"{run.name} ({run.stage})", tuple(_trained(run))) for run in collected.of(*_TRAININGS)]
    parts += [Part(f"{run.name} (score)", tuple(_scored(run))) for run in collected.of("score")]
    return Chapter("training", "Training", tuple(parts)) if parts else None


def monitor_chapter(collected: Collected) -> Chapter | None:
    """What the monitor saw of each run of reinforcement learning.

    Raises:
        RunDirError: a report of the monitor cannot be read.
    """
    parts = [
        Part(run.name, tuple(_watched(run, report)))
        for run in collected.of("train-ppo")
        if (report := run.result(REPORT, MonitorReport)) is not None
    ]
    return Chapter("monitor", "Monitor of reinforcement learning", tuple(parts)) if parts else None


def training_headlines(collected: Collected) -> Iterator[tuple[str, str]]:
    """What reward models are worth, what collapsed, and what the monitor says."""
    for run in collected.of(*_TRAININGS):
        results = run.result(_RESULTS, _Results)
        if results is not None and results.evaluation is not None:
            overall = results.evaluation.sources[0]
            pairs = "1 held-out pair" if overall.pairs == 1 else f"{overall.pairs:,} held-out pairs"
            yield f"reward model {run.name}", f"accuracy {share(overall.accuracy)} on {pairs}"
        if results is not None and results.collapse is not None:
            flags = ", ".join(flag.name for flag in results.collapse.flags)
            yield f"collapse check of {run.name}", flags or "nothing suggests a collapse"
        report = run.result(REPORT, MonitorReport) if run.stage == "train-ppo" else None
        if report is not None:
            yield f"monitor of {run.name}", f"alerts at step {report.step:,}: {len(report.alerts)}"


def _trained(run: Run) -> Iterator[Block]:
    config, counts, versions = run.manifest.config, run.manifest.counts, run.manifest.versions
    sources = [*config.get("data", ()), *config.get("prompts", ())]
    asked = ("learning_rate", "num_train_epochs", "steps", "per_device_train_batch_size", "use_peft", "beta", "kl_coef")
    rows = [
        ("start", run.model),
        ("data", ", ".join(str(one.get("path", one)) for one in sources) or NOTHING),
        ("rows", ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in counts.items()) or NOTHING),
        ("arguments", ", ".join(f"{name} {config[name]}" for name in asked if config.get(name) is not None) or NOTHING),
        ("seed", str(run.manifest.seed)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    yield TableBlock(("fact", "value"), tuple(rows))
    curves = run.bytes(_CURVES)
    if curves is not None:
        yield Picture(curves, f"Figures of {run.name} by training step.")
    else:
        yield Paragraph(_latest(run))
    results = run.result(_RESULTS, _Results)
    if results is None:
        return
    if results.evaluation is not None:
        yield from _evaluated(results.evaluation)
    if results.collapse is not None:
        yield from _collapsed(results.collapse)


def _latest(run: Run) -> str:
    """Where a training stands that has drawn no curves yet."""
    log = [entry for entry in read_log(run.path / METRICS) if "step" in entry]
    if not log:
        return "No step has been logged yet."
    last = [
        f"{name} {value:.4g}" for name, value in log[-1].items() if name != "step" and isinstance(value, int | float)
    ]
    return f"No curves yet; the latest figures are of step {log[-1]['step']:,}: {', '.join(last[:_SHOWN])}."


def _evaluated(evaluation: RewardEvaluation) -> Iterator[Block]:
    head = (
        "labels",
        "pairs",
        "accuracy",
        "the longer one wins",
        "better than that by",
        "log loss",
        "calibration error",
    )
    rows = tuple(
        (
            one.source,
            f"{one.pairs:,}",
            share(one.accuracy),
            share(one.longer_wins),
            share(one.gain),
            amount(one.log_loss),
            f"{one.ece:.3f}",
        )
        for one in evaluation.sources
    )
    yield TableBlock(head, rows)
    yield from (note for one in evaluation.sources for note in _doubts(one))
    yield Picture(
        draw_evaluation(evaluation, "svg"),
        f"Expected correctness by confidence on held-out pairs of {evaluation.name}.",
    )
    if evaluation.human_ceiling is not None:
        yield Paragraph(f"Human ceiling: {evaluation.human_ceiling}.")


def _doubts(source: SourceEvaluation) -> Iterator[Note]:
    if not source.beats_chance:
        yield Note("bad", f"{source.source} labels: not shown to be better than a coin.")
    if not source.beats_length:
        yield Note("doubt", f"{source.source} labels: not shown to be better than taking the longer reply.")


def _collapsed(check: CollapseCheck) -> Iterator[Block]:
    for flag in check.flags:
        yield Note("bad", flag.sentence)
    if not check.flags:
        yield Note("good", "Nothing in the replies to held-out prompts suggests a collapse.")
    yield Folded(
        "Collapse check: replies of the start and of the trained model",
        (TableBlock(("replies", "start", "trained"), tuple(brief_rows(check))), Paragraph(check.cannot_see)),
    )


def _scored(run: Run) -> Iterator[Block]:
    from cai.train.scores import SUMMARY, ScoreSummary  # loads torch, which all other runs can do without

    summary = run.result(SUMMARY, ScoreSummary)
    if summary is None:
        yield Paragraph("No response is scored yet.")
        return
    rows = [
        ("scored", f"{summary.scored:,}"),
        ("members", f"{summary.members} ({summary.ensemble_by})"),
        ("mean, deviation", f"{number(summary.mean)}, {number(summary.deviation)}"),
        ("range", f"{number(summary.lowest)} to {number(summary.highest)}"),
        *((f"mean of {name}", f"{one.mean:.3f} ({one.scored:,})") for name, one in summary.origins.items() if name),
    ]
    yield TableBlock(("rewards", "value"), tuple(rows))
    if summary.pairs is not None:
        yield from _evaluated(summary.pairs)


def _watched(run: Run, report: MonitorReport) -> Iterator[Block]:
    for alert in report.alerts:
        yield Note(
            "bad" if alert.action == "stop" else "doubt",
            f"Since step {alert.since}: {alert.reason} {ADVICE[alert.action]}.",
        )
    if not report.alerts:
        yield Note("good", "Nothing that is looked at stands out.")
    for alert in report.past_alerts:
        yield Paragraph(f"From step {alert.since} until step {alert.until}: {alert.reason}")
    yield TableBlock(
        ("check", "now", "at the start", "tolerated", "clearly beyond"),
        tuple(
            (
                one.title,
                number(one.value),
                number(one.start),
                f"{one.tolerated_sign} {number(one.threshold)}",
                "yes" if one.beyond else "no",
            )
            for one in report.checks
        ),
    )
    if (drawing := run.bytes(DRAWING)) is not None:
        yield Picture(drawing, f"What the monitor looks at in {run.name}, by step.")
    if report.best is not None:
        yield Paragraph(f"Checkpoint to keep: step {report.best.step}; {report.best.reason}.")
    if report.fit is not None and math.isfinite(report.fit.alpha):
        yield Paragraph(f"Gold score by √KL, fitted: {report.fit.note}.")
    if report.gaps:
        yield Paragraph("Not measured: " + "; ".join(f"{gap.name} ({gap.reason})" for gap in report.gaps) + ".")
    yield Paragraph(f"{report.cannot_see} {report.responses:,} responses to {report.prompts:,} prompts.")
