"""Records as transcripts: what was asked, what was replied, and what changed, for the page."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cai.evaluate.records import EvaluationRecord, Opinion
from cai.journal import RecordT
from cai.records import (
    TIE,
    ContrastSample,
    Label,
    Message,
    ResponseSample,
    RevisionChain,
    StageResult,
    Step,
    Verdict,
)
from cai.redteam.records import RedTeamRecord
from cai.report.blocks import Passage, Transcript
from cai.report.collecting import RECORDS, Run, evenly
from cai.rundir import read_records
from cai.worddiff import DiffPiece, word_diff

MOST_CHARACTERS = 8_000
"""Characters of one text that a page shows; two hundred transcripts of long texts stay a page that opens."""

_ROLES = {"system": "System", "user": "Human", "assistant": "Assistant"}


def transcripts_of(run: Run, number: int) -> Iterator[Transcript]:
    """That many transcripts of a run, evenly spaced over its input.

    Raises:
        RunDirError: a record is broken.
    """
    if run.stage in _JUDGED:
        yield from _judged(run, number)
    else:
        model, lay_out = _KINDS[run.stage]
        for record in run.pick(model, number):
            yield lay_out(run.name, record)


def transcribed(run: Run) -> int:
    """How many transcripts a run has.

    Raises:
        RunDirError: a record is broken.
    """
    if run.stage in _JUDGED:
        kind = _JUDGED[run.stage]
        return sum(map(kind.is_shown, _records(run, kind.model)))
    return run.count() if run.stage in _KINDS else 0


def _chain(run: str, chain: RevisionChain) -> Transcript:
    passages = [*_conversation(chain.prompt.messages), _step("Draft" if chain.rounds else "Reply", chain.draft)]
    before = chain.draft
    for place, round_ in enumerate(chain.rounds, 1):
        if round_.critique is not None:
            passages.append(_step(f"Critique {place} by {round_.principle_id}", round_.critique))
        if round_.revision is None:
            passages.append(_plain(f"Revision {place}", "", "none: the critique found nothing to change"))
            continue
        passages.append(_revision(f"Revision {place} by {round_.principle_id}", before, round_.revision))
        before = round_.revision
    kind = chain.prompt.kind.replace("_", "-")
    return Transcript(
        run=run,
        id=chain.id,
        topic=chain.prompt.topic,
        principles=_unique(round_.principle_id for round_ in chain.rounds),
        facts=f"{kind} prompt, {f'rounds: {len(chain.rounds)}' if chain.rounds else 'answered only'}",
        passages=tuple(passages),
    )


def _sample(run: str, sample: ResponseSample) -> Transcript:
    replies = [
        _step(f"Reply {place}" + (f", rating {sample.ratings[place - 1]:.3f}" if sample.ratings else ""), reply)
        for place, reply in enumerate(sample.replies, 1)
    ]
    return Transcript(
        run=run,
        id=sample.id,
        topic=sample.prompt.topic,
        principles=(),
        facts=f"replies of {sample.policy}",
        passages=(*_conversation(sample.prompt.messages), *replies),
    )


def _contrast(run: str, sample: ContrastSample) -> Transcript:
    return Transcript(
        run=run,
        id=sample.id,
        topic=sample.prompt.topic,
        principles=(sample.principle_id,),
        facts="asked to keep to the principle, and to oppose it",
        passages=(
            *_conversation(sample.prompt.messages),
            _step(f"Asked to keep to {sample.principle_id}", sample.follow),
            _step("Asked for the opposite", sample.oppose),
        ),
    )


def _label(run: str, label: Label) -> Transcript:
    comparison, verdict = label.comparison, label.verdict
    judged = [
        f"{one.principle_id}, {one.protocol}{f', order {one.order}' if one.order else ''}: p of A {one.p_a:.3f}, "
        f"off mass {one.off_mass:.3f}"
        for one in verdict.judgements
    ]
    reasoning = [
        _step(f"Reasoning by {one.principle_id}", rationale)
        for one in verdict.judgements
        for rationale in one.rationales
    ]
    return Transcript(
        run=run,
        id=label.id,
        topic=comparison.prompt.topic,
        principles=_unique(one.principle_id for one in verdict.judgements),
        facts=_verdict(verdict, comparison.gold),
        passages=(
            *_conversation(comparison.prompt.messages),
            _plain(_side("A", comparison.a.origin), comparison.a.text),
            _plain(_side("B", comparison.b.origin), comparison.b.text),
            _plain("Judgements", "\n".join(judged)),
            *reasoning,
        ),
    )


def _verdict(verdict: Verdict, gold: str | None) -> str:
    p = verdict.p_a
    preferred = None if abs(p - 0.5) <= TIE else "a" if p > 0.5 else "b"
    said = "a tie" if preferred is None else f"prefers {preferred.upper()} (p {max(p, 1 - p):.3f})"
    flips = "" if verdict.position_flip is None else f", position flip {verdict.position_flip:.0%}"
    if gold is None:
        return said + flips
    met = "undecided" if preferred is None else "right" if preferred == gold else "wrong"
    return f"{said}, known to be better: {gold.upper()} ({met}){flips}"


def _judged(run: Run, number: int) -> Iterator[Transcript]:
    """Conversations with what the judge says of them, which stands in other records."""
    kind = _JUDGED[run.stage]
    keys = [kind.key(record) for record in _records(run, kind.model) if kind.is_shown(record)]
    shown: dict[str, Any] = dict.fromkeys(keys[place] for place in evenly(len(keys), number))
    opinions: dict[str, Any] = {}
    for record in _records(run, kind.model):
        if (key := kind.key(record)) in shown:
            if kind.is_shown(record):
                shown[key] = record
            elif kind.is_opinion(record):
                opinions[key] = record
    for key, record in shown.items():
        yield kind.lay_out(run.name, record, opinions.get(key))


def _records(run: Run, model: type[RecordT]) -> Iterable[RecordT]:
    return read_records(run.path, model) if (run.path / RECORDS).is_file() else ()


def _answer(run: str, record: EvaluationRecord, graded: EvaluationRecord | None) -> Transcript:
    assert record.answer is not None
    passages: list[Passage] = []
    for exchange in record.answer.exchanges:
        passages += [*_conversation(exchange.messages), _step(f"Reply ({exchange.name})", exchange.reply)]
    opinions = () if graded is None else graded.opinions or ()
    return Transcript(
        run=run,
        id=record.id,
        topic=record.task,
        principles=(),
        facts=f"{record.model} on {record.task}",
        passages=(*passages, *_opinions(opinions)),
    )


def _attack(run: str, record: RedTeamRecord, graded: RedTeamRecord | None) -> Transcript:
    exchanges = record.exchanges or ()
    grades = None if graded is None else graded.grades
    opinions = () if grades is None else (*grades.harm, *grades.principles)
    passages: list[Passage] = []
    for exchange in exchanges:  # each holds the conversation so far
        passages += [*_conversation(exchange.messages[-1:]), _step(f"Reply ({exchange.name})", exchange.reply)]
    return Transcript(
        run=run,
        id=record.id,
        topic=record.strategy,
        principles=_unique(one.question for one in grades.principles) if grades is not None else (),
        facts=f"attack by {record.strategy}{', held out' if record.held_out else ''}",
        passages=(*_conversation(exchanges[0].messages[:-1] if exchanges else ()), *passages, *_opinions(opinions)),
    )


def _opinions(opinions: Sequence[Opinion]) -> Iterator[Passage]:
    lines = [
        f"{one.question}, {one.exchange}: p of Yes {1 - one.p_no:.3f}, off mass {one.off_mass:.3f}" for one in opinions
    ]
    if lines:
        yield _plain("Judge", "\n".join(lines))


def _conversation(messages: Sequence[Message]) -> Iterator[Passage]:
    return (_plain(_ROLES[message.role], message.content) for message in messages)


def _plain(name: str, text: str, remark: str = "") -> Passage:
    shown, cut = _shortened(text)
    return Passage(name, (DiffPiece("same", shown),) if shown else (), "; ".join(filter(None, (remark, cut))))


def _step(name: str, step: Step) -> Passage:
    return _plain(name, step.text, _remark(step))


def _revision(name: str, before: Step, after: Step) -> Passage:
    """A revision, with the words that it removed and added."""
    (old, _), (new, cut) = _shortened(before.text), _shortened(after.text)
    pieces = word_diff(old, new)
    kinds = {piece.kind for piece in pieces}
    said = "" if "same" in kinds else "new text throughout"
    if before.text == after.text:
        said = "changed nothing"
    return Passage(name, tuple(pieces), "; ".join(filter(None, (said, _remark(after), cut))))


def _remark(step: Step) -> str:
    removed = f"taken off the reply: {_shortened(step.removed.strip())[0]}" if step.removed.strip() else ""
    empty = "" if step.text.strip() else "no text"
    return "; ".join(filter(None, (empty, "cut at the token limit" if step.finish_reason == "length" else "", removed)))


def _shortened(text: str) -> tuple[str, str]:
    """The text as it is shown, and what is to be said of it."""
    if len(text) <= MOST_CHARACTERS:
        return text, ""
    return text[:MOST_CHARACTERS], f"the first {MOST_CHARACTERS:,} of {len(text):,} characters"


def _side(side: str, origin: str) -> str:
    return f"Response {side}" + (f", {origin}" if origin else "")


def _unique(ids: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(ids))


_KINDS: Mapping[str, tuple[type[StageResult], Any]] = {
    "critique-revise": (RevisionChain, _chain),
    "sample": (ResponseSample, _sample),
    "contrast": (ContrastSample, _contrast),
    "label": (Label, _label),
    "judge-check": (Label, _label),
}
"""How the records of a stage are read and laid out."""


class _Judged(NamedTuple):
    """A stage whose records are conversations and, by themselves, what the judge says of each."""

    model: type[StageResult]
    is_shown: Callable[[Any], bool]
    is_opinion: Callable[[Any], bool]
    key: Callable[[Any], str]
    """The same for a conversation and for what is said of it."""
    lay_out: Callable[[str, Any, Any], Transcript]


_JUDGED: Mapping[str, _Judged] = {
    "evaluate": _Judged(
        EvaluationRecord,
        lambda record: record.answer is not None and bool(record.answer.exchanges),
        lambda record: record.opinions is not None,
        lambda record: f"{record.model}/{record.task}/{record.item}",
        _answer,
    ),
    "red-team": _Judged(
        RedTeamRecord,
        lambda record: bool(record.exchanges),
        lambda record: record.grades is not None,
        lambda record: f"{record.strategy}/{record.goal}",
        _attack,
    ),
}
"""How the records of such a stage belong together."""

ON_PAGES_ALONE = frozenset(_JUDGED)
"""Stages whose transcripts `cai show` does not show."""
