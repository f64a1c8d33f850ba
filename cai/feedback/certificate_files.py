"""Certificates on disk and on the screen: writing one, finding those of a judge, and the table that people read."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue
from rich.table import Table
from rich.text import Text

from cai.data.card_parts import escaped, markdown_table
from cai.errors import DataError
from cai.feedback.certificate import Certificate, Grade, JudgeIdentity
from cai.journal import read_document, write_file
from cai.plots import PlotFormat, reliability_diagram, shortened
from cai.statistics import percent
from cai.visible import visible

CERTIFICATE = "certificate.json"
CERTIFICATE_FILES = (CERTIFICATE, "reliability.svg", "reliability.png")

_COLOURS: dict[Grade, str] = {"pass": "green", "weak": "yellow", "fail": "red"}


class Found(NamedTuple):
    """A certificate of a judge, or of one much like it."""

    path: Path
    certificate: Certificate
    differences: tuple[str, ...]
    """How the judge in question differs from the certified one; empty for the very same."""


class Search(NamedTuple):
    """What `find_certificates` came upon."""

    found: tuple[Found, ...]
    """The most alike first, and the newest first among equals."""
    unreadable: tuple[str, ...]
    """What is wrong with files of that name that are no certificate, one message each."""


def write_certificate(folder: Path, certificate: Certificate) -> None:
    """Write certificate.json, reliability.svg and reliability.png, each replaced whole.

    Raises:
        RunDirError: a file cannot be written.
    """
    contents: tuple[str | bytes, ...] = (
        certificate.model_dump_json(indent=2) + "\n",
        draw_reliability(certificate, "svg"),
        draw_reliability(certificate, "png"),
    )
    for name, content in zip(CERTIFICATE_FILES, contents, strict=True):
        write_file(folder / name, content)


def draw_reliability(certificate: Certificate, format: PlotFormat) -> bytes:
    """The reliability diagram of a certificate, titled with judge and set."""
    figures = certificate.figures
    title = (
        f"{shortened(certificate.judge.model)} on {shortened(certificate.gold_set.name)}\n"
        f"accuracy {percent(figures.accuracy)}, ECE {figures.ece:.3f}"
    )
    return reliability_diagram(figures.reliability, format, title=title, measure="accuracy")


def read_certificate(path: Path) -> Certificate:
    """Read a certificate.json.

    Raises:
        DataError: it cannot be read, or is no certificate.
    """
    return read_document(path, Certificate, "a run of `cai judge-check`")


def find_certificates(folder: Path, judge: JudgeIdentity) -> Search:
    """Look into each folder within `folder` for certificates of this judge, or of its model with other settings."""
    found: list[Found] = []
    unreadable: list[str] = []
    for path in sorted(folder.glob(f"*/{CERTIFICATE}")):
        try:
            certificate = read_certificate(path)
        except DataError as error:
            unreadable.append(str(error))
            continue
        other = certificate.judge
        if (other.model, other.adapter) == (judge.model, judge.adapter):
            found.append(Found(path, certificate, tuple(judge.differences(other))))
    found.sort(key=lambda one: one.certificate.created, reverse=True)
    found.sort(key=lambda one: len(one.differences))
    return Search(tuple(found), tuple(unreadable))


def render_table(certificate: Certificate) -> Table:
    """The certificate as a table: grade and reasons first, then judge, figures and topics."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    grade = certificate.grade
    table.add_row("grade", Text(grade, style=f"bold {_COLOURS[grade]}"))
    for name, value in (*(("", reason) for reason in certificate.reasons), *_rows(certificate)):
        table.add_row(Text(visible(name)), Text(visible(value)))
    return table


def certificate_page(certificate: Certificate) -> str:
    """The certificate in Markdown, for the README.md beside it."""
    rows = [("grade", certificate.grade), *(("", reason) for reason in certificate.reasons), *_rows(certificate)]
    return (
        "# Certificate of a judge\n\n"
        "How well a judge agrees with gold labels, made with `cai judge-check`. Intervals are of 95%, by a bootstrap "
        "over prompts. `certificate.json` has all figures.\n\n"
        "![Accuracy by confidence](reliability.svg)\n\n"
        + markdown_table(("", ""), ((escaped(name), escaped(value)) for name, value in rows))
    )


def _rows(certificate: Certificate) -> Iterator[tuple[str, str]]:
    judge, gold_set, figures = certificate.judge, certificate.gold_set, certificate.figures
    yield "judge", f"{judge.model}{f' with {judge.adapter}' if judge.adapter else ''} ({judge.engine}, {judge.dtype})"
    given = {name: value for name, value in judge.settings.items() if value is not None and value is not False}
    yield "settings", ", ".join(f"{name} {_plain(value)}" for name, value in given.items() if value != [])
    after = f" after the first {gold_set.skipped}" if gold_set.skipped else ""
    yield "measured on", f"{gold_set.rows} comparisons of {gold_set.name}{after} (sha256 {gold_set.sha256[:12]})"
    yield "judged", f"{figures.comparisons} comparisons of {figures.prompts} prompts"
    yield "failed", f"{figures.failed}" + "".join(f", {number} {name}" for name, number in figures.failures.items())
    yield "accuracy", f"{percent(figures.accuracy)}, {figures.ties} ties; chance {certificate.chance:.0%}"
    if certificate.human_ceiling is not None:
        yield "human ceiling", certificate.human_ceiling
    yield "the longer one wins", percent(figures.longer_wins)
    yield "better than that by", percent(figures.gain)
    yield "correlation with length", _optional(figures.length_correlation, "+.2f")
    yield "position flips", _optional(figures.position_flip, ".1%")
    yield "calibration error", f"{figures.ece:.3f}; Brier {figures.brier:.3f}, log loss {figures.log_loss:.3f}"
    yield "best scale of log-odds", _optional(figures.fitted_scale, ".3g")
    yield "mass off the options", f"{figures.off_mass_mean:.3f} on average, 95th percentile {figures.off_mass_p95:.3f}"
    yield "labels a second", _optional(figures.labels_per_second, ".2f")
    yield (
        "tokens a label",
        f"{figures.prompt_tokens_per_label:.1f} prompt computed, {figures.written_tokens_per_label:.1f} written",
    )
    for topic in figures.topics:
        yield f"  {topic.topic}", f"{percent(topic.accuracy)} of {topic.comparisons}"


def _optional(value: float | None, form: str) -> str:
    return "does not apply" if value is None else format(value, form)


def _plain(value: JsonValue) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
