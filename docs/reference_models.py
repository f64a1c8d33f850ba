"""Pydantic models as tables: keys, types in words, defaults, and the docstrings that stand under the fields."""

import ast
import inspect
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, JsonValue
from pydantic.fields import FieldInfo

_NAMES: Mapping[Any, str] = {
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    Any: "anything",
    JsonValue: "anything",
    type(None): "null",
}


@dataclass(frozen=True)
class Field:
    """One key of a model."""

    key: str
    type: str
    """In words, as Markdown."""
    default: FieldInfo
    about: str


def words_of_type(model: type[BaseModel], links: Mapping[str, str]) -> Iterator[Field]:
    """The keys of a model in their order; `links` has the address of each model's own table by its name."""
    about = field_docs(model)
    for name, field in model.model_fields.items():
        words = f"{in_words(field.annotation, links)} {_bounds(field.metadata)}".strip()
        yield Field(field.alias or name, words, field, field.description or about.get(name, ""))


def models_in(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model and all below it, outer ones first; one may come several times."""
    yield from _models_below((model,), frozenset())


def field_docs(model: type[BaseModel]) -> dict[str, str]:
    """The docstring under each field, of the class that is the last to declare the field with one."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if base is not BaseModel and issubclass(base, BaseModel):
            found |= _own_docs(base)
    return found


def in_words(annotation: Any, links: Mapping[str, str]) -> str:
    """A type as a person would say it, in Markdown."""
    if annotation in _NAMES:
        return _NAMES[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return f"{in_words(inner[0], links)} {_bounds(inner[1:])}".strip()
    if annotation is bool or origin in (Literal, Union, types.UnionType):
        return _either(list(_choices(annotation, links)))
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        return f"list of {len(inner)}: " + ", ".join(in_words(one, links) for one in inner)
    if origin in (tuple, list, frozenset, set) or (inner and len(inner) == 1):
        return f"list of {in_words(inner[0], links)}"
    if inner and len(inner) == 2:
        return f"mapping of {in_words(inner[0], links)} to {in_words(inner[1], links)}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        name = annotation.__name__
        return f"[{name}]({links[name]})" if name in links else name
    raise TypeError(f"the reference has no words for the type {annotation!r}; add them to _NAMES")


def typed_default(field: FieldInfo) -> str:
    """The default of a field as YAML writes it, in Markdown; a section whose keys have their own defaults is `–`."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    return "–" if value is None or _is_plain_section(value) else f"`{_yaml(value)}`"


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; bars within cells are escaped."""
    lines = [tuple(head), ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def prose(text: str) -> str:
    """A docstring's paragraph as a line of Markdown, with angle brackets outside code made harmless."""
    line = " ".join(text.split())
    pieces = re.split(r"(`[^`]*`)", line)
    return "".join(one if one.startswith("`") else one.replace("<", "&lt;").replace("*", "\\*") for one in pieces)


@cache
def _own_docs(model: type[BaseModel]) -> dict[str, str]:
    try:
        tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(model)))
    except (OSError, TypeError):  # a class without a source file, such as a generic one's concrete form
        return {}
    body = tree.body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            found[statement.target.id] = following.value.value
    return found


def _choices(annotation: Any, links: Mapping[str, str]) -> Iterator[str]:
    if annotation is bool:
        yield from ("true", "false")
    elif get_origin(annotation) is Literal:
        yield from (f"`{json.dumps(one) if isinstance(one, bool) else one}`" for one in get_args(annotation))
    elif get_origin(annotation) in (Union, types.UnionType):
        for one in get_args(annotation):
            yield from _choices(one, links)
    else:
        yield in_words(annotation, links)


def _models_below(annotations: Sequence[Any], seen: frozenset[Any]) -> Iterator[type[BaseModel]]:
    for annotation in annotations:
        if isinstance(annotation, type) and not get_args(annotation) and issubclass(annotation, BaseModel):
            if annotation not in seen:
                yield annotation
                fields = [field.annotation for field in annotation.model_fields.values()]
                yield from _models_below(fields, seen | {annotation})
        else:
            yield from _models_below(get_args(annotation), seen)


def _bounds(metadata: Sequence[Any]) -> str:
    metadata = [part for one in metadata for part in (one.metadata if isinstance(one, FieldInfo) else [one])]
    low = next((one.ge for one in metadata if isinstance(one, Ge)), None)
    high = next((one.le for one in metadata if isinstance(one, Le)), None)
    if low is not None and high is not None:
        return f"from {low:g} to {high:g}"
    above = [f"> {one.gt:g}" for one in metadata if isinstance(one, Gt)]
    below = [f"&lt; {one.lt:g}" for one in metadata if isinstance(one, Lt)]
    above += [] if low is None else [f"≥ {low:g}"]
    below += [] if high is None else [f"≤ {high:g}"]
    return ", ".join([*above, *below])


def _either(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + " or " + parts[-1] if len(parts) > 1 else parts[0]


def _is_plain_section(value: Any) -> bool:
    return isinstance(value, BaseModel) and not value.model_dump(exclude_defaults=True)


def _yaml(value: Any) -> str:
    """YAML's flow style, in which JSON's words do."""
    if isinstance(value, BaseModel):
        return _yaml(value.model_dump(mode="json", exclude_defaults=True))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, tuple | list | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return "[" + ", ".join(map(_yaml, items)) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Path):
        return _yaml(value.as_posix())
    if isinstance(value, str) and _plain(value):
        return value
    return json.dumps(value, ensure_ascii=False)


def _plain(text: str) -> bool:
    """Whether YAML takes a text for itself without quotation marks."""
    try:
        return bool(yaml.safe_load(f"[{text}]") == [text])
    except yaml.YAMLError:
        return False
