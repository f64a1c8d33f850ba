"""An agreement report for people: tables on the screen and in Markdown, and the files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from cai.data.text_tables import TitledTable, bullets, on_screen
from cai.errors import ConfigError
from cai.human.agreement import Agreement
from cai.human.agreement_drawing import draw_agreement
from cai.human.agreement_report import AgreementReport
from cai.human.judge_agreement import JudgeAgreement
from cai.human.rater_statistics import Flag, RaterFigures
from cai.journal import write_error, write_file
from cai.statistics import Mean

REPORT, DRAWING, PAGE = "agreement.json", "agreement.svg", "agreement.md"
AGREEMENT_FILES = (REPORT, DRAWING, PAGE)

FLAGS: dict[Flag, str] = {
    "position": "follows the place",
    "disagrees": "disagrees",
    "checks": "fails checks",
    "too_fast": "too fast",
}
"""Flags in words."""
_NOTHING = "–"
_SHOWN_IDS = 5


def write_agreement(report: AgreementReport, folder: Path) -> None:
    """Write agreement.json, agreement.svg and agreement.md, each replaced whole.

    Raises:
        RunDirError: a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from None
    write_file(folder / REPORT, report.model_dump_json(indent=2) + "\n")
    write_file(folder / DRAWING, draw_agreement(report, "svg"))
    write_file(folder / PAGE, agreement_page(report))


def refuse_inputs(folder: Path, inputs: Sequence[str]) -> None:
    """Check that no file that is to be written is an input.

    Raises:
        ConfigError: one is.
    """
    read = {Path(path).resolve() for path in inputs}
    for name in AGREEMENT_FILES:
        if (folder / name).resolve() in read:
            raise ConfigError(f"{folder / name} is an input and would be overwritten; choose another --out")


def render_agreement(report: AgreementReport) -> Table:
    """The tables for a terminal, and the sentences below them."""
    return on_screen(_parts(report), _sentences(report))


def agreement_page(report: AgreementReport) -> str:
    """The report in Markdown."""
    parts = [
        "# Agreement\n\n"
        "How raters agree with one another and a judge with them, measured with `cai agreement`. Intervals are of 95%: "
        "by a bootstrap over prompts, or Wilson's for shares of first responses and failed checks. `agreement.json` "
        "has all figures, and the reason for each one that is missing.\n\n![Agreement](agreement.svg)\n"
    ]
    parts += [table.markdown for table in _parts(report)]
    if remarks := bullets(_sentences(report)):
        parts.append(f"## Remarks\n\n{remarks}")
    return "\n".join(parts)


def _parts(report: AgreementReport) -> Iterator[TitledTable]:
    counts, people = report.counts, report.people
    yield TitledTable(
        "Ratings",
        ("", "number"),
        (
            ("comparisons", f"{counts.comparisons}"),
            ("prompts", f"{counts.prompts}"),
            ("ratings", f"{counts.ratings}"),
            ("votes, slight / clear", f"{counts.slight} / {counts.clear}"),
            ("both bad / skipped", f"{counts.both_bad} / {counts.skipped}"),
            ("raters", f"{counts.raters}"),
            ("comparisons of several raters", f"{counts.overlap}"),
            ("with the votes of several", f"{counts.compared}"),
            ("attention checks, failed", f"{counts.checks}, {counts.checks_failed}"),
        ),
    )
    rows = (
        ("same side", _in_words(people.sides), people.sides),
        ("same of four steps", _in_words(people.steps), people.steps),
        ("Cohen's κ of sides, pooled", _in_words(people.kappa, share=False), people.kappa),
        ("weighted κ of steps, pooled", _in_words(people.weighted_kappa, share=False), people.weighted_kappa),
        ("Krippendorff's α of sides", _in_words(people.alpha_sides, share=False), people.alpha_sides),
        ("Krippendorff's α of steps", _in_words(people.alpha_steps, share=False), people.alpha_steps),
    )
    table = tuple((name, words, f"{figure.cases}") for name, words, figure in rows)
    yield TitledTable("Raters with one another", ("", "agreement", "cases"), table)
    if report.pairs:
        yield TitledTable(
            "Pairs of raters",
            ("pair", "votes in common", "same side", "κ of sides", "weighted κ of steps"),
            tuple(
                (
                    f"{pair.first}, {pair.second}",
                    f"{pair.common}",
                    _mean(pair.sides.mean),
                    _mean(pair.kappa.mean, share=False),
                    _mean(pair.weighted_kappa.mean, share=False),
                )
                for pair in report.pairs
            ),
        )
    yield from _rater_parts(report.raters)
    if report.topics:
        yield TitledTable(
            "Raters by topic of the prompt",
            ("topic", "comparisons", "same side", "α of sides"),
            tuple(
                (one.topic, f"{one.comparisons}", _mean(one.sides.mean), _mean(one.alpha_sides.mean, share=False))
                for one in report.topics
            ),
        )
    for judge in report.judges:
        yield from _judge_parts(judge)


