"""Log-probabilities of given tokens, by forward passes of a local model; nothing is sampled.

Requests that wait together become one packed prefix trie (`engines.trie`), so that a conversation which two orders and
sixteen principles share is computed once. One path of each pack stays as a key–value cache for the packs that follow:
a system turn with worked examples is read once in a run.

The logits of the tokens asked for are computed in float32, from the last hidden state and these tokens' rows of the
output matrix. A bfloat16 logit comes in steps of about 1/8, so that options tie exactly, and in bulk. Only what the
other tokens add to the normaliser comes from the model's own logits.
"""

import asyncio
import inspect
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import torch
from transformers import DynamicCache

from cai.engines.base import ChoiceLogprobs, ReplyLogprob
from cai.engines.chat import common_length
from cai.engines.choices import over_spellings
from cai.engines.decoding import CPU_ATTENTION, has_plain_cache, roomy_cache
from cai.engines.trie import nearest_first, prefix_trie, tree_mask
from cai.errors import EngineError
from cai.records import Usage

MIN_KEPT = 64
"""Tokens from which a path is worth keeping."""
KEPT_PATHS = 4
CHUNK = 2**24
"""How many logits are held in float32 at a time."""

Read = tuple[int, tuple[int, ...]]
"""A place in a sequence, and the tokens whose log-probabilities as the next one are asked for."""


@dataclass(frozen=True)
class Scores:
    """What the reads of one request gave."""

    logprobs: list[float]
    """One for each token of each read, in order."""
    usage: Usage
    """Tokens that were computed for an earlier request of the same pack count as cached."""

    def of_choices(self, spellings: Sequence[Sequence[int]]) -> ChoiceLogprobs:
        """Where the one read asked for all `spellings` of all choices: sums over the spellings of each."""
        values = iter(self.logprobs)
        logprobs, off_mass = over_spellings([list(islice(values, len(tokens))) for tokens in spellings])
        return ChoiceLogprobs(logprobs=logprobs, off_mass=off_mass, usage=self.usage)

    def of_reply(self) -> ReplyLogprob:
        """Where each read asked for the next token of a reply: the sum over the reply."""
        return ReplyLogprob(logprob=math.fsum(self.logprobs), tokens=len(self.logprobs), usage=self.usage)


@dataclass(eq=False)
class ScoringRequest:
    """A sequence of token ids, and where to read it."""

    ids: list[int]
    reads: Sequence[Read]
    """In ascending order of places, at least one."""
    reply: "asyncio.Future[Scores]"


@dataclass(frozen=True, eq=False)
class _Path:
    """A sequence of L tokens with its keys and values, (1, H, L, D) each, by layer."""

    ids: list[int]
    layers: list[tuple[torch.Tensor, torch.Tensor]]


