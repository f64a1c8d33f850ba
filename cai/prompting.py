"""Prompts are files: sandboxed, strict Jinja2 templates whose blocks become the messages of a chat.

A template's block is the content of one message; the turns themselves are built here. So no text that a model or a
data set brought can open or close a turn. Inside a message such text stands in a fence that is longer than any fence
within it.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cai import errors
from cai.assets import asset_dir
from cai.constitution import Constitution, CritiqueRevisionExample, Principle
from cai.records import Message, Prompt
from cai.strict_yaml import nearest

TRANSCRIPT_STOP = ("\n\nHuman:", "\n\nAssistant:")
"""Where a base model's reply ends: it starts to write the next turn."""

_TURN_MARK = re.compile(r"\n\n(?=\s*(?:Human|Assistant):)")
_BLOCKS: Mapping[str, tuple[str, ...]] = {
    "draft.j2": ("system", "user"),
    "critique.j2": ("system", "user", "request"),
    "revision.j2": ("user", "request"),
}
_VARIABLES = frozenset({"system", "turn", "conversation", "principle", "critique", "may_be_clean"})

CLEAN_REPLY = "No issues."
"""What the critique template asks for where the reply needs no change (`--stop-when-clean`)."""
_CLEAN = re.compile(r"\W*no (?:issues?|problems?|concerns?)\b(?: found| here| to report)?\W*(?:\n|$)", re.IGNORECASE)


def transcript(messages: Sequence[Message]) -> str:
    """Write a conversation as `\\n\\nHuman: …\\n\\nAssistant: …`, open at the assistant's next turn.

    This is the form of the hh-rlhf data and of prompts for plain base models. A mark of a turn inside a message is
    moved to a single line break, so that it does not open a turn.
    """
    parts = []
    for message in messages:
        text = _TURN_MARK.sub("\n ", message.content).strip()
        label = {"user": "Human: ", "assistant": "Assistant: ", "system": ""}[message.role]
        parts.append(f"\n\n{label}{text}")
    return "".join(parts) + "\n\nAssistant:"


def fenced(text: str) -> str:
    """Put text between two lines of quotation marks, more of them than stand in a row anywhere within."""
    longest = max((len(run) for run in re.findall(r'"{3,}', text)), default=2)
    fence = '"' * (longest + 1)
    return f"{fence}\n{text.strip()}\n{fence}"


def found_nothing(critique: str) -> bool:
    """Whether a critique says that the reply needs no change: its first line is `No issues.` or the like."""
    return _CLEAN.match(critique) is not None


