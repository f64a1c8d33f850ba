"""From prompts to episodes: the policy writes responses, and what was written is read by all roles."""

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from cai.engines.decoding import RowSampler, RowStop, roomy_cache
from cai.records import Sampling
from cai.train.ppo.actor import ActorCritic, Role, Texts, TokenStatistics


def write_responses(
    actor: ActorCritic,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    length: int,
    temperature: float,
    stops: frozenset[int],
    pad: int,
    batch_size: int,
) -> list[list[int]]:
    """Have the policy answer encoded prompts, and return the token ids of each response.

    A response ends with the first of the `stops`, which belongs to it, or after `length` tokens. Nothing but the
    temperature shapes the distribution: with top-k or top-p, or with the repetition penalty that some models come with,
    the probabilities that PPO computes would not be those that the tokens were drawn with. Each response draws from a
    generator of its own seed, so that it does not depend on the batch it is written in, up to rounding.
    """
    found: list[list[int]] = [[] for _ in prompts]
    device = next(actor.parameters()).device
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        texts = padded([prompts[row] for row in rows], [[]] * len(rows), pad, device)
        sampling = Sampling(max_tokens=length, temperature=temperature)
        sampler = RowSampler([sampling] * len(rows), [Random(seeds[row]) for row in rows], device)
        stop = RowStop(
            [length] * len(rows),
            [()] * len(rows),
            width=texts.width,
            eos=stops,
            tokenizer=None,
            closing=threading.Event(),
        )
        plain = GenerationConfig(
            max_new_tokens=length, do_sample=False, pad_token_id=pad, eos_token_id=sorted(stops) or None
        )
        with torch.no_grad(), actor.playing("policy") as model, _generating_by(model, plain):
            written = model.generate(
                input_ids=texts.input_ids,
                attention_mask=texts.mask.long(),
                past_key_values=roomy_cache(model.config, texts.width + length),
                logits_processor=LogitsProcessorList([sampler]),
                stopping_criteria=StoppingCriteriaList([stop]),
            )
        for row, tokens in zip(rows, written[:, texts.width :].tolist(), strict=True):
            end = next((place for place, token in enumerate(tokens) if token in stops), length)
            found[row] = tokens[: min(end + 1, length)]
    return found


@contextmanager
def _generating_by(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Generate by a configuration alone: what it leaves open `generate` would take from the model's own."""
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own


def padded(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad: int, device: torch.device
) -> Texts:
    """Put prompts and responses into one tensor, prompts padded on the left and responses on the right."""
    width, length = max(map(len, prompts)), max(map(len, responses))
    ids = torch.full((len(prompts), width + length), pad)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        begin, end = width - len(prompt), width + len(response)
        ids[row, begin:end] = torch.tensor([*prompt, *response])
        mask[row, begin:end] = True
    return Texts(ids.to(device), mask.to(device), width)


def chosen(texts: Texts, rows: Tensor) -> tuple[Texts, int]:
    """Some rows without the columns that are padding in all of them, and how many columns of the response are left."""
    mask = texts.mask[rows]
    used = mask.any(0)
    begin = int(used[: texts.width].int().argmax())
    length = int(mask[:, texts.width :].sum(-1).max())
    columns = slice(begin, texts.width + length)
    return Texts(texts.input_ids[rows][:, columns], mask[:, columns], texts.width - begin), length


def by_length(texts: Texts, rows: Tensor, size: int) -> Iterator[Tensor]:
    """Cut rows into parts of at most `size`, those of like length together, the longest first."""
    lengths = texts.mask[rows].sum(-1)
    ordered = rows[lengths.argsort(descending=True, stable=True)]
    yield from (ordered[begin : begin + size] for begin in range(0, len(ordered), size))


@torch.no_grad()
def read_responses(
    actor: ActorCritic, role: Role, texts: Texts, *, temperature: float, batch_size: int
) -> tuple[Tensor, ...]:
    """What a role makes of each token of n responses, (n, T), 0 where there is none.

    Policy and reference have log-probabilities; the values have values, and so has, after its log-probabilities, a
    policy that they are read off.
    """
    mask = texts.response_mask
    found: dict[str, Tensor] = defaultdict(lambda: torch.zeros(mask.shape, device=mask.device))
    for rows in by_length(texts, torch.arange(len(mask), device=mask.device), batch_size):
        part, length = chosen(texts, rows)
        read: TokenStatistics = actor(role, part, temperature, with_entropies=False)
        for name, tensor in read._asdict().items():
            if tensor is not None:
                found[name][rows, :length] = tensor
    return tuple(torch.where(mask, tensor, 0.0) for tensor in found.values())
