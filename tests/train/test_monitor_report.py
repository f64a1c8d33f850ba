"""Files of a monitored run, its report for people, and its drawing."""

import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from probe_runs import run
from rich.console import Console

from cai.errors import DataError, RunDirError
from cai.train.monitor.drawing import draw_report
from cai.train.monitor.files import read_run, write_report
from cai.train.monitor.looking import look
from cai.train.monitor.page import render_report
from cai.train.monitor.records import CANNOT_SEE, MonitorReport, ProbeSample, StepMetrics


def written(folder: Path, name: str, *lines: str, end: str = "\n") -> Path:
    (folder / name).write_text("\n".join(lines) + end, encoding="utf-8")
    return folder


SAMPLE = '{"step": 0, "prompt_id": "p", "response": "Yes.", "score": NaN, "reward_model": "x"}'


def test_files_are_read_with_what_they_have(tmp_path: Path) -> None:
    written(tmp_path, "metrics.jsonl", '{"step": 1, "score": NaN, "kl": 0.5, "loss/policy": 3}', '{"step": 2}')
    written(tmp_path, "samples.jsonl", SAMPLE)
    found = read_run(tmp_path)
    assert math.isnan(found.metrics[0].score or 0)
    assert found.metrics[0].kl == 0.5
    assert found.metrics[1] == StepMetrics(step=2)
    assert (found.samples[0].response, found.samples[0].gold) == ("Yes.", None)
    assert found.torn == ()


