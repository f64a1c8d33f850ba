"""When a reply names an answer: whole words, numbers by value, denials, and both answers at once."""

import pytest
from pydantic import TypeAdapter, ValidationError

from cai.evaluate.tasks.answers import Accepted, match, same, says, sentences


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("Paris", "Paris"),
        ("It is PARIS.", "paris"),
        ("The capital is **Paris**!", "Paris"),
        ("_Paris_", "Paris"),
        ("\\boxed{Paris}", "Paris"),
        ("“Paris”, of course.", "Paris"),
        ("Paris-based people would know.", "Paris"),
        ("That is Paris's fate.", "Paris"),
        ("That is Paris’s fate.", "Paris"),
        ("the play is Shakespeare's", "Shakespeare"),
        ("It flows: NILE.", "the Nile"),
        ("A Tale of Two Cities", "A Tale of Two Cities"),
        ("a tale of 2 cities", "A Tale of Two Cities"),
        ("They ate in New\n York.", "New York"),
        ("Zürich", "Zurich"),
        ("Zurich", "Zu\u0308rich"),
        ("Türkiye", "türkiye"),
        ("STRASSE", "Straße"),
        ("CO₂", "CO2"),
        ("Washington, D.C.", "Washington DC"),
        ("Washington DC", "Washington, D.C."),
        ("the U.S. did", "US"),
        ("J.R.R. Tolkien", "JRR Tolkien"),
        ("Vitamin A", "A"),
        ("don’t panic", "don't panic"),
        ("Берлин!", "берлин"),
        ("9 × 8 = 72.", "72"),
        ("It costs $1,250.", "1250"),
        ("1250 or so", "1,250"),
        ("３７", "37"),
        ("-7", "−7"),
        ("It falls to −7.", "-7"),
        ("3.50", "3.5"),
        (".5", "0.5"),
        ("007", "7"),
        ("½", "0.5"),
        ("one half is 1/2", "½"),
        ("50%", "50"),
        ("100 °C", "100"),
        ("100ºC", "100"),
        ("It has 1,500ml.", "1500"),
        ("2.5km", "2.5"),
        ("Seven.", "7"),
        ("7", "seven"),
        ("twenty-one", "21"),
        ("twenty one", "twenty-one"),
        ("a hundred and five", "105"),
        ("Two thousand and twelve", "2012"),
        ("three hundred thousand", "300,000"),
        ("1.4 billion people", "1,400,000,000"),
        ("two million three hundred thousand and forty-five", "2300045"),
        ("seven and eight", "8"),
        ("in 1999 two thousand came", "2000"),
        ("from 1914–1918", "1918"),
        ("zero", "0"),
        ("It is 5.", "5"),
        ("It is ...5", "5"),
        ("1. Paris", "Paris"),
        ("one", "one"),
    ],
)
def test_an_answer_is_named(reply: str, answer: str) -> None:
    assert match(reply, [answer]) == "right"


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("", "Paris"),
        (" \n", "Paris"),
        ("...", "Paris"),
        ("Parish", "Paris"),
        ("A parisian", "Paris"),
        ("Comparison", "Paris"),
        ("Par is", "Paris"),
        ("New delights in York", "New York"),
        ("New", "New York"),
        ("nil", "the Nile"),
        ("the", "the Nile"),
        ("cats", "cat"),
        ("I'm", "I"),
        ("don't", "don"),
        ("115", "15"),
        ("150", "15"),
        ("1,500", "15"),
        ("1,500", "500"),
        ("15.5", "15"),
        ("15.5", "5"),
        ("-15", "15"),
        ("15", "-15"),
        ("0.15", "15"),
        (".15", "15"),
        ("10:15", "15"),
        ("15/4", "15"),
        ("1/2", "2"),
        ("½", "2"),
        ("5½", "25.5"),
        ("15th", "15"),
        ("B15", "15"),
        ("15bn", "15"),
        ("15s", "15"),
        ("1915km", "15"),
        ("H₂O", "2"),
        ("10²", "102"),
        ("10²", "10"),
        ("1.15.3", "15"),
        ("fifteen hundred", "15"),
        ("fifteen hundred", "100"),
        ("15 million", "15"),
        ("0.5 million", "1000000"),
        ("twenty-one", "20"),
        ("twenty-one", "1"),
        ("a hundred and five", "5"),
        ("five hundred", "5"),
        ("seventy", "7"),
        ("seventh", "7"),
        ("No one knows.", "1"),
        ("twenty. One is left.", "21"),
        ("two, hundred", "200"),
        ("1,2,3", "2"),
        ("9" * 5000, "9"),
        ("1/0", "0"),
    ],
)
def test_parts_of_words_and_numbers_name_nothing(reply: str, answer: str) -> None:
    assert match(reply, [answer]) == "neither"


