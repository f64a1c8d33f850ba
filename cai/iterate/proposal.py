"""What to change in a constitution after a round: more weight for what failed most, perhaps a new principle."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from cai.author import Author
from cai.config import EngineConfig, SamplingConfig
from cai.constitution import Constitution
from cai.engines import open_engine
from cai.errors import RecordError
from cai.iterate.edit import Added, Weight
from cai.iterate.records import FailedPrinciple, FailedReply
from cai.preamble import strip_preamble
from cai.principles import Principle, kebab
from cai.prompting import with_system
from cai.records import TIE, Message, Usage, stable_seed
from cai.stage import WorkItem
from cai.statistics import percent
from cai.templating import Blocks, TemplateFiles
from cai.visible import visible

FACTOR = 2.0
"""What the weight of a principle that failed is multiplied by: enough to see an effect, and easy to judge."""
SHOWN = 3
"""Failures that the author of a new principle is shown."""
LONGEST = 600
"""Characters that a new principle may have."""

_BLOCKS: Blocks = {"principle.j2": {"system": frozenset(), "user": frozenset({"topic", "failures"})}}


def heavier(failed: Sequence[FailedPrinciple], constitution: Constitution, most: int) -> list[Weight]:
    """More weight for the principles that replies go against more often than against the others, at most `most`.

    Rates of one source alone are compared: evaluations look at all replies, red-teaming only at those that do harm.
    Where evaluations see no difference, red-teaming may. A principle that is switched off, or no longer in the file,
    stays as it is.
    """
    for source in ("evaluate", "red-team"):
        if changes := _heavier([one for one in failed if one.source == source], constitution, most):
            return changes
    return []


def _heavier(failed: Sequence[FailedPrinciple], constitution: Constitution, most: int) -> list[Weight]:
    weights = {principle.id: principle.weight for principle in constitution.principles if principle.weight}
    known = {one.principle: one for one in reversed(failed) if one.principle in weights}  # of two runs, the worse
    mean = sum(one.failing.value for one in known.values()) / max(1, len(known))
    worst = sorted(known.values(), key=lambda one: (-one.failing.value, one.principle))[:most]
    return [
        Weight(one.principle, weights[one.principle] * FACTOR, _evidence(one, mean, weights[one.principle]))
        for one in worst
        if one.failing.value > mean + TIE
    ]


def _evidence(one: FailedPrinciple, mean: float, weight: float) -> str:
    asked = "replies" if one.source == "evaluate" else "replies to attacks that succeeded"
    return (
        f"Proposed: {percent(one.failing)} of {one.replies} {asked} go against it, where the mean over principles is "
        f"{mean:.1%}; the weight was {weight:g}."
    )


class PrinciplePrompts:
    """What the author of a principle is asked."""

    def __init__(self, folder: Path | None) -> None:
        """Load the template of `folder`, or the shipped one.

        Raises:
            TemplateError: it cannot be read, parsed or rendered.
        """
        self._files = TemplateFiles(_BLOCKS, folder)
        self.sha256 = self._files.sha256
        """Hash of the template."""
        talk = (Message(role="user", content="sample"),)
        for topic in (None, "sample"):
            self.request(
                topic, [FailedReply(prompt="", goal="", topic=topic, messages=talk, reply="sample", source="")]
            )

    def request(self, topic: str | None, failures: Sequence[FailedReply]) -> tuple[Message, ...]:
        """The chat whose reply is a principle."""
        text = self._files.block("principle.j2", "user", topic=topic, failures=failures)
        return with_system((Message(role="user", content=text),), self._files.block("principle.j2", "system"))


async def written(
    prompts: PrinciplePrompts,
    failures: Sequence[FailedReply],
    constitution: Constitution,
    engine_config: EngineConfig,
    sampling: SamplingConfig,
    seed: int,
) -> Added:
    """Have a model write a principle against the topic with most failures.

    Raises:
        RecordError: `unusable_principle`, or as the engine's.
        EngineError: the engine cannot be used.
    """
    topic, number = Counter(one.topic for one in failures).most_common(1)[0]
    inside = [one for one in failures if one.topic == topic]
    shown = sorted(inside, key=lambda one: stable_seed(seed, "shown", one.prompt))[:SHOWN]
    async with open_engine(engine_config) as engine:
        author = Author(engine, sampling, seed, _ignore)
        step = await author.reply(WorkItem(0, "principle", None), "principle", prompts.request(topic, shown))
        model = engine.info.model
    comment = f"Proposed by {model} after {number} failures of the topic {topic or 'none'}; not checked by anybody."
    principle = _principle(strip_preamble(step.text)[0], topic, constitution)
    return Added(principle, visible(" ".join(comment.split())))


def _principle(reply: str, topic: str | None, constitution: Constitution) -> Principle:
    """The principle that a model wrote. Its text is data: marks of a template would be obeyed, so there may be none."""
    text = " ".join(reply.split()).strip('`"“” ')
    if not text or len(text) > LONGEST or "{" in text:
        fault = (
            "has no text" if not text else "holds a brace" if "{" in text else f"is longer than {LONGEST} characters"
        )
        raise RecordError("unusable_principle", f"the principle that the model wrote {fault}", "principle")
    taken = {principle.id for principle in constitution.principles}
    tag = kebab(topic or "")
    name = f"proposed-{tag}".strip("-")
    id_ = next(id_ for id_ in (name, *(f"{name}-{number}" for number in range(2, len(taken) + 3))) if id_ not in taken)
    try:
        return Principle(id=id_, tags=(tag,) if tag else (), text=text)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise RecordError("unusable_principle", f"the principle that the model wrote is not one: {reason}") from None


def _ignore(_: Usage) -> None:
    """One call needs no progress."""
