"""After an edit of the constitution: the records of the run before that the edit does not touch need not be made again.

A record is carried over where every principle that it drew would be drawn again, and has the same texts. Seeds derive
from ids and steps, so what is carried over is what would be made. Nothing is carried over where the edit reaches every
request: another worked example, or another text of a principle that one applies.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cai.constitution import Constitution, diff_constitutions, load_constitution
from cai.critique import CritiqueReviseConfig
from cai.feedback.contrast import ContrastConfig
from cai.feedback.judge_config import PARTS
from cai.feedback.judging import JudgingConfig
from cai.pipeline.changes import FROZEN
from cai.pipeline.recipe import Option
from cai.records import ContrastSample, Label, RevisionChain, StageResult
from cai.rundir import RunDir, read_records

Drawn = Callable[[Any], bool]
"""Whether a record drew the principles that it would draw now."""


def carry_over(option: Option, config: Any, before: Path, out: Path) -> int:
    """Begin the run in `out` with the records of the run `before` that the edit does not touch; returns their number.

    Raises:
        CaiError: an input is wrong, or a run cannot be read or written.
    """
    if not (before / FROZEN).is_file():
        return 0
    old, new = load_constitution(str(before / FROZEN)), load_constitution(config.constitution)
    touched = _touched(old, new, option.kind.blind)
    if _reaches_all(old, new, touched, option.kind.blind):
        return 0
    inputs: Any = option.kind.check(config)
    model, drawn, ids = _RECORDS[option.kind.name](config, new)
    settings = {key: value for key, value in config.model_dump(mode="json").items() if key not in option.kind.options}
    with RunDir.open(
        out,
        stage=option.kind.name,
        config=settings,
        inputs=inputs.hashes,
        seed=config.seed,
        free_keys=config.free_keys,
        record=model,
    ) as run:
        for record in read_records(before, model):
            if touched.isdisjoint(ids(record)) and drawn(record):
                run.append(record.model_copy(update={"constitution_sha256": new.sha256}), record.usage)
        run.save("stopped")
        return run.finished


def _touched(old: Constitution, new: Constitution, blind: frozenset[str]) -> frozenset[str]:
    """Principles whose texts differ, as far as the stage reads them; tags and weights show in what is drawn."""
    aside = blind | {"tags", "weight", "examples"}
    return frozenset(one.id for one in diff_constitutions(old, new) if set(one.parts) - aside)


def _reaches_all(old: Constitution, new: Constitution, touched: frozenset[str], blind: frozenset[str]) -> bool:
    kind = "comparison" if "critique" in blind else "critique_revision"
    before, after = (getattr(one.examples, kind) for one in (old, new))
    same = [one.meaning() for one in before] == [one.meaning() for one in after]
    return not same or any(one.principle in touched for one in after)


_Records = tuple[type[StageResult], Drawn, Callable[[Any], Sequence[str]]]


def _chains(config: CritiqueReviseConfig, constitution: Constitution) -> _Records:
    def drawn(chain: RevisionChain) -> bool:
        return all(
            constitution.draw("critique", config.seed, chain.prompt.id, number, tags=config.tags).id == one.principle_id
            for number, one in enumerate(chain.rounds, 1)
        )

    return RevisionChain, drawn, lambda chain: [one.principle_id for one in chain.rounds]


def _contrasts(config: ContrastConfig, constitution: Constitution) -> _Records:
    def drawn(sample: ContrastSample) -> bool:
        prompt = sample.prompt.id
        now = constitution.sample("question", config.principles, config.seed, prompt, tags=config.tags)
        # Their order is that of the records.
        place = sample.index % config.principles
        return now[place].id == sample.principle_id

    return ContrastSample, drawn, lambda sample: [sample.principle_id]


def _labels(config: JudgingConfig, constitution: Constitution) -> _Records:
    judge = config.judge

    def drawn(label: Label) -> bool:
        if judge.principles == "all":
            return False  # an added principle, or another weight, is in every label
        for protocol in judge.protocol:
            now = constitution.sample(
                PARTS[protocol], judge.principles, config.seed, label.comparison.id, tags=judge.tags
            )
            asked = {one.principle_id for one in label.verdict.judgements if one.protocol == protocol}
            if {one.id for one in now} != asked:
                return False
        return True

    return Label, drawn, lambda label: [one.principle_id for one in label.verdict.judgements]


_RECORDS: dict[str, Callable[[Any, Constitution], _Records]] = {
    "critique-revise": _chains,
    "contrast": _contrasts,
    "label": _labels,
}

CARRIED = frozenset(_RECORDS)
"""Kinds of stages whose records can be carried over; a certificate says how fast a judge is, so it is made anew."""
