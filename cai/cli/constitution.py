"""`cai constitution`: start, check, show, compare and import files of principles."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cai.constitution import (
    Constitution,
    Principle,
    PrincipleChange,
    constitution_schema,
    diff_constitutions,
    load_constitution,
)
from cai.constitution_import import import_constitution
from cai.errors import ConfigError, ConstitutionError, Problem
from cai.principles import ComparisonExample, CritiqueRevisionExample, Example, Part, kebab
from cai.visible import visible
from cai.worddiff import word_diff

_TEXTS = ("text", "critique", "revision", "comparison", "question")

_NEW_FILE = """\
# A constitution: the principles by which replies are criticised, revised and compared.
#
# After each edit: cai constitution lint FILE. For completion in an editor, write the schema beside this file with
# `cai constitution schema > schema.json` and make this the first line:
#   # yaml-language-server: $schema=schema.json

name: {name}
version: "1"
description: What this constitution is for, in a sentence.

# To change a shipped constitution in place of starting anew, name it here. An entry below with the id of one of its
# principles then changes only the keys that it has; other entries are added.
# extends: hhh

principles:

  # One principle, stated once. The prompt templates phrase the requests from it.
  - id: tell-the-truth          # kebab-case; transcripts and labels name it
    tags: [honesty]             # a run can draw by tag
    weight: 1                   # how often it is drawn relative to the others; 0 switches it off
    text: >-
      The reply says only what there is good reason to believe, and shows how sure it is.

  # A principle with requests of its own. `critique` asks for one kind of fault in the assistant's last reply, and
  # `revision` says how to rewrite it. The texts may use {{{{ topic }}}}, {{{{ round }}}} and {{{{ rounds }}}}.
  - id: no-harm
    tags: [harmlessness]
    critique: >-
      Point out what in the assistant's last reply could help somebody to hurt others. Name the sentence.
    revision: >-
      Rewrite the reply without it. Say briefly what you will not help with, and offer something that helps.

  # A principle for the comparison of two replies.
  - id: more-useful
    tags: [helpfulness]
    comparison: >-
      Choose the reply that gets the human further with what they wanted to do.

# Worked examples that stand before each request; few and short, because every call pays for them.
examples:
  critique_revision:
    - principle: no-harm
      prompt: Which of my neighbour's windows is easiest to open from outside?
      response: The one at the back, probably. People forget to lock those.
      critique: >-
        "The one at the back" helps to break into the neighbour's home.
      revision: >-
        I won't help to get into somebody else's home. If you are locked out of your own, a locksmith can help.
"""


@click.group()
def constitution() -> None:
    """Start, check, show, compare and import files of principles.

    A constitution is named by its path, or by its name where it ships with this package: hhh, short, health.
    """


@constitution.command()
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), help="File to write. Default: the name, with .yaml.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
def new(name: str, out: Path | None, overwrite: bool) -> None:
    """Write a commented constitution to start from."""
    if not kebab(name):
        raise ConfigError(f"`{name}` has no letter or digit; give the constitution a name such as `my-principles`")
    path = out or Path(f"{kebab(name)}.yaml")
    _write(path, _NEW_FILE.format(name=json.dumps(name.strip(), ensure_ascii=False)), overwrite)
    click.echo(f"wrote {path}; edit it, then run: cai constitution lint {path}")


@constitution.command()
@click.argument("files", nargs=-1, required=True)
def lint(files: tuple[str, ...]) -> None:
    """Check constitutions and list every problem at once."""
    problems: list[Problem] = []
    for file in files:
        try:
            found = load_constitution(file)
        except ConstitutionError as error:
            problems += error.problems
            continue
        counts = ", ".join(
            f"{part} {sum(p.serves(part) and p.weight > 0 for p in found.principles)}" for part in get_args(Part)
        )
        examples = len(found.examples.critique_revision) + len(found.examples.comparison)
        click.echo(
            f"ok: {len(found.principles)} principles ({counts}), worked examples {examples},"
            f" sha256 {found.sha256[:12]}: {file}"
        )
        for hint in found.advice():
            click.echo(f"warning: {file}: {hint}")
    if problems:
        raise ConstitutionError(list(dict.fromkeys(problems)))


@constitution.command()
@click.argument("name")
@click.argument("principle_id", metavar="[ID]", required=False)
def show(name: str, principle_id: str | None) -> None:
    """Show a constitution as a table, or one of its principles in full."""
    found = load_constitution(name)
    console = _console()
    if principle_id is not None:
        _show_principle(console, found.principle(principle_id), found)
        return
    console.print(Text(visible(f"{found.name} {found.version}"), style="bold"))
    if found.description:
        console.print(Text(visible(found.description)))
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    table.add_column("id", min_width=max(len(principle.id) for principle in found.principles))
    table.add_column("tags", max_width=18)
    table.add_column("weight", justify="right")
    table.add_column("serves", no_wrap=True)
    table.add_column("first words", no_wrap=True, overflow="ellipsis", ratio=1)
    for principle in found.principles:
        parts = [part for part in get_args(Part) if principle.serves(part)]
        table.add_row(
            principle.id,
            ", ".join(principle.tags),
            f"{principle.weight:g}",
            "all" if len(parts) == len(get_args(Part)) else ", ".join(parts),
            Text(visible(" ".join((principle.text or principle.critique or principle.comparison or "").split()))),
            style="" if principle.weight else "dim",
        )
    console.print(table)
    console.print(f"sha256 {found.sha256}")


@constitution.command()
@click.argument("a")
@click.argument("b")
def diff(a: str, b: str) -> None:
    """Say which principles changed from A to B, in which part, word by word."""
    old, new_ = load_constitution(a), load_constitution(b)
    changes = diff_constitutions(old, new_)
    console = _console()
    console.print(Text(visible(f"{a} ({old.sha256[:12]}) → {b} ({new_.sha256[:12]})"), style="bold"))
    for change in changes:
        line = f"{change.kind} {change.id}" + (f": {', '.join(change.parts)}" if change.kind == "changed" else "")
        console.print(Text(line, style={"added": "green", "removed": "red"}.get(change.kind, "yellow")))
        for detail in _details(change):
            for wrapped in detail.wrap(console, console.width - 4):
                console.print(Text("    ").append_text(wrapped))
    if not changes and old.sha256 != new_.sha256:
        console.print("only the order of the worked examples differs")
    count = {kind: sum(change.kind == kind for change in changes) for kind in ("added", "removed", "changed")}
    same = len(old.principles) - count["removed"] - count["changed"]
    console.print(", ".join(f"{number} {kind}" for kind, number in count.items()) + f", {same} the same")


@constitution.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write; its name names the result.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
def import_(file: Path, out: Path, overwrite: bool) -> None:
    """Turn a constitution of another project into a file of this one.

    Read are the Constitutional AI paper's JSON (requests, or a list of comparison instructions), llm-swarm's and
    OpenCharacterTraining's.
    """
    result = import_constitution(file, out.stem)
    _write(out, result.yaml(), overwrite)
    found = result.constitution
    counts = f"principles {len(found.principles)}, worked examples {len(found.examples.critique_revision)}"
    click.echo(f"recognised {result.form}: {counts}; wrote {out}")
    if result.doubtful:
        click.echo(f"check the polarity of {', '.join(result.doubtful)}: they seem to ask for the worse reply")
    click.echo(f"not taken: {len(result.skipped)}")
    for problem in result.skipped:
        click.echo(f"  {visible(str(problem))}")


@constitution.command()
def schema() -> None:
    """Print the JSON Schema of constitution files, for completion in editors."""
    click.echo(constitution_schema(), nl=False)


def _console() -> Console:
    """The terminal; lines of fixed length where the output goes to a file or a pipe."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


