"""What a stage's result depends on, all of it by name, so that it can be said why a stage runs again.

Settings count as they are. Files and folders count by what they hold, a constitution by what it means to the stage, the
result of an earlier stage by what can be read of it (`StageKind.output`). Settings that no result depends on
(`idle_keys` of their configuration), such as the size of a batch in an engine, do not count.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from cai import __version__
from cai.assets import asset_dir, find_asset
from cai.constitution import load_constitution
from cai.data.files import COMPARISON_SETS, PROMPT_SETS
from cai.pipeline.contents import FileHashes
from cai.pipeline.recipe import Option
from cai.pipeline.references import Reference, leaves, read_references
from cai.strict_yaml import covers, dotted


def ingredients(option: Option, result: Callable[[Reference], str], hashes: FileHashes) -> dict[str, str]:
    """All that the result of a stage depends on, by name; `result` gives the hash of an earlier one.

    Raises:
        CaiError: a file cannot be read, or a constitution is wrong.
    """
    found = {"stage": option.kind.name, "cai": __version__}
    for reference in option.references:
        found[f"result of {reference}"] = result(reference)
    idle = option.config.idle_keys | option.kind.unused(option.config)
    blind = option.kind.blind if getattr(option.config, "templates", None) is None else frozenset()
    for key, value in leaves(option.config.model_dump(mode="json")):
        name = dotted(key)
        if covers(idle, key) or value is None or value in ([], {}):
            continue
        if isinstance(value, str) and not read_references(value):
            if key[-1] == "constitution":
                found[name] = load_constitution(value).meaning(blind)
                continue
            content = _content(value, hashes)
            if content is not None:
                found[f"content of {name}"] = content
                continue
        found[name] = json.dumps(value, ensure_ascii=False)
    if "templates" in type(option.config).model_fields and "content of templates" not in found:
        found["content of templates"] = hashes.of(asset_dir("prompts") / "templates")
    return found


def key_of(parts: Mapping[str, str]) -> str:
    """The hash that stands for these ingredients."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def differing(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the ingredients that are not the same."""
    return tuple(name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name))


def _content(value: str, hashes: FileHashes) -> str | None:
    """Hash of the file, folder or shipped set that a setting names; None where it names none."""
    path = Path(value).expanduser()
    if value and (path.is_file() or path.is_dir()):
        return hashes.of(path)
    for folder in (PROMPT_SETS, COMPARISON_SETS):
        shipped = find_asset(value, folder, ".jsonl")
        if shipped is not None:
            return hashes.of(shipped)
    return None
