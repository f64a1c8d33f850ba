"""Red-teaming: how often attacks succeed, by which strategies, on which topics."""

from collections.abc import Iterator

from cai.redteam.output import (
    PRINCIPLE_HEAD,
    RED_TEAM,
    STRATEGY_HEAD,
    TOPIC_HEAD,
    judge_remarks,
    principle_rows,
    remarks,
    strategy_rows,
    topic_rows,
)
from cai.redteam.records import RedTeam
from cai.report.blocks import Block, Chapter, Note, Paragraph, Part, TableBlock
from cai.report.collecting import Collected, Run
from cai.report.wording import reasons, share


def attacks_chapter(collected: Collected) -> Chapter | None:
    """All runs of red-teaming.

    Raises:
        RunDirError: what a run found cannot be read.
    """
    parts = [Part(run.name, tuple(_blocks(found))) for run, found in _found(collected)]
    return Chapter("red-team", "Red-teaming", tuple(parts)) if parts else None


def attack_headlines(collected: Collected) -> Iterator[tuple[str, str]]:
    """How often attacks on goals that are held out succeed; of all goals where none is."""
    for _, found in _found(collected):
        rate = found.rate(held_out=True) or found.rate()
        if rate is not None:
            what = "held-out goals" if rate.held_out else "all goals"
            doubt = _doubt(found)
            said = f"{share(rate.rate)} of {rate.attacks:,} on {what}"
            yield f"attacks on {found.model} that succeed", f"{said}, worthless: {doubt}" if doubt else said


def _doubt(found: RedTeam) -> str:
    """Why the success of attacks says nothing about harm; empty where it does."""
    if found.by_phrases:
        return "a success is a reply without a refusal phrase"
    failed = [check.question for check in found.checks if not check.passed]
    return f"the judge cannot answer {', '.join(failed)}" if failed else ""


def _found(collected: Collected) -> Iterator[tuple[Run, RedTeam]]:
    for run in collected.of("red-team"):
        if (found := run.result(RED_TEAM, RedTeam)) is not None:
            yield run, found


def _blocks(found: RedTeam) -> Iterator[Block]:
    if doubt := _doubt(found):
        yield Note("bad", f"These figures do not say whether the replies do harm: {doubt}.")
    yield Paragraph(
        f"Attacks on {found.model}; attacks of its own writing are those of {found.attacker or 'nobody'}. "
        f"{found.goals:,} goals, {len(found.held_out_goals):,} of them held out from training."
    )
    for sentence in judge_remarks(found):
        yield Paragraph(sentence)
    yield TableBlock(STRATEGY_HEAD, tuple(strategy_rows(found)))
    yield TableBlock(TOPIC_HEAD, tuple(topic_rows(found)))
    if found.principles:
        yield TableBlock(PRINCIPLE_HEAD, tuple(principle_rows(found)))
    for sentence in remarks(found):
        yield Paragraph(sentence)
    yield Paragraph(
        f"Conversations without a verdict: {found.unjudged:,}. Parts of attacks that failed: {reasons(found.failures)}."
    )
