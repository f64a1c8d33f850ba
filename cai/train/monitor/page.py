"""A report for people: figures now and at the start, then sentences."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from cai.train.monitor.measures import MEASURES
from cai.train.monitor.records import Action, Alert, MonitorReport
from cai.visible import visible

ADVICE: dict[Action, str] = {
    "stop": "Stop, and keep the best checkpoint",
    "raise_kl_coef": "Raise the KL coefficient",
    "lower_learning_rate": "Lower the learning rate",
    "warn": "Look into it",
}
_NOTHING = "–"
_ALERT, _BEYOND = "alert", "not yet for long"
_UNCHECKED = ("score", "gold")
"""Figures without a threshold that are shown all the same."""


def render_report(report: MonitorReport) -> Table:
    """Figures with thresholds and flags; below them alerts, what was not measured and what cannot be seen."""
    page = Table.grid()
    page.add_row(_figures(report))
    for alert in report.alerts:
        page.add_row(Text(_alert(alert), style="yellow"))
    if not report.alerts:
        page.add_row("Nothing that is looked at stands out.")
    for alert in report.past_alerts:
        page.add_row(Text(f"From step {alert.since} until step {alert.until}: {alert.reason}"))
    for sentence in _sentences(report):
        page.add_row(Text(sentence))
    return page


def _figures(report: MonitorReport) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(f"step {report.step}, {report.responses} responses to {report.prompts} prompts")
    for name in ("now", "at the start", "tolerated", "flag"):
        table.add_column(name, justify="right")
    for title, now, start in _unchecked(report):
        table.add_row(title, _number(now), _number(start), _NOTHING, "")
    alerts = {alert.name for alert in report.alerts}
    for check in report.checks:
        flag = _ALERT if check.name in alerts else _BEYOND if check.beyond else ""
        numbers = (_number(check.value), _number(check.start), f"{check.tolerated_sign} {_number(check.threshold)}")
        table.add_row(check.title, *numbers, flag, style="yellow" if flag else "")
    return table


def _unchecked(report: MonitorReport) -> Iterator[tuple[str, float, float | None]]:
    if not report.looks:
        return
    first, last = report.looks[0], report.looks[-1]
    for name in _UNCHECKED:
        if name in last.figures:
            then = first.figures.get(name) if first.step == 0 else None
            yield MEASURES[name].title, last.figures[name].mean.value, None if then is None else then.mean.value
    if last.kl is not None:
        yield "KL on these prompts", last.kl, None


def _alert(alert: Alert) -> str:
    return f"Since step {alert.since}: {alert.reason} {ADVICE[alert.action]}."


def _sentences(report: MonitorReport) -> Iterator[str]:
    if report.fit is not None:
        yield (
            f"Gold score by √KL, fitted: α {report.fit.alpha:.3g} ± {report.fit.alpha_error:.2g}, "
            f"β {report.fit.beta:.3g} ± {report.fit.beta_error:.2g}; {report.fit.note}."
        )
    if report.looks and (phrases := report.looks[-1].phrases):
        listed = ", ".join(f"“{visible(one.text)}” {one.start:.0%} → {one.share:.0%}" for one in phrases)
        yield f"Phrases that spread: {listed}."
    if report.best is not None:
        yield f"Checkpoint to keep: step {report.best.step}; {report.best.reason}."
    if report.gaps:
        yield "Not measured: " + "; ".join(f"{gap.name} ({gap.reason})" for gap in report.gaps) + "."
    yield report.cannot_see


def _number(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.3g}"