def _rater_parts(raters: Sequence[RaterFigures]) -> Iterator[TitledTable]:
    yield TitledTable(
        "Each rater",
        ("rater", "ratings", "with the majority of others", "κ with it", "first response", "longer response", "flags"),
        tuple(
            (
                one.rater,
                f"{one.ratings}",
                _mean(one.with_others.mean),
                _mean(one.kappa_with_others.mean, share=False),
                _mean(one.first),
                _mean(one.longer.mean),
                ", ".join(FLAGS[flag] for flag in one.flags),
            )
            for one in raters
        ),
    )
    yield TitledTable(
        "What each rater answers, and when",
        (
            "rater",
            "slight / clear",
            "both bad / skipped",
            "checks failed",
            "of",
            "median seconds",
            "too fast / fast / slow",
        ),
        tuple(
            (
                one.rater,
                f"{one.slight} / {one.clear}",
                f"{one.both_bad} / {one.skipped}",
                _mean(one.checks_failed),
                f"{one.checks}",
                _NOTHING if one.time.median_seconds is None else f"{one.time.median_seconds:.1f}",
                f"{len(one.time.too_fast)} / {len(one.time.unusually_fast)} / {len(one.time.unusually_slow)}",
            )
            for one in raters
        ),
    )


def _judge_parts(judge: JudgeAgreement) -> Iterator[TitledTable]:
    yield TitledTable(
        f"Judge {judge.model} ({judge.judge}) and people",
        ("", "figure", "cases"),
        (
            ("comparisons with label and vote", f"{judge.comparisons}", ""),
            ("voted on without a label", f"{judge.unlabelled}", ""),
            ("labels without a rating / with no vote", f"{judge.unrated} / {judge.without_vote}", ""),
            ("of the same id with other texts", f"{judge.other_texts}", ""),
            ("ties of the judge / split votes", f"{judge.ties} / {judge.split}", ""),
            ("judge with the majority", _in_words(judge.accuracy), f"{judge.accuracy.cases}"),
            (
                "people with the majority of others",
                _in_words(judge.people_with_majority),
                f"{judge.people_with_majority.cases}",
            ),
            ("judge with single votes", _in_words(judge.votes), f"{judge.votes.cases}"),
            ("the same, of several voters", _in_words(judge.judge_with_people), f"{judge.judge_with_people.cases}"),
            ("people with people there", _in_words(judge.people_with_people), f"{judge.people_with_people.cases}"),
            ("judge minus people there", _in_words(judge.gap), f"{judge.gap.cases}"),
            ("κ with the majority", _in_words(judge.kappa, share=False), f"{judge.kappa.cases}"),
            ("calibration error", _mean(judge.ece, share=False), f"{judge.comparisons}"),
        ),
    )
    for what, parts in (("topic of the prompt", judge.topics), ("tag of the principle", judge.tags)):
        if parts:
            yield TitledTable(
                f"Judge {judge.model} ({judge.judge}) by {what}",
                ("", "comparisons", "judge with the majority", "people with people"),
                tuple(
                    (one.name, f"{one.comparisons}", _mean(one.accuracy.mean), _mean(one.people.mean)) for one in parts
                ),
            )


def _sentences(report: AgreementReport) -> Iterator[str]:
    for one in report.raters:
        for note in one.notes:
            yield f"{one.rater}: {note}"
        for name, ids in (
            ("too fast to be read", one.time.too_fast),
            ("unusually fast", one.time.unusually_fast),
            ("unusually slow", one.time.unusually_slow),
        ):
            if ids:
                more = ", …" if len(ids) > _SHOWN_IDS else ""
                yield f"{one.rater}: Answers {name}, {len(ids)}: {', '.join(ids[:_SHOWN_IDS])}{more}."
    yield from report.notes
    for judge in report.judges:
        if judge.ceiling is not None:
            yield f"What people reach elsewhere on comparisons like those of {judge.judge}: {judge.ceiling}."
    if any(one.time.timed for one in report.raters):
        yield report.time_rule


def _in_words(agreement: Agreement, share: bool = True) -> str:
    """A figure with its interval, or the reason why there is none."""
    if agreement.mean is None:
        return f"{_NOTHING} ({agreement.reason})"
    return _mean(agreement.mean, share)


def _mean(mean: Mean | None, share: bool = True) -> str:
    if mean is None:
        return _NOTHING
    if share:
        return f"{mean.value:.1%} ({mean.low:.1%} to {mean.high:.1%})"
    return f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})"
