"""`--overwrite` leaves nothing of the run that was there, whatever stage made it and however it ended."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cai.cli import cli
from cai.rundir import RunDir, State, read_manifest

SCRIPT = {"answers": [{"say": "Reply {seed}"}, {"choices": {"A": 0.7, "B": 0.2}}]}
OTHERS = {
    "sample": {"comparisons.jsonl"},
    "contrast": {"comparisons.jsonl"},
    "label": {"label-studio.json"},
    "judge-check": {"certificate.json", "reliability.svg", "reliability.png"},
}


class Killed(BaseException):
    """What becomes of a process that is killed."""


def run(folder: Path, command: str, *more: str) -> None:
    (folder / "script.yaml").write_text(json.dumps(SCRIPT))
    words = [command, "--engine", "scripted", "--script", str(folder / "script.yaml"), "--limit", "3"]
    pairs = ["--comparisons", "planted"] if command in ("label", "judge-check") else []
    CliRunner().invoke(cli, [*words, *pairs, "--out", str(folder / "run"), *more], catch_exceptions=False)


def names(folder: Path) -> set[str]:
    found = (str(path.relative_to(folder / "run")) for path in (folder / "run").rglob("*"))
    return {name for name in found if not name.startswith("data")}


@pytest.mark.parametrize("command", OTHERS)
@pytest.mark.parametrize("killed", [False, True])
def test_nothing_is_left_of_the_run_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, killed: bool
) -> None:
    save = RunDir.save

    def save_or_die(self: RunDir, state: State) -> None:
        if killed and (self.path / "README.md").exists():
            raise Killed
        save(self, state)

    with monkeypatch.context() as patched:
        patched.setattr(RunDir, "save", save_or_die)
        if killed:
            with pytest.raises(Killed):
                run(tmp_path, command)
        else:
            run(tmp_path, command)
    assert names(tmp_path) >= OTHERS[command] | {"records.jsonl", "README.md"}
    assert read_manifest(tmp_path / "run").state == ("running" if killed else "finished")
    (tmp_path / "run/notes.txt").touch()
    run(tmp_path, "critique-revise", "--overwrite", "--rounds", "1", "--helpful-ratio", "0")
    assert names(tmp_path) == {
        ".lock", "manifest.json", "constitution.yaml", "records.jsonl", "failures.jsonl", "README.md", "notes.txt",
    }  # fmt: skip
