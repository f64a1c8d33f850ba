"""Conversations → the token ids that trainers read. One way for all of them, and the same as the engines' prompts.

A conversation that is longer than `max_length` loses the oldest turns of its prompt (a system turn stays) until it
fits; where the last user turn and the response alone are too long, it is left out. A response is never cut: a model
that learned from cut responses would stop anywhere. Both cases are counted.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from cai.data.training_rows import Demonstration, Preference
from cai.engines.chat import ChatFormat, common_length
from cai.errors import ConfigError, RecordError
from cai.records import Message

IGNORED = -100
"""Label of a token that is not learned from, as in PyTorch's cross-entropy."""

FitT = TypeVar("FitT")


class EncodedPair(NamedTuple):
    """Token ids of a pair; the prompt ends where the two texts begin to differ or the response begins."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def longest(self) -> int:
        """Tokens of prompt and longer response."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


class EncodedTurns(NamedTuple):
    """Token ids of a conversation and which of them are learned from."""

    input_ids: list[int]
    labels: list[int]
    """The same ids, `IGNORED` where a token is not learned from."""


@dataclass
class Encoding:
    """Encodes rows for one tokenizer, and counts what did not fit."""

    chat: ChatFormat
    max_length: int
    counts: Counter[str] = field(default_factory=Counter)
    """`shortened` (oldest turns left out), `too_long` and `request_refused` (rows left out)."""

    def pair(self, row: Preference) -> EncodedPair | None:
        """Encode the two conversations of a pair; None where they do not fit."""

        def encode(prompt: Sequence[Message]) -> tuple[EncodedPair, int]:
            opened = self.chat.opened(prompt)
            chosen, rejected = (
                self.chat.whole([*prompt, Message(role="assistant", content=text)])
                for text in (row.chosen, row.rejected)
            )
            begin = min(common_length(opened, chosen), common_length(opened, rejected))
            pair = EncodedPair(chosen[:begin], chosen[begin:], rejected[begin:])
            return pair, pair.longest

        return self._fitted(row.prompt, encode)

    def turns(self, row: Demonstration, *, all_turns: bool) -> EncodedTurns | None:
        """Encode a conversation to learn the assistant's turns from: all of them, or the last; None where it is too
        long."""
        *prompt, reply = row.messages

        def encode(prompt: Sequence[Message]) -> tuple[EncodedTurns, int]:
            messages = [*prompt, reply]
            ids = self.chat.whole(messages)
            labels = [IGNORED] * len(ids)
            for place, message in enumerate(messages):
                if message.role == "assistant" and (all_turns or place == len(messages) - 1):
                    begin = common_length(self.chat.opened(messages[:place]), ids)
                    end = common_length(self.chat.whole(messages[: place + 1]), ids)
                    labels[begin:end] = ids[begin:end]
            return EncodedTurns(ids, labels), len(ids)

        return self._fitted(prompt, encode)

    def conversation(self, messages: Sequence[Message]) -> list[int] | None:
        """Encode a conversation that ends with a response, to be scored; None where it is too long."""
        *prompt, reply = messages

        def encode(prompt: Sequence[Message]) -> tuple[list[int], int]:
            ids = self.chat.whole([*prompt, reply])
            return ids, len(ids)

        return self._fitted(prompt, encode)

    def prompt(self, messages: Sequence[Message]) -> list[int] | None:
        """Encode a conversation that is to be answered, with the opening of the answer; None where it is too long."""

        def encode(prompt: Sequence[Message]) -> tuple[list[int], int]:
            ids = self.chat.opened(prompt)
            return ids, len(ids)

        return self._fitted(messages, encode)

    def _fitted(
        self, prompt: Sequence[Message], encode: Callable[[Sequence[Message]], tuple[FitT, int]]
    ) -> FitT | None:
        """What `encode` makes of the longest end of the prompt that fits, with the length in tokens."""
        try:
            for kept in shortened(prompt):
                encoded, length = encode(kept)
                if length <= self.max_length:
                    self.counts["shortened"] += len(kept) < len(prompt)
                    return encoded
        except RecordError as error:
            self.counts[error.reason] += 1
            return None
        self.counts["too_long"] += 1
        return None


def shortened(prompt: Sequence[Message]) -> Iterable[Sequence[Message]]:
    """The prompt, then without its first exchange, without its first two, …; a system turn stays at the head."""
    head = list(prompt[:1]) if prompt and prompt[0].role == "system" else []
    turns = prompt[len(head) :]
    yield prompt
    for place in range(1, len(turns)):
        if turns[place].role == "user":
            yield [*head, *turns[place:]]


def tells_turns_apart(chat: ChatFormat) -> bool:
    """Whether the chat template writes a conversation the same way when it goes on, so that earlier replies of the
    assistant can be told from the rest. Some templates rewrite them."""
    user, reply = Message(role="user", content="question"), Message(role="assistant", content="answer")
    first, both = chat.whole([user, reply]), chat.whole([user, reply, user, reply])
    return common_length(first, both) == len(first)


def check_end_token(chat: ChatFormat, stops: Iterable[int]) -> None:
    """Check that the assistant's turn ends with a token at which generation stops, so that the model learns to stop.

    Raises:
        ConfigError: it does not.
    """
    user, reply = Message(role="user", content="question"), Message(role="assistant", content="answer")
    ids = chat.whole([user, reply])
    response = ids[common_length(chat.opened([user]), ids) :]
    if not set(response) & set(stops):
        raise ConfigError(
            "the chat template does not end the assistant's turn with a token at which generation stops (the "
            "tokenizer's end token, or one of generation_config.json): the trained model would never stop; give "
            "--chat-template one that does"
        )


def check_padding(tokenizer: Any) -> int:
    """Choose the token to pad with: never one that ends a turn, which a reward model must be able to read.

    Returns its id, and makes it the tokenizer's own.

    Raises:
        ConfigError: there is none to choose.
    """
    ends = {tokenizer.eos_token_id}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in ends:
        return int(tokenizer.pad_token_id)
    vocabulary = tokenizer.get_vocab()
    for name in _PAD_TOKENS:
        if name in vocabulary and vocabulary[name] not in ends:
            tokenizer.pad_token = name
            return int(vocabulary[name])
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id not in ends:
        tokenizer.pad_token = tokenizer.unk_token
        return int(tokenizer.unk_token_id)
    raise ConfigError(
        "the tokenizer has no token to pad with but its end token; set `pad_token` in the model's "
        "tokenizer_config.json to a token that conversations do not contain"
    )


_PAD_TOKENS = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|padding|>", "<|endoftext|>")
"""Names under which vocabularies have a padding token, whether or not the tokenizer declares it."""
