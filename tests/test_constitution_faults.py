"""Files that extend others, and faults: all are reported at once, each with file, line and key."""

from pathlib import Path

import pytest

from cai.constitution import (
    PRINCIPLE_VARIABLES,
    Principle,
    load_constitution,
)
from cai.errors import ConstitutionError

HEAD = 'name: test\nversion: "1"\n'  # two lines, so that `principles:` stands on line 3


def write(folder: Path, text: str, name: str = "c.yaml") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def faults(path: str) -> list[str]:
    """All problems of the file, each as `line: key: message`; problems of other files keep their name."""
    with pytest.raises(ConstitutionError) as caught:
        load_constitution(path)
    assert caught.value.exit_code == 2
    return [str(problem).removeprefix(f"{path}:").removeprefix(" ") for problem in caught.value.problems]


PARENT = (
    HEAD
    + """
description: The parent.
principles:
  - id: a
    tags: [x]
    critique: Parent critique.
    revision: Parent revision.
    comparison: Parent comparison.
    polarity: worse
  - {id: b, text: Parent b.}
examples:
  critique_revision:
    - {principle: a, prompt: P, response: R, critique: C, revision: V}
"""
)


def test_a_child_overrides_field_by_field_adds_and_appends(tmp_path: Path) -> None:
    write(tmp_path, PARENT, "base/parent.yaml")
    child = """
extends: ../base/parent.yaml
name: child
version: "2"
principles:
  - {id: new, text: New.}
  - {id: b, weight: 0}
  - {id: a, critique: Child critique., comparison: null, polarity: better}
examples:
  critique_revision:
    - {principle: new, prompt: P2, response: R, critique: C, revision: V}
  comparison:
    - {principle: new, prompt: P3, response_a: R, response_b: S, answer: B}
"""
    found = load_constitution(write(tmp_path, child, "mine/child.yaml"))
    assert (found.name, found.version, found.description, found.extends) == ("child", "2", "", None)
    assert found.principles == (
        Principle(id="a", tags=("x",), critique="Child critique.", revision="Parent revision."),
        Principle(id="b", text="Parent b.", weight=0),
        Principle(id="new", text="New."),
    )
    assert [e.conversation[0].content for e in found.examples.critique_revision] == ["P", "P2"]
    assert [e.principle for e in found.examples.comparison] == ["new"]


def test_a_shipped_constitution_can_be_extended_by_name_and_over_two_levels(tmp_path: Path) -> None:
    write(tmp_path, HEAD + "extends: short\nprinciples:\n  - {id: be-of-use, weight: 2}\n", "middle.yaml")
    top = HEAD + "extends: middle.yaml\nprinciples:\n  - {id: be-of-use, tags: [top]}\n"
    found = load_constitution(write(tmp_path, top)).principle("be-of-use")
    original = load_constitution("short").principle("be-of-use")
    assert found == original.model_copy(update={"weight": 2.0, "tags": ("top",)})


def test_files_that_extend_one_another_are_an_error_that_names_the_circle(tmp_path: Path) -> None:
    tail = "principles:\n  - {id: a, text: A.}\n"
    a = write(tmp_path, HEAD + "extends: b.yaml\n" + tail, "a.yaml")
    b = write(tmp_path, HEAD + f"extends: ../{tmp_path.name}/a.yaml\n" + tail, "b.yaml")
    why = "the files extend one another in a circle; remove one `extends`"
    assert faults(a) == [f"{b}:3: extends: {a} → {b} → {tmp_path}/../{tmp_path.name}/a.yaml: {why}"]
    own = write(tmp_path, HEAD + "extends: own.yaml\n" + tail, "own.yaml")
    assert faults(own) == [f"3: extends: {own} → {own}: {why}"]


def test_a_missing_parent_is_an_error_that_names_the_chain(tmp_path: Path) -> None:
    middle = write(tmp_path, HEAD + "extends: hhhh\n", "middle.yaml")
    top = write(tmp_path, HEAD + "extends: middle.yaml\nprinciples:\n  - {id: a, wait: 1}\n  - {id: b, tags: [x]}\n")
    assert faults(top) == [
        "5: principles[0].wait: is not a known key; did you mean `weight`?",
        f"{middle}:3: extends: {top} → {middle} → hhhh: the last is neither a file nor a shipped constitution"
        " (health, hhh, short); did you mean `hhh`?",
    ]