class Scorer:
    """Packs requests, runs the model on them and reads its logits. Nothing else may use the model during `run`."""

    def __init__(self, model: Any, *, share_prefixes: bool) -> None:
        """Take a causal language model. Without `share_prefixes` each request has a padded row of its own."""
        self._model = model
        self._head = model.get_output_embeddings()
        self._head_is_last: bool | None = None
        self._shares = share_prefixes and takes_trees(model)
        self._budget = 2048 if model.device.type == "cpu" else 16384
        self._paths: deque[_Path] = deque(maxlen=KEPT_PATHS)

    def take(self, waiting: Sequence[ScoringRequest]) -> list[ScoringRequest]:
        """The oldest request and those that go with it best, as many as fit the budget of tokens.

        A pack that cannot hold all ends, in its second half, where the next request shares least with it.
        """
        if not self._shares:
            return self._take_rows(waiting)
        order = [waiting[n] for n in nearest_first([request.ids for request in waiting])]
        shared = [self._known(order[0].ids)[0]]
        shared += [common_length(one.ids, next_.ids) for one, next_ in pairwise(order)]
        tokens = 0
        for end, (request, known) in enumerate(zip(order, shared, strict=True)):
            tokens += len(request.ids) - known
            if end and tokens > self._budget:
                return order[: min(range((end + 1) // 2, end + 1), key=lambda n: (shared[n], -n))]
        return order

    def _take_rows(self, waiting: Sequence[ScoringRequest]) -> list[ScoringRequest]:
        """The oldest request and those nearest to its length."""
        length = len(waiting[0].ids)
        order = [waiting[0], *sorted(waiting[1:], key=lambda request: abs(len(request.ids) - length))]
        width = 0
        for end, request in enumerate(order):
            width = max(width, len(request.ids))
            if end and (end + 1) * width > self._budget:
                return order[:end]
        return order

    def shrink(self, pack: Sequence[ScoringRequest]) -> None:
        """After running out of memory on `pack`: make smaller ones.

        Raises:
            EngineError: it cannot be made smaller.
        """
        self._paths.clear()
        if len(pack) == 1:
            raise EngineError(
                f"out of memory with a single request of {len(pack[0].ids):,} tokens; take a smaller model"
            )
        self._budget //= 2

    @torch.inference_mode()
    def run(self, pack: Sequence[ScoringRequest]) -> list[Scores]:
        """Answer a pack as `take` gave it, in its order.

        Raises:
            EngineError: the model has no output layer that could be read.
        """
        if self._head_is_last is None:
            self._head_is_last = self._find_whether_head_is_last(pack[0].ids[:16])
        hidden, logits, computed = self._read_tree(pack) if self._shares else self._read_rows(pack)
        values = iter(self._logprobs(hidden, logits, [tokens for request in pack for _, tokens in request.reads]))
        return [
            Scores(
                list(islice(values, sum(len(tokens) for _, tokens in request.reads))),
                Usage(prompt_tokens=len(request.ids), cached_tokens=len(request.ids) - own),
            )
            for request, own in zip(pack, computed, strict=True)
        ]

    def close(self) -> None:
        """Let go of the model and the kept paths."""
        self._paths.clear()
        self._model = self._head = None

    def _read_tree(self, pack: Sequence[ScoringRequest]) -> tuple[torch.Tensor, torch.Tensor | None, list[int]]:
        """Hidden states, final logits and tokens computed for each request, from one row that holds the whole trie."""
        first = pack[0].ids
        known, path = self._known(first)
        for request in pack:
            place = request.reads[0][0]
            if common_length(first[:known], request.ids) > place:
                known = place  # what is read has to be computed
        trie = prefix_trie([first[:known], *(request.ids for request in pack)])
        cache = roomy_cache(self._model.config, len(trie.tokens))
        for number, (keys, values) in enumerate(path.layers if path else ()):
            cache.update(keys[:, :, :known], values[:, :, :known], number)
        device = self._model.device
        columns = [
            slots[place] - known
            for request, slots in zip(pack, trie.slots[1:], strict=True)
            for place, _ in request.reads
        ]
        hidden, logits = self._forward(
            [0] * len(columns),
            columns,
            input_ids=torch.tensor([trie.tokens[known:]], device=device),
            position_ids=torch.tensor([trie.depths[known:]], device=device),
            attention_mask=tree_mask(trie.ends, known, self._model.dtype, device),
            past_key_values=cache,
            use_cache=True,
        )
        self._keep(pack, trie.slots[1:], path, cache)
        return hidden, logits, trie.added[1:]

    def _read_rows(self, pack: Sequence[ScoringRequest]) -> tuple[torch.Tensor, torch.Tensor | None, list[int]]:
        """The same from one row a request, padded on the right."""
        width = max(len(request.ids) for request in pack)
        device = self._model.device
        hidden, logits = self._forward(
            [row for row, request in enumerate(pack) for _ in request.reads],
            [place for request in pack for place, _ in request.reads],
            input_ids=torch.tensor([request.ids + [0] * (width - len(request.ids)) for request in pack], device=device),
            attention_mask=torch.tensor(
                [[1] * len(request.ids) + [0] * (width - len(request.ids)) for request in pack], device=device
            ),
            use_cache=False,
        )
        return hidden, logits, [len(request.ids) for request in pack]

    def _forward(self, rows: list[int], columns: list[int], **inputs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Last hidden states at N places, (N, H), and the model's logits there, (N, V), where these are needed."""
        hidden = torch.empty(0)

        def only_these(_head: Any, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            nonlocal hidden
            hidden = arguments[0][rows, columns]
            return (hidden[None, :1] if self._head_is_last else hidden[None],)

        hook = self._head.register_forward_pre_hook(only_these)
        try:
            logits = self._model(**inputs).logits
        finally:
            hook.remove()
        return hidden, None if self._head_is_last else logits[0]

    def _logprobs(
        self, hidden: torch.Tensor, logits: torch.Tensor | None, tokens: Sequence[Sequence[int]]
    ) -> Iterable[float]:
        """Log-probabilities of the `tokens` of each of N reads, one after the other.

        Args:
            hidden: (N, H).
            logits: (N, V), or None where they are the output layer's.
            tokens: N lists of ids.
        """
        size = max(1, CHUNK // self._model.config.get_text_config().vocab_size)
        for start in range(0, len(hidden), size):
            part = hidden[start : start + size]
            scores = (self._head(part) if logits is None else logits[start : start + size]).float()
            asked = tokens[start : start + size]
            rows = torch.tensor([row for row, ids in enumerate(asked) for _ in ids], device=scores.device)
            ids = torch.tensor([token for ids in asked for token in ids], device=scores.device)
            if logits is None:
                exact = (part.float()[rows] * self._head.weight[ids].float()).sum(-1)
                if self._head.bias is not None:
                    exact += self._head.bias[ids].float()
                scores[rows, ids] = exact
            yield from (scores[rows, ids] - scores.logsumexp(-1)[rows]).tolist()

    def _find_whether_head_is_last(self, ids: list[int]) -> bool:
        """Whether the output layer is linear and the model's logits are what it gives, neither capped nor scaled."""
        outputs: list[torch.Tensor] = []
        hook = self._head.register_forward_hook(lambda _head, _arguments, output: outputs.append(output))
        try:
            inputs = torch.tensor([ids], device=self._model.device)
            logits = self._model(input_ids=inputs, use_cache=False).logits
        finally:
            hook.remove()
        if not outputs:
            raise EngineError("this model bypasses its output layer, so its log-probabilities cannot be read here")
        plain = isinstance(self._head, torch.nn.Linear) and self._head.weight.is_floating_point()
        return plain and torch.equal(outputs[0].float(), logits.float())

    def _known(self, ids: list[int]) -> tuple[int, _Path | None]:
        """How many of the first tokens of `ids` are kept, and where."""
        best = max(self._paths, key=lambda path: common_length(path.ids, ids), default=None)
        length = common_length(best.ids, ids) if best else 0
        return (length, best) if length >= MIN_KEPT else (0, None)

    def _keep(
        self, pack: Sequence[ScoringRequest], slots: Sequence[list[int]], used: _Path | None, cache: DynamicCache
    ) -> None:
        """Keep the last path that goes on from the same beginning as the first: what comes next is nearest to it.

        The path that was `used` stays beside it if it differs by enough, as the two orders of long responses do.
        """
        first = pack[0].ids
        near = [n for n, request in enumerate(pack) if common_length(first, request.ids) >= MIN_KEPT]
        if not near:
            return
        ids, places = pack[near[-1]].ids, slots[near[-1]]
        if used is not None:
            self._paths.remove(used)
            if len(used.ids) - common_length(used.ids, ids) >= MIN_KEPT:
                self._paths.append(used)
        layers = [(layer.keys[:, :, places], layer.values[:, :, places]) for layer in cache.layers]
        self._paths.append(_Path(ids, layers))


def takes_trees(model: Any) -> bool:
    """Whether a model can read a trie: its attention takes any mask, and nothing but the mask and positions tell order.

    A sliding window or a recurrent state counts tokens of the row, and ALiBi is a mask of the model's own.
    """
    config = model.config
    return (
        has_plain_cache(config)
        and config._attn_implementation in ("sdpa", "eager", CPU_ATTENTION)
        and "position_ids" in inspect.signature(model.forward).parameters
        and not getattr(config, "alibi", False)
    )
