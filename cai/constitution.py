"""The constitution: one YAML file of principles that drives critique, revision, comparison and evaluation."""

import functools
import hashlib
import heapq
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import yaml

from cai.config import StrictModel
from cai.constitution_file import resolve
from cai.errors import ConstitutionError, Problem
from cai.principles import (
    PRINCIPLE_VARIABLES,
    ComparisonExample,
    ConstitutionFile,
    CritiqueRevisionExample,
    Example,
    Examples,
    Part,
    Principle,
)
from cai.strict_yaml import nearest

__all__ = [
    "JUDGES_BY",
    "PRINCIPLE_VARIABLES",
    "WRITES_BY",
    "ComparisonExample",
    "Constitution",
    "CritiqueRevisionExample",
    "Examples",
    "Part",
    "Principle",
    "PrincipleChange",
    "constitution_schema",
    "diff_constitutions",
    "frozen_yaml",
    "load_constitution",
]

WRITES_BY = frozenset({"comparison", "polarity", "question"})
"""What critiques and revisions do not read of a principle."""
JUDGES_BY = frozenset({"critique", "revision"})
"""What judges do not read of one."""

_TEXTS = frozenset({"text", "critique", "revision", "comparison", "question"})
"""Keys of a principle that say something to a model."""
_SHOWN_WITH = {"critique_revision": "critique", "comparison": "comparison"}
"""The key of a principle that each kind of worked examples is shown with."""
_TWINS = 0.85
"""Share of common words above which two principles count as nearly the same."""


class Constitution(ConstitutionFile):
    """Principles and worked examples, resolved: nothing is inherited any more, and `extends` is None.

    Comes from `load_constitution`, which also checks what no single entry shows.
    """

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of what the constitution means: principles and examples.

        Name, version, description, comments, layout and the order of principles and tags do not count; neither does
        whether a default is written out.
        """
        return self.meaning(frozenset())

    def meaning(self, blind: frozenset[str]) -> str:
        """Hash of what the constitution means to a reader that is blind to these keys of its principles.

        A principle that has nothing else to say to the reader does not count.
        """
        principles = [
            {**principle.model_dump(exclude_defaults=True, exclude=set(blind)), "tags": sorted(set(principle.tags))}
            for principle in sorted(self.principles, key=lambda principle: principle.id)
            if any(getattr(principle, key) is not None for key in _TEXTS - blind)
        ]
        examples = {
            kind: [example.meaning() for example in getattr(self.examples, kind)]
            for kind, key in _SHOWN_WITH.items()
            if key not in blind
        }
        text = json.dumps({"principles": principles, "examples": examples}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @functools.cached_property
    def _pools(self) -> dict[tuple[Part, tuple[str, ...]], list[tuple[float, bytes, Principle]]]:
        """What `draw` draws from, filled as it is asked for: weight, id and principle."""
        return {}

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags in use, sorted."""
        return tuple(sorted({tag for principle in self.principles for tag in principle.tags}))

    def principle(self, principle_id: str) -> Principle:
        """Return the principle of that id, switched off or not.

        Raises:
            ConstitutionError: there is none; the message names the nearest id.
        """
        for principle in self.principles:
            if principle.id == principle_id:
                return principle
        ids = [principle.id for principle in self.principles]
        raise ConstitutionError(
            f"constitution `{self.name}` has no principle `{principle_id}`{nearest(principle_id, ids)}"
        )

    def select(self, part: Part, tags: Sequence[str] = ()) -> tuple[Principle, ...]:
        """Return the principles that serve `part`, are not switched off and, where `tags` are given, have one of them.

        Raises:
            ConstitutionError: a tag is unknown, or no principle is left.
        """
        unknown = [f"`{tag}`{nearest(tag, list(self.tags))}" for tag in tags if tag not in self.tags]
        if unknown:
            raise ConstitutionError(f"constitution `{self.name}` has no tag {', '.join(unknown)}")
        serving = [principle for principle in self.principles if principle.serves(part) and principle.weight > 0]
        found = tuple(p for p in serving if not tags or not set(tags).isdisjoint(p.tags))
        if not found and not serving:
            raise ConstitutionError(f"no principle of constitution `{self.name}` serves {part} with a weight above 0")
        if not found:
            known = ", ".join(sorted({tag for principle in serving for tag in principle.tags})) or "none"
            raise ConstitutionError(
                f"no principle of constitution `{self.name}` serves {part} with the tag {' or '.join(tags)};"
                f" tags of those that serve it: {known}"
            )
        return found

    def draw(self, part: Part, *seed_parts: str | int, tags: Sequence[str] = ()) -> Principle:
        """Draw one principle of `select(part, tags)` with probability in proportion to its weight.

        The same seed parts give the same principle; other seed parts an independent draw. It is an exponential race:
        principle i arrives at time -ln(u_i) / weight_i, with u_i in (0, 1) from a hash of the seed parts and its id,
        and the first one wins. So adding, removing or reweighting a principle changes only the draws that it wins
        with the change or won without it.

        Raises:
            ConstitutionError: as `select`.
        """
        return min(self._arrivals(part, seed_parts, tags))[2]

    def sample(self, part: Part, number: int, *seed_parts: str | int, tags: Sequence[str] = ()) -> list[Principle]:
        """Draw `number` principles without replacement, as `draw` draws one: the first to arrive, in that order.

        Raises:
            ConstitutionError: as `select`, or fewer than `number` serve `part`.
        """
        found = [principle for _, _, principle in heapq.nsmallest(number, self._arrivals(part, seed_parts, tags))]
        if len(found) < number:
            raise ConstitutionError(
                f"{number} principles cannot be drawn for {part}: constitution `{self.name}` has {len(found)}"
                + (f" with the tag {' or '.join(tags)}" if tags else "")
            )
        return found

    def _arrivals(
        self, part: Part, seed_parts: Sequence[str | int], tags: Sequence[str]
    ) -> Iterator[tuple[float, bytes, Principle]]:
        """When each principle arrives in the race of `draw`, with its id."""
        pool = self._pools.get((part, tuple(tags)))
        if pool is None:
            pool = [(p.weight, p.id.encode(), p) for p in self.select(part, tags)]
            self._pools[part, tuple(tags)] = pool
        race = hashlib.blake2b("\x1f".join(map(str, (part, *seed_parts, ""))).encode(), digest_size=8)
        for weight, id_, principle in pool:
            lane = race.copy()
            lane.update(id_)
            # 52 bits and a half: exactly representable, and never 0 or 1
            u = ((int.from_bytes(lane.digest(), "big") >> 12) + 0.5) * 2.0**-52
            yield -math.log(u) / weight, id_, principle

    def advice(self) -> list[Problem]:
        """What is allowed but probably not meant; `key` is a principle's id or a part."""
        found = [
            Problem(f"no principle serves {part}, so no run can use the file for it", key=part)
            for part in ("critique", "comparison")
            if not any(principle.serves(part) and principle.weight for principle in self.principles)
        ]
        off = (principle for principle in self.principles if not principle.weight)
        found += [Problem("is switched off (weight 0) and serves no part", key=principle.id) for principle in off]
        seen: list[tuple[str, frozenset[str]]] = []
        for principle in self.principles:
            texts = (principle.text, principle.critique, principle.revision, principle.comparison, principle.question)
            words = frozenset(" ".join(text.lower() for text in texts if text).split())
            alike = (other for other, others in seen if len(words & others) > _TWINS * len(words | others))
            if twin := next(alike, None):
                found.append(Problem(f"says nearly the same as `{twin}`", key=principle.id))
            seen.append((principle.id, words))
        return found