def test_problems_of_a_parent_name_the_parents_file_and_line(tmp_path: Path) -> None:
    parent = write(
        tmp_path, HEAD + "principles:\n  - {id: a, weight: -1, text: A.}\n  - {id: b, critique: B.}\n", "p.yaml"
    )
    child = write(tmp_path, HEAD + 'extends: p.yaml\nprinciples:\n  - {id: b, text: "{{ x }}"}\n')
    assert faults(child) == [
        "5: principles[0].text: uses the unknown Jinja variable `x`; known: round, rounds, topic",
        f"{parent}:4: principles[0].weight: input should be greater than or equal to 0, but is -1",
    ]


def test_what_the_child_completes_is_not_a_fault_and_what_it_breaks_is_reported_there(tmp_path: Path) -> None:
    write(tmp_path, PARENT, "p.yaml")
    broken = HEAD + "extends: p.yaml\nprinciples:\n  - id: a\n    revision: null\n  - {id: aa}\n"
    reworded = HEAD + "extends: p.yaml\nexamples: {}\nprinciples:\n  - {id: a, critique: New., revision: null}\n"
    assert faults(write(tmp_path, reworded))[0].startswith("6: principles[0].critique: stands without `revision`")
    assert faults(write(tmp_path, broken)) == [
        "7: principles[1].id: `aa` says nothing; add `text`, or `critique` and `revision`, `comparison` or `question`;"
        " did you mean `a`?",
        f"{tmp_path / 'p.yaml'}:8: principles[0].critique: stands without `revision`; add it, or a `text` from which"
        " the templates phrase it",
        f"{tmp_path / 'p.yaml'}:15: examples.critique_revision[0].principle: `a` does not serve critique; take a"
        " principle that does",
    ]