def test_either_file_may_be_missing_but_not_both(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds neither metrics\.jsonl nor samples\.jsonl"):
        read_run(tmp_path)
    assert len(read_run(written(tmp_path, "samples.jsonl", SAMPLE)).samples) == 1
    (tmp_path / "samples.jsonl").unlink()
    assert len(read_run(written(tmp_path, "metrics.jsonl", '{"step": 1}')).metrics) == 1


@pytest.mark.parametrize("last", ['{"step": 2, "sc', '{"step": 2, "score": 1}'])
def test_a_last_line_without_its_end_is_left_out_and_named(tmp_path: Path, last: str) -> None:
    found = read_run(written(tmp_path, "metrics.jsonl", '{"step": 1}', last, end=""))
    assert [row.step for row in found.metrics] == [1]
    assert found.torn == ("metrics.jsonl",)
    (tmp_path / "metrics.jsonl").write_text("")
    assert read_run(tmp_path).torn == ()


@pytest.mark.parametrize(
    ("name", "line", "problem"),
    [
        ("metrics.jsonl", '{"event": "saved"}', "step: Field required"),
        ("metrics.jsonl", '{"step": -1}', "step: .*greater than or equal to 0"),
        ("metrics.jsonl", '{"step": 1, "score": "high"}', "score: .*valid number"),
        ("metrics.jsonl", "half a line", "Invalid JSON"),
        ("metrics.jsonl", "", "Invalid JSON"),
        ("samples.jsonl", '{"step": 1, "prompt_id": "p"}', "response: Field required"),
        ("samples.jsonl", '{"step": 1, "prompt_id": "p", "response": null}', "response: .*valid string"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, name: str, line: str, problem: str) -> None:
    good = SAMPLE if name == "samples.jsonl" else '{"step": 1}'
    with pytest.raises(RunDirError, match=rf"{re.escape(name)}:2 is not a valid \w+: .*{problem}"):
        read_run(written(tmp_path, name, good, line, good))


@pytest.fixture(scope="module")
def gold() -> MonitorReport:
    return look([StepMetrics(step=step, entropy=2.0) for step in range(20)], run(3, "gold"))


@pytest.fixture(scope="module")
def comfort() -> MonitorReport:
    return look([], run(3, "comfort"))


def test_a_report_is_written_and_read_back_whole(tmp_path: Path, gold: MonitorReport) -> None:
    write_report(gold, tmp_path)
    text = (tmp_path / "monitor.json").read_text(encoding="utf-8")
    assert MonitorReport.model_validate_json(text) == gold
    assert json.loads(text)["cannot_see"] == CANNOT_SEE
    assert ET.fromstring((tmp_path / "monitor.svg").read_text(encoding="utf-8")).get("width") == "675pt"


def test_metrics_alone_are_not_drawn(tmp_path: Path) -> None:
    write_report(look([StepMetrics(step=1, score=1.0)], []), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["monitor.json"]


def test_a_folder_that_is_not_there_is_an_error_of_the_run_directory(tmp_path: Path, gold: MonitorReport) -> None:
    with pytest.raises(RunDirError, match=r"monitor\.json cannot be written"):
        write_report(gold, tmp_path / "no")


def shown(report: MonitorReport) -> str:
    console = Console(width=200, file=StringIO())
    console.print(render_report(report))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_page_shows_figures_alerts_and_limits_of_the_view(gold: MonitorReport) -> None:
    page = shown(gold)
    first = page.splitlines()[0]
    assert first.startswith("step 100, 64 responses to 16 prompts")
    assert re.search(r"now +at the start +tolerated +flag", first)
    (row,) = (line for line in page.splitlines() if line.startswith("gold since its highest look"))
    assert row.split()[-1] == "alert"
    longest, shortest = (check.threshold for check in gold.checks if check.title == "length in tokens")
    lengths = [line for line in page.splitlines() if line.startswith("length in tokens")]
    assert [line.split()[-2:] for line in lengths] == [["≤", f"{longest:.3g}"], ["≥", f"{shortest:.3g}"]]
    assert longest > shortest
    figure = gold.looks[-1].figures["gold"].mean.value
    start = gold.looks[0].figures["gold"].mean.value
    assert re.search(rf"gold score +{figure:.3g} +{start:.3g} +–", page)
    assert (
        "the policy gains on the proxy and loses what it stands for. Stop, and keep the best checkpoint."
        in " ".join(page.split())
    )
    assert gold.best is not None
    assert f"Checkpoint to keep: step {gold.best.step}; its gold score is the highest of all looks." in page
    assert "Gold score by √KL, fitted: α" in page
    assert "kl (the metrics have no kl)" in page
    assert " ".join(CANNOT_SEE.split()) in " ".join(page.split())
    assert "Nothing that is looked at stands out" not in page


def test_a_quiet_run_is_said_to_be_quiet_and_a_passed_alert_is_told() -> None:
    rows = [StepMetrics(step=step, clip_fraction=0.5 if step < 8 else 0.1) for step in range(20)]
    page = shown(look(rows, []))
    assert "Nothing that is looked at stands out." in page
    assert "From step 0 until step 8: clip_fraction over 5 steps: 0.5" in page
    assert "clip_fraction, in training" in page


def test_phrases_of_the_model_cannot_drive_the_terminal_or_the_markup() -> None:
    def said(step: int, end: str) -> Sequence[ProbeSample]:
        return [ProbeSample(step=step, prompt_id=f"p{place}", response=f"w{place}. {end}") for place in range(16)]

    end = "[red]be \x1b]0;kind\x07 now!"
    page = shown(look([], [*said(0, ""), *said(10, end), *said(20, end)]))
    assert "“[red]be ␛]0;kind␇ now!” ends 100% of the responses" in page
    assert "Phrases that spread: “[red]be ␛]0;kind␇ now!” 0% → 100%" in page


def texts(svg: str) -> list[str]:
    """Text is drawn as outlines; matplotlib keeps what it says in comments."""
    return re.findall(r"<!-- (.*?) -->", svg)


def marks(svg: str) -> int:
    """Red squares; one of them is the legend's."""
    return len(re.findall(r"<use [^>]*fill: #c53030", svg))


def test_the_drawing_has_all_panels_and_the_same_bytes(gold: MonitorReport) -> None:
    svg = draw_report(gold, "svg").decode()
    assert draw_report(MonitorReport.model_validate_json(gold.model_dump_json()), "svg").decode() == svg
    assert {
        "scores since the start",
        "√KL",
        "proxy",
        "gold",
        "gold, fitted",
        "length in tokens",
        "share of responses with words of",
        "variety",
        "perplexity under the reference",
        "KL from the reference, nats",
    } <= set(texts(svg))
    assert "not measured" not in texts(svg)
    assert draw_report(gold, "png").startswith(b"\x89PNG")


def test_looks_beyond_the_tolerance_are_marked(gold: MonitorReport, comfort: MonitorReport) -> None:
    for report, checks in ((gold, {"gold_falls"}), (comfort, {"comfort", "phrases"})):
        looks = sum(bool(checks & set(one.beyond)) for one in report.looks)
        assert looks >= 2
        assert marks(draw_report(report, "svg").decode()) == looks + 1


def test_the_fitted_peak_is_drawn_where_the_looks_reach_it(gold: MonitorReport) -> None:
    assert gold.fit is not None
    reached = gold.model_copy(update={"fit": gold.fit.model_copy(update={"peak": 2.0})})
    ahead = gold.model_copy(update={"fit": gold.fit.model_copy(update={"peak": 99.0})})
    assert "its peak" in texts(draw_report(reached, "svg").decode())
    assert "its peak" not in texts(draw_report(ahead, "svg").decode())


def test_what_was_not_measured_is_left_empty_and_said() -> None:
    bare = [ProbeSample(step=step, prompt_id=f"p{place}", response="Yes.") for step in (0, 5) for place in range(3)]
    svg = draw_report(look([], bare), "svg").decode()
    assert texts(svg).count("not measured") == 3  # scores, perplexity, KL
    assert "length in words" in texts(svg)


def test_scores_without_a_distance_are_drawn_by_step() -> None:
    scored = [
        ProbeSample(step=step, prompt_id=f"p{place}", response="Yes.", score=float(step + place * step))
        for step in (0, 5)
        for place in range(3)
    ]
    svg = draw_report(look([], scored), "svg").decode()
    assert "√KL" not in texts(svg)
    assert texts(svg).count("step") == 6  # of all panels


def test_neither_torch_nor_matplotlib_is_loaded_before_it_is_used() -> None:
    code = "import sys, cai.train.monitor.files, cai.train.monitor.page, cai.train.monitor.looking; "
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
