"""The evaluation of a reward model: figures by hand, planted truths, invariances, files."""

import io
import json
import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cai.errors import RunDirError, StageError
from cai.statistics import Mean, clustered_mean
from cai.train.evaluation import RewardEvaluation, ScoredPairs, SourceEvaluation, evaluate_rewards
from cai.train.evaluation_files import draw_evaluation, render_evaluation, write_evaluation


def by_hand(**changes: Any) -> ScoredPairs:
    """Pairs of the prompts A A B B C: right, wrong, equal rewards, tie of the label, right for `rejected`."""
    known: dict[str, Any] = {
        "chosen": np.array([2.0, 0.0, 1.0, 0.5, 0.0]),
        "rejected": np.array([0.0, 1.0, 1.0, 0.0, 3.0]),
        "p_chosen": np.array([0.9, 0.6, 1.0, 0.5, 0.2]),
        "chosen_length": np.array([10.0, 4.0, 5.0, 3.0, 9.0]),
        "rejected_length": np.array([5.0, 8.0, 5.0, 9.0, 2.0]),
        "clusters": np.array(["A", "A", "B", "B", "C"]),
        "sources": np.full(5, "ai"),
    }
    return ScoredPairs(**known | changes)


def planted(
    delta: np.ndarray, p_chosen: np.ndarray, longer: np.ndarray | None = None, source: str = "ai", prompts: int = 0
) -> ScoredPairs:
    """Pairs with these differences of rewards and lengths (n,); a prompt each, or `prompts` in turn."""
    n = len(delta)
    return ScoredPairs(
        chosen=delta + 7.0,
        rejected=np.full(n, 7.0),
        p_chosen=p_chosen,
        chosen_length=100.0 + (np.zeros(n) if longer is None else longer),
        rejected_length=np.full(n, 100.0),
        clusters=np.arange(n) % (prompts or n),
        sources=np.full(n, source),
    )


def evaluate(pairs: ScoredPairs, name: str = "held.jsonl") -> RewardEvaluation:
    return evaluate_rewards(pairs, seed=3, name=name)


def only(pairs: ScoredPairs) -> SourceEvaluation:
    (found,) = evaluate(pairs).sources
    return found


def value(mean: Mean | None) -> float:
    assert mean is not None
    return mean.value


def sigma(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# Figures


def test_figures_by_hand() -> None:
    found = only(by_hand())
    assert (found.source, found.pairs, found.prompts, found.label_ties, found.reward_ties) == ("ai", 5, 3, 1, 1)
    # The fourth pair's label says nothing; the third's rewards are equal, and so are its lengths.
    assert value(found.accuracy) == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert value(found.margin) == pytest.approx((2 - 1 + 0 + 3) / 4)
    assert value(found.longer_wins) == pytest.approx((1 + 0 + 0.5 + 0) / 4)
    assert value(found.gain) == pytest.approx(0.25)
    assert value(found.longer_agreement) == pytest.approx((1 + 1 + 0.5 + 0) / 4)


def test_log_loss_and_its_least_value_by_hand() -> None:
    found = only(by_hand())
    terms = [
        -0.9 * math.log(sigma(2.0)) - 0.1 * math.log(sigma(-2.0)),
        -0.6 * math.log(sigma(-1.0)) - 0.4 * math.log(sigma(1.0)),
        math.log(2),
        -0.5 * math.log(sigma(0.5)) - 0.5 * math.log(sigma(-0.5)),
        -0.2 * math.log(sigma(-3.0)) - 0.8 * math.log(sigma(3.0)),
    ]
    assert found.log_loss.value == pytest.approx(sum(terms) / 5)
    entropies = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.9, 0.6, 0.5, 0.2)]
    assert found.label_entropy == pytest.approx(sum(entropies) / 5)  # the third label, 1, adds 0


def test_calibration_by_hand() -> None:
    # Confidence σ(|Δ|); correctness is the label's probability of the side with the higher reward, the tie's included.
    confidence = sigma(np.array([0.0, 0.5, 1.0, 2.0, 3.0]))
    correct = np.array([0.5, 0.5, 0.4, 0.9, 0.8])
    found = only(by_hand())
    assert [bin_.count for bin_ in found.reliability] == [1] * 5
    assert [bin_.confidence for bin_ in found.reliability] == pytest.approx(list(confidence))
    assert [bin_.accuracy.value for bin_ in found.reliability] == pytest.approx(list(correct))
    assert found.ece == pytest.approx(np.abs(confidence - correct).mean())


