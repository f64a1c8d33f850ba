"""The files of a monitored run: what is read, and what is written."""

from pathlib import Path
from typing import NamedTuple

from cai.errors import DataError
from cai.journal import read_lines, write_file
from cai.train.monitor.drawing import draw_report
from cai.train.monitor.records import MonitorReport, ProbeSample, StepMetrics

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
REPORT, DRAWING = "monitor.json", "monitor.svg"


class RunFiles(NamedTuple):
    """What the files of a run hold."""

    metrics: tuple[StepMetrics, ...]
    samples: tuple[ProbeSample, ...]
    torn: tuple[str, ...]
    """Files whose last line has no line break yet; it is left out, as it may be half written."""


def read_run(path: Path) -> RunFiles:
    """Read metrics.jsonl and samples.jsonl of a folder; one of them may be missing.

    Raises:
        DataError: both are missing.
        RunDirError: a file cannot be read, or a line is not what it should be; the message names the line.
    """
    files = [path / name for name in (METRICS, SAMPLES)]
    if not any(file.exists() for file in files):
        raise DataError(f"{path} holds neither {METRICS} nor {SAMPLES}, so there is nothing to look at")
    metrics = tuple(read_lines(files[0], StepMetrics))
    samples = tuple(read_lines(files[1], ProbeSample))
    return RunFiles(metrics, samples, tuple(file.name for file in files if _torn(file)))


def write_report(report: MonitorReport, folder: Path) -> None:
    """Write monitor.json, and monitor.svg where samples were looked at; metrics alone `train.curves` can draw.

    Raises:
        RunDirError: they cannot be written.
    """
    write_file(folder / REPORT, report.model_dump_json(indent=2) + "\n")
    if report.looks:
        write_file(folder / DRAWING, draw_report(report, "svg"))


def _torn(file: Path) -> bool:
    return file.exists() and file.read_bytes()[-1:] not in (b"", b"\n")
