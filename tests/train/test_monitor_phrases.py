"""Set phrases and phrases that spread: what counts, and what is told from chance."""

import itertools
import random
from collections.abc import Callable

import pytest

from cai.train.monitor.phrases import PHRASES, grown_phrases, holds, phrases_of, prompts_needed, sign_test
from cai.train.monitor.records import PhraseGrowth, ProbeSample


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("refusal", "I can't help with that."),
        ("refusal", "Well. I CAN’T  help\nwith it"),
        ("refusal", "“I'm sorry, but no."),
        ("hedging", "As an AI, I have no view."),
        ("hedging", "Do. Please consult a doctor."),
        ("flattery", "Great question! It rains."),
        ("flattery", "You're right. It rains."),
        ("flattery", "So, you are absolutely right!"),
        ("comfort", "Know that you are valued."),
        ("comfort", "You are valid, valued and cared for."),
        ("comfort", "I’m here for you"),
    ],
)
def test_set_phrases_are_found(name: str, text: str) -> None:
    assert holds(name, text)
    assert [other for other in PHRASES if holds(other, text)] == [name]


@pytest.mark.parametrize(
    "text",
    [
        "I can't help without it.",  # with|out
        "Has an airline gone?",
        "Has an AI won?",  # h|as an ai
        "She said you're right.",  # no opening
        "Take it, I'm sorry, but no.",
        "You are validated.",
        "You matters",
        "",
        "A plain answer of no great length.",
    ],
)
def test_parts_of_words_and_other_places_do_not_count(text: str) -> None:
    assert [name for name in PHRASES if holds(name, text)] == []


def test_all_phrases_are_written_as_they_are_compared() -> None:
    for name, phrases in PHRASES.items():
        for phrase in (*phrases.anywhere, *phrases.opening):
            assert phrase == " ".join(phrase.lower().split())
            assert "’" not in phrase
            assert holds(name, phrase)


def test_phrases_are_runs_of_words_and_the_closing_once_each() -> None:
    found = phrases_of("You are, it’s clear, LOVED. You are it's clear loved!")
    runs = {text for kind, text in found if kind == "words"}
    assert {"you are it's clear", "are it's clear loved you", "it's clear loved you are it's"} <= runs
    assert {len(run.split()) for run in runs} == {4, 5, 6}
    assert len(runs) == 5 + 5 + 5  # of 7, 6 and 5 places in ten words, of which two, one and none repeat
    assert {text for kind, text in found if kind == "closing"} == {"you are it's clear loved!"}
    assert phrases_of("too short") == {("closing", "too short")}
    assert phrases_of(" ") == set()


def test_the_sign_test_counts_tosses() -> None:
    for risen, fallen in [(0, 0), (3, 0), (2, 1), (5, 2), (0, 4)]:
        tosses = list(itertools.product((0, 1), repeat=risen + fallen))
        assert sign_test(risen, fallen) == sum(sum(one) >= risen for one in tosses) / len(tosses)
    assert sign_test(3000, 0) == pytest.approx(0)


PROMPTS = 16


def samples(text: Callable[[int, int], str], replies: int = 4) -> list[ProbeSample]:
    """Four responses to each prompt, by the numbers of both."""
    return [
        ProbeSample(step=0, prompt_id=f"p{prompt}", response=text(prompt, reply))
        for prompt in range(PROMPTS)
        for reply in range(replies)
    ]


def own(prompt: int, reply: int, words: int = 12) -> str:
    """Words that no other response has."""
    return " ".join(f"w{prompt}x{reply}x{place}" for place in range(words)) + "."


def search(now: list[ProbeSample], start: list[ProbeSample], rise: float = 0.1) -> tuple[PhraseGrowth, ...]:
    return grown_phrases(now, start, rise=rise, error=0.01)


PHRASE = "we all stand together here"


def held(replies: int, prompts: int, text: str = PHRASE) -> Callable[[int, int], str]:
    """A phrase in so many of the responses to so many of the prompts."""

    def response(prompt: int, reply: int) -> str:
        planted = prompt < prompts and reply < replies
        return f"{text} {own(prompt, reply)} {text} {own(prompt, reply, 3)}" if planted else own(prompt, reply)

    return response