@pytest.mark.parametrize(
    "reply",
    [
        "It is not Paris.",
        "Not Paris.",
        "It is not “Paris”.",
        "It isn't Paris",
        "It isn’t Paris",
        "It is not the old city of Paris.",  # four words between
        "I don't think it is Paris.",
        "I do not think that it is Paris.",
        "It cannot be Paris.",
        "It was never Paris.",
        "Neither Rome nor Paris.",
        "Neither Paris nor Rome.",
        "Not Rome. Nor Paris.",
        "Lyon rather than Paris",
        "Lyon instead of Paris",
        "any city other than Paris",
        "Unlike Paris it is small.",
        "Paris is not the capital.",
        "Paris isn't the capital.",
        "Paris is wrong.",
        "Paris was incorrect.",
    ],
)
def test_a_denied_answer_is_not_named(reply: str) -> None:
    assert match(reply, ["Paris"]) == "neither"


@pytest.mark.parametrize(
    "reply",
    [
        "I'm not sure, but it is Paris.",
        "I am not sure but Paris it is.",
        "That is not hard: Paris.",
        "No. Paris.",
        "No, Paris.",
        "Don't worry! Paris.",
        "Not Rome - Paris",
        "Not Rome — Paris",
        "Not Rome (Paris)",
        "It is Paris, not Rome.",
        "Paris not Rome",
        "It is not only Paris.",
        "It isn't just Paris.",
        "Paris is not only large.",
        "Paris isn't merely large.",
        "Paris is the capital. It is not Rome.",
        "It is Paris. Isn't that clear?",
        "It is not Paris? It is Paris!",
        "There is not the least doubt in anybody's mind that Paris is it.",  # too far away
        "The notable Paris",
        "rather Paris than Rome",
    ],
)
def test_what_is_denied_elsewhere_is_named(reply: str) -> None:
    assert match(reply, ["Paris"]) == "right"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Canberra", "right"),
        ("Sydney", "wrong"),
        ("Melbourne", "neither"),
        ("", "neither"),
        ("Canberra or Sydney", "both"),
        ("Sydney? No: Canberra.", "both"),
        ("You think of Sydney, but it is Canberra.", "both"),
        ("Canberra, not Sydney.", "right"),
        ("Sydney, not Canberra.", "wrong"),
        ("It isn't Sydney but Canberra.", "right"),
        ("Sydney is not the capital; that is Canberra.", "right"),
        ("Neither Sydney nor Canberra", "neither"),
    ],
)
def test_right_and_wrong_answers_are_told_apart(reply: str, expected: str) -> None:
    assert match(reply, ["Canberra", "the city of Canberra"], ["Sydney"]) == expected


def test_one_accepted_answer_is_enough() -> None:
    assert match("twelve dozen", ["144", "twelve dozen"]) == "right"
    assert match("144", ["144", "twelve dozen"]) == "right"
    assert match("144", []) == "neither"


@pytest.mark.parametrize(
    ("right", "wrong", "reply", "expected"),
    [
        ("New York", "York", "New York", "right"),
        ("New York", "York", "York", "wrong"),
        ("New York", "York", "York and New York", "both"),
        ("Georgia", "South Georgia", "South Georgia", "wrong"),
        ("Georgia", "South Georgia", "Georgia", "right"),
        ("8", "9", "8, and in 1999 9", "both"),
        ("8", "9", "8, as of 1999", "right"),
        ("8", "9", "eight", "right"),
    ],
)
def test_a_mention_within_a_longer_one_is_that_of_the_longer(right: str, wrong: str, reply: str, expected: str) -> None:
    assert match(reply, [right], [wrong]) == expected


def test_phrases_are_found_as_whole_words_and_without_regard_to_denials() -> None:
    assert says("Well, I DON’T know.", ["i do not know", "i don't know"])
    assert says("It's impossible to say", ["impossible to say"])
    assert not says("I don't knowingly", ["i don't know"])
    assert not says("", ["i don't know"])
    assert says("not actually", ["actually"])


def test_sentences_end_at_full_stops_and_lines() -> None:
    assert sentences(" It is 3.5 km. Yes!\n\nNo? e.g. two") == ["It is 3.5 km.", "Yes!", "No?", "e.g.", "two"]
    assert sentences("One\nTwo. Three") == ["One", "Two.", "Three"]
    assert sentences(" \n") == []


def test_spellings_of_one_answer_are_the_same() -> None:
    assert same("the Nile", "NILE")
    assert same("Washington, D.C.", "Washington DC")
    assert same("twelve", "12.0")
    assert not same("Georgia", "South Georgia")
    assert not same("1", "one")


@pytest.mark.parametrize("answer", ["", "?", " ", "+"])
def test_an_answer_without_a_word_is_refused(answer: str) -> None:
    with pytest.raises(ValidationError, match="no word or number"):
        TypeAdapter(Accepted).validate_python(answer)
    assert TypeAdapter(Accepted).validate_python("C+") == "C+"
