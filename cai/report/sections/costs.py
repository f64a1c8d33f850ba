"""What the runs took, and where they came from."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from cai import __version__
from cai.progress import duration
from cai.records import Usage
from cai.report.blocks import Chapter, Folded, Paragraph, TableBlock, Texts
from cai.report.collecting import Collected, Run


def costs_chapter(collected: Collected) -> Chapter:
    """Tokens and time of each run."""
    usages = [run.manifest.usage for run in collected.runs]
    total = sum(usages, Usage())
    rows = [(run.name, run.stage, *_tokens(run.manifest.usage), *_times(run)) for run in collected.runs]
    seconds = sum(run.manifest.seconds for run in collected.runs)
    work = sum(run.manifest.work_seconds for run in collected.runs)
    rows.append(("all", "", *_tokens(total), duration(work), duration(seconds)))
    head = ("run", "stage", "prompt tokens", "of them cached", "written tokens", "time at work", "time in all")
    return Chapter(
        "costs",
        "Costs",
        (
            TableBlock(head, tuple(rows)),
            Paragraph(
                "Time at work leaves out the loading of models and the export. Trainings count no tokens here. Times "
                "are those of all sessions of a run."
            ),
        ),
    )


def provenance_chapter(collected: Collected) -> Chapter:
    """Commands, versions and hashes of each run."""
    return Chapter(
        "provenance",
        "Provenance",
        (
            Paragraph(f"This page was made by cai {__version__} from the directories below; it changed nothing there."),
            *(Folded(f"{run.name} ({run.stage})", (_facts(run), _configuration(run))) for run in collected.runs),
        ),
    )


def _tokens(usage: Usage) -> tuple[str, str, str]:
    return f"{usage.prompt_tokens:,}", f"{usage.cached_tokens:,}", f"{usage.completion_tokens:,}"


def _times(run: Run) -> tuple[str, str]:
    return duration(run.manifest.work_seconds), duration(run.manifest.seconds)


def _facts(run: Run) -> TableBlock:
    manifest = run.manifest
    rows = [
        ("directory", str(run.path)),
        ("command", shlex.join(manifest.command)),
        ("state", manifest.state),
        ("begun", manifest.created),
        ("last written", manifest.updated),
        ("sessions", f"{manifest.sessions:,}"),
        ("seed", str(manifest.seed)),
        *((f"version of {name}", version) for name, version in manifest.versions.items()),
        *((f"engine: {name}", value) for name, value in _flat(manifest.engine)),
        *((f"sha256 of {name}", value) for name, value in manifest.inputs.items()),
    ]
    return TableBlock(("fact", "value"), tuple(rows))


def _configuration(run: Run) -> Texts:
    return Texts((("configuration", json.dumps(run.manifest.config, indent=2, ensure_ascii=False)),))


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name} ")
        else:
            found.append((f"{prefix}{name}".replace("_", " "), str(value)))
    return found
