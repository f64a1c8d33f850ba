"""Real `cai critique-revise` processes with the scripted engine, for tests that stop, kill or starve them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CAI = (sys.executable, "-c", "from cai.cli import main; main()")

SCRIPT = """\
concurrency: 4
answers:
  - {when: OVERLONG, fail: context_overflow}
  - {when: Critique request, say: "It could be kinder. {seed}"}
  - {when: Revision request, say: "A kinder reply, \\u201c{seed}\\u201d."}
  - {say: "Draft {seed}"}
"""


@dataclass(frozen=True)
class Finished:
    """How a process ended."""

    code: int
    out: str
    err: str


def write_script(folder: Path, text: str = SCRIPT) -> Path:
    path = folder / "script.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def write_prompts(folder: Path, texts: Sequence[str]) -> Path:
    path = folder / "prompts.jsonl"
    rows = ({"id": f"p{n}", "prompt": text} for n, text in enumerate(texts))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def job(folder: Path, count: int, *more: str) -> list[str]:
    """Write `count` prompts and a script, and return the words of the job, without --out."""
    prompts = write_prompts(folder, [f"Question {n}?" for n in range(count)])
    return words(prompts, write_script(folder), *more)


def words(prompts: Path, script: Path, *more: str) -> list[str]:
    """The words of a job of one round on these files, without --out."""
    paths = ("--prompts", str(prompts), "--engine", "scripted", "--script", str(script))
    return ["critique-revise", *paths, "--rounds", "1", "--few-shot", "0", "--helpful-ratio", "0.1", *more]


def start(arguments: Sequence[str], cwd: Path, before: Callable[[], object] | None = None) -> subprocess.Popen[str]:
    """Start `cai`; `before` is called in the new process."""
    return subprocess.Popen(
        [*CAI, *arguments],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=before,
    )


def finish(process: subprocess.Popen[str]) -> Finished:
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in out + err, err
    return Finished(process.returncode, out, err)


def run(arguments: Sequence[str], cwd: Path, before: Callable[[], object] | None = None) -> Finished:
    return finish(start(arguments, cwd, before))


def complete(arguments: Sequence[str], cwd: Path) -> Finished:
    """Run `cai` and expect it to succeed."""
    done = run(arguments, cwd)
    assert done.code == 0, done.err
    return done


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Watch until `condition` holds or the process ends."""
    while process.poll() is None and not condition():
        time.sleep(0.0005)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def records(out: Path) -> dict[str, bytes]:
    """The lines of records.jsonl by id; fails on a torn or broken line and on an id that stands there twice."""
    found: dict[str, bytes] = {}
    for line in (out / "records.jsonl").read_bytes().splitlines(keepends=True):
        assert line.endswith(b"\n")
        id = json.loads(line)["id"]
        assert id not in found
        found[id] = line
    return found


def exported(out: Path) -> dict[str, bytes]:
    """The exported files by name; each name holds a hash of its content."""
    found = {path.name: path.read_bytes() for path in (out / "data").iterdir()}
    card = (out / "README.md").read_text(encoding="utf-8")
    assert found
    assert all(f"data/{name}" in card for name in found)
    return found


def manifest(out: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    return found


def same_result(one: Path, other: Path) -> None:
    """Check that two runs have the same records, down to the byte, and the same exported data."""
    assert records(one) == records(other)
    assert exported(one) == exported(other)
    for key in ("state", "usage", "failures", "counts"):
        assert manifest(one)[key] == manifest(other)[key]
