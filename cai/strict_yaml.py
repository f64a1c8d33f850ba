"""YAML files that people write by hand: safe, duplicate keys refused, and every problem named by file, line and key."""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from cai.errors import Problem

MAX_BYTES = 1_000_000
"""Files written by hand are far smaller; a larger one is a mistake (a data set, say) and would load for minutes."""

KeyPath = tuple[str | int, ...]

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class YamlFile:
    """Parsed content with the line of each key."""

    path: str
    data: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    """1-based line of each mapping key and list item."""
    problems: list[Problem] = field(default_factory=list)
    """What kept the file from being read; `data` is then not to be used."""

    def line(self, key: KeyPath) -> int | None:
        """Line of `key`, or of the nearest parent that stands in the file."""
        for end in range(len(key), -1, -1):
            if key[:end] in self.lines:
                return self.lines[key[:end]]
        return None

    def problem(self, key: KeyPath, message: str) -> Problem:
        """A problem at `key` of this file."""
        return Problem(message, file=self.path, line=self.line(key), key=dotted(key) or None)


def dotted(key: KeyPath) -> str:
    """Write a key path as a person would: `principles[3].weight`."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def covers(keys: Collection[str], key: KeyPath) -> bool:
    """Whether `key`, or a section that it stands in, is among the dotted `keys`."""
    return any(dotted(key[:end]) in keys for end in range(1, len(key) + 1))


def nearest(name: str, known: list[str]) -> str:
    """Return ` (did you mean …?)` for the closest known name, or all names where none is close."""
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else f"; known: {', '.join(known)}"


def read_yaml(path: str | Path) -> YamlFile:
    """Read a file. Problems (missing, not UTF-8, bad YAML, duplicate keys) are collected, not raised."""
    found = YamlFile(str(path))
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        found.problems.append(Problem(f"cannot be read: {error.strerror}", file=found.path))
        return found
    if len(raw) > MAX_BYTES:
        found.problems.append(
            Problem(f"is {len(raw):,} bytes; such a file may have {MAX_BYTES:,}. Is this the right file?", found.path)
        )
        return found
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        found.problems.append(Problem("is not UTF-8 text; save it as UTF-8", found.path, line))
        return found
    return parse_yaml(text, found.path)


def parse_yaml(text: str, path: str) -> YamlFile:
    """Parse `text`; `path` is used in messages only."""
    found = YamlFile(path)
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is not None:
                _index(root, (), found)
                if not found.problems:
                    found.data = loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = error.problem or error.context or "cannot be parsed"
        found.problems.append(Problem(f"bad YAML: {reason}", path, mark.line + 1 if mark else None))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        found.problems.append(Problem(f"bad YAML: {str(error).splitlines()[0]}", path))
    return found


def _index(node: yaml.Node, key: KeyPath, found: YamlFile) -> None:
    """Note the line of every key below `node` and the keys that stand twice."""
    found.lines.setdefault(key, node.start_mark.line + 1)
    if len(found.lines) > MAX_BYTES:  # more nodes than bytes: only aliases of aliases do that
        raise yaml.YAMLError("its aliases (`*name`) repeat too much; write the content out")
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for name_node, value_node in node.value:
            name, line = str(name_node.value), name_node.start_mark.line + 1
            if name in seen:
                message = f"stands twice, on lines {seen[name]} and {line}; keep one"
                found.problems.append(Problem(message, found.path, line, dotted((*key, name))))
                continue
            seen[name] = line
            found.lines[(*key, name)] = line
            _index(value_node, (*key, name), found)
    elif isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            _index(item, (*key, position), found)


def validation_problems(error: ValidationError, file: YamlFile, model: type[BaseModel]) -> list[Problem]:
    """Turn pydantic's findings into problems with line, key and, for an unknown key, the nearest valid one."""
    problems = []
    for issue in error.errors(include_url=False, include_context=True):
        key: KeyPath = tuple(issue["loc"])
        kind = issue["type"]
        if kind == "extra_forbidden":
            message = "is not a known key" + nearest(str(key[-1]), list(_fields(model, key[:-1])))
        elif kind == "missing":
            message = "is missing; add it"
        elif kind == "value_error":
            message = str(issue["ctx"]["error"])
        else:
            message = f"{issue['msg'][0].lower()}{issue['msg'][1:]}, but is {_short(issue['input'])}"
        problems.append(file.problem(key, message))
    return problems


def _fields(model: type[BaseModel], key: KeyPath) -> list[str]:
    """Names of the fields that the model at `key` below `model` has."""
    for part in key:
        if isinstance(part, str) and part in model.model_fields:
            inner = _model_in(model.model_fields[part].annotation)
            if inner is None:
                return []
            model = inner
    return [field_.alias or name for name, field_ in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def _short(value: object) -> str:
    """Show a value from a file without flooding the screen."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
