"""`cai report`: all chapters of any number of runs, put into one page."""

from collections.abc import Sequence
from pathlib import Path

from cai.journal import read_lines, write_file
from cai.records import ContrastSample, Label, RevisionChain
from cai.report.blocks import Chapter
from cai.report.collecting import RECORDS, Collected, collect
from cai.report.page import render
from cai.report.sections.attacks import attack_headlines, attacks_chapter
from cai.report.sections.changes import changes_chapter
from cai.report.sections.constitution import constitution_chapter
from cai.report.sections.costs import costs_chapter, provenance_chapter
from cai.report.sections.evaluation import evaluation_chapter, evaluation_headlines
from cai.report.sections.labels import label_headlines, labels_chapter
from cai.report.sections.paths import path_headlines, paths_chapter
from cai.report.sections.ranking import ranking_chapter, ranking_headlines
from cai.report.sections.rounds import rounds_chapter
from cai.report.sections.summary import summary_chapter
from cai.report.sections.training import monitor_chapter, training_chapter, training_headlines
from cai.report.sections.transcripts import transcripts_chapter
from cai.report.tallies import LabelTally, PrincipleTallies, add_chains, add_contrasts, add_labels, new_tallies

TITLE = "Constitutional AI: report"
TRANSCRIPTS = 200
"""Transcripts that a page shows at most, where nothing else is asked for."""

_HEADLINES = (
    evaluation_headlines,
    ranking_headlines,
    attack_headlines,
    training_headlines,
    label_headlines,
    path_headlines,
)


def write_report(paths: Sequence[Path], out: Path, *, title: str = TITLE, transcripts: int = TRANSCRIPTS) -> None:
    """Read the runs that the paths stand for and write the page; the same runs give the same page.

    Raises:
        CaiError: a path stands for no run, a file of a run cannot be read, or the page cannot be written.
    """
    chapters = make_chapters(collect(paths), transcripts)
    write_file(out, render(title, chapters))


def make_chapters(collected: Collected, transcripts: int) -> list[Chapter]:
    """All chapters that the runs have something for, in the order of the page.

    Raises:
        CaiError: a file of a run cannot be read.
    """
    principles, labels = _tallies(collected)
    headlines = [line for of in _HEADLINES for line in of(collected)]
    found = (
        summary_chapter(collected, headlines),
        changes_chapter(collected),
        constitution_chapter(collected, principles),
        evaluation_chapter(collected),
        ranking_chapter(collected),
        attacks_chapter(collected),
        rounds_chapter(collected),
        labels_chapter(collected, labels),
        training_chapter(collected),
        monitor_chapter(collected),
        paths_chapter(collected),
        transcripts_chapter(collected, transcripts),
        costs_chapter(collected),
        provenance_chapter(collected),
    )
    return [chapter for chapter in found if chapter is not None]


def _tallies(collected: Collected) -> tuple[dict[str, PrincipleTallies], dict[str, LabelTally]]:
    """What the records of each run add up to, by the run's name; each file is read once."""
    principles: dict[str, PrincipleTallies] = {}
    labels: dict[str, LabelTally] = {}
    for run in collected.of("critique-revise", "contrast", "label", "judge-check"):
        tallies = principles[run.name] = new_tallies()
        records = run.path / RECORDS
        if run.stage in ("label", "judge-check"):
            labels[run.name] = add_labels(tallies, read_lines(records, Label))
        elif run.stage == "contrast":
            add_contrasts(tallies, read_lines(records, ContrastSample))
        else:
            add_chains(tallies, read_lines(records, RevisionChain))
    return principles, labels