class PrincipleChange(StrictModel):
    """How one principle differs between two constitutions."""

    id: str
    kind: Literal["added", "removed", "changed"]
    before: Principle | None
    after: Principle | None
    parts: tuple[str, ...]
    """The keys that differ, in the order of the file; `examples` where the worked examples of the principle differ."""
    examples_before: tuple[Example, ...]
    examples_after: tuple[Example, ...]


def diff_constitutions(a: Constitution, b: Constitution) -> list[PrincipleChange]:
    """Say what changed from `a` to `b`, principle by principle: those of `a` in its order, then the added ones."""
    old, new = ({principle.id: principle for principle in side.principles} for side in (a, b))
    changes = []
    for id_ in {**old, **new}:
        before, after = old.get(id_), new.get(id_)
        examples = a.examples.of(id_), b.examples.of(id_)
        parts = [key for key in Principle.model_fields if key != "id" and _meaning(before, key) != _meaning(after, key)]
        if [example.meaning() for example in examples[0]] != [example.meaning() for example in examples[1]]:
            parts.append("examples")
        if parts or before is None or after is None:
            changes.append(
                PrincipleChange(
                    id=id_,
                    kind="added" if before is None else "removed" if after is None else "changed",
                    before=before,
                    after=after,
                    parts=tuple(parts),
                    examples_before=examples[0],
                    examples_after=examples[1],
                )
            )
    return changes


def _meaning(principle: Principle | None, key: str) -> object:
    """Value of `key`; a principle that is not there counts as all defaults, so that its parts are what it would say."""
    value = Principle.model_fields[key].default if principle is None else getattr(principle, key)
    return frozenset(value) if key == "tags" else value


class _Dumper(yaml.SafeDumper):
    """Writes long texts as block scalars, which are easier to read and edit than quoted ones."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else ">" if len(text) > 60 else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def frozen_yaml(constitution: Constitution) -> str:
    """Write the constitution as a file of its own, which loads to the same `sha256`. Comments are not kept."""
    data: dict[str, Any] = constitution.model_dump(mode="json", exclude_defaults=True)
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def constitution_schema() -> str:
    """JSON Schema of a constitution file, from which editors complete and check it."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **ConstitutionFile.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def load_constitution(path_or_name: str) -> Constitution:
    """Load a file, or the shipped constitution of that name, with all that it extends.

    Raises:
        ConstitutionError: with every problem of all files: file, line, key and, where there is one, the nearest name.
    """
    return Constitution.model_validate(dict(resolve(path_or_name)))
