"""Whether a reply names an accepted answer: by whole words and whole numbers, never by parts of them.

Reply and answers become runs of words and numbers, and an answer is named where its run stands in the reply's.

- Case, accents, punctuation, markup, `'s` and the dots of initials do not count, nor does an article that opens an
  answer: `the Nile` is named by "**NILE**", `Washington DC` by "Washington, D.C.".
- Numbers are compared by value: `1,000` is `1000`, `one thousand` and `1.0 thousand`, and `5km` is 5. Digits within a
  longer number, a date, a time or another word (`10:30`, `5th`, `H2O`) are no number of their own. `one` by itself is a
  word ("no one").
- A mention that is denied does not count: "not Paris", "I don't think it is Paris", "Paris isn't", "rather than Paris".
  The denial has to stand in the same clause, at most five words before, or as a verb right behind.
- A mention within a longer mention of the other side's does not count: `York` is not named by "New York" where
  `New York` is the other answer.

What it cannot see: a denial in other words ("Paris would be a mistake"), and words that are not parted by blanks or
signs, as in Chinese. A set lists the spellings that it accepts.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator

Match = Literal["right", "wrong", "both", "neither"]
"""What a reply names: accepted answers, the wrong one, both or neither of them. `both` is no right answer."""

_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'", "−": "-", "–": "-", "º": "°"})
_RAISED = re.compile("[⁰¹²³⁴-⁹]+")
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_INITIALS = re.compile(r"(?<![^\W_])(?:[^\W\d_]\.){2,}")
_CHUNK = re.compile(
    r"(?:(?<![\w)])-(?=\.?\d))?(?:(?<![\w.])\.(?=\d))?"  # the sign of a number, and a decimal point that opens it
    r"[^\W_]+(?:(?:['^]|(?<=\d)[.,:/](?=\d))[^\W_]+)*"
)
_NUMERAL = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?|-?\d+/0*[1-9]\d*")
_WITH_UNIT = re.compile(r"(.*\d)(?:mm|cm|km|m|mg|kg|g|ml|l|h|c|f)")
"""A numeral that is written together with its unit."""
_LONGEST = 100
"""Characters of a numeral; what is longer is no answer, and Python refuses to read the longest."""
_BELOW_TWENTY = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = ("thousand", "million", "billion", "trillion")

_SPELT: Mapping[str, tuple[str, int]] = {
    **{word: ("u" if 0 < number < 10 else "t", number) for number, word in enumerate(_BELOW_TWENTY)},
    **{word: ("x", 10 * number) for number, word in enumerate(_TENS, start=2)},
    **{word: ("s", 1000**number) for number, word in enumerate(_SCALES, start=1)},
    "hundred": ("h", 100),
    "and": ("a", 0),
}
"""Words that numbers are spelt with: their kind, by a letter, and their value."""
_SMALL = "(?:xu?|[tu])"
_BELOW_THOUSAND = f"(?:(?:{_SMALL}|d)?h(?:a?{_SMALL})?|{_SMALL}|d)"
_IN_WORDS = re.compile(f"(?:{_BELOW_THOUSAND}?s)+(?:a?{_BELOW_THOUSAND})?|{_BELOW_THOUSAND}")
"""The kinds of a number in words or digits (`d`)."""

_BREAK = re.compile(r"[.,;:!?()\[\]\n—]|\s-+\s")
"""Parts two clauses, as `but` does."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n")
_ARTICLES = frozenset({"the", "a", "an"})
_DENIALS = frozenset({"not", "cannot", "never", "neither", "nor", "unlike"})
_DENYING_PAIRS = frozenset({("rather", "than"), ("instead", "of"), ("other", "than")})
_NO_DENIAL = frozenset({"only", "just", "merely", "simply"})
"""After `not`, these deny nothing: "not only in Paris"."""
_VERBS = frozenset({"is", "was", "are", "were"})
_DENYING_VERBS = frozenset(f"{verb}n't" for verb in _VERBS)
_FALSE = frozenset({"wrong", "incorrect", "false"})
_REACH = 5
"""Words that a denial may stand before a mention: "I do not think that it is Paris"."""


class _Token(NamedTuple):
    """A word or a number."""

    value: str | Fraction
    clause: int
    """Number of the clause that it stands in."""


_Span = tuple[int, int]
"""The tokens of a mention, from the first up to but not including the last."""


def match(reply: str, right: Iterable[str], wrong: Iterable[str] = ()) -> Match:
    """Which of the accepted and the wrong answers a reply names; an empty one names none."""
    tokens = _tokens(reply)
    found, other = _mentions(tokens, right), _mentions(tokens, wrong)
    named, misnamed = bool(_outside(found, other)), bool(_outside(other, found))
    if named and misnamed:
        return "both"
    return "right" if named else "wrong" if misnamed else "neither"


def says(text: str, phrases: Iterable[str]) -> bool:
    """Whether a text holds one of some phrases, by the same words; denials are not looked for."""
    tokens = _tokens(text)
    return any(_places(tokens, _tokens(phrase)) for phrase in phrases)


def sentences(text: str) -> Sequence[str]:
    """The sentences and lines of a text."""
    return [sentence for sentence in map(str.strip, _SENTENCE_END.split(text)) if sentence]


