"""Two preference data sets → the comparisons that both have labelled, by content: those to learn from, and held out.

A comparison is the same one if its prompt and its two responses say the same, whichever stands first or is chosen, and
whatever its id. White space at the ends of a turn or a response makes no difference, as everywhere in `cai.data`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cai.compare.config import NAMES, SIDES, CompareConfig, LabelSide
from cai.compare.records import Matching, SideFacts
from cai.data.formats import conversation_id
from cai.data.preference_source import PreferenceSource, read_preferences
from cai.data.rows import Reject
from cai.data.tables import split_of
from cai.data.training_rows import Preference
from cai.errors import ConfigError, DataError, Problem
from cai.records import Message, Prompt, Record, stable_seed
from cai.statistics import ties
from cai.train.encoding import Encoding
from cai.visible import visible

SHARES = (8, 4, 2)
"""Without `sizes`, the curve has these parts of all comparisons."""

_EXCERPT = 60


class ComparedPair(Record):
    """One comparison with the label of each side, as a probability that response a is the better one."""

    id: str
    """Hash of its texts, without white space at their ends; the same whichever response stood first."""
    prompt_id: str
    """Hash of the conversation; pairs of one prompt share it."""
    prompt: tuple[Message, ...]
    """As the human side, or the source of the test, writes it; so are the responses."""
    a: str
    """The response that is first in the order of the alphabet."""
    b: str
    ai: float | None
    """None where a comparison of the test has no AI label."""
    human: float

    def label(self, side: LabelSide) -> float | None:
        """The label of one side."""
        return self.ai if side == "ai" else self.human

    def preference(self, side: LabelSide) -> Preference:
        """The pair as a row to learn from or to be measured on; the response that the label prefers is chosen."""
        p_a = self.label(side)
        assert p_a is not None, "the pair has a label of that side"
        first = p_a >= 0.5
        return Preference(
            id=self.id,
            prompt_id=self.prompt_id,
            prompt=self.prompt,
            chosen=self.a if first else self.b,
            rejected=self.b if first else self.a,
            p_chosen=max(p_a, 1 - p_a),
            source=side,
            weight=1.0,
        )


@dataclass(frozen=True)
class Side:
    """The labels of one source, one for each comparison."""

    labels: Mapping[str, ComparedPair]
    """By the pair's id; `human` of each is the label of this source, whoever gave it."""
    facts: SideFacts
    """`alone` is not known yet, and 0."""
    rejects: tuple[Reject, ...]


@dataclass(frozen=True)
class Pairs:
    """The comparisons that are compared."""

    matched: tuple[ComparedPair, ...]
    """All with a label of each side; the agreement is theirs."""
    train: tuple[ComparedPair, ...]
    """In the order in which subsets grow: the first n are the subset of n, the same for both sides."""
    held_out: tuple[ComparedPair, ...]
    facts: Matching
    rejects: tuple[Reject, ...]


