"""From a conversation to the token ids a local model reads: its chat template, or Human/Assistant turns."""

import re
from collections.abc import Sequence
from typing import Any, Literal

from cai.errors import ConfigError, RecordError
from cai.prompting import TRANSCRIPT_STOP, transcript
from cai.records import Message, Sampling


class ChatFormat:
    """How one model's conversations become token ids.

    Text inside a message is data. A special token spelt out in it (`<|im_end|>`) gets a space after its first
    character, so that it is read as text and cannot end the turn.
    """

    def __init__(self, tokenizer: Any, format: Literal["auto", "chat", "transcript"], max_len: int) -> None:
        """Take a Hugging Face `tokenizer` and the context length `max_len` in tokens."""
        self.tokenizer = tokenizer
        self.max_len = max_len
        has_template = getattr(tokenizer, "chat_template", None) is not None
        if format == "chat" and not has_template:
            raise ConfigError(
                "`format: chat` needs a chat template, and this model's tokenizer has none; use `--format transcript` "
                "for a plain base model"
            )
        self.format: Literal["chat", "transcript"] = (
            "chat" if format == "chat" or (format == "auto" and has_template) else "transcript"
        )
        special = sorted(filter(None, set(tokenizer.all_special_tokens)), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None
        self._takes_system: bool | None = None

    def encode(self, messages: Sequence[Message], max_tokens: int) -> list[int]:
        """Token ids of `messages` with the opening of the assistant's next turn.

        Raises:
            RecordError: `context_overflow` when prompt and `max_tokens` do not fit the context together.
        """
        safe = [Message(role=message.role, content=self._neutral(message.content)) for message in messages]
        ids: list[int]
        if self.format == "transcript":
            ids = self.tokenizer(transcript(safe))["input_ids"]
        else:
            ids = self.tokenizer(self._chat(safe), add_special_tokens=False)["input_ids"]
        if len(ids) + max_tokens > self.max_len:
            raise RecordError(
                "context_overflow",
                f"the prompt has {len(ids):,} tokens; with max_tokens {max_tokens} that exceeds the context of "
                f"{self.max_len:,} tokens",
            )
        return ids

    def stop_strings(self, sampling: Sampling) -> tuple[str, ...]:
        """The request's stop strings, and for a transcript the marks of the next turn."""
        return sampling.stop + (TRANSCRIPT_STOP if self.format == "transcript" else ())

    def _neutral(self, text: str) -> str:
        if self._special is None:
            return text
        return self._special.sub(lambda found: f"{found[0][:1]} {found[0][1:]}", text)

    def _chat(self, messages: Sequence[Message]) -> str:
        if self._takes_system is None:
            self._takes_system = self._accepts_system()
        if not self._takes_system and messages[0].role == "system":
            first = f"{messages[0].content}\n\n{messages[1].content}"
            messages = [Message(role="user", content=first), *messages[2:]]
        rows = [message.model_dump() for message in messages]
        text: str = self.tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
        return text

    def _accepts_system(self) -> bool:
        """Some templates refuse a system turn, others drop it without a word; its text then joins the first turn."""
        import jinja2

        mark = "system-turn-probe"
        rows = [{"role": "system", "content": mark}, {"role": "user", "content": "Hi"}]
        try:
            return mark in self.tokenizer.apply_chat_template(rows, tokenize=False)
        except jinja2.TemplateError:
            return False
