"""Whether training has made a model collapse: its replies to held-out prompts beside those of the start model.

Loss and reward do not show it: a published DPO model that withstands attacks repeats its closings (arXiv 2504.04918),
and the original reinforcement learning from AI feedback, trained for too long, ends in boilerplate (Bai et al. 2022).
What is counted here needs no judge: lengths, ends, variety, repeated closings.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import mean, median

from rich.table import Table
from rich.text import Text

from cai.assets import find_asset
from cai.config import EngineConfig
from cai.data.files import PROMPT_SETS
from cai.data.formats import conversation_id
from cai.data.prompts import PromptSource, read_prompts
from cai.data.rows import ignore
from cai.engines import Engine, open_engine
from cai.errors import RecordError, StageError
from cai.journal import write_file
from cai.records import Failure, Generation, Message, Record, Sampling, stable_seed
from cai.stage import gather_all, run_interruptible
from cai.visible import visible

COLLAPSE = "collapse.json"
SHIPPED_SETS = ("helpful", "red-team")
"""Prompt sets that fill up where too few prompts are held out."""

CLOSING_RISE = 0.2
"""A closing shared by a fifth more of the replies. Chance repeats hardly any; this is 7 of 32 replies with one end."""
DISTINCT_SHARE = 0.6
"""Of the start model's share of distinct word pairs. Replies of another length move it too, but by less than this."""
EOS_FALL = 0.2
"""A fifth fewer replies that end by themselves: the model has unlearned to stop. That it learns to is no fault."""
LONGER, SHORTER = 2.0, 0.5
"""Times the start model's median length. A start model that never stops, as base models do, may well become shorter."""
REPETITION_RISE = 0.15
"""More repeats among a reply's runs of four words; prose has next to none."""
EMPTY_RISE = 1 / 8
"""An eighth more of the replies without text."""

CANNOT_SEE = (
    "It does not see quality, harm or refusals (`cai evaluate` does), nor what happens after the cut at max_tokens."
)
_CLOSING_WORDS = 6
_BOUNDARY = re.compile(r"(?<=[.!?…])[\"'”’»)\]*_]*\s+|(?<=[。！？])(?=[^”』」])")
_ENDED = re.compile(r"[.!?…。！？][\"'”’»)\]*_]*$")


class ReplyStatistics(Record):
    """Figures of one model's replies. Words are what white space separates, in lower case."""

    replies: int
    mean_words: float
    median_words: float
    eos_rate: float
    """Share of the replies that ended by themselves and were not cut."""
    distinct_1: float
    """Distinct words over all words of all replies (Li et al. 2016, arXiv 1510.03055); 0 where there is none."""
    distinct_2: float
    """Distinct pairs of neighbouring words over all such pairs; 0 where there is none."""
    repeated_closing: float
    """Share of the replies that end with the most frequent closing; 0 where no two end alike."""
    closing: str
    """That closing, in lower case; empty where no two end alike."""
    repetition: float
    """Share of a reply's runs of four words that stand in it before, mean over the replies."""
    empty: int
    """Replies without text."""


class Flag(Record):
    """One figure that moved further than it should."""

    name: str
    value: float
    start: float
    """The start model's value."""
    threshold: float
    """What `value` went beyond."""
    sentence: str


class ReplyPair(Record):
    """What both models reply to a prompt."""

    prompt: tuple[Message, ...]
    start: str
    trained: str


class CollapseCheck(Record):
    """Replies of a start model and of the trained model to the same prompts."""

    start: ReplyStatistics
    trained: ReplyStatistics
    flags: tuple[Flag, ...]
    """Empty where nothing suggests a collapse."""
    failures: Mapping[str, int] = {}
    """Prompts that either model could not answer, by reason; they are left out for both."""
    cannot_see: str = CANNOT_SEE
    replies: tuple[ReplyPair, ...] = ()
    """For a person to read, where something is flagged."""


