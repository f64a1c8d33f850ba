"""Constitutions written for other projects, turned into a file of ours. What cannot be taken is listed with its reason.

Forms that are recognised by their structure, and by nothing else:
- the Constitutional AI paper's requests: `{"harmful0": {"prompt": ["…CritiqueRequest: …"], "edit_request": "…"}}`
- the paper's comparison instructions: `["Please choose … Options:", …]`
- llm-swarm's `{"constitutions": [{"critic", "revision"}], "system_chat": [[message, …], …]}`, or its bare list
- OpenCharacterTraining's `[{"trait", "clarification", "questions", …}]`, as JSON or JSON lines
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cai.constitution import Constitution, frozen_yaml
from cai.errors import DataError, Problem
from cai.principles import CritiqueRevisionExample, Examples, Principle, kebab

MAX_BYTES = 50_000_000
"""Larger files are data sets, not constitutions."""

_LABELS = re.compile(r"^\s*(?:Critique|Revision)\s?Request:|\b(?:Critique|Revision|Options):\s*$", re.IGNORECASE)
_TRANSCRIPT = re.compile(r"(?:^|\n)\s*(?:Human|Assistant|CritiqueRequest):")
_ASKS_FOR_WORSE = re.compile(
    r"\b(?:worse|worst)\b"
    r"|\b(?:more|most) (?:harmful|toxic|dangerous|unethical|biased|offensive|racist|sexist|dishonest|misleading)\b"
    r"|\b(?:less|least) (?:helpful|honest|harmless|ethical|truthful)\b",
    re.IGNORECASE,
)
_JINJA = re.compile(r"\{(?=[{%#])")


@dataclass(frozen=True)
class ImportedConstitution:
    """What came out of a foreign file."""

    constitution: Constitution
    form: str
    """The form that was recognised, in words."""
    skipped: tuple[Problem, ...]
    """Every item that was not taken, and why."""
    doubtful: tuple[str, ...]
    """Ids of comparison principles that seem to ask for the worse reply; their polarity is left at `better`."""

    def yaml(self) -> str:
        """The file to write: a commented constitution."""
        count = len(self.constitution.principles)
        lines = [
            f"{count} imported principle{'' if count == 1 else 's'} ({self.form}); {len(self.skipped)} items of the"
            " source were not taken.",
            "Read each one, give it an id that says what it is about, and tags; then: cai constitution lint FILE",
        ]
        if self.doubtful:
            lines += [
                "These seem to ask for the worse of two replies. Check them, and where it is so add `polarity: worse`,",
                "without which their labels would be the wrong way round:",
                *(f"  {id_}" for id_ in self.doubtful),
            ]
        return "".join(f"# {line}\n" for line in lines) + "\n" + frozen_yaml(self.constitution)


@dataclass
class _Intake:
    """Collects what is taken, and what is not with its reason."""

    principles: list[Principle] = field(default_factory=list)
    examples: list[CritiqueRevisionExample] = field(default_factory=list)
    skipped: list[Problem] = field(default_factory=list)

    def skip(self, key: str, message: str) -> None:
        self.skipped.append(Problem(message, key=key))

    def take(self, key: str, id_: str, weight: float = 1.0, **texts: object) -> Principle | None:
        """Add a principle unless a text is missing, unfit or already there. Returns it, or its earlier twin."""
        clean: dict[str, str] = {}
        for name, text in texts.items():
            if not isinstance(text, str) or not text.strip():
                self.skip(key, f"has no text that could become `{name}`")
                return None
            clean[name] = _escaped(text)
        for earlier in self.principles:
            if clean == {name: getattr(earlier, name) for name in clean}:
                if weight:
                    self.skip(key, f"says the same as `{earlier.id}`")
                return earlier
        ids = {earlier.id for earlier in self.principles}
        unique, number = id_, 2
        while unique in ids:
            unique, number = f"{id_}-{number}", number + 1
        try:
            self.principles.append(Principle(id=unique, weight=weight, **clean))  # type: ignore[arg-type]
        except ValidationError as error:
            self.skip(key, _reason(error))
            return None
        return self.principles[-1]

    def unknown_keys(self, key: str, item: Mapping[str, Any], known: Sequence[str]) -> None:
        for name in item:
            if name not in known:
                self.skip(f"{key}.{name}" if key else name, "is a key of which the meaning is not known")


def import_constitution(path: Path, name: str) -> ImportedConstitution:
    """Read a foreign constitution and call the result `name`.

    Raises:
        DataError: the file cannot be read, is in none of the known forms, or holds nothing that can be taken.
    """
    content, broken = _read(path)
    intake = _Intake(skipped=broken)
    form, take = _form_of(content, path)
    take(content, intake)
    if not any(principle.weight for principle in intake.principles):
        reasons = "".join(f"\n  {problem}" for problem in intake.skipped)
        raise DataError(f"{path} ({form}) holds nothing that can be taken{':' if reasons else ''}{reasons}")
    constitution = Constitution(
        name=name,
        version="1",
        description=f"Imported: {form}.",
        principles=tuple(intake.principles),
        examples=Examples(critique_revision=tuple(intake.examples)),
    )
    doubtful = [p.id for p in intake.principles if p.comparison and _ASKS_FOR_WORSE.search(p.comparison)]
    return ImportedConstitution(constitution, form, tuple(intake.skipped), tuple(doubtful))


def _read(path: Path) -> tuple[Any, list[Problem]]:
    """Parse JSON, or JSON lines; lines that cannot be parsed are skipped items."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{path} is {size:,} bytes; a constitution may have {MAX_BYTES:,}. Is this the right file?")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    try:
        return _parse(text), []
    except (ValueError, RecursionError) as error:
        whole = error
    rows, broken = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(_parse(line))
            except (ValueError, RecursionError) as error:
                broken.append(Problem(f"is not JSON: {error}", key=f"line {number}"))
    if not any(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} is neither JSON nor JSON lines: {whole}") from None
    return rows, broken


