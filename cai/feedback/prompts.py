"""The chats of a judge. Model text stands in fences inside them, and cannot break out (`cai.templating`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from cai.constitution import ComparisonExample, Constitution
from cai.principles import Principle
from cai.records import Message
from cai.templating import Blocks, TemplateFiles

Layout = Literal["principle-last", "paper"]

COMPARISON_FILES: Mapping[Layout, str] = {"principle-last": "comparison.j2", "paper": "comparison-paper.j2"}

_ALONE = {
    "system": frozenset[str](),
    "user": frozenset({"conversation", "reply", "principle", "reasoning"}),
    "answer": frozenset({"reasoning"}),
}
_PAIR = {**_ALONE, "user": frozenset({"conversation", "a", "b", "principle", "reasoning"})}
_BLOCKS: Blocks = {
    **dict.fromkeys(COMPARISON_FILES.values(), _PAIR),
    "question.j2": _ALONE,
    "score.j2": _ALONE,
    "contrast.j2": {"follow": frozenset({"principle"}), "oppose": frozenset({"principle"})},
}


class JudgePrompts:
    """What a judge is asked.

    A request is the system turn, worked examples and one user turn; `answer` begins the judge's reply.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Load the templates of `folder`; a file that is not there is taken from the shipped ones.

        Raises:
            TemplateError: a template cannot be read, parsed or rendered, lacks a block, or has text outside of them.
        """
        self._files = TemplateFiles(_BLOCKS, folder)
        self.sha256 = self._files.sha256
        """Hash of all templates in use; stands in each label."""
        self._try_out()

    def comparison(
        self, layout: Layout, conversation: Sequence[Message], replies: tuple[str, str], principle: Principle, cot: bool
    ) -> Message:
        """The request to choose between `replies`, shown as (A) and (B); with `cot` the judge reasons first."""
        a, b = replies
        return self._user(COMPARISON_FILES[layout], conversation, principle, cot, a=a, b=b)

    def alone(
        self,
        file: Literal["question.j2", "score.j2"],
        conversation: Sequence[Message],
        reply: str,
        principle: Principle,
        cot: bool,
    ) -> Message:
        """The question about one reply, or the request to rate it."""
        return self._user(file, conversation, principle, cot, reply=reply)

    def answer(self, file: str, rationale: str | None) -> str:
        """The beginning of the judge's reply, after which the option stands. `rationale` is what it wrote before."""
        return self._files.block(file, "answer", reasoning=rationale)

    def contrast(self, principle: Principle) -> tuple[str, str]:
        """System prompts that ask for replies which keep to the phrased principle, and for the opposite."""
        follow = self._files.block("contrast.j2", "follow", principle=principle)
        return follow, self._files.block("contrast.j2", "oppose", principle=principle)

    def phrase(self, principle: Principle, topic: str | None) -> Principle:
        """The principle with the variables of its texts filled in; a comparison is its own first and only round.

        Raises:
            TemplateError: a text cannot be rendered.
        """
        return self._files.phrase(principle, topic, 1, 1)

    def opening(self, file: str, constitution: Constitution, shots: int | None, cot: bool) -> tuple[Message, ...]:
        """System turn and `shots` worked examples (None: all) that stand before every request of a template file.

        With `cot`, examples without reasoning are left out. For a question about one reply, an example shows the reply
        that the principle's sentence prefers and answers No, and then the other one and answers Yes; ratings have no
        worked examples, since the constitution's do not rate.

        Raises:
            TemplateError: a principle that an example applies cannot be phrased.
        """
        system = self._files.block(file, "system")
        messages = [Message(role="system", content=system)] if system else []
        usable = [example for example in constitution.examples.comparison if example.reasoning or not cot]
        if file in COMPARISON_FILES.values():
            for example in usable[:shots]:
                messages += self._pair_example(file, constitution, example, cot)
        elif file == "question.j2" and not cot:  # the examples' reasoning is about two replies
            asking = [example for example in usable if constitution.principle(example.principle).serves("question")]
            for example in asking[:shots]:
                messages += self._question_examples(constitution, example)
        return tuple(messages)

    def _pair_example(
        self, file: str, constitution: Constitution, example: ComparisonExample, cot: bool
    ) -> list[Message]:
        principle = self.phrase(constitution.principle(example.principle), None)
        request = self._user(file, example.conversation, principle, cot, a=example.response_a, b=example.response_b)
        said = self.answer(file, example.reasoning if cot else None)
        return [request, Message(role="assistant", content=f"{said}{example.answer})")]

    def _question_examples(self, constitution: Constitution, example: ComparisonExample) -> list[Message]:
        principle = self.phrase(constitution.principle(example.principle), None)
        asked_for, other = example.response_a, example.response_b
        if example.answer == "B":
            asked_for, other = other, asked_for
        good, bad = (asked_for, other) if principle.polarity == "better" else (other, asked_for)
        messages = []
        for reply, answer in ((good, "No"), (bad, "Yes")):
            messages.append(self.alone("question.j2", example.conversation, reply, principle, cot=False))
            said = self.answer("question.j2", None)
            messages.append(Message(role="assistant", content=f"{said} {answer}".strip()))
        return messages

    def _user(
        self, file: str, conversation: Sequence[Message], principle: Principle, cot: bool, **replies: str
    ) -> Message:
        text = self._files.block(file, "user", conversation=conversation, principle=principle, reasoning=cot, **replies)
        return Message(role="user", content=text)

    def _try_out(self) -> None:
        """Render every block in every way in which a judge renders it."""
        talk = (Message(role="user", content="sample"),)
        for principle in (
            Principle(id="a", text="sample"),
            Principle(id="b", comparison="sample", question="sample"),
        ):
            self.contrast(principle)
            for cot in (False, True):
                for file in _BLOCKS:
                    if file == "contrast.j2":
                        continue
                    replies = {"a": "sample", "b": "sample"} if file in COMPARISON_FILES.values() else {"reply": "s"}
                    self._user(file, talk, principle, cot, **replies)
                    self.answer(file, "sample" if cot else None)
                    self._files.block(file, "system")