@dataclass(frozen=True)
class HeldPrompts:
    """Conversations that were not trained on."""

    prompts: tuple[tuple[Message, ...], ...]
    sources: Mapping[str, int]
    """How many are `held out` of the training data, and how many from each shipped set."""


def measure_replies(replies: Sequence[Generation]) -> ReplyStatistics:
    """Count what collapse would change in `replies`, of which there is at least one."""
    words = [reply.text.lower().split() for reply in replies]
    lengths = [len(one) for one in words]
    closings = Counter(filter(None, (closing(reply.text) for reply in replies)))
    text, count = closings.most_common(1)[0] if closings else ("", 0)
    return ReplyStatistics(
        replies=len(replies),
        mean_words=mean(lengths),
        median_words=median(lengths),
        eos_rate=mean(reply.finish_reason == "stop" for reply in replies),
        distinct_1=_distinct(word for one in words for word in one),
        distinct_2=_distinct(pair for one in words for pair in pairwise(one)),
        repeated_closing=count / len(replies) if count > 1 else 0.0,
        closing=text if count > 1 else "",
        repetition=mean(map(_repeats, words)),
        empty=sum(not reply.text.strip() for reply in replies),
    )


def closing(text: str) -> str:
    """The last sentence, in lower case and with single blanks; of one that does not end, the last six words."""
    plain = " ".join(text.lower().split())
    last = [piece for piece in _BOUNDARY.split(plain) if piece][-1:]
    return last[0] if last and _ENDED.search(last[0]) else " ".join("".join(last).split()[-_CLOSING_WORDS:])


def _distinct(grams: Iterable[object]) -> float:
    counts = Counter(grams)
    return len(counts) / counts.total() if counts else 0.0


def _repeats(words: Sequence[str]) -> float:
    fours = [tuple(words[place : place + 4]) for place in range(len(words) - 3)]
    return (len(fours) - len(set(fours))) / len(fours) if fours else 0.0


def compare(start: ReplyStatistics, trained: ReplyStatistics) -> CollapseCheck:
    """Flag the figures of the trained model that moved beyond their threshold."""
    shared, shared_then = trained.repeated_closing, start.repeated_closing
    distinct, distinct_then = trained.distinct_2, start.distinct_2
    ended, ended_then = trained.eos_rate, start.eos_rate
    length, length_then = trained.median_words, start.median_words
    again, again_then = trained.repetition, start.repetition
    empty, empty_then = trained.empty / trained.replies, start.empty / start.replies
    lengths = f"Its median reply has {length:g} words, the start model's {length_then:g}"
    closings = f"{shared:.0%} of its replies end with “{trained.closing}”"
    words = f"{distinct:.0%} of its word pairs are distinct, of the start model's {distinct_then:.0%}"
    ends = f"{ended:.0%} of its replies end by themselves, of the start model's {ended_then:.0%}"
    runs = f"{again:.0%} of the runs of four words stand earlier in its reply, {again_then:.0%} with the start model"
    blank = f"{trained.empty} of its {trained.replies} replies are empty, {start.empty} of {start.replies} were"
    found = (
        _above("repeated_closing", shared, shared_then, shared_then + CLOSING_RISE, f"{closings}."),
        _below("distinct_2", distinct, distinct_then, distinct_then * DISTINCT_SHARE, f"{words}: they are alike."),
        _below("eos_rate", ended, ended_then, ended_then - EOS_FALL, f"{ends}: it has unlearned to stop."),
        _above("median_words", length, length_then, length_then * LONGER, f"{lengths}: it has become wordy."),
        _below("median_words", length, length_then, length_then * SHORTER, f"{lengths}: it has become terse."),
        _above("repetition", again, again_then, again_then + REPETITION_RISE, f"{runs}: it goes in circles."),
        _above("empty", empty, empty_then, empty_then + EMPTY_RISE, f"{blank}."),
    )
    return CollapseCheck(start=start, trained=trained, flags=tuple(flag for flag in found if flag is not None))


