"""Responses of the policy: token by token as a plain loop draws them, where they end, and how they are put together."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from ppo_models import KINDS, OFTEN, Kind, actor_of, plan, read, save_gpt2, some_texts, stir, texts_of, weights_of
from reward_models import change_json
from tiny_model import save_tiny_model
from transformers import GenerationConfig

from cai.train.ppo.actor import ActorCritic
from cai.train.ppo.rollout import by_length, chosen, padded, write_responses

PROMPTS, _ = some_texts()
SEEDS = range(100, 108)
STOPS = frozenset([1, *OFTEN])


def write(actor: ActorCritic, rows: Sequence[int] = range(8), batch_size: int = 8, **settings: Any) -> list[list[int]]:
    given: dict[str, Any] = {"length": 10, "temperature": 0.7, "stops": STOPS, "pad": 0, **settings}
    return write_responses(
        actor, [PROMPTS[row] for row in rows], [SEEDS[row] for row in rows], batch_size=batch_size, **given
    )


@torch.no_grad()
def drawn_alone(model: Any, row: int, length: int = 5, temperature: float = 0.7) -> list[int]:
    """One token after the other without a cache: the first whose cumulative probability is above a uniform number."""
    draw, found = Random(SEEDS[row]), list[int]()
    while len(found) < length:
        logits = model(input_ids=torch.tensor([[*PROMPTS[row], *found]])).logits[0, -1]
        below = torch.softmax(logits / temperature, dim=-1).cumsum(-1)
        point = draw.random() * float(below[-1])
        found.append(next(token for token, total in enumerate(below.tolist()) if total > point))
        if found[-1] in STOPS:
            break
    return found


@pytest.mark.parametrize(("base", "kind"), [*(("llama", kind) for kind in KINDS), ("gpt2", "full")])
def test_a_response_is_drawn_token_by_token_by_its_own_random_numbers(
    tmp_path: Path, tiny: Path, base: str, kind: Kind
) -> None:
    model = tiny if base == "llama" else save_gpt2(tmp_path / "gpt2")
    actor = actor_of(plan(tmp_path / "run", model, kind), stirred=True)
    found = write(actor, length=5)
    with actor.playing("policy") as policy:
        assert found == [drawn_alone(policy, row) for row in range(8)]
    ends = [row[-1] in STOPS for row in found]
    assert True in ends
    assert any(not end for row, end in zip(found, ends, strict=True))
    for row, end in zip(found, ends, strict=True):
        assert len(row) == 5 or end
        assert not STOPS & set(row[:-1])
    if actor.adapts:  # written by the policy's adapter, and by no other weights
        with torch.no_grad(), actor.playing("reference") as reference:
            assert found != [drawn_alone(reference, row) for row in range(8)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_response_does_not_depend_on_its_batch(tmp_path: Path, tiny: Path, kind: Kind) -> None:
    actor = actor_of(plan(tmp_path, tiny, kind), stirred=True)
    found = write(actor)
    for rows, batch_size in [(range(8), 1), (range(8), 3), ([5, 2, 7, 0], 4), ([3], 1)]:
        assert write(actor, rows, batch_size) == [found[row] for row in rows]


def test_what_the_model_comes_with_does_not_shape_its_responses(tmp_path: Path, tiny: Path) -> None:
    """`generate` takes what it is not given from the model's own generation_config.json."""
    found = write(actor_of(plan(tmp_path / "run", tiny), stirred=True))
    shaped = save_tiny_model(tmp_path / "shaped")
    change_json(
        shaped / "generation_config.json",
        repetition_penalty=5.0,
        no_repeat_ngram_size=1,
        suppress_tokens=list(range(70, 200)),
        min_new_tokens=9,
        do_sample=True,
        top_k=1,
        temperature=3.0,
        eos_token_id=[1],
    )
    actor = actor_of(plan(tmp_path / "run", shaped), stirred=True)
    with actor.playing("policy") as policy:
        before = policy.generation_config.to_dict()
        assert write(actor) == found
        assert policy.generation_config.to_dict() == before  # what is saved with the trained model


def test_a_stop_belongs_to_its_response_and_nothing_comes_after(tmp_path: Path, tiny: Path) -> None:
    actor = actor_of(plan(tmp_path, tiny), stirred=True)
    free = write(actor, stops=frozenset())
    assert [len(row) for row in free] == [10] * 8
    first = [free[row][0] for row in range(8)]
    assert write(actor, stops=frozenset(first)) == [[token] for token in first]  # at once
    last = frozenset(free[0][9:]) - frozenset(free[0][:9])
    assert last, "the last token comes once"
    assert write(actor, [0], stops=last) == [free[0]]
    for stop in {token for row in free for token in row[1:]}:
        for row, whole in zip(write(actor, stops=frozenset([stop])), free, strict=True):
            assert row == (whole[: whole.index(stop) + 1] if stop in whole else whole)


