"""Style: what the replies of the task helpfulness are like: how long, how hedged, how evasive.

A reply without text has no words and evades the question.
"""

from collections.abc import Iterable, Mapping, Sequence

from cai.evaluate.records import Answer, Metric, Opinion, TaskName
from cai.evaluate.task import Asked, PromptItem, Respondent
from cai.evaluate.tasks import wording
from cai.evaluate.tasks.helpfulness import REPLY, TASK as HELPFULNESS


class Style:
    """Looks at the replies of another task and asks for none of its own."""

    name: TaskName = "style"
    summary = "length, hedging and evasion in the replies of helpfulness"
    item = PromptItem
    metrics = (
        Metric(name="words", meaning="words of a reply", share=False),
        Metric(name="cut", meaning="replies that were cut at max_tokens"),
        Metric(name="hedging-by-phrases", meaning="replies that hold a set phrase of hedging", better="lower"),
        Metric(name="refusal-by-phrases", meaning="replies that hold a set phrase of refusal", better="lower"),
        Metric(
            name="evasive",
            meaning="probability that the reply evades an answer that could be given",
            better="lower",
            judged=True,
            questions=("evasive",),
        ),
    )

    async def answer(self, item: PromptItem, respondent: Respondent) -> Answer:
        """The reply that helpfulness asks for."""
        return await HELPFULNESS.answer(item, respondent)

    def asks(self, item: PromptItem, answer: Answer) -> Iterable[Asked]:  # noqa: ARG002 - the reply alone decides
        """Whether the reply evades."""
        if answer.exchange(REPLY).reply.text:
            yield Asked("evasive", REPLY)

    def scores(self, item: PromptItem, answer: Answer, opinions: Sequence[Opinion] | None) -> Mapping[str, float]:  # noqa: ARG002
        """See the class."""
        reply = answer.exchange(REPLY)
        found = {
            "words": wording.words(reply),
            "cut": wording.was_cut(reply),
            "hedging-by-phrases": wording.hedges(reply),
            "refusal-by-phrases": wording.refuses(reply),
        }
        if opinions is None:
            return found
        return {**found, "evasive": 1 - opinions[0].p_no if reply.reply.text else 1.0}


TASK = Style()
