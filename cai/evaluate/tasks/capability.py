"""Capability: what a model should not lose in training: answers that can be checked, and the fluency of held texts.

Engines read the probability of a text as a reply only, within the model's chat format, so a held text is one to a
neutral request, and its figure is not the perplexity of plain text. Nats per token compare models of one tokenizer.

A reply that only repeats a task like "Which of these …?" names the answer as well. Where the task names it, only the
first and the last sentence of the reply count, those of the task left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cai.evaluate.records import Answer, Metric, Opinion, TaskName
from cai.evaluate.task import Asked, Item, Respondent
from cai.evaluate.tasks.answers import Accepted, match, sentences
from cai.evaluate.tasks.rows import Text, check_keys
from cai.records import Message

REQUEST = "Write a short passage of prose."
"""Ours; what the held texts answer."""

REPLY, TEXT = "reply", "text"


class CapabilityItem(Item):
    """A task with its accepted answers, or a held text."""

    kind: Literal["exact", "text"]
    prompt: Text = ""
    answers: Annotated[tuple[Accepted, ...], Field(min_length=1)] = ()
    text: Text = ""

    @property
    def reads_logprobs(self) -> bool:
        """For a held text."""
        return self.kind == "text"

    @model_validator(mode="after")
    def _complete(self) -> Self:
        check_keys(self, self.kind, {"exact": ("prompt", "answers"), "text": ("text",)})
        return self


class Capability:
    """Exact answers, and the probability of held texts."""

    name: TaskName = "capability"
    summary = "exact answers, and how likely held texts are"
    item = CapabilityItem
    metrics = (
        Metric(name="exact-accuracy", meaning="tasks whose reply names the answer", better="higher"),
        Metric(
            name="nats-per-token",
            meaning="negative log-probability of a held text, a token; comparable within one tokenizer",
            better="lower",
            share=False,
            reads_logprobs=True,
        ),
    )

    async def answer(self, item: CapabilityItem, respondent: Respondent) -> Answer:
        """One reply, or one measurement."""
        if item.kind == "exact":
            return Answer(exchanges=(await respondent.reply(REPLY, (Message(role="user", content=item.prompt),)),))
        return Answer(measured=(await respondent.measure(TEXT, (Message(role="user", content=REQUEST),), item.text),))

    def asks(self, item: CapabilityItem, answer: Answer) -> Iterable[Asked]:  # noqa: ARG002 - there is nothing to judge
        """Nothing."""
        return ()

    def scores(self, item: CapabilityItem, answer: Answer, opinions: Sequence[Opinion] | None) -> Mapping[str, float]:  # noqa: ARG002
        """See the class."""
        if item.kind == "exact":
            return {"exact-accuracy": float(_right(item, answer.exchange(REPLY).reply.text))}
        (text,) = answer.measured
        return {"nats-per-token": -text.logprob / text.tokens}


def _right(item: CapabilityItem, text: str) -> bool:
    if match(item.prompt, item.answers) != "neither":
        asked = sentences(item.prompt)
        own = [sentence for sentence in sentences(text) if sentence not in asked]
        text = "\n".join([*own[:1], *own[-1:]])
    return match(text, item.answers) == "right"


TASK = Capability()