@pytest.mark.parametrize(
    ("principle", "expected"),
    [
        ("{id: a, txt: A.}", "principles[0].txt: is not a known key; did you mean `text`?"),
        ("{id: a, text: ''}", "principles[0].text: is empty; write it, or remove the key"),
        ("{id: a, text: A., weight: -0.5}", "principles[0].weight: input should be greater than or equal to 0"),
        ("{id: a, text: A., weight: .nan}", "principles[0].weight: input should be a finite number"),
        ("{id: a, text: A., weight: .inf}", "principles[0].weight: input should be a finite number"),
        ("{id: a, text: A., weight: '2'}", "principles[0].weight: input should be a valid number"),
        ("{id: a, text: A., weight: true}", "principles[0].weight: input should be a valid number"),
        ("{id: a, text: A., weight: 0}", "principles: all weights are 0; give at least one principle a higher one"),
        ("{id: a, text: A., tags: x}", "principles[0].tags: must be a list"),
        ("{id: a, text: A., tags: [Two words]}", "principles[0].tags[0]: must be kebab-case (small letters, digits,"),
        ("{id: a, text: A., polarity: bad}", "principles[0].polarity: input should be 'better' or 'worse'"),
        ("{id: a, text: A., polarity: worse}", "principles[0].polarity: is about a `comparison`, and there is none"),
        ("{id: a, text: [A.]}", "principles[0].text: input should be a valid string, but is a list"),
        ("{id: a, text: 2026-01-02}", "principles[0].text: is text, but YAML reads it as a date (2026-01-02)"),
        ("{id: a, text: no}", "principles[0].text: is text, but YAML reads it as a truth value (False)"),
        ('{id: a, text: "A\\e[2J"}', "principles[0].text: holds the unprintable character U+001B; remove it"),
        ("{id: off, text: A.}", "principles[0].id: is text, but YAML reads it as a truth value (False)"),
        ("{id: 1, text: A.}", "principles[0].id: is text, but YAML reads it as a number (1); put it in quotes"),
        (
            "{id: Be Kind, text: A.}",
            "principles[0].id: must be kebab-case (small letters, digits, single hyphens), such as `be-kind`",
        ),
        *((f"{{id: {id_}, text: A.}}", "principles[0].id: must be kebab-case") for id_ in ("a--b", "a_b", "-a", "a-")),
        ("{text: A.}", "principles[0].id: is missing; add it"),
        (
            "{id: a}",
            "principles[0].id: `a` says nothing; add `text`, or `critique` and `revision`, `comparison` or `question`",
        ),
        ("{id: a, critique: A.}", "principles[0].critique: stands without `revision`; add it, or a `text`"),
        ("{id: a, revision: A.}", "principles[0].revision: stands without `critique`; add it, or a `text`"),
        ("Be kind.", "principles[0]: must be a mapping: `- id: be-kind` and, below it, `text: …`"),
        ("{id: a, text: A., id: b}", "principles[0].id: stands twice, on lines 4 and 4; keep one"),
        ("{id: a, text: '{{ topic }} {{ round }}/{{ rounds }} {% if round > 1 %}x{% endif %}'}", None),
        (
            "{id: a, text: '{{ topc }}'}",
            "principles[0].text: uses the unknown Jinja variable `topc`; did you mean `topic`?",
        ),
        ("{id: a, text: '{{ range(3) }}'}", "principles[0].text: uses the unknown Jinja variable `range`"),
        ("{id: a, text: '{% if %}'}", "principles[0].text: bad Jinja: Expected an expression"),
        ("{id: a, text: '{{ topic | nope }}'}", "principles[0].text: bad Jinja: No filter named 'nope'"),
        ("{id: a, text: '{% include \"/etc/passwd\" %}'}", "principles[0].text: loads another template"),
        (
            "{id: a, text: A., comparison: '{{ topic '}",
            "principles[0].comparison: bad Jinja: unexpected end of template",
        ),
    ],
)
def test_each_fault_of_a_principle_is_named_with_line_and_key(
    principle: str, expected: str | None, tmp_path: Path
) -> None:
    path = write(tmp_path, HEAD + f"principles:\n  - {principle}\n")
    if expected is None:
        assert load_constitution(path).principles[0].id == "a"
    else:
        [found] = faults(path)
        line, _, rest = found.partition(": ")
        assert line == ("3" if rest.startswith("principles:") else "4")
        assert rest.startswith(expected)


def test_bad_jinja_deep_in_a_block_names_the_line_of_the_text(tmp_path: Path) -> None:
    text = HEAD + "principles:\n  - id: a\n    text: |\n      One.\n      Two.\n      {{ topic\n"
    [found] = faults(write(tmp_path, text))
    assert found.startswith("5: principles[0].text: bad Jinja in line 3 of the text: unexpected end")


def test_text_nested_too_deeply_is_an_error_and_no_crash(tmp_path: Path) -> None:
    deep = "(" * 5_000 + "topic" + ")" * 5_000
    [found] = faults(write(tmp_path, HEAD + f"principles:\n  - {{id: a, text: '{{{{ {deep} }}}}'}}\n"))
    assert found == "4: principles[0].text: bad Jinja: nested too deeply"