def read_pairs(config: CompareConfig, encoding: Encoding) -> Pairs:
    """Read all sources, match their comparisons and hold prompts out; `encoding` says which the models can read.

    Raises:
        DataError: a source cannot be read; nothing matches (the message says why); or nothing is left to learn from or
            to be measured on.
    """
    ai, human = read_side(config.ai, "ai"), read_side(config.human, "human")
    test = None if config.test is None else read_side(config.test, "human", option="--test")
    matched = _matched(ai, human)
    if not matched:
        raise DataError(_why_nothing_matches(ai, human))
    if test is None:
        candidates = [(pair, _is_held_out(pair, config)) for pair in matched]
        in_test = 0
    else:
        tested = {pair.prompt_id for pair in test.labels.values()}
        kept = [pair for pair in matched if pair.prompt_id not in tested]
        in_test = len(matched) - len(kept)
        candidates = [(pair, False) for pair in kept]
        candidates += [(_with_ai(pair, ai), True) for pair in test.labels.values()]
    train: list[ComparedPair] = []
    held_out: list[ComparedPair] = []
    for pair, held in candidates:
        if encoding.pair(pair.preference("human")) is not None:
            (held_out if held else train).append(pair)
    shortened = encoding.counts["shortened"]
    train.sort(key=lambda pair: (stable_seed(config.seed, "subset", pair.id), pair.id))
    facts = Matching(
        ai=_with_alone(ai, matched),
        human=_with_alone(human, matched),
        test=None if test is None else test.facts,
        matched=len(matched),
        matched_prompts=_prompts(matched),
        in_test=in_test,
        unfit={reason: number for reason, number in encoding.counts.items() if reason != "shortened"},
        shortened=shortened,
        train=len(train),
        train_prompts=_prompts(train),
        held_out=len(held_out),
        held_out_prompts=_prompts(held_out),
        held_out_ai=sum(pair.ai is not None for pair in held_out),
    )
    _check_both_parts(facts, config)
    if ties(np.array([pair.human for pair in held_out])).all():
        raise DataError(
            f"every human label of the {len(held_out)} held-out comparisons is a tie, so that nothing can be right or "
            "wrong about them; hold more out with test_share, or give --test with labels that prefer a response"
        )
    sources = [ai, human, *([] if test is None else [test])]
    rejects = tuple(reject for source in sources for reject in source.rejects)
    return Pairs(tuple(matched), tuple(train), tuple(held_out), facts, rejects)


def read_side(source: PreferenceSource, side: LabelSide, *, option: str | None = None) -> Side:
    """Read the labels of one source. Rows whose label is marked as the other side's are left out.

    A file that does not say who gave its labels reads as `human` in `cai.data`, so on the AI side only runs, which
    always say it, have such rows left out.

    Raises:
        DataError: it cannot be read, or no label of the side is left.
    """
    found = read_preferences([source], [], test_share=0, seed=0)
    (facts,) = found.sources
    rows = (*found.train, *found.test)
    marked = Path(source.path).is_dir() or side == "human"
    kept = [row for row in rows if not marked or (row.source == "human") == (side == "human")]
    other = len(rows) - len(kept)
    if not kept:
        marks = ", ".join(sorted({row.source for row in rows}))
        raise DataError(
            f"{source.path} has no {NAMES[side]} label: the column `source` of its {len(rows)} rows says {marks}; name "
            f"another source for {option or f'--{side}'}"
        )
    labels = _averaged(kept)
    return Side(
        labels=labels,
        facts=SideFacts(
            path=source.path,
            sha256=facts.sha256,
            rows=facts.rows,
            rejects=facts.rejects,
            left_out={**facts.left_out, **({"other_source": other} if other else {})},
            marks=dict(Counter(row.source for row in kept)),
            merged=len(kept) - len(labels),
            comparisons=len(labels),
            prompts=_prompts(labels.values()),
            alone=0,
        ),
        rejects=found.rejects,
    )


