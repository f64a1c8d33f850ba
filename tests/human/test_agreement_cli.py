"""`cai agreement`: what it reads, what it writes, and what it says of bad input."""

import json
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from labels import both, label
from rating_samples import comparison as stored_comparison, new_rater, new_store
from simulated_raters import comparison, rating, simulate

from cai import cli, statistics
from cai.cli.agreement import agreement
from cai.constitution import frozen_yaml, load_constitution
from cai.errors import CaiError, ConfigError, DataError, RunDirError
from cai.human import agreement_drawing
from cai.human.agreement_drawing import (
    _BLUE as BLUE,
    _GREY as GREY,
    _ORANGE as ORANGE,
    _RED as RED,
    MAX_RATERS,
    draw_agreement,
)
from cai.human.agreement_files import AGREEMENT_FILES, agreement_page, render_agreement
from cai.human.agreement_report import AgreementReport, measure
from cai.human.agreement_sources import InputFile, JudgeSource, RatingSource, read_judge_source, read_rating_source
from cai.human.store import RatingStore
from cai.records import Failure, Label, Record, Usage, Verdict
from cai.rundir import RunDir
from cai.statistics import Mean


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 100)


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(agreement, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, CaiError | SystemExit), result.exception
    return result


def fails(*arguments: object) -> CaiError:
    found = run(*arguments).exception
    assert isinstance(found, CaiError)
    return found


def write(path: Path, records: Sequence[Record]) -> Path:
    path.write_text("".join(f"{record.model_dump_json()}\n" for record in records), encoding="utf-8")
    return path


def ratings_file(folder: Path, name: str = "ratings.jsonl") -> Path:
    return write(folder / name, [rating("c0", "ann"), rating("c1", "ann", "b"), rating("c0", "bob", "rather_a")])


def label_run(folder: Path, labels: Sequence[Label], *, finished: bool = True, stage: str = "label") -> Path:
    """A run of `cai label`, made as the stage makes it, by the shipped constitution."""
    config = {"comparisons": "sets/hh-rlhf-test.jsonl"}
    with RunDir.open(folder, stage=stage, config=config, inputs={}, seed=0) as opened:
        opened.write_text("constitution.yaml", frozen_yaml(load_constitution("hhh")))
        opened.manifest.counts["comparisons"] = len(labels) + 1
        for place, one in enumerate(labels):
            opened.append(one.model_copy(update={"index": place}), Usage())
        opened.append_failure(Failure(id="lost", index=9, step="judge", reason="timeout", message="No answer."))
        opened.save("finished" if finished else "stopped")
    return folder


def report_of(folder: Path) -> AgreementReport:
    return AgreementReport.model_validate_json((folder / "agreement.json").read_bytes())


def test_a_file_of_ratings_gives_a_table_and_three_files(tmp_path: Path) -> None:
    file, out = ratings_file(tmp_path), tmp_path / "deep" / "report"
    result = run(file, "--out", out)
    assert result.exit_code == 0
    assert "Raters with one another" in result.output
    assert "same side" in result.output
    assert "--comparisons" in result.output  # prompts are not known
    assert sorted(path.name for path in out.iterdir()) == sorted(AGREEMENT_FILES)
    report = report_of(out)
    digest = sha256(file.read_bytes()).hexdigest()
    assert report.inputs == (InputFile(path=str(file), kind="ratings", sha256=digest, items=3),)
    assert report.counts.ratings == 3
    found = json.loads((out / "agreement.json").read_text())
    assert found["people"]["kappa"]["mean"] is None
    assert found["people"]["kappa"]["reason"]
    assert ElementTree.parse(out / "agreement.svg").getroot().tag.endswith("svg")
    page = (out / "agreement.md").read_text()
    assert "| ann | 2 |" in page
    assert "agreement.svg" in page


def test_the_same_command_writes_the_same_bytes(tmp_path: Path) -> None:
    file = ratings_file(tmp_path)
    for name in ("one", "two"):
        run(file, "--out", tmp_path / name, "--seed", 3)
    for name in AGREEMENT_FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert report_of(tmp_path / "one").seed == 3