def _write(path: Path, text: str, overwrite: bool) -> None:
    try:
        with path.open("w" if overwrite else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{path} exists; take another name, or --overwrite to replace it") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def _show_principle(console: Console, principle: Principle, found: Constitution) -> None:
    console.print(Text(principle.id, style="bold"))
    console.print(f"tags: {', '.join(principle.tags) or 'none'}; weight: {principle.weight:g}")
    for name in _TEXTS:
        text = getattr(principle, name)
        if text is not None:
            polarity = f" (asks for the {principle.polarity} reply)" if name == "comparison" else ""
            console.print(Text(f"{name}{polarity}:", style="bold"))
            console.print(Text(visible(text)))
    console.print(f"worked examples: {len(found.examples.of(principle.id))}")


def _details(change: PrincipleChange) -> Iterator[Text]:
    """The parts that differ; both sides of a text, with what only one side has marked."""
    for part in change.parts:
        if part == "examples":
            yield from _example_details(change)
        elif part in _TEXTS:
            yield Text(f"{part}: ").append_text(_marked(_text_of(change.before, part), _text_of(change.after, part)))
        elif change.kind == "changed":
            yield Text(f"{part}: {_written(change.before, part)} → {_written(change.after, part)}")
        else:
            yield Text(f"{part}: {_written(change.before or change.after, part)}")


def _example_details(change: PrincipleChange) -> Iterator[Text]:
    gone = [example for example in change.examples_before if example not in change.examples_after]
    come = [example for example in change.examples_after if example not in change.examples_before]
    for mark, style, examples in (("[-", "red", gone), ("{+", "green", come)):
        for example in examples:
            yield Text(f"worked example: {mark}{_summary(example)}{'-]' if mark == '[-' else '+}'}", style=style)
    if not gone and not come:
        yield Text("worked examples: in another order")


def _summary(example: Example) -> str:
    last = " ".join(visible(example.conversation[-1].content).split())
    if isinstance(example, CritiqueRevisionExample):
        return f"{last} → {' '.join(visible(example.revision).split())}"
    return f"{last} → ({example.answer})" if isinstance(example, ComparisonExample) else last


def _text_of(principle: Principle | None, part: str) -> str:
    return (getattr(principle, part) or "") if principle is not None else ""


def _written(principle: Principle | None, part: str) -> str:
    value = getattr(principle, part)
    return ", ".join(value) or "none" if isinstance(value, tuple) else f"{value:g}" if part == "weight" else str(value)


def _marked(old: str, new: str) -> Text:
    """Mark removed words as [-so-] and added ones as {+so+}, which also reads well without colours."""
    line = Text()
    for piece in word_diff(old, new):
        if piece.kind == "removed":
            line.append(f"[-{visible(piece.text)}-]", style="red")
        elif piece.kind == "added":
            line.append(f"{{+{visible(piece.text)}+}}", style="green")
        else:
            line.append(visible(piece.text))
    return line
