"""Changes of a constitution's YAML as text, so that comments, layout and order stay as a person wrote them.

Where the result does not load to exactly what was meant, which an unusual layout may cause, the edit is refused.
"""

import difflib
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from cai.assets import find_asset
from cai.constitution import Constitution, PrincipleChange, diff_constitutions, load_constitution
from cai.errors import ConfigError, ConstitutionError
from cai.journal import write_file
from cai.principles import Principle

_WIDTH = 110


@dataclass(frozen=True)
class Weight:
    """A new weight for a principle."""

    principle: str
    weight: float
    comment: str


@dataclass(frozen=True)
class Added:
    """A new principle, which has an id, tags and a text."""

    principle: Principle
    comment: str


Change = Weight | Added


@dataclass(frozen=True)
class Edited:
    """A constitution before and after an edit."""

    name: str
    """Of the file, without its folder."""
    before: str
    after: str
    changes: Sequence[PrincipleChange]

    @property
    def diff(self) -> str:
        """Unified diff, which `patch FILE` applies."""
        lines = difflib.unified_diff(_lines(self.before), _lines(self.after), self.name, self.name)
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def find_constitution(path_or_name: str) -> Path:
    """The file of a constitution that a run names.

    Raises:
        ConfigError: there is none.
    """
    path = Path(path_or_name)
    found = path if path.is_file() else find_asset(path_or_name, "constitutions", ".yaml")
    if found is None:
        raise ConfigError(f"{path_or_name} is neither a file nor a shipped constitution; name it with --constitution")
    return found


def edit_constitution(path: Path, changes: Sequence[Change], out: Path) -> Edited:
    """Apply changes to a copy of the file at `path`, which goes to `out`; a relative `extends` is adapted there alone.

    Raises:
        ConfigError: the file's layout does not allow it.
        RunDirError: `out` cannot be written.
    """
    with path.open(encoding="utf-8", newline="") as file:
        before = after = file.read()
    old, new = load_constitution(str(path)), None
    try:
        for change in changes:
            after = _weighted(after, change) if isinstance(change, Weight) else _grown(after, change)
        write_file(out, _moved(after, path.parent, out.parent))
        new = load_constitution(str(out))
    except (yaml.YAMLError, ConstitutionError):
        pass  # told below, with what is to be done by hand
    if new is None or not _as_meant(old, new, changes):
        wanted = ", ".join(
            f"weight {_number(change.weight)} for `{change.principle}`"
            if isinstance(change, Weight)
            else f"the principle `{change.principle.id}`"
            for change in changes
        )
        raise ConfigError(f"{path}: its layout does not allow an edit by program; put in by hand: {wanted}")
    return Edited(path.name, before, after, diff_constitutions(old, new))


def _as_meant(old: Constitution, new: Constitution, changes: Sequence[Change]) -> bool:
    """Whether the changes, and nothing else, lie between the two."""
    meant = {principle.id: principle for principle in old.principles}
    for change in changes:
        if isinstance(change, Weight):
            meant[change.principle] = old.principle(change.principle).model_copy(update={"weight": change.weight})
        else:
            meant[change.principle.id] = change.principle
    return {principle.id: principle for principle in new.principles} == meant and new.examples == old.examples


def _weighted(text: str, change: Weight) -> str:
    """The text with another weight of one principle; one that is inherited gets an entry."""
    entry = next((one for one in _entries(text) if _plain(one, "id") == change.principle), None)
    number = _number(change.weight)
    line = f"weight: {number}"
    if entry is None:
        return _appended(text, [*_comment(change.comment), f"- id: {change.principle}", f"  {line}"])
    values = _values(entry)
    if "weight" in values:
        node = values["weight"]
        text = text[: node.start_mark.index] + number + text[node.end_mark.index :]
        place, column = _key(entry, "weight").start_mark.index, _key(entry, "weight").start_mark.column
        at_line_start = not text[:place].rpartition("\n")[2].strip()
        if entry.flow_style or not at_line_start:
            return text
        return _inserted(text, place - column, column, _comment(change.comment))
    node = values["id"]
    if entry.flow_style:
        return text[: node.end_mark.index] + f", {line}" + text[node.end_mark.index :]
    column = _key(entry, "id").start_mark.column
    return _inserted(*_next_line(text, node.end_mark.index), column, [*_comment(change.comment), line])