@pytest.mark.parametrize("kind", KINDS)
def test_writing_keeps_its_cache_where_activations_are_recomputed(tmp_path: Path, tiny: Path, kind: Kind) -> None:
    actors = [
        actor_of(plan(tmp_path, tiny, kind, gradient_checkpointing=checkpointing), stirred=True)
        for checkpointing in (False, True)
    ]
    texts = texts_of(*some_texts())
    actors[1]("policy", texts).logprobs.sum().backward()  # and after an update as before
    widths: list[int] = []
    with actors[1].playing("policy") as policy:
        embeddings = policy.get_input_embeddings()
    embeddings.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[1]))
    assert write(actors[1], stops=frozenset()) == write(actors[0], stops=frozenset())
    assert widths == [max(map(len, PROMPTS)), *[1] * 9]


def test_tokens_are_drawn_with_the_probabilities_that_are_read(tmp_path: Path, tiny: Path) -> None:
    """The share of each token among 4000 first tokens, against its probability: Pearson's chi-square statistic."""
    actor = actor_of(plan(tmp_path, tiny), stirred=True)
    number = 4000
    prompt = PROMPTS[1]
    found = write_responses(
        actor, [prompt] * number, range(number), length=1, temperature=0.7, stops=STOPS, pad=0, batch_size=number
    )
    texts = padded([prompt] * 262, [[token] for token in range(262)], 0, torch.device("cpu"))
    expected = read(actor, "policy", texts, 0.7)[:, 0].exp() * number
    assert float(expected.sum()) == pytest.approx(number, rel=1e-4)
    counts = torch.bincount(torch.tensor([row[0] for row in found]), minlength=262)
    common = expected >= 5
    assert int(common.sum()) > 20
    statistic = float(((counts - expected).square() / expected)[common].sum())
    freedom = int(common.sum())
    assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5


def test_padding_by_hand() -> None:
    texts = padded([[7, 8], [9]], [[5], [6, 1, 4]], 0, torch.device("cpu"))
    assert texts.input_ids.tolist() == [[7, 8, 5, 0, 0], [0, 9, 6, 1, 4]]
    assert texts.mask.int().tolist() == [[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]
    assert texts.width == 2
    assert texts.response_mask.int().tolist() == [[1, 0, 0], [1, 1, 1]]
    same = padded([[0, 8], [9]], [[0], [6, 0]], 0, torch.device("cpu"))  # a real token that is also the padding
    assert same.mask.int().tolist() == [[1, 1, 1, 0], [0, 1, 1, 1]]


def test_rows_are_taken_without_the_columns_that_none_of_them_has() -> None:
    texts = padded([[7, 8, 9], [9], [6, 5]], [[5], [6, 1, 4], [3, 2]], 0, torch.device("cpu"))
    part, length = chosen(texts, torch.tensor([2, 0]))
    assert part.input_ids.tolist() == [[0, 6, 5, 3, 2], [7, 8, 9, 5, 0]]
    assert (part.width, length) == (3, 2)
    part, length = chosen(texts, torch.tensor([1]))
    assert part.input_ids.tolist() == [[9, 6, 1, 4]]
    assert part.mask.all()
    assert (part.width, length) == (1, 3)


def test_parts_are_of_like_length_and_hold_each_row_once() -> None:
    texts = padded([[7] * n for n in (1, 4, 2, 3, 1)], [[5] * n for n in (1, 2, 4, 1, 6)], 0, torch.device("cpu"))
    parts = [part.tolist() for part in by_length(texts, torch.tensor([4, 0, 2, 3, 1]), 2)]
    assert parts == [[4, 2], [1, 3], [0]]  # lengths 7, 6, 6, 4, 2; the equal ones stay in their order


@pytest.mark.parametrize("kind", KINDS)
def test_writing_and_reading_change_no_weights(tmp_path: Path, tiny: Path, kind: Kind) -> None:
    actor = actor_of(plan(tmp_path, tiny, kind))
    stir(actor)
    before = weights_of(actor)
    write(actor, range(2))
    texts = texts_of(*some_texts(2))
    for role in ("policy", "reference", "value"):
        read(actor, role, texts)
    after = weights_of(actor)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert not any(parameter.grad is not None for parameter in actor.parameters())


def test_an_error_leaves_the_models_own_configuration_in_place(tmp_path: Path, tiny: Path) -> None:
    actor = actor_of(plan(tmp_path, tiny, "full"))
    own = GenerationConfig(repetition_penalty=1.3)
    actor.policy.generation_config = own
    with pytest.raises(IndexError):
        write(actor, [0, 1], pad=10_000)
    assert actor.policy.generation_config is own