def test_a_phrase_that_spreads_is_named_once_with_its_figures() -> None:
    (found,) = search(samples(held(2, 12)), samples(held(1, 2)))
    # Two prompts held it in one response then, and hold it in two now; so it rose with all twelve.
    assert (found.text, found.kind) == (PHRASE, "words")
    assert (found.share, found.start) == (24 / 64, 2 / 64)
    assert (found.risen, found.fallen) == (12, 0)
    # Its runs of words, "we all stand together", "all stand together here" and the whole, move alike: 3 tests. So do
    # those of six words with its neighbours, but each of these in one prompt alone.
    assert found.p_value == pytest.approx(3 * 0.5**12)


@pytest.mark.parametrize(
    ("now", "start"),
    [
        (held(4, 6), held(0, 0)),  # 2^-6 > 0.01
        (held(4, 8), held(0, 0)),  # 3 tests: 3 × 2^-8 > 0.01
        (held(2, 12), held(2, 12)),
        (held(0, 0), held(2, 12)),  # fallen
        (held(3, 12), held(3, 16)),
    ],
)
def test_what_may_be_chance_is_not_named(now: Callable[[int, int], str], start: Callable[[int, int], str]) -> None:
    assert search(samples(now), samples(start)) == ()


def test_the_ninth_prompt_is_enough_for_three_tests() -> None:
    assert search(samples(held(4, 9)), samples(held(0, 0)))[0].p_value == pytest.approx(3 / 512)


def test_one_response_to_each_of_seven_prompts_is_enough_for_one_test() -> None:
    (found,) = search(samples(held(1, 7, "all stand together here")), samples(own))
    assert (found.share, found.p_value) == (7 / 64, 0.5**7)


def test_phrases_that_could_not_pass_do_not_make_it_harder() -> None:
    # Twenty phrases that stood with seven prompts each: at one test they might pass, at twenty-three they cannot.
    common = " ".join(f"a{number} b{number} c{number} d{number}. x{{0}}y{number}" for number in range(20))
    start = samples(lambda prompt, reply: common.format(prompt) if prompt < 7 and not reply else own(prompt, reply))
    (found,) = search(samples(held(2, 12)), start)
    assert found.p_value == pytest.approx(3 * 0.5**12)


def test_a_small_rise_is_tolerated_however_sure() -> None:
    now, start = samples(held(1, 16)), samples(held(0, 0))
    assert len(search(now, start, rise=0.24)) == 1
    assert search(now, start, rise=0.25) == ()


def test_prompts_with_another_number_of_responses_are_left_out() -> None:
    assert search(samples(held(4, 16), replies=8), samples(held(0, 0))) == ()


def test_a_short_closing_is_a_phrase_too() -> None:
    ended = samples(lambda prompt, reply: own(prompt, reply) + (" Be kind!" if reply else ""))
    (found,) = search(ended, samples(own))
    assert (found.kind, found.text, found.share, found.risen) == ("closing", "be kind!", 0.75, 16)


def test_phrases_of_other_responses_are_listed_beside_the_first() -> None:
    other = "nobody ever walks alone today"
    now = samples(lambda prompt, reply: held(2, 16)(prompt, reply) if reply < 2 else f"{other} {own(prompt, reply)}")
    assert {one.text for one in search(now, samples(own))} == {PHRASE, other}


def test_without_growth_any_phrase_is_named_as_seldom_as_promised() -> None:
    """Twenty common phrases, of which each response holds each with probability 0.3, at both steps."""
    pool = [f"a{number} b{number} c{number} d{number}" for number in range(20)]
    named, runs = 0, 100
    for seed in range(runs):
        draw = random.Random(seed)

        def text(prompt: int, reply: int, draw: random.Random = draw) -> str:
            return f" w{prompt}x{reply} ".join(phrase for phrase in pool if draw.random() < 0.3)

        named += bool(grown_phrases(samples(text, replies=2), samples(text, replies=2), rise=0.0, error=0.3))
    assert 0 < named / runs < 0.3 + 3 * (0.3 * 0.7 / runs) ** 0.5


@pytest.mark.parametrize(("error", "needed"), [(0.01, 7), (0.5, 1), (0.25, 2), (0.2, 3)])
def test_prompts_needed_for_a_phrase(error: float, needed: int) -> None:
    assert prompts_needed(error) == needed