def test_length_correlation_by_hand() -> None:
    # Rewards ±2 ±1 0 0 ±0.5 ±3, lengths ±5 ±4 0 0 ±6 ±7. Ranks less their mean, first order only: 3.5 -2.5 0 1.5 -4.5
    # and 2.5 -1.5 0 -3.5 4.5. Sum of products -13, of squares 41 and 41.
    assert only(by_hand()).length_correlation == pytest.approx(-13 / 41)


def test_a_model_that_rewards_length_is_seen_through_labels_that_prefer_it() -> None:
    # `chosen` is always the longer one and always wins: within one order the two differences are unrelated.
    random = np.random.default_rng(0)
    pairs = planted(random.uniform(1, 2, 300), np.ones(300), random.uniform(10, 20, 300))
    found = only(pairs).length_correlation
    assert found is not None
    assert found > 0.7


def test_which_response_is_called_chosen_does_not_matter() -> None:
    random = np.random.default_rng(1)
    pairs = planted(random.normal(size=80), random.uniform(size=80), random.integers(-5, 5, 80) * 1.0, prompts=20)
    flip = random.uniform(size=80) < 0.5
    turned = replace(
        pairs,
        chosen=np.where(flip, pairs.rejected, pairs.chosen),
        rejected=np.where(flip, pairs.chosen, pairs.rejected),
        p_chosen=np.where(flip, 1 - pairs.p_chosen, pairs.p_chosen),
        chosen_length=np.where(flip, pairs.rejected_length, pairs.chosen_length),
        rejected_length=np.where(flip, pairs.chosen_length, pairs.rejected_length),
    )
    one, other = only(pairs).model_dump(), only(turned).model_dump()
    for name in one.keys() - {"reliability"}:
        assert one[name] == pytest.approx(other[name]), name
    assert [bin_["count"] for bin_ in one["reliability"]] == [bin_["count"] for bin_ in other["reliability"]]


# Planted truths


def test_a_model_that_says_the_labels_is_calibrated_and_has_the_least_loss() -> None:
    delta = np.random.default_rng(2).normal(scale=1.5, size=2_000)
    found = only(planted(delta, sigma(delta)))
    assert found.ece == pytest.approx(0.0, abs=1e-9)
    assert found.log_loss.value == pytest.approx(found.label_entropy)
    assert value(found.accuracy) == 1.0  # it always prefers what the label prefers, however slightly that does
    for scale in (0.5, 2.0):
        other = only(planted(scale * delta, sigma(delta)))
        assert other.ece > 0.05
        assert other.log_loss.value > found.log_loss.value + 0.02
        assert other.label_entropy == found.label_entropy


def test_soft_labels_stand_for_hard_ones_drawn_by_them() -> None:
    random = np.random.default_rng(4)
    truth = random.normal(scale=1.5, size=40_000)
    hard = (random.uniform(size=40_000) < sigma(truth)).astype(float)
    soft_found = only(planted(2 * truth, sigma(truth), prompts=100))
    hard_found = only(planted(2 * truth, hard, prompts=100))
    assert hard_found.ece == pytest.approx(soft_found.ece, abs=0.005)
    assert hard_found.log_loss.value == pytest.approx(soft_found.log_loss.value, abs=0.01)
    for one, other in zip(soft_found.reliability, hard_found.reliability, strict=True):
        assert one.accuracy.value == pytest.approx(other.accuracy.value, abs=0.04)
    assert hard_found.label_entropy == 0.0


def test_equal_rewards_are_chance() -> None:
    found = only(planted(np.zeros(50), np.full(50, 0.8), np.full(50, 9.0)))
    assert found.log_loss.value == pytest.approx(math.log(2)) == evaluate(by_hand()).chance_log_loss
    assert (value(found.accuracy), found.reward_ties, found.beats_chance) == (0.5, 50, False)
    assert (value(found.longer_wins), value(found.longer_agreement)) == (1.0, 0.5)
    assert found.length_correlation is None


@pytest.mark.parametrize(("right", "beats"), [(0.5, False), (0.55, False), (0.7, True), (0.3, False)])
def test_better_than_chance_needs_an_interval_above_it(right: float, beats: bool) -> None:
    delta = np.where(np.arange(200) < 200 * right, 1.0, -1.0)
    found = only(planted(delta, np.ones(200)))
    assert found.beats_chance is beats
    assert found.accuracy is not None
    assert found.accuracy.high - found.accuracy.low == pytest.approx(
        2 * 1.96 * math.sqrt(right * (1 - right) / 200), rel=0.1
    )


def test_a_model_that_only_knows_length_beats_chance_and_not_length() -> None:
    longer = np.where(np.arange(200) < 160, 9.0, -9.0)
    found = only(planted(longer / 10, np.ones(200), longer))
    assert (found.beats_chance, found.beats_length) == (True, False)
    assert (value(found.gain), value(found.longer_agreement)) == (0.0, 1.0)


