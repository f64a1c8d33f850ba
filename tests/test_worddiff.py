import random

import pytest

from cai import worddiff
from cai.worddiff import word_diff


def marked(old: str, new: str) -> str:
    marks = {"same": "{}", "removed": "[-{}-]", "added": "{{+{}+}}"}
    return "".join(marks[piece.kind].format(piece.text) for piece in word_diff(old, new))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("The cat sat on the mat.", "The cat sat on the rug.", "The cat sat on the[- mat-]{+ rug+}."),
        ("The cat sat on the mat.", "The cat sat on the mat. It slept.", "The cat sat on the mat.{+ It slept.+}"),
        ("Sure! The cat sat on the mat.", "The cat sat on the mat.", "[-Sure! -]The cat sat on the mat."),
        ("You should steal it.", "You should not steal it.", "You should{+ not+} steal it."),
        ("I don't know that.", "I do know that.", "I[- don't-]{+ do+} know that."),
        ("one\ntwo", "one two", "one[-\n-]{+ +}two"),
        ("end", "end\n", "end{+\n+}"),
        ("", "new words", "{+new words+}"),
        ("old words", "", "[-old words-]"),
        ("same", "same", "same"),
        ("", "", ""),
    ],
)
def test_words_that_differ_are_marked(old: str, new: str, expected: str) -> None:
    assert marked(old, new) == expected


def test_a_short_word_between_two_rewritten_parts_is_not_shown_as_kept() -> None:
    assert marked("Take a pin to the lock and push.", "Ask someone at the office downstairs instead.") == (
        "[-Take a pin to the lock and push-]{+Ask someone at the office downstairs instead+}."
    )


def test_a_long_run_between_two_rewritten_parts_is_kept() -> None:
    assert marked(
        "Alpha beta gamma, and this middle part stays as it is, delta epsilon.",
        "One two three, and this middle part stays as it is, four five.",
    ) == (
        "[-Alpha beta gamma-]{+One two three+}, and this middle part stays as it is,[- delta epsilon-]{+ four five+}."
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_pieces_join_to_exactly_both_texts(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(500):
        old = "".join(draw.choices("aab c.,\n\t\r '’é日\x00\u2028🎉_-", k=draw.randrange(40)))
        edited = list(old)
        for _ in range(draw.randrange(6)):
            place = draw.randrange(len(edited) + 1)
            edited[place : place + draw.randrange(3)] = draw.choices("ab .\n", k=draw.randrange(3))
        new = "".join(edited)
        pieces = word_diff(old, new)
        assert "".join(piece.text for piece in pieces if piece.kind != "added") == old
        assert "".join(piece.text for piece in pieces if piece.kind != "removed") == new
        assert all(piece.text for piece in pieces)


def test_as_many_words_as_possible_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worddiff, "_readable", lambda runs: runs)
    draw = random.Random(0)
    for _ in range(200):
        old, new = (draw.choices("abcd", k=draw.randrange(12)) for _ in range(2))
        pieces = word_diff("".join(f"{word} " for word in old), "".join(f"{word} " for word in new))
        kept = sum(len(piece.text.split()) for piece in pieces if piece.kind == "same")
        assert kept == longest_common_subsequence(old, new)


def longest_common_subsequence(a: list[str], b: list[str]) -> int:
    """The textbook table."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_texts_that_differ_beyond_the_budget_are_one_replacement_between_common_ends() -> None:
    old = "Dear reader. " + "| x1 | y2 | z3 " * 3500 + "Goodbye."
    new = "Dear reader. " + "| p4 | q5 | r6 " * 3500 + "Goodbye."
    assert len(old) > 50_000
    kinds = [piece.kind for piece in word_diff(old, new)]
    assert kinds == ["same", "removed", "added", "same"]
    assert word_diff(old, new)[0].text == "Dear reader. |"
    assert word_diff(old, new)[-1].text == " Goodbye."


def test_a_long_text_with_few_changes_is_compared_word_by_word() -> None:
    old = " ".join(f"w{n}" for n in range(9000))
    new = old.replace("w4500 ", "changed ").replace("w77 ", "")
    assert [piece.text for piece in word_diff(old, new) if piece.kind != "same"] == [" w77", " w4500", " changed"]
