"""The reference says what the code says, of every command, configuration and file."""

import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import build_reference as reference
import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel, Field
from reference_models import field_docs, in_words, models_in, prose, table_of, typed_default, words_of_type

from cai.cli import cli, main
from cai.pipeline.stages import KINDS, stage_kind

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return reference.build()


class Inner(BaseModel):
    """A part."""

    depth: Annotated[int, Field(ge=1)] = 3
    """How deep."""
    width: int = 4


class Base(BaseModel):
    """What all have."""

    kept: str
    """Said by the base."""
    said_anew: str = "old"
    """The old words."""


class Whole(Base):
    """A whole."""

    said_anew: str = "new"
    """The new words,
    on two lines."""
    share: Annotated[float, Field(ge=0, le=1)] = 0.25
    """A share."""
    rate: Annotated[float, Field(gt=0, lt=2)] | None = None
    way: Literal["up", "down"] | None = None
    flag: bool | None = None
    inner: Inner = Inner()
    changed: Inner = Inner(depth=5)
    inners: tuple[Inner, ...] = ()
    names: tuple[str, ...] = ("a", "No", "b, c")
    empty: str = ""
    window: tuple[float, float] = (0.0, 1e-6)
    where: Path = Path("there")
    by_name: dict[str, int] = Field(default_factory=lambda: {"one": 1}, alias="by-name")


# The committed pages


def test_the_committed_pages_are_what_the_code_says(pages: dict[str, str]) -> None:
    found = reference.differences(pages, ROOT / "docs" / "reference")
    assert not found, "\n".join([*found, f"renew the reference with: {reference.COMMAND}"])


def test_the_pages_are_the_same_a_second_time_and_on_a_narrow_terminal(
    pages: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert reference.build() == pages


def test_a_page_that_is_stale_missing_or_left_over_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reference, "PAGES", tmp_path)
    monkeypatch.setattr(reference, "build", lambda: {"one.md": "1\n2\n", "two.md": "2\n"})
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0
    (tmp_path / "one.md").write_text("1\n")
    (tmp_path / "two.md").unlink()
    (tmp_path / "three.md").write_text("3\n")
    capsys.readouterr()
    assert reference.main(["--check"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"{tmp_path / 'one.md'} is not what the code says: line 2 has '(nothing)' for '2'",
        f"{tmp_path / 'three.md'} belongs to nothing that there is",
        f"{tmp_path / 'two.md'} is missing",
        "renew the reference with: python docs/build_reference.py",
    ]
    assert reference.main([]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"one.md", "two.md"}


def test_links_between_pages_lead_to_headings_that_are_there(pages: dict[str, str]) -> None:
    def anchor(heading: str) -> str:
        return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")

    anchors = {
        name: {anchor(one) for one in re.findall(r"^#+ (.*)$", text, re.MULTILINE)} for name, text in pages.items()
    }
    links = [(name, link) for name, text in pages.items() for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    assert len(links) > 100
    for name, link in links:
        page, _, heading = link.partition("#")
        assert (page or name) in pages, f"{name}: {link}"
        assert not heading or heading in anchors[page or name], f"{name}: {link}"


def test_unknown_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main(["--chek"]) == 2
    assert "usage: python docs/build_reference.py [--check]" in capsys.readouterr().err


# Commands


def test_every_command_and_option_that_help_names_stands_in_its_page(pages: dict[str, str]) -> None:
    runner = CliRunner()
    for words, command in reference.commands():
        page = pages[f"{words.split()[0]}.md"]
        assert f"# cai {words}\n" in page
        shown = runner.invoke(cli, [*words.split(), "--help"]).output
        for option in (one for one in command.params if isinstance(one, click.Option)):
            for name in (*option.opts, *option.secondary_opts):
                assert name in shown
                assert name in page, f"{words} {name}"


def test_the_configuration_of_each_command_is_known() -> None:
    with_config = {words for words, command in reference.commands() if reference.takes_config(command)}
    unnamed, gone = with_config - reference.CONFIGS.keys(), reference.CONFIGS.keys() - with_config
    assert not unnamed, f"name the configuration of {sorted(unnamed)} in CONFIGS of docs/build_reference.py"
    assert not gone, f"take {sorted(gone)} out of CONFIGS of docs/build_reference.py"


@pytest.mark.parametrize("words", sorted(reference.CONFIGS))
def test_a_command_reads_the_configuration_that_the_table_names(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown key is answered with the known ones, which are those of one model only."""
    (tmp_path / "config.yaml").write_text("zzzzzzzzzzzz: 1\n")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    arguments = ["x" for one in dict(reference.commands())[words].params if isinstance(one, click.Argument)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cai", *words.split(), *arguments, "--config", "config.yaml"])
    with pytest.raises(SystemExit):
        main()
    said = " ".join(capsys.readouterr().err.split())
    model = reference.model(reference.CONFIGS[words])
    names = ", ".join(field.alias or name for name, field in model.model_fields.items())
    assert f"zzzzzzzzzzzz: is not a known key; known: {names}" in said, said


def test_the_keys_of_every_kind_of_stage_stand_where_its_command_or_the_recipe_is_told(pages: dict[str, str]) -> None:
    by_command = {reference.model(path) for path in reference.CONFIGS.values()}
    for name in KINDS:
        config = stage_kind(name).config
        if config not in by_command:
            told = pages["recipe-file.md"].partition(f"\n## stage: {name}\n")[2].partition("\n## ")[0]
            assert set(re.findall(r"^\| `(\w+)` \|", told, re.MULTILINE)) == config.model_fields.keys(), name


# Models


def test_field_docs_are_the_nearest_ones() -> None:
    found = field_docs(Whole)
    assert found["kept"] == "Said by the base."
    assert " ".join(found["said_anew"].split()) == "The new words, on two lines."
    assert "way" not in found


def test_types_and_bounds_in_words() -> None:
    found = {field.key: field.type for field in words_of_type(Whole, {"Inner": "#inner"})}
    assert found == {
        "kept": "text",
        "said_anew": "text",
        "share": "number from 0 to 1",
        "rate": "number > 0, &lt; 2 or null",
        "way": "`up`, `down` or null",
        "flag": "true, false or null",
        "inner": "[Inner](#inner)",
        "changed": "[Inner](#inner)",
        "inners": "list of [Inner](#inner)",
        "names": "list of text",
        "empty": "text",
        "window": "list of 2: number, number",
        "where": "path",
        "by-name": "mapping of text to integer",
    }


def test_defaults_as_yaml_writes_them() -> None:
    found = {name: typed_default(field) for name, field in Whole.model_fields.items()}
    assert found == {
        "kept": "required",
        "said_anew": "`new`",
        "share": "`0.25`",
        "rate": "–",
        "way": "–",
        "flag": "–",
        "inner": "–",
        "changed": "`{depth: 5}`",
        "inners": "`[]`",
        "names": '`[a, "No", "b, c"]`',
        "empty": '`""`',
        "window": "`[0, 1e-06]`",
        "where": "`there`",
        "by_name": "`{one: 1}`",
    }


def test_models_below_a_model_come_once_each_way_and_recursion_ends() -> None:
    assert list(dict.fromkeys(models_in(Whole))) == [Whole, Inner]
    assert in_words(Inner, {}) == "Inner"


def test_text_cannot_break_a_table() -> None:
    assert table_of(("a",), [("x | y",)]) == "| a |\n| --- |\n| x \\| y |\n"
    assert prose("see\n  <id> and `<id>`, 2 * 3") == "see &lt;id> and `<id>`, 2 \\* 3"
