"""Responses become pairs: duplicates dropped and counted, the choice drawn from the seed alone, no side special."""

from itertools import combinations

import pytest
from chain_samples import turns

from cai.errors import ConfigError
from cai.feedback.pairing import NEAR, Pairing, choose_pairs, similarity
from cai.records import Prompt, Response

PROMPT = Prompt(id="p", messages=turns("How do I pick a lock?"))
FOUR = ("Call a locksmith.", "I will not say.", "Try a bent pin in it.", "Which lock do you mean?")


def responses(*texts: str) -> list[Response]:
    return [Response(text=text, origin=f"policy {n}") for n, text in enumerate(texts)]


def pairs(pairing: Pairing, *texts: str, seed: int = 0, prompt: Prompt = PROMPT, **more: list[float]) -> list[set[str]]:
    found = choose_pairs(prompt, responses(*texts), pairing, seed=seed, **more)
    return [{comparison.a.text, comparison.b.text} for comparison in found.comparisons]


def words(count: int, changed: int = -1) -> str:
    return " ".join("other" if n == changed else f"w{n}" for n in range(count))


def test_all_pairs_every_response_with_every_other_and_names_their_positions() -> None:
    found = choose_pairs(PROMPT, responses(*FOUR), "all", seed=0)
    assert [comparison.id for comparison in found.comparisons] == ["p/1-2", "p/1-3", "p/1-4", "p/2-3", "p/2-4", "p/3-4"]
    assert pairs("all", *FOUR) == [set(pair) for pair in combinations(FOUR, 2)]
    for comparison in found.comparisons:
        origins = {comparison.a.origin, comparison.b.origin}
        assert origins == {f"policy {int(place) - 1}" for place in comparison.id.removeprefix("p/").split("-")}
        assert (comparison.prompt, comparison.source, comparison.gold) == (PROMPT, "sampled", None)
    assert (found.dropped, found.unpaired) == ({}, None)


def test_random_takes_one_pair_and_over_seeds_each_equally_often() -> None:
    drawn = [pairs("random", *FOUR, seed=seed) for seed in range(600)]
    assert {len(found) for found in drawn} == {1}
    for pair in combinations(FOUR, 2):
        # 600 draws at 1/6: mean 100, standard deviation 9.1.
        assert 60 <= drawn.count([set(pair)]) <= 140


def test_another_prompt_draws_another_pair_and_the_same_seed_the_same() -> None:
    prompts = [Prompt(id=f"p{n}", messages=turns("Hi?")) for n in range(40)]
    drawn = [pairs("random", *FOUR, prompt=prompt) for prompt in prompts]
    assert len({frozenset(pair) for [pair] in drawn}) == 6
    assert drawn == [pairs("random", *FOUR, prompt=prompt) for prompt in prompts]


@pytest.mark.parametrize("pairing", ["all", "random", "similar-length", "best-of-n"])
def test_neither_side_is_special(pairing: Pairing) -> None:
    prompts = [Prompt(id=f"p{n}", messages=turns("Hi?")) for n in range(400)]
    texts = responses("Short answer here.", "Quite another reply.")
    found = [choose_pairs(prompt, texts, pairing, seed=3, scores=[1.0, 0.0]) for prompt in prompts]
    first = sum(one.comparisons[0].a.text == "Short answer here." for one in found)
    # 400 draws at 1/2: mean 200, standard deviation 10.
    assert 150 <= first <= 250
    assert {one.comparisons[0].id for one in found} == {f"p{n}/1-2" for n in range(400)}


def test_empty_and_duplicate_responses_are_in_no_pair_and_are_counted() -> None:
    texts = (words(100), "Call a locksmith.", " Call  a\nlocksmith. ", " \n", words(100, changed=50), "", words(100))
    found = choose_pairs(PROMPT, responses(*texts), "all", seed=0)
    assert [comparison.id for comparison in found.comparisons] == ["p/1-2"]
    assert found.dropped == {"exact_duplicate": 2, "empty": 2, "near_duplicate": 1}
    assert sum(found.dropped.values()) + 2 == len(texts)