def _above(name: str, value: float, start: float, threshold: float, sentence: str) -> Flag | None:
    threshold = round(threshold, 9)  # 0.7 + 0.2 is a little less than 0.9
    flag = Flag(name=name, value=value, start=start, threshold=threshold, sentence=sentence)
    return flag if value > threshold else None


def _below(name: str, value: float, start: float, threshold: float, sentence: str) -> Flag | None:
    threshold = round(threshold, 9)
    flag = Flag(name=name, value=value, start=start, threshold=threshold, sentence=sentence)
    return flag if value < threshold else None


async def generate_replies(
    engine: Engine, prompts: Sequence[tuple[Message, ...]], sampling: Sampling, *, seed: int
) -> list[Generation | Failure]:
    """One reply to each prompt, in order, or why there is none. All requests are in flight at once.

    The seed of a reply derives from `seed` and its prompt alone, so that two models draw the same random numbers.

    Raises:
        EngineError: no request can be served.
    """

    async def reply(index: int, prompt: tuple[Message, ...]) -> Generation | Failure:
        id_ = conversation_id(prompt)
        own = sampling.model_copy(update={"seed": stable_seed(seed, "collapse", id_)})
        try:
            return await engine.generate(prompt, own)
        except RecordError as error:
            return Failure(id=id_, index=index, step="reply", reason=error.reason, message=str(error))

    return await gather_all([reply(index, prompt) for index, prompt in enumerate(prompts)])


def check_collapse(
    start: EngineConfig,
    trained: EngineConfig,
    prompts: Sequence[tuple[Message, ...]],
    *,
    max_tokens: int = 128,
    seed: int,
    note: Callable[[str], None],
) -> CollapseCheck:
    """Let both models, opened one after the other, reply to `prompts`, and compare.

    Replies are sampled at temperature 1, as the paper samples. The most likely replies would tell less: those of a
    sound small model loop as well (Holtzman et al. 2020, arXiv 1904.09751), and what a model has collapsed to shows in
    how little chance still changes. `note` is told what is about to be done.

    Raises:
        StageError: no prompt was answered by both models.
        EngineError: a model cannot be used.
        ConfigError: an option does not fit the engine.
    """
    sampling = Sampling(max_tokens=max_tokens)
    replies: list[list[Generation | Failure]] = []
    for name, config in (("start", start), ("trained", trained)):
        note(f"collapse check: the {name} model replies to {len(prompts)} prompts")
        replies.append(run_interruptible(_replies(config, prompts, sampling, seed)))
    kept: list[tuple[tuple[Message, ...], Generation, Generation]] = []
    failed: list[Failure] = []
    for prompt, first, second in zip(prompts, *replies, strict=True):
        if isinstance(first, Failure):
            failed.append(first)
        elif isinstance(second, Failure):
            failed.append(second)
        else:
            kept.append((prompt, first, second))
    if not kept:
        last = f"; the last failure: {failed[-1].message}" if failed else ""
        raise StageError(f"no prompt was answered by both models, so they cannot be compared{last}")
    check = compare(measure_replies([one for _, one, _ in kept]), measure_replies([other for _, _, other in kept]))
    reasons = Counter(failure.reason for failure in failed)
    read = tuple(ReplyPair(prompt=prompt, start=one.text, trained=other.text) for prompt, one, other in kept)
    return check.model_copy(update={"failures": dict(reasons.most_common()), "replies": read})


async def _replies(
    config: EngineConfig, prompts: Sequence[tuple[Message, ...]], sampling: Sampling, seed: int
) -> list[Generation | Failure]:
    async with open_engine(config) as engine:
        return await generate_replies(engine, prompts, sampling, seed=seed)


