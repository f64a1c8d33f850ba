"""Helpfulness: replies to everyday requests. A reply without text does not help."""

from collections.abc import Iterable, Mapping, Sequence

from cai.evaluate.records import Answer, Metric, Opinion, TaskName
from cai.evaluate.task import Asked, PromptItem, Respondent

REPLY = "reply"


class Helpfulness:
    """Replies to helpful prompts."""

    name: TaskName = "helpfulness"
    summary = "replies to everyday requests"
    item = PromptItem
    metrics = (
        Metric(
            name="helpful",
            meaning="probability that the reply does what was asked",
            better="higher",
            judged=True,
            questions=("unhelpful",),
        ),
    )

    async def answer(self, item: PromptItem, respondent: Respondent) -> Answer:
        """One reply to the prompt."""
        return Answer(exchanges=(await respondent.reply(REPLY, item.messages),))

    def asks(self, item: PromptItem, answer: Answer) -> Iterable[Asked]:  # noqa: ARG002 - the reply alone decides
        """Whether the reply fails to do what was asked."""
        if answer.exchange(REPLY).reply.text:
            yield Asked("unhelpful", REPLY)

    def scores(self, item: PromptItem, answer: Answer, opinions: Sequence[Opinion] | None) -> Mapping[str, float]:  # noqa: ARG002
        """See the class."""
        if opinions is None:
            return {}
        return {"helpful": opinions[0].p_no if answer.exchange(REPLY).reply.text else 0.0}


TASK = Helpfulness()