def test_a_rating_directory_is_read_and_written_into(tmp_path: Path) -> None:
    shown = [stored_comparison(f"c{place}", prompt=[f"Question {place // 2}?"]) for place in range(4)]
    checks = [stored_comparison("k0", "a", prompt=["Which?"])]
    store = new_store(tmp_path / "ratings.sqlite", shown, checks, check_every=2, overlap=1.0)
    for name in ("ann", "bob"):
        rater = new_rater(store, name)
        for place in range(6):
            item = store.next(rater)
            if item is not None:
                store.answer(rater, item.item, "rather_a", comment="", seconds=9.0, key=f"{name} {place}")
    store.close()
    before = {path.name for path in tmp_path.iterdir()}
    result = run(tmp_path)
    assert result.exit_code == 0, result.output
    report = report_of(tmp_path)
    assert (report.counts.comparisons, report.counts.compared, report.counts.prompts) == (4, 4, 2)
    assert (report.counts.unknown_prompts, report.counts.checks, report.counts.checks_failed) == (0, 2, 0)
    assert report.inputs[0].kind == "rating directory"
    assert {path.name for path in tmp_path.iterdir()} >= before | set(AGREEMENT_FILES)
    first = report.inputs[0].sha256
    run(tmp_path)
    assert report_of(tmp_path).inputs[0].sha256 == first
    # The hash is that of what stands in the store.
    store = RatingStore.open(tmp_path / "ratings.sqlite")
    assert store.undo(new_rater(store, "ann"), key="undo") is not None
    store.close()
    run(tmp_path)
    again = report_of(tmp_path)
    assert again.counts.ratings + again.counts.checks == 9
    assert again.inputs[0].sha256 != first


def test_a_run_of_export_is_read_with_its_checks_and_comparisons(tmp_path: Path) -> None:
    ratings_file(tmp_path)
    write(tmp_path / "checks.jsonl", [rating("k0", "ann", "b", check="a")])
    write(tmp_path / "comparisons.jsonl", [comparison("c0"), comparison("c1")])
    assert run(tmp_path).exit_code == 0
    report = report_of(tmp_path)
    assert (report.counts.checks_failed, report.counts.unknown_prompts) == (1, 0)
    assert (report.inputs[0].kind, report.inputs[0].items) == ("export", 4)
    # Its hash is that of all it holds.
    write(tmp_path / "checks.jsonl", [])
    write(tmp_path / "comparisons.jsonl", [])
    found = read_rating_source(str(tmp_path))
    assert found.file.sha256 != report.inputs[0].sha256
    assert found.comparisons == ()


def test_comparisons_may_be_named(tmp_path: Path) -> None:
    file = ratings_file(tmp_path)
    pairs = write(tmp_path / "pairs.jsonl", [comparison("c0", "Same?"), comparison("c1", "Same?")])
    with pairs.open("a") as stream:
        stream.write('{"prompt": "No responses."}\n')
    run(file, "--comparisons", pairs, "--out", tmp_path)
    report = report_of(tmp_path)
    assert (report.counts.prompts, report.counts.unknown_prompts) == (1, 0)
    assert [one.kind for one in report.inputs] == ["ratings", "comparisons"]
    assert any("1 rows cannot be used (1 missing_response)" in note for note in report.notes)