def test_the_difference_from_length_is_paired() -> None:
    # Both are right on the same 150 of 200 pairs, the model on 8 more: unpaired, the intervals would overlap widely.
    order = np.arange(200)
    delta, longer = np.where(order < 158, 1.0, -1.0), np.where(order < 150, 9.0, -9.0)
    found = only(planted(delta, np.ones(200), longer))
    assert found.accuracy is not None
    assert found.longer_wins is not None
    assert found.beats_length
    assert found.accuracy.low < found.longer_wins.high
    assert found.gain == clustered_mean((delta > 0) * 1.0 - (longer > 0), order, seed=3, bounds=(-1, 1))


def test_a_difference_from_length_that_may_be_chance_is_none() -> None:
    # Of 200 pairs, 40 are right by the rewards alone and 36 by length alone.
    order = np.arange(200)
    delta, longer = np.where(order >= 36, 1.0, -1.0), np.where((order < 36) | (order >= 76), 9.0, -9.0)
    found = only(planted(delta, np.ones(200), longer))
    assert value(found.gain) == pytest.approx(0.02)
    assert not found.beats_length


def test_a_model_that_is_worse_than_length_does_not_beat_it() -> None:
    longer = np.where(np.arange(200) < 180, 9.0, -9.0)
    found = only(planted(np.where(np.arange(200) < 120, 1.0, -1.0), np.ones(200), longer))
    assert (found.beats_chance, found.beats_length) == (True, False)
    assert found.gain is not None
    assert found.gain.high < 0


def test_pairs_of_one_prompt_are_drawn_together() -> None:
    right = np.random.default_rng(5).uniform(size=30) < 0.7
    delta = np.tile(np.where(right, 1.0, -1.0), 9)  # nine pairs a prompt, all right or all wrong
    together, apart = only(planted(delta, np.ones(270), prompts=30)), only(planted(delta, np.ones(270)))
    assert (together.prompts, apart.prompts) == (30, 270)
    for name in ("accuracy", "margin", "log_loss"):
        one, other = getattr(together, name), getattr(apart, name)
        assert (one.high - one.low) / (other.high - other.low) == pytest.approx(3.0, rel=0.15), name


# Sources


def joined(*parts: ScoredPairs) -> ScoredPairs:
    return ScoredPairs(
        *(np.concatenate(arrays) for arrays in zip(*(vars(part).values() for part in parts), strict=True))
    )


def test_each_source_is_measured_by_itself_and_all_together() -> None:
    random = np.random.default_rng(6)
    human = planted(random.normal(1.0, 1.0, 60), np.ones(60), source="human")
    ai = planted(random.normal(0.2, 1.0, 40), np.full(40, 0.8), source="ai")
    found = evaluate(joined(human, ai), name="hh-rlhf-harmless.jsonl")
    assert [(part.source, part.pairs, part.prompts) for part in found.sources] == [
        ("all", 100, 60),  # the prompts 0 to 39 occur in both
        ("ai", 40, 40),
        ("human", 60, 60),
    ]
    assert found.sources[1:] == (only(ai), only(human))
    shares = [value(part.accuracy) for part in found.sources]
    assert shares[0] == pytest.approx(0.4 * shares[1] + 0.6 * shares[2])
    assert "73% to 77%" in (found.human_ceiling or "")


def test_what_people_reach_says_nothing_of_labels_that_are_not_theirs() -> None:
    assert evaluate(by_hand(), name="hh-rlhf-harmless.jsonl").human_ceiling is None
    assert evaluate(by_hand(sources=np.full(5, "human")), name="mine.jsonl").human_ceiling is None


def test_labels_that_are_all_ties_leave_nothing_to_be_right_about() -> None:
    found = only(by_hand(p_chosen=np.full(5, 0.5)))
    assert (found.accuracy, found.margin, found.longer_wins, found.gain, found.longer_agreement) == (None,) * 5
    assert (found.label_ties, found.beats_chance, found.beats_length) == (5, False, False)
    assert found.label_entropy == pytest.approx(math.log(2))
    assert found.log_loss.value > found.label_entropy
    assert found.length_correlation == pytest.approx(-13 / 41)


# What cannot be measured


def test_without_pairs_there_is_nothing_to_measure() -> None:
    with pytest.raises(StageError, match=r"held\.jsonl has no pair"):
        evaluate(by_hand().where(np.full(5, False)))


