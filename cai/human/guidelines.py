"""The principles of a constitution as guidelines for raters, in the words that a judge reads."""

from functools import lru_cache

from cai.constitution import Constitution
from cai.principles import Principle
from cai.records import Record
from cai.templating import TemplateFiles

_TOPICS = 1_000
"""Topics whose guidelines are kept in memory."""


class Guideline(Record):
    """One principle for the comparison of two responses."""

    text: str
    tags: tuple[str, ...]


class Guidelines(Record):
    """What a rater goes by."""

    better: tuple[Guideline, ...]
    """Sentences by which the better response is to be chosen."""
    worse: tuple[Guideline, ...]
    """Sentences that name the worse one (`polarity: worse`)."""


class GuidelineBook:
    """The guidelines of a constitution. Its texts may name the topic of a prompt."""

    def __init__(self, constitution: Constitution) -> None:
        """Read the principles that serve comparisons and are not switched off.

        Raises:
            ConstitutionError: there is none.
            TemplateError: a text cannot be filled in.
        """
        self._principles = constitution.select("comparison")
        self._phrase = TemplateFiles({}, None).phrase
        self.about = lru_cache(_TOPICS)(self._about)
        """The guidelines for prompts of a topic; None: for one without."""
        self.about(None)

    def _about(self, topic: str | None) -> Guidelines:
        phrased = [self._phrase(principle, topic, 1, 1) for principle in self._principles]
        return Guidelines(
            better=tuple(_guideline(one) for one in phrased if one.polarity == "better"),
            worse=tuple(_guideline(one) for one in phrased if one.polarity == "worse"),
        )


def _guideline(principle: Principle) -> Guideline:
    return Guideline(text=principle.comparison or principle.text or "", tags=principle.tags)
