"""Constitutions of other projects: what is taken, and that nothing is dropped without being listed."""

import json
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import SandboxedEnvironment

from cai.constitution import load_constitution
from cai.constitution_import import MAX_BYTES, ImportedConstitution, import_constitution
from cai.errors import DataError

CRITIC = {"critic": "Is the reply rude?", "revision": "Make it polite."}


def take(folder: Path, content: Any, name: str = "source.json") -> ImportedConstitution:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return import_constitution(path, "mine")


def skipped(result: ImportedConstitution) -> list[str]:
    return [str(problem) for problem in result.skipped]


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_the_papers_requests_lose_their_labels_and_keep_their_names(tmp_path: Path) -> None:
    source = {
        "harmful0": {
            "prompt": ["\n\nCritiqueRequest: Say where it is rude.\n\nCritique:"],
            "edit_request": "\n\nRevisionRequest: Make it polite.\n\nRevision:",
        },
        "Two Ways": {
            "prompt": ["\n\nCritiqueRequest: First: is it?\n\nCritique:", "\n\nCritiqueRequest: Second.\n\nCritique:"],
            "edit_request": "\n\nRevisionRequest: Rewrite.\n\nRevision:",
        },
    }
    result = take(tmp_path, source)
    assert [(p.id, p.critique, p.revision) for p in result.constitution.principles] == [
        ("harmful0", "Say where it is rude.", "Make it polite."),
        ("two-ways", "First: is it?", "Rewrite."),
        ("two-ways-2", "Second.", "Rewrite."),
    ]
    assert result.skipped == ()


def test_requests_that_cannot_be_taken_are_listed_with_their_name(tmp_path: Path) -> None:
    good = {"prompt": ["A."], "edit_request": "B."}
    source = {
        "good": good,
        "twin": good,
        "half": {"prompt": ["A."]},
        "none": {"prompt": [], "edit_request": "B."},
        "odd": {"prompt": ["C.", 5], "edit_request": "D.", "note": "N"},
        "text": "A.",
    }
    result = take(tmp_path, source)
    assert [p.id for p in result.constitution.principles] == ["good", "odd"]
    assert skipped(result) == [
        "twin: says the same as `good`",
        "half: has no text that could become `revision`",
        "none: has no text that could become `critique`",
        "odd.note: is a key of which the meaning is not known",
        "odd: has no text that could become `critique`",
        "text: is not an object with `prompt` and `edit_request`",
    ]


def test_comparison_instructions_lose_their_label_and_doubtful_polarity_is_pointed_out(tmp_path: Path) -> None:
    source = [
        "\nChoose the kinder reply. Options:",
        "\nWhich reply is more harmful? Options:",
        "\nChoose the reply that is less harmful and the most helpful. Options:",
        "Choose the kinder of these two:",
        "\n\nHuman: Hello\n\nAssistant: Hi",
        "Choose the kinder reply.",
        3,
        "   ",
    ]
    result = take(tmp_path, source)
    assert [(p.id, p.comparison, p.polarity) for p in result.constitution.principles] == [
        ("comparison-1", "Choose the kinder reply.", "better"),
        ("comparison-2", "Which reply is more harmful?", "better"),
        ("comparison-3", "Choose the reply that is less harmful and the most helpful.", "better"),
        ("comparison-4", "Choose the kinder of these two:", "better"),
    ]
    assert result.doubtful == ("comparison-2",)
    assert "polarity: worse" in result.yaml()
    assert "#   comparison-2\n" in result.yaml()
    assert skipped(result) == [
        "[4]: is a conversation, not an instruction",
        "[5]: says the same as `comparison-1`",
        "[6]: has no text that could become `comparison`",
        "[7]: has no text that could become `comparison`",
    ]


def test_example_chats_that_are_complete_become_worked_examples(tmp_path: Path) -> None:
    source = {
        "constitutions": [CRITIC, {"critic": "Only half."}],
        "system_chat": [
            turns("Hi", "Go away.", CRITIC["critic"], "Yes, very.", CRITIC["revision"], "Hello!"),
            turns("One", "Two", "Three", "Four", "Is it true?", "No.", "Correct it.", "Five"),
            turns("Too", "short"),
            turns("Hi", "Go away.", CRITIC["critic"], "", CRITIC["revision"], "Hello!"),
            turns("Hi", "Go away.", "Fresh request?", "", "Fresh rewrite.", "Hello!"),
            "no chat",
        ],
    }
    result = take(tmp_path, source)
    assert [(p.id, p.weight, p.critique) for p in result.constitution.principles] == [
        ("principle-1", 1, "Is the reply rude?"),
        ("example-only", 0, "Is it true?"),
    ]
    first, second = result.constitution.examples.critique_revision
    assert (first.principle, first.response, first.critique, first.revision) == (
        "principle-1", "Go away.", "Yes, very.", "Hello!",
    )  # fmt: skip
    assert (second.principle, second.response, second.revision) == ("example-only", "Four", "Five")
    assert [(m.role, m.content) for m in second.conversation] == [
        ("user", "One"),
        ("assistant", "Two"),
        ("user", "Three"),
    ]
    ending = "does not end with request, reply, critic request, critique, revision request, revision"
    assert skipped(result) == [
        "constitutions[1]: has no text that could become `revision`",
        f"system_chat[2]: {ending}",
        "system_chat[3]: critique: is empty; write it, or remove the key",
        "system_chat[4]: critique: is empty; write it, or remove the key",
        f"system_chat[5]: {ending}",
    ]