def _grown(text: str, change: Added) -> str:
    """The text with a principle more, after the others."""
    principle = change.principle
    lines = [*_comment(change.comment), f"- id: {principle.id}"]
    if principle.tags:
        lines.append(f"  tags: [{', '.join(principle.tags)}]")
    return _appended(text, [*lines, "  text: >-", *(f"    {line}" for line in _wrapped(principle.text or ""))])


def _number(weight: float) -> str:
    """A weight as YAML reads it again: in few digits, or in all that it takes."""
    short = f"{weight:g}"
    return short if yaml.safe_load(short) == weight else yaml.safe_dump(weight).split("\n")[0]


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in _wrapped(text)]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _appended(text: str, lines: Sequence[str]) -> str:
    """The text with an entry after those under `principles`."""
    root = _root(text)
    sequence = _values(root).get("principles")
    newline = _newline(text)
    if sequence is None:
        head = "" if not text or text.endswith("\n") else newline
        return text + head + newline.join(["", "principles:", "", *(f"  {line}" for line in lines), ""])
    if not isinstance(sequence, yaml.SequenceNode) or sequence.flow_style or not sequence.value:
        raise ConfigError(
            "a principle cannot be added to `principles: […]` by program; write entries as `- id: …` lines"
        )
    end = len(text[: _end(sequence)].rstrip())
    return _inserted(*_next_line(text, end), sequence.start_mark.column, ["", *lines])


def _next_line(text: str, place: int) -> tuple[str, int]:
    """Where the line after the one of `place` begins; a last line without an end gets one."""
    if "\n" not in text[place:]:
        text += _newline(text)
    return text, text.index("\n", place) + 1


def _inserted(text: str, place: int, column: int, lines: Sequence[str]) -> str:
    newline = _newline(text)
    indented = "".join(f"{' ' * column}{line}".rstrip() + newline for line in lines)
    return text[:place] + indented + text[place:]


def _moved(text: str, before: Path, after: Path) -> str:
    """The text as it must read in another folder: `extends` may name a file by a path that is relative to its own."""
    node = _values(_root(text)).get("extends")
    if node is None or not (before / str(node.value)).is_file():
        return text
    path = yaml.safe_dump(os.path.relpath((before / str(node.value)).resolve(), after.resolve()), width=10_000)
    return text[: node.start_mark.index] + path.split("\n")[0] + text[node.end_mark.index :]


def _root(text: str) -> yaml.MappingNode:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode), "the constitution loads"
    return root


def _entries(text: str) -> Iterator[yaml.MappingNode]:
    sequence = _values(_root(text)).get("principles")
    return (one for one in getattr(sequence, "value", ()) if isinstance(one, yaml.MappingNode))


def _values(mapping: yaml.MappingNode) -> Mapping[str, yaml.Node]:
    return {str(key.value): value for key, value in mapping.value}


def _key(mapping: yaml.MappingNode, name: str) -> yaml.Node:
    found: yaml.Node = next(key for key, _ in mapping.value if key.value == name)
    return found


def _plain(mapping: yaml.MappingNode, name: str) -> str:
    node = _values(mapping).get(name)
    return str(node.value).strip() if node is not None else ""


def _end(node: yaml.Node) -> int:
    """Where the content of a node ends; the mark of a block collection stands after the comments that follow it."""
    if not isinstance(node, yaml.CollectionNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(last, tuple) else last)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _lines(text: str) -> list[str]:
    """The lines with their ends; `str.splitlines` knows other ends than `patch` does."""
    pieces = text.split("\n")
    return [f"{piece}\n" for piece in pieces[:-1]] + ([pieces[-1]] if pieces[-1] else [])