def test_the_variables_are_those_that_the_loader_accepts() -> None:
    assert {"topic", "round", "rounds"} == PRINCIPLE_VARIABLES


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (
            "{principle: b, prompt: P, response: R, critique: C, revision: V}",
            "[0].principle: there is no principle `b`",
        ),
        (
            "{principle: c, prompt: P, response: R, critique: C, revision: V}",
            "[0].principle: `c` does not serve critique",
        ),
        ("{principle: a, response: R, critique: C, revision: V}", "[0]: needs either `prompt` (one user turn) or"),
        (
            "{principle: a, prompt: P, messages: [{role: user, content: P}], response: R, critique: C, revision: V}",
            "[0]: needs either `prompt` (one user turn) or",
        ),
        (
            "{principle: a, messages: [], response: R, critique: C, revision: V}",
            "[0]: `messages` must end with the user",
        ),
        (
            "{principle: a, messages: [{role: assistant, content: P}], response: R, critique: C, revision: V}",
            "[0]: `messages` must end with the user",
        ),
        (
            "{principle: a, messages: [{role: human, content: P}], response: R, critique: C, revision: V}",
            "[0].messages[0].role: input should be 'system', 'user' or 'assistant'",
        ),
        (
            '{principle: a, messages: [{role: user, content: ""}], response: R, critique: C, revision: V}',
            "[0].messages[0]: is empty",
        ),
        ("{principle: a, prompt: P, response: R, critique: C}", "[0].revision: is missing; add it"),
        (
            "{principle: a, prompt: P, responce: R, response: R, critique: C, revision: V}",
            "[0].responce: is not a known key; did you mean `response`?",
        ),
    ],
)
def test_each_fault_of_a_worked_example_is_named_with_line_and_key(example: str, expected: str, tmp_path: Path) -> None:
    text = (
        HEAD
        + "principles: [{id: a, text: A.}, {id: c, comparison: C.}]\nexamples:\n  critique_revision:\n"
        + f"    - {example}\n"
    )
    [found] = faults(write(tmp_path, text))
    assert found.startswith("6: examples.critique_revision" + expected)


def test_all_problems_of_a_file_are_reported_at_once_from_top_to_bottom(tmp_path: Path) -> None:
    text = """\
name: many
version: 1.10
descripton: D.
principles:
  - id: a
    wieght: 2
    text: A.
  - id: b
    critique: B.
  - id: b
    text: Again.
  - id: c
    text: "{{ topc }}"
examples:
  comparison:
    - principle: cc
      prompt: P
      response_a: R
      response_b: S
      answer: C
"""
    assert faults(write(tmp_path, text)) == [
        "2: version: is text, but YAML reads it as a number (1.1); put it in quotes",
        "3: descripton: is not a known key; did you mean `description`?",
        "6: principles[0].wieght: is not a known key; did you mean `weight`?",
        "9: principles[1].critique: stands without `revision`; add it, or a `text` from which the templates phrase it",
        "10: principles[2].id: `b` is already the id of the principle on line 8; give each its own",
        "13: principles[3].text: uses the unknown Jinja variable `topc`; did you mean `topic`?",
        "16: examples.comparison[0].principle: there is no principle `cc`; did you mean `c`?",
        "20: examples.comparison[0].answer: input should be 'A' or 'B', but is 'C'",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty; write `name`, `version` and `principles`, or start from `cai constitution new`"),
        (b"# nothing but a comment\n", "is empty; write"),
        (b"- id: a\n", "1: must be a mapping with `name`, `version` and `principles`"),
        (b'name: n\nversion: "1"\n', "there is no principle; add at least one"),
        (b'name: n\nversion: "1"\nprinciples: []\n', "3: principles: there is no principle; add at least one"),
        (b'name: n\nversion: "1"\nprinciples:\n', "3: principles: must be a list"),
        (b'name: n\nversion: "1"\nprinciples: {a: A.}\n', "3: principles: must be a list"),
        (b"name: [\n", "2: bad YAML:"),
        (b"name: n\nname: m\n", "2: name: stands twice, on lines 1 and 2; keep one"),
        (b"name: caf\xe9\n", "1: is not UTF-8 text; save it as UTF-8"),
        (b"name: n\n" + b"# padding\n" * 100_001, "is 1,000,018 bytes; such a file may have 1,000,000"),
        (b"name: !!python/object/apply:os.getcwd []\n", "1: bad YAML: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_constitution_is_one_clear_problem(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    [found] = faults(str(path))
    assert expected in found
    assert found.startswith(expected) or expected.startswith("there is no principle")


def test_an_unknown_name_lists_the_shipped_ones(tmp_path: Path) -> None:
    missing = str(tmp_path / "helth.yaml")
    assert faults(missing) == [
        f"{missing} is neither a file nor a shipped constitution (health, hhh, short); did you mean `health`?"
    ]
    assert "is neither a file nor a shipped constitution" in faults("x" * 5_000)[0]
    assert faults(str(tmp_path)) == [f"{tmp_path} is neither a file nor a shipped constitution (health, hhh, short)"]
