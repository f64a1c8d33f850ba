"""`cai constitution`: what the commands print, write and refuse."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cai.assets import asset_names
from cai.cli.constitution import constitution
from cai.constitution import constitution_schema, load_constitution
from cai.errors import CaiError, ConfigError, ConstitutionError, DataError

HEAD = 'name: test\nversion: "1"\n'


def run(*arguments: str | Path) -> Result:
    """Run a command that ends well."""
    result = CliRunner().invoke(constitution, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert result.exception is None
    return result


def refused(*arguments: str | Path) -> CaiError:
    """Run a command that ends with an explained error."""
    result = CliRunner().invoke(constitution, [str(argument) for argument in arguments])
    assert isinstance(result.exception, CaiError), result.output
    assert result.exception.exit_code == 2
    return result.exception


def words(result: Result) -> str:
    """The output without the line breaks of the terminal."""
    return " ".join(result.output.split())


def write(folder: Path, text: str, name: str = "c.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_new_writes_a_commented_file_without_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("new", 'My "own": rules').output.startswith("wrote my-own-rules.yaml; edit it")
    made = load_constitution("my-own-rules.yaml")
    assert made.name == 'My "own": rules'
    assert made.advice() == []
    assert "{{ topic }}, {{ round }}" in (tmp_path / "my-own-rules.yaml").read_text(encoding="utf-8")
    assert made.select("critique")
    assert made.select("comparison")


def test_new_keeps_a_file_that_exists_unless_told_to_replace_it(tmp_path: Path) -> None:
    path = write(tmp_path, "mine\n")
    assert str(refused("new", "n", "--out", path)) == (
        f"{path} exists; take another name, or --overwrite to replace it"
    )
    assert path.read_text(encoding="utf-8") == "mine\n"
    run("new", "n", "--out", path, "--overwrite")
    assert load_constitution(str(path)).name == "n"


def test_new_says_why_a_file_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "c.yaml"
    assert str(refused("new", "n", "--out", path)) == f"{path} cannot be written: No such file or directory"
    assert "has no letter or digit" in str(refused("new", "!!"))


def test_lint_counts_what_is_good(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + "principles:\n  - {id: a, text: A.}\n  - {id: b, comparison: B., weight: 0}\n")
    lines = run("lint", path, "short").output.splitlines()
    sha = load_constitution(str(path)).sha256[:12]
    assert (
        lines[0] == f"ok: 2 principles (critique 1, comparison 1, question 1), worked examples 0, sha256 {sha}: {path}"
    )
    assert lines[1] == f"warning: {path}: b: is switched off (weight 0) and serves no part"
    assert lines[2].startswith("ok: 3 principles (critique 3, comparison 3, question 3), worked examples 0, sha256 ")
    assert len(lines) == 3


def test_lint_reports_the_problems_of_all_files_once_and_still_names_the_good_ones(tmp_path: Path) -> None:
    parent = write(tmp_path, HEAD + "principles:\n  - {id: a, txt: A.}\n", "parent.yaml")
    one = write(tmp_path, HEAD + "extends: parent.yaml\n", "one.yaml")
    two = write(tmp_path, HEAD + "extends: parent.yaml\nprinciples:\n  - {id: b, weight: -1}\n", "two.yaml")
    result = CliRunner().invoke(constitution, ["lint", str(one), "short", str(two), str(tmp_path / "gone.yaml")])
    assert result.output.startswith("ok: 3 principles")
    assert isinstance(result.exception, ConstitutionError)
    assert [(p.file, p.line, p.key) for p in result.exception.problems] == [
        (str(parent), 4, "principles[0].txt"),
        (str(two), 5, "principles[0].weight"),
        (None, None, None),
    ]


def test_show_lists_every_principle_with_its_tags_weight_and_parts() -> None:
    result = run("show", "health")
    health = load_constitution("health")
    lines = result.output.splitlines()
    for principle in health.principles:
        [line] = [line for line in lines if line.split()[:1] == [principle.id]]
        assert principle.tags[0] in line
    [at_risk] = [line.split() for line in lines if line.startswith("person-at-risk")]
    assert {"3", "critique"} < set(at_risk)
    [off] = [line.split() for line in lines if line.startswith("padding")]
    assert "0" in off
    assert lines[-1] == f"sha256 {health.sha256}"


def test_show_prints_one_principle_in_full() -> None:
    text = words(run("show", "hhh", "more-harmful"))
    assert str(load_constitution("hhh").principle("more-harmful").comparison) in text
    assert "comparison (asks for the worse reply):" in text
    assert text.endswith("worked examples: 1")
    assert "did you mean `more-harmful`?" in str(refused("show", "hhh", "more-harmfull"))


def test_show_prints_square_brackets_and_invisible_characters_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + 'principles:\n  - {id: a, text: "[bold]x[/bold] \\u202e"}\n')
    assert "[bold]x[/bold] ⟨U+202E⟩" in run("show", path, "a").output
    assert "[bold]x[/bold] ⟨U+202E⟩" in run("show", path).output


def test_diff_shows_each_changed_part_word_by_word(tmp_path: Path) -> None:
    example = "{principle: a, prompt: Q, response: R, critique: C, revision: V}"
    old = write(
        tmp_path,
        HEAD
        + "principles:\n  - {id: a, text: Be kind to every person who asks., tags: [x]}\n"
        + "  - {id: gone, comparison: Old.}\n  - {id: same, text: S.}\n"
        + f"examples:\n  critique_revision:\n    - {example}\n",
        "old.yaml",
    )
    new = write(
        tmp_path,
        HEAD
        + "principles:\n  - {id: a, text: Be fair to every person who asks., weight: 0.5}\n"
        + "  - {id: same, text: S.}\n  - {id: fresh, text: New., weight: 2}\n"
        + f"examples:\n  critique_revision:\n    - {example.replace('V', 'W')}\n",
        "new.yaml",
    )
    lines = [line.strip() for line in run("diff", old, new).output.splitlines()]
    assert lines[-12:] == [
        "changed a: tags, weight, text, examples",
        "tags: x → none",
        "weight: 1 → 0.5",
        "text: Be[- kind-]{+ fair+} to every person who asks.",
        "worked example: [-Q → V-]",
        "worked example: {+Q → W+}",
        "removed gone",
        "comparison: [-Old.-]",
        "added fresh",
        "weight: 2",
        "text: {+New.+}",
        "1 added, 1 removed, 1 changed, 1 the same",
    ]


def test_diff_of_equal_and_of_reordered_examples(tmp_path: Path) -> None:
    assert run("diff", "hhh", "hhh").output.splitlines()[1:] == ["0 added, 0 removed, 0 changed, 32 the same"]
    shots = [f"    - {{principle: {p}, prompt: Q, response: R, critique: C, revision: V}}\n" for p in "ab"]
    base = HEAD + "principles:\n  - {id: a, text: A.}\n  - {id: b, text: B.}\nexamples:\n  critique_revision:\n"
    one, two = write(tmp_path, base + "".join(shots), "1.yaml"), write(tmp_path, base + "".join(shots[::-1]), "2.yaml")
    assert "only the order of the worked examples differs" in run("diff", one, two).output


def test_import_writes_a_file_without_faults_and_lists_what_was_not_taken(tmp_path: Path) -> None:
    source = write(tmp_path, json.dumps(["Which is worse?", "Choose the kinder one. Options:", 5]), "theirs.json")
    out = tmp_path / "ours.yaml"
    assert run("import", source, "--out", out).output.splitlines() == [
        f"recognised comparison instructions: principles 2, worked examples 0; wrote {out}",
        "check the polarity of comparison-1: they seem to ask for the worse reply",
        "not taken: 1",
        "  [2]: has no text that could become `comparison`",
    ]
    assert load_constitution(str(out)).name == "ours"
    assert isinstance(refused("import", source, "--out", out), ConfigError)
    assert isinstance(refused("import", out, "--out", tmp_path / "x.yaml"), DataError)
    assert not (tmp_path / "x.yaml").exists()


def test_help_names_the_constitutions_that_ship() -> None:
    text = words(run("--help"))
    assert [name for name in asset_names("constitutions", ".yaml") if name not in text] == []


def test_schema_prints_the_schema() -> None:
    assert run("schema").output == constitution_schema()
