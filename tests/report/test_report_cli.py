"""`cai report` as a user meets it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cai_process import Finished, job, manifest
from report_pages import read
from report_runs import chain_run, label_run, write_manifest


def test_a_run_of_the_pipeline_itself(
    cai: Callable[..., Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cai(*job(tmp_path, 10, "--out", "runs/chains")).code == 0
    done = cai("report", "runs", "--title", "Ours", "--transcripts", 4)
    assert (done.code, done.out) == (0, "report.html\n")
    page = read(tmp_path / "report.html")
    usage = manifest(tmp_path / "runs" / "chains")["usage"]
    assert page.all("h1")[0].text == "Ours"
    assert page.chapter("summary").row("chains")[1:4] == ["critique-revise", "finished", "11"]
    assert page.chapter("costs").row("chains")[2] == f"{usage['prompt_tokens']:,}"
    assert page.chapter("provenance").row("directory") == ["directory", "runs/chains"]
    (table,) = page.chapter("constitution").tables
    assert sum(int(row[1]) for row in table[1:]) == 10, "one round for each; the helpful prompt has none"
    assert len(page.all("details", class_="transcript")) == 4
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"chains"}


def test_the_page_replaces_an_earlier_one_and_runs_are_left_as_they_are(
    cai: Callable[..., Finished], tmp_path: Path
) -> None:
    run = chain_run(tmp_path / "chains")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    out = tmp_path / "page.html"
    out.write_text("old")
    assert cai("report", run, "--out", out).out == f"{out}\n"
    assert read(out).all("h1")[0].text == "Constitutional AI: report"
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "Missing argument 'RUN…'"),
        (("nowhere",), 1, "error: nowhere cannot be read: No such file or directory; name the directory of a run\n"),
        (("knit",), 1, "error: knit is a run of `knit`, which the report does not know; leave it out, or take the"),
        (("good", "--out", "no/page.html"), 1, "error: no/page.html cannot be written: No such file or directory"),
        (("good", "--out", "."), 2, "is a directory"),
        (("good", "--transcripts", "-1"), 2, "-1 is not in the range x>=0"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    cai: Callable[..., Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int,
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_manifest(tmp_path / "knit", "knit")
    label_run(tmp_path / "good")
    done = cai("report", *words)
    assert done.code == code
    assert message in done.err
    assert not (tmp_path / "report.html").exists()


def test_reports_of_what_was_generated_need_no_torch(tmp_path: Path) -> None:
    label_run(tmp_path / "labels")
    write_manifest(tmp_path / "sft", "train-sft")
    script = (
        "import sys; from pathlib import Path; from cai.report.report import write_report; "
        "write_report([Path('.')], Path('out.html')); "
        "print([name for name in ('torch', 'transformers', 'trl') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
