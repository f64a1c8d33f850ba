"""`${name}` and `${name/path}` in the settings of a recipe: results of earlier stages."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from cai.strict_yaml import KeyPath

_REFERENCE = re.compile(r"\$\{([^{}]*)\}")
_INSIDE = re.compile(r"(?P<stage>[\w-]+)(?:/(?P<path>.+))?")


@dataclass(frozen=True, order=True)
class Reference:
    """The run directory of an earlier stage, or something in it."""

    stage: str
    path: str = ""
    """Within the run directory; empty for the whole of it."""

    def __str__(self) -> str:
        return f"{self.stage}/{self.path}" if self.path else self.stage


def read_references(text: str) -> list[Reference]:
    """The references in a text, in order.

    Raises:
        ValueError: one of them is malformed; the message is a clause about it.
    """
    if "${" in _REFERENCE.sub("", text):
        raise ValueError(f"has a reference that is not closed: {text!r}")
    return [_parsed(found[1]) for found in _REFERENCE.finditer(text)]


def _parsed(inside: str) -> Reference:
    found = _INSIDE.fullmatch(inside)
    if found is None:
        raise ValueError(f"`${{{inside}}}` is no reference; write ${{NAME}} or ${{NAME/PATH}} with the name of a stage")
    path = found["path"] or ""
    if ".." in PurePosixPath(path).parts or path.startswith("/"):
        raise ValueError(f"`${{{inside}}}` leads out of the run directory of `{found['stage']}`")
    return Reference(found["stage"], path)


def replace_references(value: Any, resolve: Callable[[Reference], str]) -> Any:
    """The value with every reference in its texts replaced, at any depth."""
    if isinstance(value, Mapping):
        return {name: replace_references(inner, resolve) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [replace_references(inner, resolve) for inner in value]
    if isinstance(value, str):
        return _REFERENCE.sub(lambda found: resolve(_parsed(found[1])), value)
    return value


def leaves(value: Any, key: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """All values that are no mapping and no list, with their keys; an empty mapping or list is one too."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from leaves(inner, (*key, name))
    elif isinstance(value, list | tuple) and value:
        for place, inner in enumerate(value):
            yield from leaves(inner, (*key, place))
    else:
        yield key, value
