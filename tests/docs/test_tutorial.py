"""The tutorial's commands follow from one another, and what it prints of cheap ones is what they say today.

`run_tutorial.py` runs the whole of it with the embedded model; here a scripted engine stands in for the model.
"""

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import run_tutorial
from build_reference import model
from cai_process import Finished
from command_blocks import Shown, blocks, commands
from in_process import cai  # noqa: F401 (fixture)
from reference_files import FILE_PAGES

from cai.records import RevisionChain

SCRIPT = """
answers:
  - {when: Critique request, say: "It is long. {seed}"}
  - {when: Revision request, say: "Short, {seed}."}
  - {when: '[(]A[)]', choices: {A: 0.6, B: 0.3}}
  - {choices: {"Yes": 0.2, "No": 0.7}, logprob: -20, say: "Words {seed}."}
"""
HERE = re.compile(r"cat > (\S+) <<'EOF'\n(.*?)^EOF$", re.MULTILINE | re.DOTALL)
TRAINED = "runs/tuned"


@pytest.fixture
def run(cai: Callable[..., Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:  # noqa: F811
    (tmp_path / "script.yaml").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def scripted(command: Shown) -> str:
        given = [*command.words]
        if given[0] in ("critique-revise", "judge-check", "contrast", "evaluate"):
            given = [word for word in given if not re.match(r"\w+=", word)]  # NAME=MODEL: the script is the only model
            given += ["--engine", "scripted", "--script", "script.yaml"]
        done = cai(*given)
        assert done.code == 0, f"{command}\n{done.err}"
        return done.out

    return scripted


def test_the_tutorial_runs_from_end_to_end_with_a_scripted_engine(run: Callable[..., str], tmp_path: Path) -> None:
    ran = set()
    for block in blocks(run_tutorial.TUTORIAL):
        if block.language != "sh" or not block.run:
            continue
        for name, text in HERE.findall(block.text):
            (tmp_path / name).write_text(text)
        for command in commands(block):
            for word in command.words:
                path = word.partition("=")[2] or word
                there = tmp_path / path
                made_here = word == command.words[-1] and "--out" in command.words
                assert not path.startswith("runs/") or made_here or path == TRAINED or there.exists(), command
            if command.words[0] != "train":
                run(command)
            ran.add(command.words[0])
    assert ran == {"constitution", "critique-revise", "show", "judge-check", "contrast", "train", "evaluate", "report"}
    for name in run_tutorial.WRITTEN:
        assert (tmp_path / name).exists() or name.startswith(TRAINED)
    few = ("--prompts", "helpful", "--limit", "3", "--engine", "scripted", "--script", "script.yaml")
    run(Shown("", ("sample", *few, "--out", "runs/sampled"), whole=True))
    the_reference_names_the_model_of_each_file(tmp_path / "runs")


def the_reference_names_the_model_of_each_file(runs: Path) -> None:
    """Check that what commands wrote reads as what the reference says that it is."""
    for page, title, file in (
        ("records", "Of cai critique-revise", "after/records.jsonl"),
        ("records", "Of cai sample", "sampled/records.jsonl"),
        ("records", "Of cai contrast", "pairs/records.jsonl"),
        ("records", "Of cai label and cai judge-check", "judge/records.jsonl"),
        ("records", "Of cai evaluate", "measured/records.jsonl"),
        ("run-directory", "manifest.json", "after/manifest.json"),
        ("judge-files", "certificate.json", "judge/certificate.json"),
        ("evaluation-file", "evaluation.json", "measured/evaluation.json"),
    ):
        (found,) = (one for one in FILE_PAGES if one.name == page)
        (path,) = (one.model for one in found.files if one.name == title)
        text = (runs / file).read_text()
        for line in text.splitlines() if file.endswith("jsonl") else [text]:
            model(path).model_validate_json(line)


def test_before_and_after_differ_in_the_principle_and_not_in_the_drafts(
    run: Callable[..., str], tmp_path: Path
) -> None:
    for block in blocks(run_tutorial.TUTORIAL)[:8]:
        for name, text in HERE.findall(block.text):
            (tmp_path / name).write_text(text)
    revising = [
        command
        for block in blocks(run_tutorial.TUTORIAL)
        if block.language == "sh"
        for command in commands(block)
        if command.words[0] == "critique-revise"
    ]
    chains = []
    for command in revising:
        run(command)
        lines = (tmp_path / command.words[-1] / "records.jsonl").read_text().splitlines()
        chains.append({one.id: one for one in map(RevisionChain.model_validate_json, lines)})
    before, after = chains
    assert before.keys() == after.keys()
    assert len(before) == 6
    for id, chain in before.items():
        assert chain.draft == after[id].draft
        assert {round_.principle_id for round_ in (*chain.rounds, *after[id].rounds)} == {"be-of-use"}
        assert chain.constitution_sha256 != after[id].constitution_sha256


def test_what_cheap_commands_print_is_what_the_tutorial_shows(run: Callable[..., str], tmp_path: Path) -> None:
    shown = blocks(run_tutorial.TUTORIAL)
    compared = 0
    for block, following in pairwise(shown):
        for name, text in HERE.findall(block.text):
            (tmp_path / name).write_text(text)
        found = [*commands(block)] if block.language == "sh" and block.run else []
        if found and following.language == "text" and all(one.words[0] == "constitution" for one in found):
            printed = [line.rstrip() for line in "".join(map(run, found)).splitlines()]
            assert printed == following.text.splitlines(), f"{following.where} is not what the commands print today"
            compared += 1
    assert compared == 2


# The script that runs it for real


def test_blocks_run_in_order_until_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\necho one > file\n```\n<!-- not run by the tests -->\n```sh\nexit 7\n```\n"
        "```sh\ncat file > copy\nfalse | true\n```\n```sh\ntouch never\n```\n"
    )
    monkeypatch.setattr(run_tutorial, "TUTORIAL", page)
    folder = tmp_path / "folder"
    folder.mkdir()
    assert run_tutorial.run_all(folder, 60) == 1
    assert "page.md:9: failed with exit code 1" in capsys.readouterr().err
    assert (folder / "copy").read_text() == "one\n"
    assert not (folder / "never").exists()


def test_what_takes_too_long_is_ended_and_what_is_not_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr(run_tutorial, "TUTORIAL", page)
    monkeypatch.setattr(run_tutorial, "WRITTEN", ("here", "there"))
    page.write_text("```sh\ntouch here\n```\n")
    assert run_tutorial.run_all(tmp_path, 60) == 1
    assert "did not write there" in capsys.readouterr().err
    page.write_text("```sh\ntouch there; read forever < <(tail -f /dev/null)\n```\n")
    assert run_tutorial.run_all(tmp_path, 0.3) == 1
    assert "longer than 0 s" in capsys.readouterr().err
    page.write_text("```sh\ntouch there\n```\n")
    assert run_tutorial.run_all(tmp_path, 60) == 0
    assert "the tutorial ran in" in capsys.readouterr().out
