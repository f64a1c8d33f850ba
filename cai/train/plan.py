"""What a training will do: all inputs read, checked and encoded, before any weights are loaded."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, Generic, TypeVar

from cai.data.demonstration_source import read_demonstrations
from cai.data.preference_source import read_preferences
from cai.data.rows import Reject
from cai.data.training_rows import ExampleT, Preference, TrainingRows
from cai.errors import ConfigError, DataError
from cai.records import TIE, Message
from cai.rundir import run_path
from cai.train.arguments import check_further
from cai.train.config import DpoConfig, Kind, RewardConfig, SftConfig, TrlConfig
from cai.train.encoding import Encoding, tells_turns_apart
from cai.train.models import Start, find_start

ConfigT = TypeVar("ConfigT", bound=TrlConfig)

_REFERENCE_ANSWERS = 128


@dataclass(frozen=True)
class EncodedRows(Generic[ExampleT]):
    """Rows that fit, with what a trainer reads of them."""

    items: tuple[ExampleT, ...]
    columns: tuple[Mapping[str, Any], ...]
    """One mapping for each item."""


@dataclass(frozen=True)
class Reference:
    """The conversations whose mean reward is to be 0."""

    rows: tuple[list[int], ...]
    """Token ids."""
    sha256: str | None
    """Of the source that the user named; None where the answers are the training pairs' own."""


@dataclass(frozen=True)
class Plan(Generic[ConfigT, ExampleT]):
    """A training whose inputs are sound."""

    kind: Kind
    config: ConfigT
    start: Start
    rows: TrainingRows[ExampleT]
    train: EncodedRows[ExampleT]
    test: EncodedRows[ExampleT]
    counts: Mapping[str, int]
    """Rows that were shortened to fit, and rows that were left out since they do not, by reason."""
    notes: tuple[str, ...] = ()
    """What the user should know before it starts."""
    reference: Reference = field(default_factory=lambda: Reference((), None))

    @property
    def hashes(self) -> Mapping[str, str]:
        """Content hash of each input."""
        template = sha256(self.start.tokenizer.chat_template.encode()).hexdigest()
        found = {"model": self.start.sha256, "chat template": template}
        for number, source in enumerate(self.rows.sources, 1):
            found[f"data {number}"] = source.sha256
        if self.reference.sha256 is not None:
            found["reference"] = self.reference.sha256
        return found

    @property
    def rejects(self) -> Sequence[Reject]:
        """Rows of the data that cannot be used."""
        return self.rows.rejects

    @property
    def row_counts(self) -> Mapping[str, int]:
        """Rows that are used, and those that are not, by reason."""
        left_out = {f"left_out_{reason}": number for reason, number in self.rows.left_out.items()}
        return {
            "train": len(self.train.items),
            "test": len(self.test.items),
            "rejected_rows": len(self.rows.rejects),
            **left_out,
            **{reason: number for reason, number in self.counts.items() if number},
        }

    @property
    def held_out_name(self) -> str:
        """Where the held-out rows come from."""
        own = [source.path for source in self.rows.sources if source.for_test]
        return ", ".join(own or [source.path for source in self.rows.sources])

    def default_out(self) -> Path:
        """`runs/train-KIND-HASH`: the same command finds its run again, another configuration gets its own."""
        config = self.config
        return run_path(f"train-{self.kind}", config, self.hashes)


def plan_sft(config: SftConfig) -> Plan[Any, Any]:
    """Read, check and encode all that `cai train sft` needs.

    Raises:
        ConfigError, DataError, EngineError: an input is wrong; nothing was loaded or written.
    """
    rows = read_demonstrations(config.data, config.eval_data, test_share=config.test_share, seed=config.seed)
    start = find_start(config, generates=True)
    apart = tells_turns_apart(start.chat)
    if config.assistant_only_loss and not apart:
        raise ConfigError(
            "assistant_only_loss: the chat template rewrites earlier turns when a conversation goes on, so the "
            "assistant's turns cannot be told apart; leave the option out to learn from last replies"
        )
    all_turns = apart if config.assistant_only_loss is None else config.assistant_only_loss
    encoding = Encoding(start.chat, start.max_length)

    def columns(row: Any) -> Mapping[str, Any] | None:
        encoded = encoding.turns(row, all_turns=all_turns)
        return None if encoded is None else {**encoded._asdict(), "length": len(encoded.input_ids)}

    train, test = _longest_first(_encoded(rows.train, columns)), _encoded(rows.test, columns)
    learned = "all turns of the assistant" if all_turns else "the last reply of each conversation"
    return _checked(Plan("sft", config, start, rows, train, test, encoding.counts, (f"learns from {learned}",)))