def same(answer: str, other: str) -> bool:
    """Whether two answers cannot be told apart."""
    return _values(_run(answer)) == _values(_run(other))


def _checked(answer: str) -> str:
    if not _tokens(answer):
        raise ValueError("has no word or number that a reply could name")
    return answer


Accepted = Annotated[str, AfterValidator(_checked)]
"""An answer that a reply can name."""


def _outside(spans: Sequence[_Span], others: Sequence[_Span]) -> list[_Span]:
    """Those of `spans` that are not a part of a longer one of `others`."""
    return [
        one
        for one in spans
        if not any(begin <= one[0] and one[1] <= end for begin, end in others if (begin, end) != one)
    ]


def _mentions(tokens: Sequence[_Token], answers: Iterable[str]) -> list[_Span]:
    """Where any of `answers` stands and is not denied."""
    spans = [span for answer in answers for span in _places(tokens, _run(answer))]
    return [span for span in spans if not _denied(tokens, span)]


def _places(tokens: Sequence[_Token], run: Sequence[_Token]) -> list[_Span]:
    values, wanted = _values(tokens), _values(run)
    return [
        (begin, begin + len(wanted))
        for begin in range(len(values) - len(wanted) + 1)
        if values[begin : begin + len(wanted)] == wanted
    ]


def _values(tokens: Iterable[_Token]) -> list[str | Fraction]:
    return [token.value for token in tokens]


def _denied(tokens: Sequence[_Token], span: _Span) -> bool:
    begin, end = span
    first, last = tokens[begin].clause, tokens[end - 1].clause
    before = [one.value for one in tokens[max(0, begin - _REACH) : begin] if one.clause == first]
    after = [one.value for one in tokens[end : end + 3] if one.clause == last]
    if any(_denies(word) and then not in _NO_DENIAL for word, then in pairwise([*before, ""])):
        return True
    if tuple(before[-2:]) in _DENYING_PAIRS:
        return True
    verb, second, third = (*after, "", "", "")[:3]
    if verb in _VERBS:
        return second in _FALSE or (_denies(second) and third not in _NO_DENIAL)
    return verb in _DENYING_VERBS and second not in _NO_DENIAL


def _denies(word: str | Fraction) -> bool:
    return isinstance(word, str) and (word in _DENIALS or word.endswith("n't"))


def _run(answer: str) -> Sequence[_Token]:
    """The tokens of an answer without an article before them."""
    tokens = _tokens(answer)
    return tokens[1:] if len(tokens) > 1 and tokens[0].value in _ARTICLES else tokens


def _tokens(text: str) -> Sequence[_Token]:
    """Words and numbers of a text."""
    plain = _plain(text)
    chunks: list[_Token] = []
    clause = end = 0
    for found in _CHUNK.finditer(plain):
        word = found[0].removesuffix("'s")
        clause += bool(_BREAK.search(plain, end, found.start())) or word == "but"
        end = found.end()
        chunks.append(_Token(_value(word), clause))
    return _joined(chunks)


def _plain(text: str) -> str:
    """A text in lower case and in the simplest form of its characters."""
    text = _RAISED.sub(r"^\g<0>", text.translate(_APOSTROPHES))
    text = unicodedata.normalize("NFKD", _VULGAR.sub(r" \g<0>", text)).casefold().replace("⁄", "/")
    text = "".join(character for character in text if unicodedata.category(character) != "Mn")
    return _INITIALS.sub(lambda found: found[0].replace(".", "") + " ", text)


def _value(word: str) -> str | Fraction:
    with_unit = _WITH_UNIT.fullmatch(word)
    numeral = with_unit[1] if with_unit else word
    if not numeral[-1:].isdigit() or len(numeral) > _LONGEST or not _NUMERAL.fullmatch(numeral):
        return word
    return Fraction(numeral.replace(",", ""))


def _joined(chunks: Sequence[_Token]) -> Sequence[_Token]:
    """The chunks with numbers in words as numbers: `twenty`, `one` becomes 21, and 1.4, `billion` 1,400,000,000."""
    kinds = ""
    places: list[int] = []
    for place, chunk in enumerate(chunks):
        if place and chunk.clause != chunks[place - 1].clause:
            kinds += "|"
            places.append(place)
        kinds += "d" if isinstance(chunk.value, Fraction) else _SPELT.get(chunk.value, (".", 0))[0]
        places.append(place)
    tokens: list[_Token] = []
    done = 0
    for found in _IN_WORDS.finditer(kinds):
        begin, end = places[found.start()], places[found.end() - 1] + 1
        words = [chunk.value for chunk in chunks[begin:end]]
        if words != ["one"]:
            tokens += [*chunks[done:begin], _Token(_sum(words), chunks[begin].clause)]
            done = end
    return [*tokens, *chunks[done:]]


def _sum(words: Sequence[str | Fraction]) -> Fraction:
    """The number that `words` spell."""
    total = current = Fraction(0)
    for word in words:
        kind, number = ("d", word) if isinstance(word, Fraction) else _SPELT[word]
        if kind == "h":
            current = (current or Fraction(1)) * number
        elif kind == "s":
            total, current = total + (current or Fraction(1)) * number, Fraction(0)
        else:
            current += number
    return total + current
