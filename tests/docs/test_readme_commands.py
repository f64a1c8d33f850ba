"""Every command that the documents show is one that the command line takes, and every file that they name is there."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from cai_process import Finished
from command_blocks import ROOT, Block, Shown, blocks, check, commands, inline, inline_options, shown
from in_process import cai  # noqa: F401 (fixture)

from cai.cli import cli

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
DOCUMENTS = [path for path in PAGES if path.name != "lab-notes.md"]
"""Lab notes tell of commands as they were."""
OTHERS = {"--enable-lora", "--no-enable-chunked-prefill", "--no-deps", "--config_file", "--block-size"}
"""Options of other programs that the documents name by themselves."""
FILES = re.compile(r"(?:recipes|constitutions|benchmarks|docs)/[\w./-]*\w")

SCRIPT = """
answers:
  - {when: Critique request, say: "It is long. {seed}"}
  - {when: Revision request, say: "Short, {seed}."}
  - {when: '[(]A[)]', choices: {A: 0.6, B: 0.3}}
  - {choices: {"Yes": 0.2, "No": 0.7}, say: "Words {seed}."}
"""


def made(text: str, language: str = "sh") -> Block:
    return Block(Path("page.md"), 7, language, text, run=True)


def words(text: str) -> list[tuple[str, ...]]:
    return [command.words for command in commands(made(text))]


# How blocks are read


def test_commands_are_found_in_what_shells_take() -> None:
    assert words("cai show RUN   # reads\npip install cai\n") == [("show", "RUN")]
    assert words("a && cai rate x --rater r1 & cai export y | head -3 > file\n") == [
        ("rate", "x", "--rater", "r1"),
        ("export", "y"),
    ]
    assert words("cai constitution schema > schema.json\n") == [("constitution", "schema")]
    assert words("cai label \\\n  --limit 3\n") == [("label", "--limit", "3")]
    assert words("accelerate launch --config_file f.yaml -m cai train dpo\n") == [("train", "dpo")]
    assert words("cat > f <<'EOF'\ncai nonsense\nEOF\ncai show 'a b'\n") == [("show", "a b")]


def test_a_command_that_ends_in_an_ellipsis_is_not_whole() -> None:
    assert [command.whole for command in commands(made("cai train …\ncai show runs/…\n"))] == [False, True]


def test_blocks_have_their_line_language_and_mark(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("one\n\n```sh\ncai show x\n```\n\n<!-- not run by the tests -->\n```yaml\na: 1\n```\n")
    assert [(one.line, one.language, one.text, one.run) for one in blocks(page)] == [
        (4, "sh", "cai show x\n", True),
        (9, "yaml", "a: 1\n", False),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("cai lable", "no such command: lable"),
        ("cai constitution linnt x", "no such command: linnt"),
        ("cai label --comparison x", "No such option"),
        ("cai label --limit many", "not a valid integer"),
        ("cai label --protocol pair", "is not"),
        ("cai show", "Missing parameter: run"),
        ("cai sample --policy model", "must be written NAME=MODEL"),
        ("cai train reward --weighted file", "requires 2 arguments"),
        ("cai train", "no command"),
    ],
)
def test_a_command_that_click_would_refuse_is_found(line: str, problem: str) -> None:
    (command,) = commands(made(line))
    with pytest.raises(click.ClickException, match=problem):
        check(command)


def test_help_and_groups_are_no_errors() -> None:
    for line in ("cai label --help", "cai train …", "cai train ppo --reward x …"):
        (command,) = commands(made(line))
        check(command)
    with pytest.raises(click.NoSuchOption):
        check(Shown("page.md", ("train", "ppo", "--rewards"), whole=False))


# The documents


@pytest.mark.parametrize("command", [one for path in DOCUMENTS for one in shown(path)], ids=str)
def test_a_command_of_the_documents_is_one_that_click_takes(command: Shown) -> None:
    check(command)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_running_text_exist(path: Path) -> None:
    for command in inline(path):
        *groups, last = [word for word in command.words if not word.startswith("--")] or [""]
        for alternative in last.split("|"):  # `cai train reward|dpo`
            if command.words and re.fullmatch(r"[a-z][a-z|-]*", last):
                swapped = tuple(alternative if word == last else word for word in command.words)
                check(Shown(command.where, swapped, whole=False))
            elif groups:
                check(Shown(command.where, command.words, whole=False))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_options_in_running_text_exist(path: Path) -> None:
    known = set(OTHERS)

    def collect(command: click.Command) -> None:
        known.update(name for one in command.params for name in (*one.opts, *one.secondary_opts))
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                collect(inner)

    collect(cli)
    assert not set(inline_options(path)) - known


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_links_that_a_document_names_are_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = [one.split("#")[0] for one in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text)]
    missing = [one for one in links if one and not (path.parent / one).exists()]
    missing += [one for one in FILES.findall(re.sub(r"\]\([^)]*\)", "]", text)) if not (ROOT / one).exists()]
    assert not missing


# README's commands at work


@pytest.fixture
def run(cai: Callable[..., Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:  # noqa: F811
    (tmp_path / "script.yaml").write_text(SCRIPT)
    shutil.copytree(ROOT / "constitutions", tmp_path / "constitutions")
    monkeypatch.chdir(tmp_path)

    def scripted(command: Shown) -> str:
        """Run a command as it is shown, with the scripted engine in place of a model."""
        given = [*command.words]
        if "--model" in given:
            place = given.index("--model")
            del given[place : place + 2]
        if given[0] not in ("constitution", "show"):
            given += ["--engine", "scripted", "--script", "script.yaml"]
        done = cai(*given)
        assert done.code == 0, f"{command}\n{done.err}"
        return done.out

    return scripted


def section(heading: str) -> list[Shown]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    start = text.index(f"## {heading}\n")
    first, last = text.count("\n", 0, start), text.count("\n", 0, text.find("\n## ", start + 3))
    found = [one for one in blocks(ROOT / "README.md") if first < one.line <= last and one.language == "sh"]
    return [command for block in found for command in commands(block)]


def test_readme_edit_a_principle_see_the_change(run: Callable[..., str], tmp_path: Path) -> None:
    new, lint, before, diff, after, show = section("Edit a principle, see the change")
    run(new)
    mine = tmp_path / lint.words[-1]
    assert mine.is_file(), f"`cai {' '.join(new.words)}` did not write the file that the next line checks"
    run(lint)
    run(before)
    (tmp_path / diff.words[-2]).write_bytes(mine.read_bytes())
    mine.write_text(mine.read_text().replace("only what there is", "nothing but what there is"))
    assert "nothing but+}" in run(diff)
    assert "run directory: runs/mine-" in run(after)
    runs = sorted((tmp_path / "runs").glob("mine-*"))
    assert len(runs) == 2
    assert "Round 1 · " in run(Shown("", (show.words[0], str(runs[0])), whole=True))


def test_readme_ai_feedback(run: Callable[..., str], tmp_path: Path) -> None:
    check_, sample, label = section("AI feedback: have a judge compare responses")
    few = ("--limit", "3")
    run(Shown("", (*check_.words, *few), whole=True))
    run(Shown("", (*sample.words, *few), whole=True))
    (found,) = (tmp_path / "runs").glob(label.words[2].replace("runs/", "").replace("…", "*"))
    run(Shown("", (*label.words[:2], str(found), *label.words[3:], "--force"), whole=True))
    (labels,) = (tmp_path / "runs").glob("label-*")
    assert json.loads((labels / "manifest.json").read_text())["counts"]["finished"] == 3
