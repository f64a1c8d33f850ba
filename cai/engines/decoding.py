"""Parts that `transformers.generate` is given for a batch of unlike requests: sampling and stopping by row, a cache
with room for the whole reply, and attention that suits decoding on a CPU."""

import random
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    LogitsProcessor,
    StoppingCriteria,
)
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cai.records import Sampling

CPU_ATTENTION = "cai_cpu_sdpa"
"""Name of `cpu_attention` for `set_attn_implementation`."""


def sample_rows(
    logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor, uniform: torch.Tensor
) -> torch.Tensor:
    """Sample one token a row by inverse transform.

    Args:
        logits: (B, V), float32.
        temperature: (B, 1), above 0.
        top_p: (B, 1); the smallest set of likeliest tokens whose probability reaches it is kept (Holtzman et al. 2019).
        uniform: (B, 1), in [0, 1).

    Returns:
        Token ids, (B,).
    """
    probs = torch.softmax(logits / temperature, dim=-1)
    if bool((top_p < 1).any()):
        ordered, order = probs.sort(dim=-1, descending=True)
        outside = (ordered.cumsum(-1) - ordered >= top_p) & (top_p < 1)
        probs = torch.zeros_like(probs).scatter(-1, order, ordered.masked_fill(outside, 0.0))
    cumulative = probs.cumsum(-1)
    chosen = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(-1)
    return chosen.clamp(max=logits.shape[-1] - 1)


class RowSampler(LogitsProcessor):
    """Choose each row's next token by its own temperature, top-p and random numbers.

    The chosen token alone keeps a finite score, so that greedy search takes it.
    """

    def __init__(self, samplings: Sequence[Sampling], generators: Sequence[random.Random], device: Any) -> None:
        """Take one sampling and one generator a row."""
        self._generators = generators
        self._greedy = torch.tensor([sampling.temperature == 0 for sampling in samplings], device=device)
        self._temperature = torch.tensor([[sampling.temperature or 1.0] for sampling in samplings], device=device)
        self._top_p = torch.tensor([[sampling.top_p] for sampling in samplings], device=device)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:  # noqa: ARG002
        """Scores (B, V) with all but the chosen tokens at minus infinity."""
        uniform = torch.tensor([[generator.random()] for generator in self._generators], device=scores.device)
        chosen = sample_rows(scores.float(), self._temperature, self._top_p, uniform)
        chosen = torch.where(self._greedy, scores.argmax(-1), chosen)
        forced = torch.full_like(scores, float("-inf"))
        return forced.scatter_(-1, chosen[:, None], 0.0)  # type: ignore[return-value]


class RowStop(StoppingCriteria):
    """A row is done at an end token, its own max_tokens or one of its stop strings; all rows when the engine closes."""

    def __init__(
        self,
        limits: Sequence[int],
        stops: Sequence[Sequence[str]],
        *,
        width: int,
        eos: frozenset[int],
        tokenizer: Any,
        closing: threading.Event,
    ) -> None:
        """Take `max_tokens` and stop strings by row; `width` is the number of columns before the reply."""
        self._limits = limits
        self._stops = stops
        self._width = width
        self._eos = eos
        self._tokenizer = tokenizer
        self._closing = closing
        self._done = [False] * len(limits)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any) -> torch.BoolTensor:  # noqa: ARG002
        """Which rows are done, (B,)."""
        new = input_ids.shape[1] - self._width
        for row, token in enumerate(input_ids[:, -1].tolist()):
            self._done[row] = (
                self._done[row]
                or token in self._eos
                or new >= self._limits[row]
                or self._stopped(self._stops[row], input_ids[row])
            )
        if self._closing.is_set():
            self._done = [True] * len(self._done)
        return torch.tensor(self._done, device=input_ids.device)  # type: ignore[return-value]

    def _stopped(self, stops: Sequence[str], ids: torch.Tensor) -> bool:
        if not stops:
            return False
        # Every token but a partial character holds at least one byte, so the mark lies within as many tokens.
        start = max(self._width, len(ids) - 4 - 4 * max(map(len, stops)))
        text = self._tokenizer.decode(ids[start:], skip_special_tokens=True)
        return any(mark in text for mark in stops)


class RoomyLayer(DynamicLayer):
    """A cache layer with room for `capacity` tokens from the start; the library's own is copied whole at each token."""

    def __init__(self, capacity: int) -> None:
        """Take the greatest number of tokens that will ever be cached."""
        super().__init__()
        self._capacity = capacity

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Append keys and values, (B, H, T, D) each; returns all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            rows, heads, _, depth = key_states.shape
            self._key_room = key_states.new_empty(rows, heads, self._capacity, depth)
            self._value_room = value_states.new_empty(rows, heads, self._capacity, value_states.shape[-1])
        start: int = self.get_seq_length()
        end = start + key_states.shape[-2]
        self._key_room[:, :, start:end] = key_states
        self._value_room[:, :, start:end] = value_states
        self.keys, self.values = self._key_room[:, :, :end], self._value_room[:, :, :end]
        return self.keys, self.values


def roomy_cache(config: Any, capacity: int, prefix: DynamicCache | None = None, rows: int = 1) -> DynamicCache:
    """An empty cache for `capacity` tokens, or one that starts with a one-row `prefix` repeated for `rows` rows."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if prefix is not None:
        for number, layer in enumerate(prefix.layers):
            cache.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), number)
    return cache


def has_plain_cache(config: Any) -> bool:
    """Whether every layer caches all tokens (no sliding window, no recurrent state), so that a prefix can be reused."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


def cpu_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The library's SDPA attention, except that one token a row is decoded without copying the grouped heads.

    Query is (B, H, T, D), keys and values (B, H_kv, S, D). On a CPU the copies of keys and values to H heads cost
    several times the attention itself.
    """
    if query.shape[2] > 1 or options.get("position_bias") is not None or options.get("cache") is not None:
        output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output, weights
    output = scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=options.get("scaling"), enable_gqa=True
    )
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(CPU_ATTENTION, cpu_attention)
AttentionMaskInterface.register(CPU_ATTENTION, sdpa_mask)
