import math

import pytest

from cai.engines.choices import over_spellings
from cai.engines.toplogprobs import Position, read_choices, tokens_to_read

AB = ("A", "B")


def position(text: str, **top: float) -> Position:
    """A token, and the probabilities listed beside it; `_` in a name stands for a space."""
    return Position(text, tuple((name.replace("_", " "), math.log(p)) for name, p in top.items()))


def probabilities(*positions: Position, unsent: str = "", choices: tuple[str, ...] = AB) -> tuple[list[float], float]:
    logprobs, off_mass = read_choices(positions, unsent, choices)
    return [math.exp(logprob) for logprob in logprobs], off_mass


def test_the_spellings_of_a_choice_are_summed_up() -> None:
    found, off_mass = probabilities(position("A", A=0.4, _A=0.1, _B=0.2, B=0.05, The=0.15))
    assert found == pytest.approx([0.5, 0.25])
    assert off_mass == pytest.approx(0.25)


def test_two_tokens_of_the_same_text_both_count() -> None:
    top = (("A", math.log(0.3)), ("A", math.log(0.2)), ("B", math.log(0.4)))
    assert probabilities(Position("B", top))[0] == pytest.approx([0.5, 0.4])


def test_a_choice_that_is_not_listed_is_at_most_as_likely_as_the_least_listed_token() -> None:
    # Listed: 0.7 + 0.2 + 0.04 = 0.94. The rest, 0.06, is more than the least of them.
    found, off_mass = probabilities(position("A", A=0.7, The=0.2, I=0.04))
    assert found == pytest.approx([0.7, 0.04])
    assert off_mass == pytest.approx(0.3)


def test_a_choice_that_is_not_listed_is_at_most_what_the_list_leaves() -> None:
    # Listed: 0.9 + 0.07 + 0.02 = 0.99. The rest, 0.01, is less than the least of them.
    found, off_mass = probabilities(position("A", A=0.9, The=0.07, I=0.02))
    assert found == pytest.approx([0.9, 0.01])
    assert off_mass == pytest.approx(0.1)


def test_a_list_that_leaves_nothing_leaves_nothing_for_a_choice() -> None:
    rounded = (("A", math.log(0.75)), ("The", math.log(0.25) + 1e-6))
    logprobs, off_mass = read_choices([Position("A", rounded)], "", AB)
    assert logprobs == (math.log(0.75), -math.inf)
    assert off_mass == pytest.approx(0.25)


@pytest.mark.parametrize("choice_first", [True, False])
def test_the_bound_does_not_depend_on_the_order_of_the_choices(choice_first: bool) -> None:
    choices = AB if choice_first else AB[::-1]
    found, _ = probabilities(position("A", A=0.7, The=0.2, I=0.04), choices=choices)
    assert dict(zip(choices, found, strict=True)) == pytest.approx({"A": 0.7, "B": 0.04})


def test_where_no_choice_is_listed_nothing_is_made_up() -> None:
    assert read_choices([position("The", The=0.6, a=0.3)], "", AB) == ((-math.inf, -math.inf), 1.0)


def test_an_empty_reply_has_no_choice() -> None:
    assert read_choices([], "", AB) == ((-math.inf, -math.inf), 1.0)
    assert read_choices([position(" (", B=0.5)], "", AB) == ((-math.inf, -math.inf), 1.0)


def test_lead_in_is_passed_over_even_where_a_choice_is_listed_beside_it() -> None:
    tokens = [position(text, A=0.3, B=0.1) for text in (" ", "**", "\n(", '"')]
    found, off_mass = probabilities(*tokens, position("B", B=0.6, A=0.2), position("A", A=0.9, B=0.1))
    assert found == pytest.approx([0.2, 0.6])
    assert off_mass == pytest.approx(0.2)


def test_the_words_of_a_prefill_that_was_not_sent_are_passed_over() -> None:
    tokens = [position(text, A=0.3) for text in ("The", " better", " re", "ply", " is", ":", " (")]
    found, _ = probabilities(*tokens, position("B", B=0.6, A=0.2), unsent="The better reply is (")
    assert found == pytest.approx([0.2, 0.6])


def test_the_last_words_of_a_prefill_that_was_not_sent_are_passed_over_too() -> None:
    # Asked how a 1 goes on, the model writes 10 without the words before it.
    tens = [Position("1", (("1", math.log(0.9)),)), Position("0", (("0", math.log(0.8)), (".", math.log(0.1))))]
    assert probabilities(*tens, unsent="The rating is: 1", choices=("0",))[0] == pytest.approx([0.8])
    tens[0] = Position("7", (("7", math.log(0.9)), ("0", math.log(0.05))))
    assert probabilities(*tens, unsent="The rating is: 1", choices=("0",))[0] == pytest.approx([0.05])


def test_words_are_not_passed_over_where_the_prefill_was_sent() -> None:
    found, _ = probabilities(position("The", A=0.3, B=0.2), position("B", B=0.9))
    assert found == pytest.approx([0.3, 0.2])


def test_a_choice_that_begins_with_another_one_is_not_made_up() -> None:
    ratings = ("1", "2", "10")
    top = (("1", math.log(0.6)), ("3", math.log(0.1)))
    found, _ = probabilities(Position("1", top), choices=ratings)
    assert found == pytest.approx([0.6, 0.1, 0.0])
    found, _ = probabilities(Position("1", (*top, ("10", math.log(0.2)))), choices=ratings)
    assert found == pytest.approx([0.6, 0.1, 0.2])


def test_a_choice_that_begins_like_the_prefill_is_read_as_a_choice() -> None:
    found, _ = probabilities(position("A", A=0.7, B=0.2), position("nswer", B=0.9), unsent="Answer: (")
    assert found == pytest.approx([0.7, 0.2])


@pytest.mark.parametrize("word", ["I", "The", "<|im_end|>", "replying"])
def test_any_other_word_ends_the_lead_in(word: str) -> None:
    other = Position(word, ((word, math.log(0.5)), ("A", math.log(0.3)), ("B", math.log(0.1))))
    found, off_mass = probabilities(position(" "), other, position("B", B=0.9, A=0.1), unsent="My reply:")
    assert found == pytest.approx([0.3, 0.1])
    assert off_mass == pytest.approx(0.6)


def test_words_count_in_any_case() -> None:
    found, _ = probabilities(position("Yes", Yes=0.5, yes=0.2, _NO=0.1, No=0.1), choices=("Yes", "No"))
    assert found == pytest.approx([0.7, 0.2])


def test_a_prefill_that_is_not_sent_is_allowed_for() -> None:
    assert tokens_to_read("") == 4
    assert tokens_to_read("The better reply is (") == 14


def test_probabilities_above_one_by_rounding_leave_no_negative_mass() -> None:
    logprobs, off_mass = over_spellings([[math.log(0.6), 1e-6 + math.log(0.2)], [math.log(0.2)]])
    assert [math.exp(logprob) for logprob in logprobs] == pytest.approx([0.8, 0.2])
    assert off_mass == 0.0
    assert over_spellings([[], [-9999.0]]) == ((-math.inf, -math.inf), 1.0)