def test_a_bare_list_of_critic_requests_is_read_too(tmp_path: Path) -> None:
    result = take(tmp_path, [CRITIC])
    assert [(p.critique, p.revision) for p in result.constitution.principles] == [tuple(CRITIC.values())]


@pytest.mark.parametrize("lines", [False, True])
def test_traits_become_texts_and_their_questions_are_counted(lines: bool, tmp_path: Path) -> None:
    rows = [
        {"trait": "I am patient.", "questions": ["Why?", "How?"]},
        {"trait": "I am brief.", "clarification": "Few words.", "additional_questions": ["What?"], "mood": "calm"},
        {"questions": []},
        "I am a string.",
    ]
    source = "\n".join(map(json.dumps, rows)) + "\n" if lines else json.dumps(rows)
    result = take(tmp_path, source)
    assert [(p.id, p.text) for p in result.constitution.principles] == [
        ("trait-1", "I am patient."),
        ("trait-2", "I am brief.\nFew words."),
    ]
    why = "which no constitution holds: use them as a prompt file"
    assert skipped(result) == [
        f"[0].questions: 2 prompts, {why}",
        "[1].mood: is a key of which the meaning is not known",
        f"[1].additional_questions: 1 prompts, {why}",
        "[2]: has no text that could become `text`",
        "[3]: is not an object with a `trait`",
    ]


def test_a_broken_line_of_json_lines_is_listed_and_the_others_are_taken(tmp_path: Path) -> None:
    separator = "\u2028"  # ends a line for some programs, not for JSON lines
    result = take(tmp_path, f'{{"trait": "A{separator}B."}}\n{{"trait": \n\n{{"trait": "C."}}\n')
    assert [p.text for p in result.constitution.principles] == [f"A{separator}B.", "C."]
    [problem] = result.skipped
    assert str(problem).startswith("line 2: is not JSON: ")


def test_text_that_looks_like_a_template_is_kept_as_text(tmp_path: Path) -> None:
    texts = ["Use {{ name }}.", "{% raw %} {# c #}", "a {{{ b }}} {{%", "{% endraw %}{{ topic }}{% raw %}", "a { b }"]
    result = take(tmp_path, texts)
    rendered = [
        SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(p.comparison or "").render(topic="T")
        for p in result.constitution.principles
    ]
    assert rendered == texts
    assert result.skipped == ()


def test_text_that_no_file_can_hold_is_listed(tmp_path: Path) -> None:
    result = take(tmp_path, '["Good.", "bad \\ud800", "bad \\u001b[2J", "Line one.\\r\\nLine two."]')
    assert [p.comparison for p in result.constitution.principles] == ["Good.", "Line one.\nLine two."]
    assert skipped(result) == [
        "[1]: comparison: holds the unprintable character U+D800; remove it",
        "[2]: comparison: holds the unprintable character U+001B; remove it",
    ]


def test_the_written_file_is_commented_and_loads_to_what_was_imported(tmp_path: Path) -> None:
    source = {
        "constitutions": [CRITIC, {"critic": "Is it {{ x }}? " * 20, "revision": "Yes: no"}],
        "system_chat": [turns("Hi", "- a\n- b", CRITIC["critic"], "# y", CRITIC["revision"], "No")],
    }
    result = take(tmp_path, source)
    path = tmp_path / "out.yaml"
    path.write_text(result.yaml(), encoding="utf-8")
    assert result.yaml().startswith(
        "# 2 imported principles (critic and revision requests with example chats); 0 items"
    )
    assert load_constitution(str(path)) == result.constitution
    assert load_constitution(str(path)).sha256 == result.constitution.sha256


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "is neither JSON nor JSON lines"),
        ("not json", "is neither JSON nor JSON lines"),
        ('"text"', "is in none of the known forms"),
        ("[1, 2]", "is in none of the known forms"),
        ("[]", "is in none of the known forms"),
        ('{"a": {"b": 1}}', "is in none of the known forms"),
        ("[" * 100_000, "is neither JSON nor JSON lines"),
        ('{"constitutions": []}', "holds nothing that can be taken"),
        ('[{"trait": ""}]', "holds nothing that can be taken:\n  [0]: has no text that could become `text`"),
        ('{"a": {"prompt": "A", "edit_request": "B"}, "a": {"prompt": "C"}}', "the key `a` stands twice in one object"),
    ],
)
def test_a_file_with_nothing_to_take_is_an_error(content: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        take(tmp_path, content)
    assert str(caught.value).startswith(str(tmp_path / "source.json"))
    assert expected in str(caught.value)


def test_examples_alone_are_nothing_to_draw_from(tmp_path: Path) -> None:
    chat = turns("Hi", "Go away.", CRITIC["critic"], "Yes.", CRITIC["revision"], "Hello!")
    with pytest.raises(DataError, match="holds nothing that can be taken"):
        take(tmp_path, {"constitutions": [], "system_chat": [chat]})


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        import_constitution(tmp_path / "missing.json", "mine")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        import_constitution(tmp_path, "mine")
    latin = tmp_path / "latin.json"
    latin.write_bytes(b'["caf\xe9"]')
    with pytest.raises(DataError, match="is not UTF-8 text"):
        import_constitution(latin, "mine")
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(DataError, match="is 50,000,001 bytes; a constitution may have 50,000,000"):
        import_constitution(large, "mine")
