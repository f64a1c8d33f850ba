"""From a constitution's YAML file, and those that it extends, to its resolved content, or to the list of all faults."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cai.assets import asset_names, find_asset
from cai.errors import ConstitutionError, Problem
from cai.principles import ConstitutionFile, Part, Principle
from cai.strict_yaml import KeyPath, YamlFile, read_yaml, validation_problems

_EXAMPLE_PARTS: Mapping[str, Part] = {"critique_revision": "critique", "comparison": "comparison"}


@dataclass
class _Merged:
    """A principle after the files that mention it, oldest first, were laid over one another."""

    data: dict[str, Any] = field(default_factory=dict)
    places: dict[str, tuple[YamlFile, KeyPath]] = field(default_factory=dict)
    """Where the valid value of each key stands."""

    def add(self, entry: Mapping[str, Any], file: YamlFile, key: KeyPath) -> None:
        self.data.update(entry)
        self.places.update({name: (file, (*key, name)) for name in entry})

    def problem(self, name: str, message: str) -> Problem:
        file, key = self.places[name]
        return file.problem(key, message)


def resolve(path_or_name: str) -> ConstitutionFile:
    """Read a file, or the shipped constitution of that name, and lay it over those that it extends.

    Raises:
        ConstitutionError: with every problem of all files.
    """
    start = _locate(path_or_name, Path())
    if start is None:
        raise ConstitutionError(f"{path_or_name} is neither a file nor a shipped constitution {_shipped(path_or_name)}")
    files, problems = _read_chain(start)
    for file in files:
        problems += _file_problems(file)
    readable = [file for file in files if isinstance(file.data, dict)]
    if len(readable) < len(files) or any(problem.key == "extends" for problem in problems):
        raise _error(problems, files)  # with a link missing, what is inherited cannot be judged

    merged = _merge(readable)
    problems += _merged_problems(merged, readable)
    if problems:
        raise _error(problems, files)
    top = readable[-1].data
    return ConstitutionFile.model_validate(
        {
            **{key: top[key] for key in ("name", "version", "description") if key in top},
            "principles": [one.data for one in merged.values()],
            "examples": {
                kind: [example for _, found, example in _examples(readable) if found == kind] for kind in _EXAMPLE_PARTS
            },
        }
    )


def _error(problems: list[Problem], files: list[YamlFile]) -> ConstitutionError:
    """All problems in the order in which a person goes through them: the file itself first, each from top to bottom."""
    paths = [file.path for file in reversed(files)]
    return ConstitutionError(sorted(problems, key=lambda one: (paths.index(one.file or paths[0]), one.line or 0)))


def _locate(name: str, folder: Path) -> Path | None:
    path = folder / name
    try:
        return path if path.is_file() else find_asset(name, "constitutions", ".yaml")
    except OSError:  # no name of a file: too long, or through a folder that may not be read
        return None


def _shipped(name: str) -> str:
    names = asset_names("constitutions", ".yaml")
    close = difflib.get_close_matches(Path(name).stem.lower(), names, n=1)
    return f"({', '.join(names)})" + (f"; did you mean `{close[0]}`?" if close else "")


def _read_chain(path: Path) -> tuple[list[YamlFile], list[Problem]]:
    """Read `path` and what it extends; the oldest ancestor comes first."""
    files: list[YamlFile] = []
    problems: list[Problem] = []
    trail: list[Path] = []
    while True:
        trail.append(path)
        file = read_yaml(path)
        files.insert(0, file)
        problems += file.problems
        parent = file.data.get("extends") if isinstance(file.data, dict) else None
        if not isinstance(parent, str) or not parent.strip():  # not there, or a fault that the model names
            return files, problems
        found = _locate(parent.strip(), path.parent)
        names = " → ".join(map(str, trail))
        if found is None:
            message = f"{names} → {parent.strip()}: the last is neither a file nor a shipped constitution"
            problems.append(file.problem(("extends",), f"{message} {_shipped(parent.strip())}"))
            return files, problems
        if any(found.samefile(earlier) for earlier in trail):
            message = f"{names} → {found}: the files extend one another in a circle; remove one `extends`"
            problems.append(file.problem(("extends",), message))
            return files, problems
        path = found


def _entries(file: YamlFile) -> Iterator[tuple[str, KeyPath, dict[str, Any]]]:
    """The principles of a file that have an id: id, key, content."""
    entries = file.data.get("principles")
    for position, entry in enumerate(entries if isinstance(entries, list) else ()):
        if isinstance(entry, dict) and isinstance(entry.get("id"), str):
            yield entry["id"].strip(), ("principles", position), entry


def _examples(files: list[YamlFile]) -> Iterator[tuple[tuple[YamlFile, KeyPath], str, dict[str, Any]]]:
    """The worked examples of all files: place, kind, content."""
    for file in files:
        sections = file.data.get("examples")
        for kind in _EXAMPLE_PARTS:
            examples = sections.get(kind) if isinstance(sections, dict) else None
            for position, example in enumerate(examples if isinstance(examples, list) else ()):
                if isinstance(example, dict):
                    yield (file, ("examples", kind, position)), kind, example


def _file_problems(file: YamlFile) -> list[Problem]:
    """What is wrong in one file, whatever the others say."""
    if file.problems:
        return []  # it could not be read, which is listed already
    if file.data is None:
        hint = "write `name`, `version` and `principles`, or start from `cai constitution new`"
        return [Problem(f"is empty; {hint}", file.path)]
    if not isinstance(file.data, dict):
        return [Problem("must be a mapping with `name`, `version` and `principles`", file.path, 1)]
    problems = []
    try:
        ConstitutionFile.model_validate(file.data)
    except ValidationError as error:
        problems += validation_problems(error, file, ConstitutionFile)
    first: dict[str, KeyPath] = {}
    for id_, key, _ in _entries(file):
        if id_ in first:
            line = file.line((*first[id_], "id"))
            message = f"`{id_}` is already the id of the principle on line {line}; give each its own"
            problems.append(file.problem((*key, "id"), message))
        first.setdefault(id_, key)
    return problems


def _merge(files: list[YamlFile]) -> dict[str, _Merged]:
    merged: dict[str, _Merged] = {}
    for file in files:
        own = set()
        for id_, key, entry in _entries(file):
            if id_ not in own:  # a second one of the same file is a fault by itself
                own.add(id_)
                merged.setdefault(id_, _Merged()).add(entry, file, key)
    return merged


def _merged_problems(merged: Mapping[str, _Merged], files: list[YamlFile]) -> list[Problem]:
    """What is wrong only when all files are seen together. What a single file shows is not repeated."""
    top = files[-1]
    if not merged and top.data.get("principles", []) == []:
        return [top.problem(("principles",), "there is no principle; add at least one")]
    problems = []
    valid: dict[str, Principle] = {}
    for id_, one in merged.items():
        try:
            valid[id_] = Principle.model_validate(one.data)
        except ValidationError:
            continue
        for name, message in valid[id_].gaps():
            inherited = [other for other in merged if other != id_] if len(files) > 1 and name == "id" else []
            problems.append(one.problem(name, message + _meant(id_, inherited)))
    if valid and len(valid) == len(merged) and not any(principle.weight for principle in valid.values()):
        problems.append(top.problem(("principles",), "all weights are 0; give at least one principle a higher one"))
    for (file, key), kind, example in _examples(files):
        if not isinstance(example.get("principle"), str):
            continue
        id_, part = example["principle"].strip(), _EXAMPLE_PARTS[kind]
        if id_ not in merged:
            message = f"there is no principle `{id_}`" + _meant(id_, list(merged))
            problems.append(file.problem((*key, "principle"), message))
        elif id_ in valid and not valid[id_].serves(part):
            message = f"`{id_}` does not serve {part}; take a principle that does"
            problems.append(file.problem((*key, "principle"), message))
    return problems


def _meant(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""