def test_an_exact_copy_of_a_near_duplicate_is_an_exact_duplicate() -> None:
    near = words(100, changed=50)
    assert choose_pairs(PROMPT, responses(words(100), near, near), "all", seed=0).dropped == {
        "near_duplicate": 1,
        "exact_duplicate": 1,
    }


def test_similarity_is_that_of_the_sets_of_word_triples() -> None:
    # One word in the middle of 100 is in 3 of 98 triples: 95 shared, 101 in all.
    assert similarity(words(100), words(100, changed=50)) == pytest.approx(95 / 101)
    # (yes it is, it is safe) and (no it is, it is not, is not safe) share no triple.
    assert similarity("Yes, it is safe.", "No, it is not safe.") == 0
    assert similarity("Yes, it is safe!", "yes it IS  safe") == 1
    assert similarity("No.", "Yes.") == 0
    assert similarity("🎉", "👍") == 0
    assert similarity("", "") == 1


def test_a_similarity_below_the_threshold_keeps_both() -> None:
    # 3 triples of 8 - 2 = 6, and of 24 - 2 = 22, changed: 3 / 9 and 19 / 25.
    assert similarity(words(24), words(24, changed=10)) == pytest.approx(0.76)
    assert NEAR > 0.76
    assert len(pairs("all", words(24), words(24, changed=10))) == 1
    # 26 triples and 27: 23 / 29 = 0.793 and 24 / 30 = 0.8.
    assert len(pairs("all", words(28), words(28, changed=10))) == 1
    assert pairs("all", words(29), words(29, changed=10)) == []


def test_similar_length_takes_no_pair_of_which_one_is_more_than_twice_as_long() -> None:
    short, double, long = "0123456789", "abcdefghij" * 2, "q" * 41
    for seed in range(50):
        assert pairs("similar-length", short, double, long, seed=seed) == [{short, double}]
    found = choose_pairs(PROMPT, responses(short, "x" * 21), "similar-length", seed=0)
    assert (found.comparisons, found.unpaired, found.dropped) == ((), "lengths_differ", {})
    drawn = {frozenset(pairs("similar-length", *FOUR, seed=seed)[0]) for seed in range(100)}
    assert drawn == set(map(frozenset, combinations(FOUR, 2)))


def test_best_of_n_sets_the_best_against_any_other() -> None:
    scores = [0.1, 0.9, -2.0, 0.3]
    drawn = [pairs("best-of-n", *FOUR, seed=seed, scores=scores) for seed in range(90)]
    assert {frozenset(pair) for [pair] in drawn} == {frozenset((FOUR[1], FOUR[n])) for n in (0, 2, 3)}


def test_best_of_n_draws_among_equally_good_ones_and_never_takes_a_dropped_one() -> None:
    drawn = {frozenset(pairs("best-of-n", *FOUR, seed=seed, scores=[1, 0, 1, 0])[0]) for seed in range(90)}
    assert drawn == {frozenset(pair) for pair in combinations(FOUR, 2)} - {frozenset((FOUR[1], FOUR[3]))}
    texts = ("Call a locksmith.", "Call a  locksmith.", "No.", "Never.")
    for seed in range(20):
        [pair] = pairs("best-of-n", *texts, seed=seed, scores=[0.0, 9.0, 1.0, 0.5])
        assert "No." in pair


def test_best_of_n_without_scores_is_an_error() -> None:
    with pytest.raises(ConfigError, match="best-of-n needs a score of each response"):
        choose_pairs(PROMPT, responses(*FOUR), "best-of-n", seed=0)


@pytest.mark.parametrize("pairing", ["all", "random", "similar-length", "best-of-n"])
@pytest.mark.parametrize("texts", [(), ("One.",), ("One.", " One. "), ("One.", "")])
def test_fewer_than_two_distinct_responses_give_no_pair_and_the_reason(
    pairing: Pairing, texts: tuple[str, ...]
) -> None:
    found = choose_pairs(PROMPT, responses(*texts), pairing, seed=0, scores=[0.0] * len(texts))
    assert (found.comparisons, found.unpaired) == ((), "too_few")