def plan_reward(config: RewardConfig) -> Plan[Any, Any]:
    """Read, check and encode all that `cai train reward` needs.

    Raises:
        ConfigError, DataError, EngineError: an input is wrong; nothing was loaded or written.
    """
    rows = read_preferences(config.data, config.eval_data, test_share=config.test_share, seed=config.seed)
    start = find_start(config, generates=False)
    encoding = Encoding(start.chat, start.max_length)

    def columns(row: Preference) -> Mapping[str, Any] | None:
        pair = encoding.pair(row)
        if pair is None:
            return None
        return {
            "chosen_ids": pair.prompt_ids + pair.chosen_ids,
            "rejected_ids": pair.prompt_ids + pair.rejected_ids,
            "p_chosen": row.p_chosen,
            "weight": row.weight,
            "length": pair.longest,
        }

    train, test = _longest_first(_encoded(rows.train, columns)), _encoded(rows.test, columns)
    return _checked(
        Plan(
            "reward",
            config,
            start,
            rows,
            train,
            test,
            encoding.counts,
            reference=_reference(config, encoding, train),
        )
    )


def plan_dpo(config: DpoConfig) -> Plan[Any, Any]:
    """Read, check and encode all that `cai train dpo` needs.

    Raises:
        ConfigError, DataError, EngineError: an input is wrong; nothing was loaded or written.
    """
    rows = read_preferences(config.data, config.eval_data, test_share=config.test_share, seed=config.seed)
    start = find_start(config, generates=True)
    encoding = Encoding(start.chat, start.max_length)
    soft = config.loss_type == "soft"
    hardened: Counter[str] = Counter()

    def columns(row: Preference) -> Mapping[str, Any] | None:
        if not soft and abs(row.p_chosen - 0.5) <= TIE:
            hardened["ties"] += 1
            return None
        pair = encoding.pair(row)
        if pair is None:
            return None
        if soft:
            labels = {"p_chosen": row.p_chosen, "weight": row.weight}
            return {**pair._asdict(), **labels, "length": pair.longest}
        hardened["soft"] += row.p_chosen not in (0, 1)
        if row.p_chosen < 0.5:
            pair = pair._replace(chosen_ids=pair.rejected_ids, rejected_ids=pair.chosen_ids)
        return {**pair._asdict(), "length": pair.longest}

    train, test = _longest_first(_encoded(rows.train, columns)), _encoded(rows.test, columns)
    notes = []
    if hardened:
        notes.append(
            f"the loss {config.loss_type} takes hard labels: {hardened['soft']} soft labels are read as hard ones, "
            f"{hardened['ties']} exact ties are left out"
        )
    counts = encoding.counts + Counter({"tie": hardened["ties"]})
    return _checked(Plan("dpo", config, start, rows, train, test, counts, tuple(notes)))


def _encoded(rows: Sequence[ExampleT], columns: Any) -> EncodedRows[ExampleT]:
    found = [(row, encoded) for row in rows if (encoded := columns(row)) is not None]
    return EncodedRows(tuple(row for row, _ in found), tuple(encoded for _, encoded in found))


def _longest_first(rows: EncodedRows[ExampleT]) -> EncodedRows[ExampleT]:
    """In the order of their lengths: DPO's reference reads them so, with little padding."""
    order = sorted(range(len(rows.items)), key=lambda place: -rows.columns[place]["length"])
    return EncodedRows(tuple(rows.items[place] for place in order), tuple(rows.columns[place] for place in order))


def _checked(plan: Plan[Any, Any]) -> Plan[Any, Any]:
    """Refuse a plan without a row to learn from, or with arguments that TRL does not know."""
    check_further(plan.kind, plan.config)
    if not plan.train.items:
        reasons = ", ".join(f"{number} {reason}" for reason, number in plan.counts.items())
        raise DataError(
            f"none of the {len(plan.rows.train)} training rows can be used ({reasons}); rows that are too_long have a "
            f"last turn and response of more than max_length = {plan.start.max_length} tokens"
        )
    if plan.config.load_best_model_at_end and not plan.test.items:
        raise ConfigError("load_best_model_at_end needs held-out rows; give eval_data, or a greater test_share")
    return plan


def _reference(config: RewardConfig, encoding: Encoding, train: EncodedRows[Preference]) -> Reference:
    """The conversations whose mean reward becomes 0: those that the user names, or better responses of the pairs."""
    digest = None
    if config.reference is None:
        drawn = Random(config.seed).sample(train.items, min(_REFERENCE_ANSWERS, len(train.items)))
        conversations = [
            (*row.prompt, Message(role="assistant", content=row.chosen if row.p_chosen >= 0.5 else row.rejected))
            for row in drawn
        ]
    else:
        named = read_demonstrations([config.reference], [], test_share=0, seed=config.seed)
        conversations = [row.messages for row in named.train]
        digest = named.sources[0].sha256
    own = Encoding(encoding.chat, encoding.max_length)  # the user is told the counts of the rows alone
    found = [ids for messages in conversations if (ids := own.conversation(messages)) is not None]
    if not found:
        raise DataError(f"none of the {len(conversations)} reference answers fits into max_length = {own.max_length}")
    return Reference(tuple(found), digest)
