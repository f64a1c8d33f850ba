"""From a conversation to the token ids a local model reads: its chat template, or Human/Assistant turns."""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

from cai.engines.choices import choice_tokens
from cai.errors import ConfigError, RecordError
from cai.prompting import TRANSCRIPT_STOP, transcript
from cai.records import Message, Sampling

_PROBE = "probe"
_TURN_MARK = re.compile(r"</?[|｜]?[\w▁]+[|｜]?>|<</?\w+>>|\[/?[A-Z_]+\]")
"""What chat templates write around turns, such as `<|user|>`, `[INST]` and `<<SYS>>`."""


class ChatFormat:
    """How one model's conversations become token ids.

    Text inside a message is data. A special token or a mark of the chat template that is spelt out in it (`<|im_end|>`,
    `[INST]`) gets a space after its first character, so that it is read as text and cannot end the turn.
    """

    def __init__(self, tokenizer: Any, format: Literal["auto", "chat", "transcript"], max_len: int) -> None:
        """Take a Hugging Face `tokenizer` and the context length `max_len` in tokens.

        Raises:
            ConfigError: the tokenizer's chat template is asked for, and there is none or it does not work.
        """
        self.tokenizer = tokenizer
        self.max_len = max_len
        self._choice_tokens: dict[tuple[str, ...], tuple[tuple[int, ...], ...]] = {}
        has_template = getattr(tokenizer, "chat_template", None) is not None
        if format == "chat" and not has_template:
            raise ConfigError(
                "`format: chat` needs a chat template, and this model's tokenizer has none; use `--format transcript` "
                "for a plain base model"
            )
        self.format: Literal["chat", "transcript"] = (
            "chat" if format == "chat" or (format == "auto" and has_template) else "transcript"
        )
        marks = _special_tokens(tokenizer)
        if self.format == "chat":
            marks |= set(_TURN_MARK.findall(self._probe()))
            self._takes_system = self._accepts_system()
        divisible = sorted(mark for mark in marks if len(mark) > 1)
        self._marks = re.compile("|".join(map(re.escape, divisible))) if divisible else None

    def encode(self, messages: Sequence[Message], max_tokens: int, prefill: str = "") -> list[int]:
        """Token ids of `messages` with the opening of the assistant's next turn and `prefill`, its first words.

        Raises:
            RecordError: `context_overflow` when prompt and `max_tokens` do not fit the context together;
                `request_refused` when the chat template does not take this conversation.
        """
        ids = self._encoded(messages, prefill)
        self._check_fit(len(ids), max_tokens)
        return ids

    def encode_reply(self, messages: Sequence[Message], reply: str) -> tuple[list[int], int]:
        """Token ids of `messages` with `reply` as the assistant's next turn, and the place of the reply's first token.

        The turn is left open. A token that holds both the end of the prompt and the beginning of the reply counts as
        the reply's.

        Raises:
            RecordError: as `encode`; `empty_reply` when the reply has no token.
        """
        ids = self._encoded(messages, reply)
        begin = common_length(self._encoded(messages, ""), ids)
        if begin == len(ids):
            raise RecordError("empty_reply", "the reply has no token, so it has no probability")
        self._check_fit(len(ids), 0)
        return ids, begin

    def whole(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of `messages` with the last turn closed, by the chat template: what a model is trained on.

        Raises:
            RecordError: `request_refused` when the chat template does not take this conversation.
        """
        text = self._chat(self._safe(messages), closed=True)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def opened(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of `messages` with the opening of the assistant's next turn, however many there are.

        Raises:
            RecordError: as `whole`.
        """
        return self._encoded(messages, "")

    def choice_tokens(self, choices: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Ids of the tokens that spell each choice; see `choices.choice_tokens`."""
        key = tuple(choices)
        if key not in self._choice_tokens:
            self._choice_tokens[key] = choice_tokens(self._vocabulary, key)
        return self._choice_tokens[key]

    @cached_property
    def _vocabulary(self) -> tuple[str, ...]:
        """The decoded text of every token, by id."""
        return tuple(self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))]))

    def stop_strings(self, sampling: Sampling) -> tuple[str, ...]:
        """The request's stop strings, and for a transcript the marks of the next turn."""
        return sampling.stop + (TRANSCRIPT_STOP if self.format == "transcript" else ())

    def _encoded(self, messages: Sequence[Message], opening: str) -> list[int]:
        """Token ids of `messages` with the assistant's next turn, which begins with `opening`."""
        safe = self._safe(messages)
        opening = self._neutral(opening)
        ids: list[int]
        if self.format == "chat":
            ids = self.tokenizer(self._chat(safe) + opening, add_special_tokens=False)["input_ids"]
            return ids
        if opening.strip():
            last = Message(role="assistant", content=opening)
            text = transcript([*safe, last]).removesuffix(transcript([]))
        else:
            text = transcript(safe)
        ids = self.tokenizer(text)["input_ids"]
        if ids[-1:] == [self.tokenizer.eos_token_id]:  # some tokenizers close every text
            ids = ids[:-1]
        return ids

    def _check_fit(self, tokens: int, max_tokens: int) -> None:
        if tokens + max_tokens > self.max_len:
            added = f"; with max_tokens {max_tokens} that exceeds" if max_tokens else ", which exceeds"
            raise RecordError(
                "context_overflow", f"the prompt has {tokens:,} tokens{added} the context of {self.max_len:,} tokens"
            )

    def _safe(self, messages: Sequence[Message]) -> list[Message]:
        return [Message(role=message.role, content=self._neutral(message.content)) for message in messages]

    def _neutral(self, text: str) -> str:
        if self._marks is None:
            return text
        found = 1
        while found:  # a mark may be another one with a space in it
            text, found = self._marks.subn(lambda mark: f"{mark[0][:1]} {mark[0][1:]}", text)
        return text

    def _chat(self, messages: Sequence[Message], closed: bool = False) -> str:
        import jinja2

        if messages[0].role == "system" and not self._takes_system:
            head, first, *rest = messages
            messages = [Message(role="user", content=f"{head.content}\n\n{first.content}"), *rest]
        try:
            return self._rendered(*((message.role, message.content) for message in messages), closed=closed)
        except jinja2.TemplateError as error:
            raise RecordError(
                "request_refused", f"the model's chat template does not take this conversation: {error.message}"
            ) from None

    def _rendered(self, *turns: tuple[str, str], closed: bool = False) -> str:
        rows = [{"role": role, "content": content} for role, content in turns]
        text: str = self.tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=not closed)
        return text

    def _probe(self) -> str:
        """A conversation of every kind of turn that all templates take."""
        import jinja2

        try:
            return self._rendered(("user", _PROBE), ("assistant", _PROBE), ("user", _PROBE))
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise ConfigError(
                f"the model's chat template cannot be used: {error}; take a model with a working one, or "
                "`--format transcript`"
            ) from None

    def _accepts_system(self) -> bool:
        """Some templates refuse a system turn, others drop it without a word; its text then joins the first turn."""
        import jinja2

        mark = "system-turn-probe"
        try:
            return mark in self._rendered(("system", mark), ("user", _PROBE))
        except jinja2.TemplateError:
            return False


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix, by bisection on slices."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def _special_tokens(tokenizer: Any) -> set[str]:
    """All special tokens: those with a part of their own, such as the end token, are not all there are."""
    named = {str(token) for token in tokenizer.all_special_tokens}
    try:
        added = tokenizer.added_tokens_decoder.values()
    except NotImplementedError:  # Mistral's own tokenizers name all of theirs
        return named
    return named | {str(token) for token in added if token.special}