def held_prompts(
    test_prompts: Iterable[tuple[Message, ...]],
    trained_on: Iterable[tuple[Message, ...]],
    count: int,
    seed: int,
) -> HeldPrompts:
    """Draw `count` different prompts: held-out ones, then shipped ones where those are too few.

    A prompt that was trained on is not drawn, whatever its system turn. There are fewer than `count` where all are
    taken.
    """
    known = {_spoken_id(prompt) for prompt in trained_on}
    prompts: list[tuple[Message, ...]] = []
    sources: dict[str, int] = {}
    shipped = (
        (name, prompt.messages)
        for name in SHIPPED_SETS
        for prompt in read_prompts(PromptSource(path=_shipped(name)), kind="helpful", on_reject=ignore)
    )
    for pool in ((("held out", prompt) for prompt in test_prompts), shipped):
        if len(prompts) == count:
            break
        for source, prompt in _shuffled(pool, seed):
            id_ = _spoken_id(prompt)
            if len(prompts) < count and id_ not in known:
                known.add(id_)
                prompts.append(prompt)
                sources[source] = sources.get(source, 0) + 1
    return HeldPrompts(tuple(prompts), sources)


def _shipped(name: str) -> str:
    path = find_asset(name, PROMPT_SETS, ".jsonl")
    assert path is not None, "it ships"
    return str(path)


def _shuffled(pool: Iterable[tuple[str, tuple[Message, ...]]], seed: int) -> Sequence[tuple[str, tuple[Message, ...]]]:
    found = list(pool)
    Random(seed).shuffle(found)
    return found


def _spoken_id(prompt: Sequence[Message]) -> str:
    return conversation_id([message for message in prompt if message.role != "system"])


def write_collapse(check: CollapseCheck, out: Path) -> None:
    """Write collapse.json into the folder `out`.

    Raises:
        RunDirError: it cannot be written.
    """
    path = out / COLLAPSE
    write_file(path, check.model_dump_json(indent=2) + "\n")


def render_collapse(check: CollapseCheck) -> Table:
    """Both models' figures side by side; flags and what the check cannot see below."""
    figures = Table(box=None, pad_edge=False)
    figures.add_column("replies to held-out prompts")
    figures.add_column("start", justify="right")
    figures.add_column("trained", justify="right")
    flagged = {flag.name for flag in check.flags}
    for (key, name, start), (_, _, trained) in zip(_rows(check.start), _rows(check.trained), strict=True):
        figures.add_row(name, start, trained, style="yellow" if key in flagged else "")
    page = Table.grid()
    page.add_row(figures)
    for flag in check.flags:
        page.add_row(Text(visible(flag.sentence), style="yellow"))
    if not check.flags:
        page.add_row("Nothing suggests a collapse.")
    if check.failures:
        reasons = ", ".join(f"{number} {reason}" for reason, number in check.failures.items())
        page.add_row(f"Left out for both, as one of them could not answer: {reasons}.")
    page.add_row(Text(check.cannot_see))
    return page


def brief_rows(check: CollapseCheck) -> Iterator[tuple[str, str, str]]:
    """Name of a figure for people, of the start, of the trained model; two that others stand for are left out."""
    for (key, name, start), (_, _, trained) in zip(_rows(check.start), _rows(check.trained), strict=True):
        if key not in ("mean_words", "distinct_1"):
            yield name, start, trained


def _rows(statistics: ReplyStatistics) -> list[tuple[str, str, str]]:
    """Field, its name for people, and its value."""
    return [
        ("replies", "replies", f"{statistics.replies}"),
        ("median_words", "words, median", f"{statistics.median_words:g}"),
        ("mean_words", "words, mean", f"{statistics.mean_words:.1f}"),
        ("eos_rate", "end by themselves", f"{statistics.eos_rate:.0%}"),
        ("distinct_1", "distinct words", f"{statistics.distinct_1:.0%}"),
        ("distinct_2", "distinct word pairs", f"{statistics.distinct_2:.0%}"),
        ("repeated_closing", "share a closing", f"{statistics.repeated_closing:.0%}"),
        ("repetition", "repeats within a reply", f"{statistics.repetition:.0%}"),
        ("empty", "empty", f"{statistics.empty}"),
    ]