def subset_sizes(config: CompareConfig, train: int) -> tuple[int, ...]:
    """The numbers of labels to train on, rising; the last is all of them.

    Raises:
        ConfigError: a size is larger than the data.
    """
    asked = {train // part for part in SHARES} - {0} if config.sizes is None else set(config.sizes)
    if too_large := sorted(size for size in asked if size > train):
        listed = ", ".join(map(str, too_large))
        raise ConfigError(
            [
                Problem(
                    f"{listed}: there are {train} matched comparisons to train on; name sizes up to {train}",
                    key="sizes",
                )
            ]
        )
    return tuple(sorted(asked | {train}))


def _averaged(rows: Iterable[Preference]) -> dict[str, ComparedPair]:
    """One pair for each comparison, with the mean label of its rows and the texts of the first."""
    first: dict[str, ComparedPair] = {}
    labels: dict[str, list[float]] = {}
    for row in rows:
        pair = _pair(row)
        first.setdefault(pair.id, pair)
        labels.setdefault(pair.id, []).append(pair.human)
    return {id_: pair.model_copy(update={"human": sum(labels[id_]) / len(labels[id_])}) for id_, pair in first.items()}


def _pair(row: Preference) -> ComparedPair:
    prompt = tuple(Message(role=turn.role, content=turn.content.strip()) for turn in row.prompt)
    swapped = row.rejected.strip() < row.chosen.strip()
    a, b = (row.rejected, row.chosen) if swapped else (row.chosen, row.rejected)
    replies = (Message(role="assistant", content=text.strip()) for text in (a, b))
    return ComparedPair(
        id=conversation_id((*prompt, *replies)),
        prompt_id=conversation_id(prompt),
        prompt=row.prompt,
        a=a,
        b=b,
        ai=None,
        human=1 - row.p_chosen if swapped else row.p_chosen,
    )


def _matched(ai: Side, human: Side) -> list[ComparedPair]:
    """The comparisons of both, in the human side's order."""
    return [_with_ai(pair, ai) for id_, pair in human.labels.items() if id_ in ai.labels]


def _with_ai(pair: ComparedPair, ai: Side) -> ComparedPair:
    found = ai.labels.get(pair.id)
    return pair.model_copy(update={"ai": None if found is None else found.human})


def _is_held_out(pair: ComparedPair, config: CompareConfig) -> bool:
    messages = tuple(Message(role=turn.role, content=turn.content.strip()) for turn in pair.prompt)
    return split_of(Prompt(id=pair.prompt_id, messages=messages), config.test_share, config.seed) == "test"


def _with_alone(side: Side, matched: Sequence[ComparedPair]) -> SideFacts:
    return side.facts.model_copy(update={"alone": len(side.labels) - len(matched)})


def _prompts(pairs: Iterable[ComparedPair]) -> int:
    return len({pair.prompt_id for pair in pairs})


def _why_nothing_matches(ai: Side, human: Side) -> str:
    sides = dict(zip(SIDES, (ai, human), strict=True))
    has = " and ".join(
        f"{side.facts.path} (--{name}) has {side.facts.comparisons} comparisons of {side.facts.prompts} prompts"
        for name, side in sides.items()
    )
    prompts = [{pair.prompt_id: pair for pair in side.labels.values()} for side in sides.values()]
    shared = [id_ for id_ in prompts[0] if id_ in prompts[1]]
    if shared:
        shown = " and ".join(f"“{_excerpt(found[shared[0]].a)}”" for found in prompts)
        why = (
            f"prompts on both sides: {len(shared)}, but with other responses, such as {shown}; have the same responses "
            "labelled on both sides"
        )
    else:
        shown = " and ".join(f"“{_excerpt(next(iter(found.values())).prompt[-1].content)}”" for found in prompts)
        why = f"no prompt is on both sides either, the first ones are {shown}; label the same comparisons on both sides"
    return f"no comparison is on both sides: {has}; {why}"


def _excerpt(text: str) -> str:
    line = visible(" ".join(text.split()))
    return line if len(line) <= _EXCERPT else line[: _EXCERPT - 1] + "…"


def _check_both_parts(facts: Matching, config: CompareConfig) -> None:
    unfit = "".join(f"; {number} are {reason}" for reason, number in facts.unfit.items())
    if not facts.held_out:
        where = (
            f"none of the {facts.matched} matched comparisons of {facts.matched_prompts} prompts is held out with a "
            f"test_share of {config.test_share:g}{unfit}; give a greater one, or --test with human labels"
            if config.test is None
            else f"{config.test.path} has no comparison that a reward model could be measured on{unfit}"
        )
        raise DataError(where)
    if not facts.train:
        tested = f"; {facts.in_test} have a prompt of the test" if facts.in_test else ""
        raise DataError(
            f"none of the {facts.matched} matched comparisons is left to train on{unfit}{tested}; "
            + ("give a smaller test_share" if config.test is None else "name another source for --test")
        )
