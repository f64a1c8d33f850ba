"""What a constitution is made of: principles and worked examples, as a person writes them in YAML."""

import datetime
import functools
import re
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from cai.config import StrictModel
from cai.records import Message
from cai.strict_yaml import nearest

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment

Part = Literal["critique", "comparison", "question"]
"""What a principle can be used for: a critique with its revision, the comparison of two replies, or a question about
one."""

PRINCIPLE_VARIABLES = frozenset({"topic", "round", "rounds"})
"""Jinja variables that a principle's text may use: the prompt's topic, the round (from 1) and the number of rounds."""

_KEBAB = r"^[a-z0-9]+(-[a-z0-9]+)*$"


def kebab(text: str) -> str:
    """Write `text` in kebab-case: `Be honest!` becomes `be-honest`. Empty where it has no letter or digit of ASCII."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _without_surprises(value: object) -> object:
    """Refuse what YAML did not read as text, so that `version: 1.10` does not silently become 1.1."""
    if isinstance(value, str):
        text = value.strip()
        for character in text:
            if unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t":
                raise ValueError(f"holds the unprintable character U+{ord(character):04X}; remove it")
        return text
    if isinstance(value, bool | int | float | datetime.date):
        kind = (
            "a truth value" if isinstance(value, bool) else "a number" if isinstance(value, int | float) else "a date"
        )
        raise ValueError(f"is text, but YAML reads it as {kind} ({value}); put it in quotes")
    return value


def _as_text(value: object) -> object:
    text = _without_surprises(value)
    if text == "":
        raise ValueError("is empty; write it, or remove the key")
    return text


def _as_list(value: object) -> object:
    if not isinstance(value, list | tuple):
        raise ValueError("must be a list: lines that start with `- `, or [one, two]")
    return value


def _check_id(value: str) -> str:
    if not re.fullmatch(_KEBAB, value):
        raise ValueError(
            f"must be kebab-case (small letters, digits, single hyphens), such as `{kebab(value) or 'be-honest'}`"
        )
    return value


@functools.cache
def _jinja() -> "SandboxedEnvironment":
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment()
    environment.globals.clear()  # a text has the three variables and nothing else: no `range`, no `lipsum`
    return environment


def _check_template(value: str) -> str:
    if "{" not in value:
        return value
    from jinja2 import TemplateError, TemplateSyntaxError, meta

    try:
        tree = _jinja().parse(value)
        unknown = sorted(meta.find_undeclared_variables(tree) - PRINCIPLE_VARIABLES)
    except TemplateSyntaxError as error:
        line = f" in line {error.lineno} of the text" if "\n" in value else ""
        raise ValueError(f"bad Jinja{line}: {str(error.message).rstrip('.')}") from None
    except (TemplateError, RecursionError):
        raise ValueError("bad Jinja: nested too deeply") from None
    if unknown:
        raise ValueError(
            f"uses the unknown Jinja variable `{unknown[0]}`{nearest(unknown[0], sorted(PRINCIPLE_VARIABLES))}"
        )
    if list(meta.find_referenced_templates(tree)):
        raise ValueError("loads another template; a principle's text stands alone")
    return value


Text = Annotated[str, BeforeValidator(_as_text)]
PromptText = Annotated[Text, AfterValidator(_check_template)]
Identifier = Annotated[Text, AfterValidator(_check_id), WithJsonSchema({"type": "string", "pattern": _KEBAB})]
Listed = BeforeValidator(_as_list)


class Principle(StrictModel):
    """One principle. `text` alone is enough: the prompt templates phrase the requests from it.

    In a file that extends another one, an entry with the id of an inherited principle changes only the keys that it
    has. Texts are Jinja templates (sandboxed) with the variables `topic`, `round` and `rounds`.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: Identifier
    """Name in kebab-case, unique in the file; logged with every critique, revision and label."""
    tags: Annotated[tuple[Identifier, ...], Listed] = ()
    """What the principle is about, in kebab-case; a run can draw by tag."""
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)] = 1.0
    """How often the principle is drawn, relative to the others. 0 switches it off."""
    text: PromptText | None = None
    """The principle as a plain statement. It serves critique, revision, comparison and question."""
    critique: PromptText | None = None
    """Request to find a specific fault in the assistant's last reply."""
    revision: PromptText | None = None
    """Request to rewrite that reply. Stands beside `critique`."""
    comparison: PromptText | None = None
    """Sentence that asks which of two replies to choose."""
    polarity: Literal["better", "worse"] = "better"
    """Which reply `comparison` asks for. `worse` (such as `choose the more harmful one`) inverts the label."""
    question: PromptText | None = None
    """Question about one reply, for judges that see replies one at a time. Yes means that the reply is at fault."""

    @model_validator(mode="before")
    @classmethod
    def _is_mapping(cls, value: object) -> object:
        if not isinstance(value, dict | Principle):
            raise ValueError("must be a mapping: `- id: be-kind` and, below it, `text: …`")
        return value

    def serves(self, part: Part) -> bool:
        """Whether the principle has what `part` needs."""
        if self.text is not None:
            return True
        if part == "critique":
            return self.critique is not None and self.revision is not None
        return (self.comparison if part == "comparison" else self.question) is not None

    def gaps(self) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for what is missing before the principle can be used."""
        if self.text is None and (self.critique is None) != (self.revision is None):
            given, lacking = ("critique", "revision") if self.revision is None else ("revision", "critique")
            yield given, f"stands without `{lacking}`; add it, or a `text` from which the templates phrase it"
        elif all(text is None for text in (self.text, self.critique, self.comparison, self.question)):
            yield (
                "id",
                f"`{self.id}` says nothing; add `text`, or `critique` and `revision`, `comparison` or `question`",
            )
        if self.polarity == "worse" and self.comparison is None:
            yield "polarity", "is about a `comparison`, and there is none; add it or remove `polarity`"


def _check_turn(message: Message) -> Message:
    _as_text(message.content)
    return message


class Example(StrictModel):
    """A worked example that is put before the real conversation: the conversation, and the principle applied to it."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={"oneOf": [{"required": ["prompt"]}, {"required": ["messages"]}]},
    )

    prompt: Text | None = None
    """The user's request, where the conversation is a single turn."""
    messages: Annotated[tuple[Annotated[Message, AfterValidator(_check_turn)], ...], Listed] | None = None
    """The conversation in place of `prompt`, where it has several turns; ends with a user turn."""
    principle: Identifier
    """Id of the principle that the example applies."""

    @model_validator(mode="after")
    def _one_conversation(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("needs either `prompt` (one user turn) or `messages` (several turns)")
        if self.conversation[-1:] == () or self.conversation[-1].role != "user":
            raise ValueError("`messages` must end with the user turn that the reply answers")
        return self

    @property
    def conversation(self) -> tuple[Message, ...]:
        """The conversation, ending with a user turn, whichever way it was written."""
        if self.messages is not None:
            return self.messages
        return (Message(role="user", content=self.prompt or ""),)

    def meaning(self) -> dict[str, Any]:
        """The content as JSON values, the same whichever way the conversation was written."""
        conversation = [message.model_dump() for message in self.conversation]
        return {**self.model_dump(exclude={"prompt", "messages"}, exclude_none=True), "messages": conversation}


class CritiqueRevisionExample(Example):
    """A worked critique and revision of one reply."""

    response: Text
    """The assistant's draft."""
    critique: Text
    """What is wrong with the draft, or that nothing is."""
    revision: Text
    """The draft rewritten."""


class ComparisonExample(Example):
    """A worked comparison of two replies."""

    response_a: Text
    response_b: Text
    answer: Literal["A", "B"]
    """The reply that the principle's sentence asks for: the worse one where its polarity is `worse`."""
    reasoning: Text | None = None
    """What is to be said before the answer; examples without it are left out where the judge is to reason first."""


class Examples(StrictModel):
    """Worked examples, in the order in which they are shown to the model."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    critique_revision: Annotated[tuple[CritiqueRevisionExample, ...], Listed] = ()
    comparison: Annotated[tuple[ComparisonExample, ...], Listed] = ()

    def of(self, principle_id: str) -> tuple[Example, ...]:
        """The examples that apply the principle `principle_id`."""
        every: tuple[Example, ...] = (*self.critique_revision, *self.comparison)
        return tuple(example for example in every if example.principle == principle_id)


class ConstitutionFile(StrictModel):
    """A constitution as it stands in a YAML file."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: Text
    """What the constitution is called in records, cards and reports."""
    version: Text
    """The author's own version, in quotes."""
    description: Annotated[str, BeforeValidator(_without_surprises)] = ""
    """What the constitution is for, in a sentence or two."""
    extends: Text | None = None
    """A constitution that this one changes: a path relative to this file, or the name of a shipped one."""
    principles: Annotated[tuple[Principle, ...], Listed] = ()
    """The principles. With `extends`, those that are added, and changes to inherited ones."""
    examples: Examples = Examples()
    """Worked examples for the prompts. With `extends`, those that follow the inherited ones."""