def _parse(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_without_twins)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that stands twice: JSON would silently keep the last one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"the key `{next(name for name in names if names.count(name) > 1)}` stands twice in one object"
        )
    return found


def _form_of(content: Any, path: Path) -> tuple[str, Callable[[Any, _Intake], None]]:
    if isinstance(content, dict):
        if "trait" in content:
            return "traits", lambda item, intake: _take_traits([item], intake)
        if "constitutions" in content:
            return "critic and revision requests with example chats", _take_swarm
        if any(isinstance(item, dict) and {"prompt", "edit_request"} & item.keys() for item in content.values()):
            return "critique and revision requests", _take_requests
    if isinstance(content, list):
        if any(isinstance(item, dict) and "trait" in item for item in content):
            return "traits", _take_traits
        if any(isinstance(item, dict) and "critic" in item for item in content):
            return "critic and revision requests", lambda items, intake: _take_swarm({"constitutions": items}, intake)
        if any(isinstance(item, str) for item in content):
            return "comparison instructions", _take_comparisons
    raise DataError(
        f"{path} is in none of the known forms: requests by name with `prompt` and `edit_request`; a list of comparison"
        " instructions; `constitutions` with `critic` and `revision`; a list of `trait`s"
    )


def _take_requests(content: Mapping[str, Any], intake: _Intake) -> None:
    for name, item in content.items():
        if not isinstance(item, dict):
            intake.skip(name, "is not an object with `prompt` and `edit_request`")
            continue
        intake.unknown_keys(name, item, ("prompt", "edit_request"))
        prompts = item.get("prompt")
        for prompt in prompts if isinstance(prompts, list) and prompts else [prompts]:
            id_ = kebab(name) or f"principle-{len(intake.principles) + 1}"
            intake.take(name, id_, critique=_unlabelled(prompt), revision=_unlabelled(item.get("edit_request")))


def _take_comparisons(content: Sequence[Any], intake: _Intake) -> None:
    for position, item in enumerate(content):
        key = f"[{position}]"
        if isinstance(item, str) and _TRANSCRIPT.search(item):
            intake.skip(key, "is a conversation, not an instruction")
        else:
            intake.take(key, f"comparison-{position + 1}", comparison=_unlabelled(item))


def _take_traits(content: Sequence[Any], intake: _Intake) -> None:
    for position, item in enumerate(content):
        key = f"[{position}]"
        if not isinstance(item, dict):
            intake.skip(key, "is not an object with a `trait`")
            continue
        intake.unknown_keys(key, item, ("trait", "clarification", "questions", "additional_questions"))
        trait, clarification = item.get("trait"), item.get("clarification")
        if isinstance(trait, str) and isinstance(clarification, str):
            trait = f"{trait.strip()}\n{clarification.strip()}"
        elif clarification is not None:
            intake.skip(f"{key}.clarification", "is not a text")
        intake.take(key, f"trait-{position + 1}", text=trait)
        for name in ("questions", "additional_questions"):
            if item.get(name):
                count = len(item[name]) if isinstance(item[name], list) else 1
                intake.skip(f"{key}.{name}", f"{count} prompts, which no constitution holds: use them as a prompt file")


def _take_swarm(content: Mapping[str, Any], intake: _Intake) -> None:
    intake.unknown_keys("", content, ("constitutions", "system_chat"))
    items = content["constitutions"]
    for position, item in enumerate(items if isinstance(items, list) else [items]):
        key = f"constitutions[{position}]"
        if not isinstance(item, dict):
            intake.skip(key, "is not an object with `critic` and `revision`")
            continue
        intake.unknown_keys(key, item, ("critic", "revision"))
        intake.take(key, f"principle-{position + 1}", critique=item.get("critic"), revision=item.get("revision"))
    chats = content.get("system_chat", [])
    for position, chat in enumerate(chats if isinstance(chats, list) else [chats]):
        _take_chat(f"system_chat[{position}]", chat, intake)


def _take_chat(key: str, chat: Any, intake: _Intake) -> None:
    """An example chat: a conversation, the draft, then critic request, critique, revision request, revision."""
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in chat] if isinstance(chat, list) else []
    if len(roles) < 6 or roles[-6:] != ["user", "assistant"] * 3:
        intake.skip(key, "does not end with request, reply, critic request, critique, revision request, revision")
        return
    texts = [turn.get("content") for turn in chat]
    # Requests that the list above does not have are kept for the example alone: they are never drawn.
    principle = intake.take(key, "example-only", weight=0.0, critique=texts[-4], revision=texts[-2])
    if principle is None:
        return
    try:
        example = CritiqueRevisionExample.model_validate(
            {
                "messages": chat[:-5],
                "principle": principle.id,
                "response": texts[-5],
                "critique": texts[-3],
                "revision": texts[-1],
            }
        )
    except ValidationError as error:
        if not principle.weight and all(done.principle != principle.id for done in intake.examples):
            intake.principles.remove(principle)
        intake.skip(key, _reason(error))
        return
    intake.examples.append(example)


def _unlabelled(text: Any) -> Any:
    return _LABELS.sub("", text) if isinstance(text, str) else text


def _escaped(text: str) -> str:
    """Text as a template that renders to it. Our texts are templates, those of others are not."""
    text = text.replace("\r\n", "\n").strip()
    return _JINJA.sub('{{ "{" }}', text)


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg'].removeprefix('Value error, ')}"
