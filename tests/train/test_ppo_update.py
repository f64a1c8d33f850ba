"""Optimiser steps: the same whatever the micro-batches, by a plain loop over rows, and figures by hand."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from ppo_models import KINDS, Kind, actor_of, ask, config, plan, read, some_texts, texts_of, weights_of
from torch import Tensor
from training_rows import furthest

from cai.errors import StageError
from cai.train.ppo.actor import ActorCritic
from cai.train.ppo.update import Episodes, optimise

TEMPERATURE = 0.7
PROMPTS, RESPONSES = some_texts()
LONGEST = max(map(len, RESPONSES))
UNSCORED = 3


def episodes(actor: ActorCritic, rows: range | list[int] = range(8), *, aged: bool = True) -> Episodes:
    """The batch, of which one row has no score; `aged` ones come from a policy that was a little different."""
    texts = texts_of([PROMPTS[row] for row in rows], [RESPONSES[row] for row in rows])
    noise = torch.randn(8, LONGEST, 4, generator=torch.Generator().manual_seed(7))[list(rows)]
    noise = noise[:, : texts.response_mask.shape[1]]
    mask = texts.response_mask.clone()
    if UNSCORED in rows:
        mask[list(rows).index(UNSCORED)] = False
    apart = 0.3 if aged else 0.0
    logprobs = read(actor, "policy", texts, TEMPERATURE) + apart * noise[..., 0]
    values = read(actor, "value", texts) + apart * noise[..., 1]
    return Episodes(
        texts,
        mask,
        torch.where(texts.response_mask, logprobs, 0.0),
        torch.where(texts.response_mask, values, 0.0),
        torch.where(mask, noise[..., 2], 0.0),
        torch.where(mask, values + noise[..., 3], 0.0),
    )


def step(
    folder: Path,
    model: Path,
    kind: Kind,
    *,
    rows: Any = range(8),
    aged: bool = True,
    rate: float = 0.1,
    **settings: Any,
) -> tuple[dict[str, Tensor], Mapping[str, float]]:
    """All weights after the optimiser steps of one batch of plain gradient descent, and the figures."""
    given = {"num_ppo_epochs": 1, "temperature": TEMPERATURE, "max_grad_norm": 1e6, **settings}
    planned = plan(folder, model, kind, **given)
    actor = actor_of(planned, stirred=True)
    batch = episodes(actor, rows, aged=aged)
    figures = optimise(
        actor, torch.optim.SGD(actor.trained(), lr=rate), batch, planned.config, Accelerator(cpu=True), step=1
    )
    return weights_of(actor), figures


def plain_steps(folder: Path, model: Path, kind: Kind, steps: int, rate: float = 0.02) -> dict[str, Tensor]:
    """The same by a loop over the tokens of rows that are read alone, as the formulas stand in the papers."""
    settings = config(folder, model, kind)
    actor = actor_of(plan(folder, model, kind), stirred=True)
    batch = episodes(actor)
    for _ in range(steps):
        actor.zero_grad()
        for row in [row for row in range(8) if row != UNSCORED]:
            text, tokens = texts_of([PROMPTS[row]], [RESPONSES[row]]), range(len(RESPONSES[row]))
            ratios = (ask(actor, "policy", text, TEMPERATURE)[0] - batch.logprobs[row, : len(tokens)]).exp()
            gains = batch.advantages[row]
            policy = sum(torch.max(-gains[t] * ratios[t], -gains[t] * ratios[t].clamp(0.8, 1.2)) for t in tokens)
            (policy / batch.mask.sum()).backward()
            values, old, wanted = ask(actor, "value", text)[0], batch.values[row], batch.returns[row]
            near = [old[t] + (values[t] - old[t]).clamp(-0.2, 0.2) for t in tokens]
            value = sum(torch.max((values[t] - wanted[t]) ** 2, (near[t] - wanted[t]) ** 2) for t in tokens)
            (settings.vf_coef * 0.5 * value / batch.mask.sum()).backward()
        with torch.no_grad():
            for parameter in actor.trained():
                if parameter.grad is not None:
                    parameter -= rate * parameter.grad
    return weights_of(actor)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_the_formulas_token_by_token(tmp_path: Path, tiny: Path, kind: Kind) -> None:
    expected = plain_steps(tmp_path, tiny, kind, 2)
    found, _ = step(tmp_path, tiny, kind, num_ppo_epochs=2, rate=0.02)
    before = weights_of(actor_of(plan(tmp_path, tiny, kind), stirred=True))
    assert furthest(expected, before) > 1e-2
    assert furthest(found, expected) < 2e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_micro_batches_and_recomputing_change_nothing(tmp_path: Path, tiny: Path, kind: Kind) -> None:
    more = {"num_ppo_epochs": 2, "num_mini_batches": 2, "max_grad_norm": 0.3}
    whole, figures = step(tmp_path, tiny, kind, per_device_train_batch_size=8, **more)
    before = weights_of(actor_of(plan(tmp_path, tiny, kind), stirred=True))
    assert furthest(whole, before) > 1e-3
    assert figures["grad_norm"] > 0.3
    for size in (1, 3, 8):
        for checkpointing in (False, True):
            found, same = step(
                tmp_path, tiny, kind, per_device_train_batch_size=size, gradient_checkpointing=checkpointing, **more
            )
            assert furthest(found, whole) < 1e-6
            assert same == pytest.approx(figures, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_learned_from_as_if_an_unscored_episode_were_not_there(
    tmp_path: Path, tiny: Path, kind: Kind
) -> None:
    found, figures = step(tmp_path, tiny, kind)
    without, same = step(tmp_path, tiny, kind, rows=[row for row in range(8) if row != UNSCORED])
    assert furthest(found, without) < 1e-6
    assert figures == pytest.approx(same, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_trained_moves(tmp_path: Path, tiny: Path, kind: Kind) -> None:
    before = weights_of(actor_of(plan(tmp_path, tiny, kind), stirred=True))
    for settings, still in [({"vf_coef": 0.0}, "value"), ({}, "none")]:
        found, _ = step(tmp_path, tiny, kind, **settings)
        moved = {name for name, weight in found.items() if not torch.equal(weight, before[name])}
        policy, values = (".default.", ".value.") if kind.startswith("lora") else ("policy.", "backbone.")
        expected = {name for name in before if policy in name}
        if still == "none":
            expected |= {name for name in before if values in name or name.startswith("head.")}
        assert moved == expected


def test_mini_batches_hold_each_episode_once_an_epoch_in_ever_other_orders(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan(tmp_path, tiny, num_mini_batches=4, num_ppo_epochs=3, temperature=TEMPERATURE)
    seen: list[list[list[int]]] = []
    for number in (1, 1, 2):
        actor = actor_of(planned)
        batch = episodes(actor)
        optimizer = torch.optim.SGD(actor.trained(), lr=0.0)
        rows: list[list[int]] = [[]]
        read = actor.forward

        def noting(role: Any, texts: Any, *rest: Any, rows: Any = rows, read: Any = read) -> Any:
            if role == "policy":
                rows[-1] += [PROMPTS.index(ids[mask].tolist()[:size]) for ids, mask, size in lengths(texts)]
            return read(role, texts, *rest)

        monkeypatch.setattr(actor, "forward", noting)
        optimizer.register_step_pre_hook(lambda *_, rows=rows: rows.append([]))
        optimise(actor, optimizer, batch, planned.config, Accelerator(cpu=True), number)
        assert rows.pop() == []
        assert [len(part) for part in rows] == [2] * 12
        for epoch in range(3):
            assert sorted(row for part in rows[4 * epoch : 4 * epoch + 4] for row in part) == list(range(8))
        seen.append(rows)
    assert seen[0] == seen[1] != seen[2]
    assert seen[0][:4] != seen[0][4:8]


def lengths(texts: Any) -> Any:
    """Each row of a batch with the length of its prompt."""
    sizes = texts.mask[:, : texts.width].sum(-1).tolist()
    return zip(texts.input_ids, texts.mask, sizes, strict=True)


def test_figures_by_hand(tmp_path: Path, tiny: Path) -> None:
    """A policy that has moved by a factor of two for the better: e^new = 2 e^old in all tokens."""
    planned = plan(tmp_path, tiny, num_ppo_epochs=1, temperature=TEMPERATURE)
    actor = actor_of(planned, stirred=True)
    batch = episodes(actor, aged=False)
    ones = torch.ones_like(batch.values)
    batch = replace(
        batch,
        logprobs=batch.logprobs - math.log(2),
        advantages=ones,
        values=batch.values - 1,
        returns=batch.values + 2,  # 3 above the old value, 2 above the new, 2.8 above where it is clipped
    )
    optimizer = torch.optim.SGD(actor.trained(), lr=0.0)
    entropy = actor("policy", batch.texts, TEMPERATURE).entropies[batch.mask].mean()
    figures = optimise(actor, optimizer, batch, planned.config, Accelerator(cpu=True), 1)
    expected = {
        "ratio": 2.0,
        "first_ratio_error": 1.0,
        "policy_loss": -1.2,
        "clip_fraction": 1.0,
        "approx_kl": 2 - 1 - math.log(2),
        "value_loss": 2.8**2 / 2,
        "value_clip_fraction": 1.0,
        "entropy": float(entropy),
        "surprise_gap": float(-batch.logprobs[batch.mask].mean() - entropy),
        "grad_norm": 0.0,
    }
    assert figures == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_first_ratio_is_that_before_any_step(tmp_path: Path, tiny: Path) -> None:
    settings: Any = {"num_ppo_epochs": 3, "num_mini_batches": 4, "rate": 1.0, "per_device_train_batch_size": 1}
    _, figures = step(tmp_path, tiny, "full", aged=False, **settings)
    assert figures["first_ratio_error"] < 1e-4
    assert abs(figures["ratio"] - 1) > 0.01


def test_a_first_mini_batch_without_scores_has_no_first_ratio(tmp_path: Path, tiny: Path) -> None:
    planned = plan(tmp_path, tiny, num_mini_batches=8, num_ppo_epochs=1, temperature=TEMPERATURE)
    actor = actor_of(planned)
    batch = episodes(actor)
    found = []
    for row in range(8):
        mask = batch.texts.response_mask.clone()
        mask[row] = False
        optimizer = torch.optim.SGD(actor.trained(), lr=0.0)
        figures = optimise(actor, optimizer, replace(batch, mask=mask), planned.config, Accelerator(cpu=True), 1)
        assert all(math.isfinite(value) for value in figures.values())
        found.append("first_ratio_error" in figures)
    assert sorted(found) == [False, *[True] * 7]


def test_gradients_that_are_not_finite_change_no_weights(tmp_path: Path, tiny: Path) -> None:
    planned = plan(tmp_path, tiny, num_mini_batches=1, num_ppo_epochs=1, temperature=TEMPERATURE)
    actor = actor_of(planned)
    batch = episodes(actor)
    batch.advantages[batch.mask] = float("inf")
    before = weights_of(actor)
    optimizer = torch.optim.AdamW(actor.trained(), lr=0.1)
    with pytest.raises(
        StageError, match=r"the gradients of step 7 are not finite, .*; start anew with a lower learning"
    ):
        optimise(actor, optimizer, batch, planned.config, Accelerator(cpu=True), 7)
    assert furthest(weights_of(actor), before) == 0


def test_gradients_are_cut_to_their_norm_together(tmp_path: Path, tiny: Path) -> None:
    before = weights_of(actor_of(plan(tmp_path, tiny), stirred=True))
    free, figures = step(tmp_path, tiny, "lora")
    cut, same = step(tmp_path, tiny, "lora", max_grad_norm=figures["grad_norm"] / 4)
    assert same["grad_norm"] == pytest.approx(figures["grad_norm"], rel=1e-5)
    squares = sum(float((weight - before[name]).square().sum()) for name, weight in free.items())
    assert (squares**0.5) / 0.1 == pytest.approx(figures["grad_norm"], rel=1e-3)
    for name, weight in free.items():
        torch.testing.assert_close(4 * (cut[name] - before[name]), weight - before[name], rtol=1e-3, atol=2e-6)


def test_a_limit_of_0_leaves_gradients_as_they_are(tmp_path: Path, tiny: Path) -> None:
    before = weights_of(actor_of(plan(tmp_path, tiny), stirred=True))
    free, figures = step(tmp_path, tiny, "lora", max_grad_norm=1e6)
    found, same = step(tmp_path, tiny, "lora", max_grad_norm=0)
    assert furthest(free, before) > 1e-3
    assert furthest(found, free) == 0
    assert same == figures


def test_all_that_an_update_makes_is_on_the_device_of_its_episodes(tmp_path: Path, tiny: Path) -> None:
    """As on a GPU, where a tensor that is made without a device lies elsewhere than weights and episodes."""
    planned = plan(tmp_path, tiny, num_mini_batches=2, num_ppo_epochs=2, temperature=TEMPERATURE)
    actor = actor_of(planned)
    batch, optimizer = episodes(actor), torch.optim.AdamW(actor.trained())
    with torch.device("meta"):
        figures = optimise(actor, optimizer, batch, planned.config, Accelerator(cpu=True), 1)
    assert figures["grad_norm"] > 0
