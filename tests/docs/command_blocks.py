"""The commands that documents show: found in their code blocks, and read as click reads them, without being run."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import click

from cai.cli import cli

ROOT = Path(__file__).resolve().parents[2]
NOT_RUN = "<!-- not run by the tests -->"
"""Stands on the line before a block that `run_tutorial.py` leaves out."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HERE = re.compile(r"<<-?\s*'?(\w+)'?([^\n]*)\n.*?^\1$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    path: Path
    line: int
    """Of its first line, from 1."""
    language: str
    text: str
    run: bool
    """Whether it is to be run with the others."""

    @property
    def where(self) -> str:
        return f"{self.path.name}:{self.line}"


@dataclass(frozen=True)
class Shown:
    """A `cai` command as a document shows it."""

    where: str
    words: tuple[str, ...]
    """Those after `cai`."""
    whole: bool
    """Whether it is shown to its end, without a last `…`."""

    def __str__(self) -> str:
        return f"{self.where}: cai {shlex.join(self.words)}"


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a document, in order."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(
            path,
            text.count("\n", 0, found.start(2)) + 1,
            found[1],
            found[2],
            not text[: found.start()].rstrip().endswith(NOT_RUN),
        )
        for found in _FENCE.finditer(text)
    ]


def commands(block: Block) -> Iterator[Shown]:
    """The `cai` commands of a shell block."""
    bare = _HERE.sub(lambda found: found[2], block.text).replace("\\\n", " ")
    for number, line in enumerate(bare.splitlines()):
        for words in _simple_commands(line):
            if (found := _after_cai(words)) is not None:
                whole = not found or found[-1] != "…"
                yield Shown(f"{block.where}+{number}", tuple(found if whole else found[:-1]), whole)


def shown(path: Path) -> list[Shown]:
    """The `cai` commands of all shell blocks of a document."""
    return [command for block in blocks(path) if block.language == "sh" for command in commands(block)]


def inline(path: Path) -> list[Shown]:
    """The `cai` commands in a document's running text; they may lack arguments."""
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    found = []
    for code in _INLINE.findall(text):
        words = code.split()
        if words[0] == "cai":
            found.append(Shown(path.name, tuple(word for word in words[1:] if word != "…"), False))
    return found


def inline_options(path: Path) -> list[str]:
    """The names of options that stand by themselves in a document's running text."""
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    return [name for code in _INLINE.findall(text) for name in re.findall(r"^--[\w-]+", code)]


def check(command: Shown) -> None:
    """Have click read a command: it exists, its options exist, their values convert; of a whole one none is missing.

    Raises:
        click.ClickException: it does not.
    """
    group: click.Group = cli
    words = list(command.words)
    while words:
        name = words.pop(0)
        found = group.get_command(click.Context(group), name)
        if found is None:
            raise click.UsageError(f"no such command: {name}")
        if isinstance(found, click.Group):
            group = found
        elif command.whole:
            _read(found, name, words)
            return
        else:
            _options_exist(found, words)
            return
    if command.whole:
        raise click.UsageError("no command")


def _read(command: click.Command, name: str, words: list[str]) -> None:
    try:
        with command.make_context(name, words):
            pass
    except click.exceptions.Exit:  # --help
        pass


def _options_exist(command: click.Command, words: Sequence[str]) -> None:
    known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help"}
    for word in words:
        for name in re.findall(r"^--[\w-]+", word):
            if name not in known:
                raise click.NoSuchOption(name)


def _simple_commands(line: str) -> Iterator[list[str]]:
    """The simple commands of a line of shell, without redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    tokens = iter(lexer)
    for token in tokens:
        if token.strip("<>") == "":
            next(tokens, None)
        elif token.strip("();|&") == "":
            yield words
            words = []
        else:
            words.append(token)
    yield words


def _after_cai(words: Sequence[str]) -> list[str] | None:
    """What follows `cai`, `.venv/bin/cai` or `python -m cai`; None where the words are another command."""
    if words and Path(words[0]).name == "cai":
        return list(words[1:])
    for number, pair in enumerate(pairwise(words)):
        if pair == ("-m", "cai"):
            return list(words[number + 2 :])
    return None
