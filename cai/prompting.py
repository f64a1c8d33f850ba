"""The chats of the critique–revision chain, and what they are made of.

A template's block is the content of one message; the turns themselves are built here. So no text that a model or a
data set brought can open or close a turn. Inside a message such text stands in a fence that is longer than any fence
within it.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from cai.constitution import Constitution, CritiqueRevisionExample, Principle
from cai.records import Message, Prompt
from cai.templating import Blocks, TemplateFiles

TRANSCRIPT_STOP = ("\n\nHuman:", "\n\nAssistant:")
"""Where a base model's reply ends: it starts to write the next turn."""

Requests = Callable[[str, str | None, int], tuple[str, str] | None]
"""Principle id, topic of the prompt and number of the round → critique request and revision request; None where the
constitution has no such principle for critiques."""

_BEFORE_MARK = re.compile(r"(?<!\s)\s++(?=(?:Human|Assistant):)")
_MARK = re.compile(r"(?:Human|Assistant):")

_BLOCKS: Blocks = {
    "draft.j2": {"system": frozenset({"system", "turn"}), "user": frozenset({"system", "turn"})},
    "critique.j2": {
        "system": frozenset(),
        "user": frozenset({"conversation", "principle", "may_be_clean"}),
        "request": frozenset({"principle"}),
    },
    "revision.j2": {
        "user": frozenset({"conversation", "principle", "critique"}),
        "request": frozenset({"principle"}),
    },
}
_CLEAN = re.compile(
    r"""\W*+(?:critique\W++)?
    (?:(?:there\ (?:are|is)|i\ (?:see|find|found))\ )?no\ (?:issues?|problems?|concerns?)
    (?:\ (?:were\ )?found|\ here|\ to\ report)?
    (?:\ (?:with|in)\ (?:the|this)\ (?:assistant['’]s\ )?(?:last\ )?(?:reply|response|answer))?
    [^\w\n?]*+(?:\n|$)""",
    re.IGNORECASE | re.VERBOSE,
)
_OBJECTION = re.compile(r"\W*+(?:however|but|although|though|still|yet|nevertheless|that said|except)\b", re.IGNORECASE)


def transcript(messages: Sequence[Message]) -> str:
    """Write a conversation as `\\n\\nHuman: …\\n\\nAssistant: …`, open at the assistant's next turn.

    This is the form of the hh-rlhf data and of prompts for plain base models. A blank line before a mark of a turn
    inside a message becomes a single line break, so that the mark does not open a turn.
    """
    parts = []
    for message in messages:
        text = _BEFORE_MARK.sub(_one_line_break, message.content.strip())
        label = {"user": "Human: ", "assistant": "Assistant: ", "system": ""}[message.role]
        if not label and _MARK.match(text):
            label = "System: "
        parts.append(f"\n\n{label}{text}")
    return "".join(parts) + "\n\nAssistant:"


def _one_line_break(space: re.Match[str]) -> str:
    return "\n" if space[0].count("\n") > 1 else space[0]


def with_system(messages: Sequence[Message], system: str) -> tuple[Message, ...]:
    """The conversation under a system turn; one of its own follows in the same turn: chat templates take one at most.

    An empty `system` adds nothing.
    """
    parts, rest = [system], tuple(messages)
    if rest and rest[0].role == "system":
        parts.append(rest[0].content)
        rest = rest[1:]
    head = "\n\n".join(filter(None, parts))
    return (Message(role="system", content=head), *rest) if head else rest


def found_nothing(critique: str) -> bool:
    """Whether a critique says that the reply needs no change: its first line is `No issues.` or the like.

    In doubt it does not: a line that goes on (`No issues with privacy, but …`) or is taken back by the next (`However,
    …`) names an issue. A revision too many does little harm.
    """
    clean = _CLEAN.match(critique)
    return clean is not None and _OBJECTION.match(critique, clean.end()) is None


class Templates:
    """The chats of the critique–revision chain.

    The layout is the paper's (Bai et al. 2022, section 3.1): the request for a critique follows the conversation, the
    request for a revision follows the critique, worked examples stand before both. Critique and revision of one round
    share all messages but the last two, so an engine with a prefix cache reads them once.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Load the templates of `folder`; a file that is not there is taken from the shipped ones.

        Every block is rendered once with sample values, so that a faulty template stops a run before its first call.

        Raises:
            TemplateError: a template cannot be read, parsed or rendered, lacks a block, or has text outside of them.
        """
        self._files = TemplateFiles(_BLOCKS, folder)
        self.sha256 = self._files.sha256
        """Hash of all templates in use; stands in each record."""
        self.phrase = self._files.phrase
        self._block = self._files.block
        self._try_out()

    def _try_out(self) -> None:
        """Render every block in every way in which a run renders it."""
        talk = (Message(role="user", content="sample"), Message(role="assistant", content="sample"))
        for system in (None, "sample"):
            self.draft(Prompt(id="sample", messages=talk[:1]), system)
        self._block("critique.j2", "system")
        for principle in (Principle(id="a", text="sample"), Principle(id="b", critique="sample", revision="sample")):
            self._requests(principle)
            for may_be_clean in (False, True):
                self.critique(talk, principle, may_be_clean)
            for critique in (None, "sample"):
                self.revision(talk, principle, critique)

    def draft(self, prompt: Prompt, system: str | None) -> tuple[Message, ...]:
        """The chat whose reply is the draft, or the answer to a helpful prompt."""
        *before, last = prompt.messages
        values = {"turn": last.content, "system": system or ""}
        turn = Message(role="user", content=self._block("draft.j2", "user", **values))
        return with_system((*before, turn), self._block("draft.j2", "system", **values))

    def opening(self, constitution: Constitution, shots: int | None, with_critique: bool) -> tuple[Message, ...]:
        """What stands before every critique and revision: the system turn and `shots` worked examples (None: all).

        Raises:
            TemplateError: a principle that may be drawn later cannot be phrased.
        """
        for principle in constitution.principles:
            self.phrase(principle, None, 1, 1)
        system = self._block("critique.j2", "system")
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

    def requests(self, constitution: Constitution, rounds: int) -> Requests:
        """The sentences that ask for critique and revision, as they stand in the messages of a run of `rounds`."""
        serving = {principle.id: principle for principle in constitution.principles if principle.serves("critique")}

        def requests(principle_id: str, topic: str | None, round_: int) -> tuple[str, str] | None:
            principle = serving.get(principle_id)
            return None if principle is None else self._requests(self.phrase(principle, topic, round_, rounds))

        return requests

    def _requests(self, phrased: Principle) -> tuple[str, str]:
        return (
            self._block("critique.j2", "request", principle=phrased),
            self._block("revision.j2", "request", principle=phrased),
        )

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

    def _message(
        self, template: str, conversation: Sequence[Message], principle: Principle, **values: object
    ) -> Message:
        text = self._block(template, "user", conversation=conversation, principle=principle, **values)
        return Message(role="user", content=text)