def test_judges_are_read_from_runs_and_files(tmp_path: Path) -> None:
    file = ratings_file(tmp_path)
    constitution = load_constitution("hhh")
    principle = next(one for one in constitution.principles if one.tags)
    labels = [label(f"c{place}", *both(0.9, 0.7, principle.id)) for place in range(4)]
    labelled = label_run(tmp_path / "run", labels)
    bare = write(tmp_path / "more.jsonl", labels[:1])
    result = run(file, "--ai", labelled, "--ai", bare, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    report = report_of(tmp_path / "out")
    first, second = report.judges
    assert (first.judge, first.model, first.comparisons, first.unrated) == (str(labelled), "judge", 2, 2)
    assert {one.name for one in first.tags} == set(principle.tags)
    assert first.ceiling is not None  # by the set that the run names
    assert (second.comparisons, second.unlabelled, second.tags) == (1, 1, ())
    assert [one.items for one in report.inputs] == [3, 4, 1]
    assert report.inputs[1].sha256 == sha256((labelled / "records.jsonl").read_bytes()).hexdigest()
    assert "people with people there" in result.output


def test_labels_of_attention_checks_are_not_taken_for_rated(tmp_path: Path) -> None:
    file = write(tmp_path / "r.jsonl", [rating("c0", "ann"), rating("k0", "ann", check="a")])
    labels = write(tmp_path / "l.jsonl", [label("c0", *both(0.9, 0.7)), label("k0", *both(0.9, 0.7))])
    run(file, "--ai", labels, "--out", tmp_path)
    (judge,) = report_of(tmp_path).judges
    assert (judge.comparisons, judge.unrated, judge.without_vote) == (1, 1, 0)


def test_a_label_run_that_is_not_finished_is_used_and_said(tmp_path: Path) -> None:
    file = ratings_file(tmp_path)
    labelled = label_run(tmp_path / "run", [label("c0", *both(0.9, 0.7))], finished=False)
    result = run(file, "--ai", labelled, "--out", tmp_path / "out")
    assert result.exit_code == 0
    (note,) = [note for note in report_of(tmp_path / "out").notes if "not finished" in note]
    assert "`stopped`, with 1 of 2 labels" in note
    assert read_judge_source(str(label_run(tmp_path / "done", [label("c0", *both(0.9, 0.7))])), {"c0"}).note is None


# Bad input


def test_broken_lines_are_named_all_at_once(tmp_path: Path) -> None:
    file = ratings_file(tmp_path)
    lines = file.read_text().splitlines()
    lines[1:1] = ["{not json", '{"comparison_id": "c7"}', ""]
    file.write_text(
        "\n".join([*lines, lines[0].replace('"answer":"a"', '"answer":"perhaps"')])
    )  # no line feed at its end
    error = fails(file, "--out", tmp_path)
    assert isinstance(error, DataError)
    assert [line.split(": ")[0] for line in str(error).splitlines()] == [f"{file}:{number}" for number in (2, 3, 7)]
    assert "answer" in str(error).splitlines()[2]
    file.write_text("{}\n" * 30)
    assert str(fails(file, "--out", tmp_path)).splitlines()[-1] == "30 lines in all are broken"
    assert not (tmp_path / "agreement.json").exists()


def test_a_last_line_without_a_line_feed_counts(tmp_path: Path) -> None:
    file = ratings_file(tmp_path)
    file.write_text(file.read_text().rstrip("\n"))
    assert read_rating_source(str(file)).file.items == 3


@pytest.mark.parametrize("seconds", ["-1", "NaN", "Infinity"])
def test_a_time_that_is_none_is_refused(tmp_path: Path, seconds: str) -> None:
    file = ratings_file(tmp_path)
    file.write_text(file.read_text().replace('"seconds":30.0', f'"seconds":{seconds}', 1))
    assert "rating 1, of c0 by ann" in str(fails(file, "--out", tmp_path))


def test_sources_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "ratings.csv").write_text("rater\n")
    for name, message in (
        ("gone", "no such file or directory"),
        ("empty", "holds neither ratings.sqlite nor ratings.jsonl"),
        ("empty.jsonl", "has no rating"),
        ("ratings.csv", "is named .jsonl"),
    ):
        error = fails(tmp_path / name, "--out", tmp_path / "out")
        assert message in str(error)
        assert error.exit_code == 2


def test_a_store_without_ratings_is_refused(tmp_path: Path) -> None:
    new_store(tmp_path / "ratings.sqlite").close()
    assert "has no rating yet" in str(fails(tmp_path))


def test_labels_that_are_none_are_refused(tmp_path: Path) -> None:
    file = ratings_file(tmp_path)
    one = label("c0", *both(0.9, 0.7))
    twice = write(tmp_path / "twice.jsonl", [one, one])
    models = write(tmp_path / "models.jsonl", [one, label("c1", *both(0.9, 0.7)).model_copy(update={"model": "other"})])
    (tmp_path / "run").mkdir()
    for source, kind, message in (
        (twice, DataError, "two labels of the comparison c0"),
        (models, DataError, "several models (judge, other)"),
        (tmp_path / "run", RunDirError, "not a run directory"),
        (label_run(tmp_path / "empty", []), DataError, "no finished label yet"),
        (label_run(tmp_path / "sample", [one], stage="sample"), DataError, "run of `cai sample`"),
        (file, DataError, "is no label"),
    ):
        error = fails(file, "--ai", source, "--out", tmp_path / "out")
        assert isinstance(error, kind)
        assert message in str(error)


def test_a_broken_constitution_beside_labels_is_named(tmp_path: Path) -> None:
    file = ratings_file(tmp_path)
    labelled = label_run(tmp_path / "run", [label("c0", *both(0.9, 0.7))])
    (labelled / "constitution.yaml").write_text("principles: 7\n")
    assert "constitution.yaml" in str(fails(file, "--ai", labelled, "--out", tmp_path / "out"))


def test_a_file_needs_an_out_and_a_directory_does_not(tmp_path: Path) -> None:
    file = ratings_file(tmp_path)
    error = fails(file)
    assert isinstance(error, ConfigError)
    assert "--out" in str(error)
    assert run(tmp_path, file).exit_code == 0
    assert report_of(tmp_path).counts.duplicates == 3