class Templates:
    """The chats of the critique–revision chain.

    The layout is the paper's (Bai et al. 2022, section 3.1): the request for a critique follows the conversation, the
    request for a revision follows the critique, worked examples stand before both. Critique and revision of one round
    share all messages but the last two, so an engine with a prefix cache reads them once.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Load the templates of `folder`; a file that is not there is taken from the shipped ones.

        Raises:
            TemplateError: a template cannot be read or parsed, lacks a block, or uses an unknown variable.
        """
        shipped = asset_dir("prompts") / "templates"
        if folder is not None and not folder.is_dir():
            raise errors.TemplateError(f"there is no template folder {folder}")
        self._environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False, autoescape=False
        )
        self._environment.filters["fenced"] = fenced
        self._templates: dict[str, Template] = {}
        digest = hashlib.sha256()
        for name, blocks in _BLOCKS.items():
            own = folder / name if folder is not None else None
            path = own if own is not None and own.is_file() else shipped / name
            source = self._load(path, blocks)
            digest.update(f"{name}\0{source}\0".encode())
        self.sha256 = digest.hexdigest()
        """Hash of all templates in use; stands in each record."""
        self._text = lru_cache(maxsize=4096)(self._principle_text)

    def _load(self, path: Path, blocks: tuple[str, ...]) -> str:
        try:
            source = path.read_text(encoding="utf-8")
            tree = self._environment.parse(source)
            template = self._environment.from_string(source)
        except (OSError, UnicodeDecodeError) as error:
            raise errors.TemplateError(f"{path} cannot be read: {error}") from None
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            raise errors.TemplateError(f"{path}:{line or 1}: bad template: {error.message}") from None
        unknown = sorted(meta.find_undeclared_variables(tree) - _VARIABLES)
        if unknown:
            hints = ", ".join(f"`{name}`{nearest(name, sorted(_VARIABLES))}" for name in unknown)
            raise errors.TemplateError(f"{path}: unknown variables: {hints}")
        if missing := [block for block in blocks if block not in template.blocks]:
            raise errors.TemplateError(f"{path}: lacks the block {', '.join(missing)}")
        self._templates[path.name] = template
        return source

    def draft(self, prompt: Prompt, system: str | None) -> tuple[Message, ...]:
        """The chat whose reply is the draft, or the answer to a helpful prompt."""
        *before, last = prompt.messages
        turn = self._block("draft.j2", "user", turn=last.content, system=system or "")
        head = self._block("draft.j2", "system", turn=last.content, system=system or "")
        opening = [Message(role="system", content=head)] if head else []
        return (*opening, *before, Message(role="user", content=turn))

    def opening(self, constitution: Constitution, shots: int | None, with_critique: bool) -> tuple[Message, ...]:
        """What stands before every critique and revision: the system turn and `shots` worked examples (None: all)."""
        system = self._block("critique.j2", "system", may_be_clean=False)
        messages = [Message(role="system", content=system)] if system else []
        for example in constitution.examples.critique_revision[:shots]:
            messages += self._example(constitution, example, with_critique)
        return tuple(messages)

    def critique(self, conversation: Sequence[Message], principle: Principle, may_be_clean: bool) -> Message:
        """The request for a critique of the last reply in `conversation`."""
        return self._message("critique.j2", conversation, principle, may_be_clean=may_be_clean)

    def revision(self, conversation: Sequence[Message], principle: Principle, critique: str | None) -> Message:
        """The request for a revision; with a critique it follows that critique, else it stands alone."""
        return self._message("revision.j2", conversation, principle, critique=critique)

    def requests(self, principle: Principle, rounds: int) -> tuple[str, str]:
        """The sentences that ask for critique and revision by `principle`, as they stand in the messages."""
        phrased = self.phrase(principle, None, 1, rounds)
        return (
            self._block("critique.j2", "request", principle=phrased),
            self._block("revision.j2", "request", principle=phrased),
        )

    def phrase(self, principle: Principle, topic: str | None, round_: int, rounds: int) -> Principle:
        """The principle with the variables of its texts filled in."""
        texts = {
            part: self._text(text, topic or "", round_, rounds)
            for part in ("text", "critique", "revision", "comparison")
            if (text := getattr(principle, part)) is not None and "{" in text
        }
        return principle.model_copy(update=texts) if texts else principle

    def _example(
        self, constitution: Constitution, example: CritiqueRevisionExample, with_critique: bool
    ) -> list[Message]:
        principle = self.phrase(constitution.principle(example.principle), None, 1, 1)
        conversation = (*example.conversation, Message(role="assistant", content=example.response))
        if not with_critique:
            request = self.revision(conversation, principle, None)
            return [request, Message(role="assistant", content=example.revision)]
        return [
            self.critique(conversation, principle, may_be_clean=False),
            Message(role="assistant", content=example.critique),
            self.revision(conversation, principle, example.critique),
            Message(role="assistant", content=example.revision),
        ]

    def _message(self, template: str, conversation: Sequence[Message], principle: Principle, **values: object) -> Message:
        text = self._block(template, "user", conversation=conversation, principle=principle, **values)
        return Message(role="user", content=text)

    def _principle_text(self, text: str, topic: str, round_: int, rounds: int) -> str:
        return self._environment.from_string(text).render(topic=topic, round=round_, rounds=rounds)

    def _block(self, template: str, block: str, **values: object) -> str:
        loaded = self._templates[template]
        try:
            return "".join(loaded.blocks[block](loaded.new_context(values))).strip()
        except TemplateError as error:
            raise errors.TemplateError(f"template {template}, block {block}: {error.message}") from None