@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_rewards_that_are_no_numbers_are_not_counted_as_wrong(side: str, broken: float) -> None:
    rewards = np.array([0.0, broken, 1.0, broken, 2.0])
    with pytest.raises(StageError, match=r"2 of 5 pairs of held\.jsonl have a reward that is not a finite number"):
        evaluate(by_hand(**{side: rewards}))


def test_no_source_can_pass_for_all() -> None:
    with pytest.raises(StageError, match="called `all`"):
        evaluate(by_hand(sources=np.array(["all", "ai", "ai", "ai", "ai"])))


@pytest.mark.parametrize("p", [1.1, -0.1, math.nan])
def test_a_label_that_is_no_probability_is_a_mistake(p: float) -> None:
    with pytest.raises(ValueError, match=r"not in \[0, 1\]"):
        by_hand(p_chosen=np.array([0.9, p, 1.0, 0.5, 0.2]))


def test_arrays_of_other_lengths_are_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"not one shape"):
        by_hand(chosen_length=np.ones(1))


def test_large_differences_neither_overflow_nor_hide_their_loss() -> None:
    found = only(planted(np.array([2_000.0, -2_000.0]), np.ones(2)))
    assert found.log_loss.value == pytest.approx(1_000.0)
    assert found.ece == pytest.approx(0.5)


# Files and screen


def test_an_evaluation_survives_its_file(tmp_path: Path) -> None:
    written = evaluate(joined(by_hand(), planted(np.ones(3), np.ones(3), source="human")), name="org/$set--1.jsonl")
    write_evaluation(written, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation.json", "reliability.svg", "reliability.png"}
    text = (tmp_path / "evaluation.json").read_text(encoding="utf-8")
    assert RewardEvaluation.model_validate_json(text) == written
    assert json.loads(text)["sources"][0]["accuracy"]["value"] == pytest.approx(5.5 / 7)
    svg = (tmp_path / "reliability.svg").read_bytes()
    assert ET.fromstring(svg).tag.endswith("svg")
    assert svg == draw_evaluation(written, "svg")
    for words in ("reward model on org/$set- -1.jsonl", "accuracy 78.6% (", "ECE 0.096", "expected correctness"):
        assert words in svg.decode(), words
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_one_prompt_has_no_interval_in_the_file_and_on_the_screen() -> None:
    found = evaluate(by_hand(clusters=np.full(5, "A")))
    (part,) = found.sources
    assert part.accuracy == Mean(value=0.625, low=0.0, high=1.0)
    assert part.gain == Mean(value=0.25, low=-1.0, high=1.0)
    assert (part.log_loss.low, part.log_loss.high) == (0.0, math.inf)
    text = found.model_dump_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert RewardEvaluation.model_validate_json(text) == found
    assert "1.000 (no interval)" in shown(found)  # the margin


def shown(evaluation: RewardEvaluation) -> str:
    console = Console(width=160, file=io.StringIO())
    with console.capture() as capture:
        console.print(render_evaluation(evaluation))
    return capture.get()


def test_the_table_has_a_column_for_each_source_and_intervals() -> None:
    random = np.random.default_rng(7)
    human = planted(np.where(np.arange(60) < 50, 1.0, -1.0), np.ones(60), random.integers(1, 9, 60), source="human")
    odd = planted(np.where(np.arange(40) < 5, 1.0, -1.0), np.full(40, 0.8), source="[bold]ai\x1b")
    found = evaluate(joined(human, odd), name="hh-rlhf.jsonl")
    lines = [line.split() for line in shown(found).splitlines()]
    assert lines[0] == ["labels", "all", "[bold]ai␛", "human"]
    by_name = {" ".join(words): line for line in shown(found).splitlines() if (words := line.split()[:1])}
    overall, low, high = found.sources[0].accuracy, found.sources[1].accuracy, found.sources[2].accuracy
    for mean in (overall, low, high):
        assert mean is not None
        assert f"{mean.value:.1%} ({mean.low:.1%} to {mean.high:.1%})" in by_name["accuracy"]
    above = next(line for line in shown(found).splitlines() if line.startswith("above chance, 50%"))
    assert " ".join(above.split()) == "above chance, 50% not clearly no, below yes"
    assert "0.693" in shown(found)
    assert "human ceiling: people agree" in shown(found)


def test_the_table_says_what_does_not_apply() -> None:
    text = shown(evaluate(planted(np.zeros(5), np.full(5, 0.5))))
    assert text.count("does not apply") == 8
    assert "human ceiling" not in text


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").mkdir()
    with pytest.raises(RunDirError, match=r"evaluation\.json cannot be written"):
        write_evaluation(evaluate(by_hand()), tmp_path)