def test_inputs_are_never_overwritten(tmp_path: Path) -> None:
    file = ratings_file(tmp_path)
    pairs = write(tmp_path / "agreement.json", [comparison("c0")])
    before = pairs.read_bytes()
    assert "would be overwritten" in str(fails(file, "--comparisons", pairs, "--out", tmp_path))
    assert pairs.read_bytes() == before
    assert not (tmp_path / "agreement.md").exists()


def test_an_out_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    file = ratings_file(tmp_path)
    assert "cannot be written" in str(fails(file, "--out", file / "report"))


def test_the_command_is_known_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cai", "agreement", str(tmp_path / "gone"), "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'gone'}: there is no such file or directory\n"


# What people see


def test_names_from_outside_cannot_drive_the_terminal_or_the_page(tmp_path: Path) -> None:
    name = "[red]eve\x1b[2J|<b>$x$"
    file = write(tmp_path / "r.jsonl", [rating("c0", name), rating("c0", "李")])
    result = run(file, "--out", tmp_path)
    assert "\x1b" not in result.output
    assert "[red]eve␛[2J|<b>$x$" in result.output
    page = (tmp_path / "agreement.md").read_text()
    assert "<b>" not in page
    assert "\\[red\\]eve␛\\[2J\\|&lt;b>\\$x\\$" in page
    assert (tmp_path / "agreement.svg").stat().st_size > 0


def drawn(report: AgreementReport, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[str, Mean | None, str]]]:
    """The lines of each panel, by its title."""
    panels: dict[str, list[tuple[str, Mean | None, str]]] = {}
    plain = agreement_drawing._lines

    def noted(axes: Any, title: str, lines: Any, label: str, **more: Any) -> None:
        panels[title] = list(lines)
        plain(axes, title, lines, label, **more)

    with monkeypatch.context() as patch:
        patch.setattr(agreement_drawing, "_lines", noted)
        assert draw_agreement(report, "svg").startswith(b"<?xml")
    return panels


def test_the_drawing_shows_figures_and_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = simulate({"ann": "good", "bob": "good", "eve": "first"}, 0, comparisons=60)
    p = {one.id: (one, Verdict(p_a=0.9, judgements=())) for one in simulation.comparisons}
    file = InputFile(path="r", kind="ratings", sha256="0" * 64, items=1)
    judge = JudgeSource(file, "tiny", p, unrated=0, tags=None, set_name="", note=None)
    report = measure([RatingSource(file, simulation.ratings, simulation.comparisons)], [judge])
    panels = drawn(report, monkeypatch)
    assert [len(lines) for lines in panels.values()] == [6, 3, 3, 5]
    assert ("α of sides", report.people.alpha_sides.mean, ORANGE) in panels["raters with one another"]
    firsts = panels["response that stood first"]
    assert firsts == [(one.rater, one.first, RED if one.rater == "eve" else BLUE) for one in report.raters]
    (found,) = report.judges
    judges = panels["judges and people"]
    assert judges[0] == ("judge tiny, majority", found.accuracy.mean, BLUE)
    assert ("  people with people there", found.people_with_people.mean, GREY) in judges


def test_the_drawing_leaves_out_raters_only_where_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    raters = {f"r{place:02}": 4 + place for place in range(MAX_RATERS + 3)}
    ratings = [rating(f"c{place}", name) for name, number in raters.items() for place in range(number)]
    file = InputFile(path="r", kind="ratings", sha256="0" * 64, items=1)
    panels = drawn(measure([RatingSource(file, tuple(ratings))]), monkeypatch)
    lines = panels[f"each rater with the majority of others, {MAX_RATERS} of {MAX_RATERS + 3}"]
    assert [name for name, _, _ in lines] == sorted(raters, reverse=True)[:MAX_RATERS]


def test_sentences_and_flags_stand_below_the_tables() -> None:
    simulation = simulate({"ann": "good", "bob": "good", "eve": "hasty"}, 0, comparisons=60)
    file = InputFile(path="r", kind="ratings", sha256="0" * 64, items=1)
    report = measure([RatingSource(file, simulation.ratings, simulation.comparisons)])
    page = agreement_page(report)
    assert "too fast" in page
    assert "- eve: Gave 60 of 60 answers faster than 100 characters a second" in page
    assert "- eve: Answers too fast to be read, 60: c0, c1, c2, c3, c4, …." in page
    assert "robust standard deviations" in page
    assert render_agreement(report).row_count > 10
