"""The principles: what they say, and what became of them in critiques, labels and evaluations."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cai.constitution import Constitution
from cai.evaluate.output import EVALUATION
from cai.evaluate.records import Evaluation
from cai.principles import Principle
from cai.report.blocks import Block, Chapter, Folded, Paragraph, Part, TableBlock, Texts
from cai.report.collecting import Collected, Run
from cai.report.tallies import PrincipleTallies, PrincipleTally
from cai.report.wording import NOTHING, part, share
from cai.statistics import Mean


@dataclass(frozen=True)
class _Used:
    """A constitution, and the runs that work by it."""

    constitution: Constitution
    runs: tuple[Run, ...]


def constitution_chapter(collected: Collected, tallies: Mapping[str, PrincipleTallies]) -> Chapter | None:
    """`tallies` are those of each run, by the run's name.

    Raises:
        CaiError: a constitution or an evaluation cannot be read.
    """
    used = _used(collected)
    if not used:
        return None
    parts = [Part(_title(one.constitution), tuple(_blocks(one, tallies))) for one in used]
    return Chapter("constitution", "Constitution", tuple(parts))


def _used(collected: Collected) -> list[_Used]:
    """The constitutions that the runs have, each once, in the order of the runs."""
    found: dict[str, _Used] = {}
    for run in collected.runs:
        if (constitution := run.constitution) is not None:
            before = found.get(constitution.sha256)
            runs = (run,) if before is None else (*before.runs, run)
            found[constitution.sha256] = _Used(constitution if before is None else before.constitution, runs)
    return list(found.values())


def _title(constitution: Constitution) -> str:
    return f"{constitution.name}, version {constitution.version}"


def _blocks(used: _Used, tallies: Mapping[str, PrincipleTallies]) -> Iterator[Block]:
    constitution = used.constitution
    yield Paragraph(
        f"{constitution.description} Principles: {len(constitution.principles)}; sha256: {constitution.sha256[:12]}; "
        f"used by: {', '.join(run.name for run in used.runs)}."
    )
    summed = _summed([tallies[run.name] for run in used.runs if run.name in tallies])
    compliance = _compliance(used.runs)
    ids = [principle.id for principle in constitution.principles]
    met = [id for id in dict.fromkeys((*ids, *summed)) if id in summed or any(id in by for by in compliance.values())]
    if met:
        yield TableBlock(
            (
                "principle",
                "rounds of critique",
                "critiques that found nothing",
                "contrasting pairs",
                "judgements",
                "mean p of A",
                "mean confidence",
                *(f"compliance of {name}" for name in compliance),
            ),
            tuple(_row(id, summed.get(id, PrincipleTally()), compliance) for id in met),
        )
        unmet = len(ids) - len(set(ids) & set(met))
        yield Paragraph(
            "A judgement is one answer of a judge by one principle in one order; its p is that of response A being the "
            "better one, its confidence the larger of p and 1 − p. "
            f"Principles that were never drawn, and are not in the table: {unmet}."
        )
    texts = (Part(principle.id, (Texts(tuple(_texts(principle))),)) for principle in constitution.principles)
    yield Folded("What the principles say", tuple(texts))


def _texts(principle: Principle) -> Iterator[tuple[str, str]]:
    for name in ("text", "critique", "revision", "comparison", "question"):
        if (text := getattr(principle, name)) is not None:
            yield name, text


def _row(id: str, tally: PrincipleTally, compliance: Mapping[str, Mapping[str, Mean]]) -> tuple[str, ...]:
    judged = tally.judgements
    return (
        id,
        f"{tally.rounds:,}",
        part(tally.clean, tally.critiques) if tally.critiques else NOTHING,
        f"{tally.contrasts:,}",
        f"{judged:,}",
        f"{tally.p_a / judged:.3f}" if judged else NOTHING,
        f"{tally.confidence / judged:.3f}" if judged else NOTHING,
        *(share(by.get(id)) for by in compliance.values()),
    )


def _summed(tallies: list[PrincipleTallies]) -> dict[str, PrincipleTally]:
    found: dict[str, PrincipleTally] = {}
    for one in tallies:
        for id, tally in one.items():
            before = vars(found.get(id, PrincipleTally()))
            found[id] = PrincipleTally(**{name: before[name] + value for name, value in vars(tally).items()})
    return found


def _compliance(runs: tuple[Run, ...]) -> dict[str, dict[str, Mean]]:
    """Compliance by principle, for each model of the evaluations."""
    found: dict[str, dict[str, Mean]] = {}
    several = sum(run.stage == "evaluate" for run in runs) > 1
    for run in runs:
        evaluation = run.result(EVALUATION, Evaluation) if run.stage == "evaluate" else None
        for figure in () if evaluation is None else evaluation.figures:
            if figure.task == "compliance":
                name = f"{figure.model} ({run.name})" if several else figure.model
                found.setdefault(name, {})[figure.metric.name] = figure.mean
    return found
