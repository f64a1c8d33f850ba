"""Which tokens spell a choice, on a hand-written vocabulary and on the default model's."""

import pytest

from cai.engines.choices import choice_tokens, spelled_choice
from cai.errors import EngineError

AB = ("A", "B")


@pytest.mark.parametrize("text", ["A", " A", "(A", "A)", " (A", "**A", '"A"', "▁A", "\nA", "A.", "[A]", "“A”"])
def test_an_option_may_come_in_brackets_quotes_and_space(text: str) -> None:
    assert spelled_choice(text, AB) == 0


@pytest.mark.parametrize("text", ["a", " a", "AB", "An", "-A", "A-", "", " ", "C", "A B", "AA"])
def test_other_texts_are_no_option(text: str) -> None:
    assert spelled_choice(text, AB) is None


def test_words_count_in_any_case() -> None:
    assert [spelled_choice(text, ("Yes", "No")) for text in ("YES", " yes.", "no", "Nope", "y", "know")] == [
        0,
        0,
        1,
        None,
        None,
        None,
    ]


def test_every_spelling_is_found_by_its_id() -> None:
    vocabulary = ["<s>", "A", "a", " A", "B", "(B", "An", "ab"]
    assert choice_tokens(vocabulary, AB) == ((1, 3), (4, 5))


def test_a_vocabulary_that_splits_an_option_is_refused() -> None:
    with pytest.raises(EngineError, match=r"splits the option 'B' into several tokens.*another judge"):
        choice_tokens(["A", " A", "b", "C"], AB)


def test_a_number_that_begins_with_another_may_have_no_token() -> None:
    assert choice_tokens(["1", "2", "0"], ("1", "2", "10")) == ((0,), (1,), ())
