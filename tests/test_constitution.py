"""Constitution files: what ships, what a file means, its hash, its frozen copy and the difference of two."""

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from cai.assets import asset_dir, asset_names
from cai.constitution import (
    Constitution,
    Principle,
    constitution_schema,
    diff_constitutions,
    frozen_yaml,
    load_constitution,
)
from cai.errors import ConstitutionError

HEAD = 'name: test\nversion: "1"\n'  # two lines, so that `principles:` stands on line 3


def write(folder: Path, text: str, name: str = "c.yaml") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def load(folder: Path, text: str) -> Constitution:
    return load_constitution(write(folder, text))


def test_hhh_has_sixteen_principles_for_each_part_and_covers_every_topic_in_both() -> None:
    hhh = load_constitution("hhh")
    topics = {
        "harmlessness",
        "honesty",
        "helpfulness",
        "non-evasiveness",
        "sycophancy",
        "uncertainty",
        "bias",
        "privacy",
        "manipulation",
        "brevity",
    }
    for part in ("critique", "comparison"):
        principles = hhh.select(part)
        assert len(principles) == 16
        assert {tag for principle in principles for tag in principle.tags} == topics
    assert [p.id for p in hhh.principles if p.polarity == "worse"] == ["more-harmful"]


def test_hhh_has_short_worked_examples_of_each_kind() -> None:
    examples = load_constitution("hhh").examples
    assert (len(examples.critique_revision), len(examples.comparison)) == (5, 6)
    assert all(example.reasoning for example in examples.comparison)
    assert any(len(example.conversation) > 1 for example in examples.critique_revision)
    kept = [e for e in examples.critique_revision if e.critique.splitlines()[0] == "No issues."]
    assert [example.revision == example.response for example in kept] == [True]
    assert {example.answer for example in examples.comparison} == {"A", "B"}
    for example in examples.critique_revision:
        for piece in (example.response, example.critique, example.revision):
            assert len(piece.split()) <= 90


@pytest.mark.parametrize("name", asset_names("constitutions", ".yaml"))
def test_shipped_files_point_editors_at_the_schema(name: str) -> None:
    path = asset_dir("constitutions") / f"{name}.yaml"
    first = path.read_text(encoding="utf-8").splitlines()[0]
    comment, _, target = first.partition("$schema=")
    assert comment == "# yaml-language-server: "
    assert (path.parent / target).is_file()


def test_shipped_schema_is_fresh() -> None:
    shipped = (asset_dir("constitutions") / "schema.json").read_text(encoding="utf-8")
    assert shipped == constitution_schema(), "run: cai constitution schema > constitutions/schema.json"


def test_schema_refuses_unknown_keys_and_documents_every_key_of_a_principle() -> None:
    principle = json.loads(constitution_schema())["$defs"]["Principle"]
    assert principle["additionalProperties"] is False
    assert set(principle["properties"]) == set(Principle.model_fields)
    assert all(about.get("description") for about in principle["properties"].values())


def test_short_serves_every_part_by_text_alone() -> None:
    short = load_constitution("short")
    assert len(short.select("critique")) == len(short.select("comparison")) == 3
    assert all(p.critique is None and p.comparison is None for p in short.principles)


def test_health_overrides_adds_and_switches_off() -> None:
    hhh, health = load_constitution("hhh"), load_constitution("health")
    assert health.extends is None
    assert [p.id for p in health.principles[:32]] == [p.id for p in hhh.principles]
    at_risk = health.principle("person-at-risk")
    assert at_risk.weight == 3
    assert at_risk.critique != hhh.principle("person-at-risk").critique
    assert at_risk.tags == hhh.principle("person-at-risk").tags
    assert "padding" not in {p.id for p in health.select("critique")}
    assert len(health.select("critique", ["medicine"])) == 5
    assert health.examples == hhh.examples


def test_hhh_and_short_give_no_cause_for_advice() -> None:
    assert load_constitution("hhh").advice() == []
    assert load_constitution("short").advice() == []


@pytest.mark.parametrize("name", ["hhh.yaml", "constitutions/hhh.yaml"])
def test_shipped_constitution_is_found_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_constitution(name) == load_constitution("hhh")


def test_a_file_goes_before_a_shipped_constitution_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, HEAD + "principles:\n  - {id: mine, text: Mine.}\n", "hhh.yaml")
    monkeypatch.chdir(tmp_path)
    assert [p.id for p in load_constitution("hhh.yaml").principles] == ["mine"]


def test_loading_a_constitution_loads_no_heavy_module() -> None:
    code = (
        "import sys; from cai.constitution import load_constitution; load_constitution('health');"
        "print([m for m in ('torch','transformers','datasets','pyarrow','openai','numpy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("keys", "critique", "comparison"),
    [
        ({"text": "t"}, True, True),
        ({"critique": "c", "revision": "r"}, True, False),
        ({"comparison": "x"}, False, True),
        ({"critique": "c", "revision": "r", "comparison": "x"}, True, True),
        ({"text": "t", "critique": "c"}, True, True),
    ],
)
def test_a_principle_serves_the_parts_that_it_has_words_for(
    keys: dict[str, str], critique: bool, comparison: bool
) -> None:
    principle = Principle.model_validate({"id": "p", **keys})
    assert (principle.serves("critique"), principle.serves("comparison")) == (critique, comparison)


def test_select_leaves_out_principles_that_are_off_or_lack_the_tags(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        HEAD
        + """
principles:
  - {id: a, text: A., tags: [x]}
  - {id: b, text: B., tags: [y, z]}
  - {id: idle, text: C., tags: [x], weight: 0}
  - {id: pair, comparison: D., tags: [z]}
""",
    )
    assert [p.id for p in found.select("critique")] == ["a", "b"]
    assert [p.id for p in found.select("comparison", ["z"])] == ["b", "pair"]
    assert [p.id for p in found.select("comparison", ["x", "z"])] == ["a", "b", "pair"]
    assert found.tags == ("x", "y", "z")


def test_select_names_the_known_tags_when_nothing_is_left(tmp_path: Path) -> None:
    text = HEAD + "principles:\n  - {id: a, text: A., tags: [privacy]}\n  - {id: b, comparison: B., tags: [tone]}\n"
    found = load(tmp_path, text)
    with pytest.raises(ConstitutionError, match=r"`test` has no tag `privcy`; did you mean `privacy`\?"):
        found.select("critique", ["privcy"])
    # One good tag does not hide a wrong one.
    with pytest.raises(ConstitutionError, match=r"`privcy`; did you mean `privacy`"):
        found.draw("critique", 1, tags=["privacy", "privcy"])
    with pytest.raises(
        ConstitutionError, match=r"serves critique with the tag tone; tags of those that serve it: privacy"
    ):
        found.select("critique", ["tone"])
    only_pairs = load(tmp_path, HEAD + "principles:\n  - {id: b, comparison: B.}\n")
    with pytest.raises(ConstitutionError, match="no principle of constitution `test` serves critique with a weight"):
        only_pairs.select("critique")


def test_unknown_principle_names_the_nearest() -> None:
    with pytest.raises(ConstitutionError, match=r"`hhh` has no principle `evasoin`; did you mean `evasion`\?"):
        load_constitution("hhh").principle("evasoin")


BASE = """\
name: base
version: "1"
principles:
  - id: a
    tags: [x, y]
    weight: 2
    text: One two.
  - id: b
    critique: C {{ topic }}
    revision: R
    comparison: P
    polarity: worse
examples:
  critique_revision:
    - {principle: a, prompt: Q, response: R1, critique: C1, revision: V1}
    - {principle: b, prompt: Q2, response: R2, critique: C2, revision: V2}
"""


def test_sha256_is_that_of_the_canonical_json_of_principles_and_examples(tmp_path: Path) -> None:
    text = (
        HEAD + "principles:\n  - {id: b, text: B., weight: 1.0}\n  - {id: a, comparison: Ä, weight: 3, tags: [y, x]}\n"
    )
    canonical = (
        '{"examples":{"comparison":[],"critique_revision":[]},"principles":['
        '{"comparison":"\\u00c4","id":"a","tags":["x","y"],"weight":3.0},'
        '{"id":"b","tags":[],"text":"B."}]}'
    )
    assert load(tmp_path, text).sha256 == hashlib.sha256(canonical.encode()).hexdigest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: base", "name: other"),
        ('version: "1"', 'version: "2"\ndescription: D.'),
        ("principles:", "# a comment\nprinciples:"),
        ("text: One two.", "text: |\n      One two.\n"),
        ("text: One two.", 'text: >-\n      One\n      two.\n    polarity: "better"'),
        ("tags: [x, y]", "tags:\n      - y\n      - x"),
        ("weight: 2", "weight: 2.0"),
        ("prompt: Q,", "messages: [{role: user, content: Q}],"),
    ],
)
def test_sha256_does_not_change_with_what_means_the_same(old: str, new: str, tmp_path: Path) -> None:
    assert BASE.count(old) == 1
    base, same = load(tmp_path, BASE), load(tmp_path, BASE.replace(old, new))
    assert same.sha256 == base.sha256
    assert diff_constitutions(base, same) == []


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("text: One two.", "text: One three.", {"a": ("text",)}),
        ("tags: [x, y]", "tags: [x]", {"a": ("tags",)}),
        ("weight: 2", "weight: 0", {"a": ("weight",)}),
        ("critique: C {{ topic }}", "critique: C", {"b": ("critique",)}),
        ("revision: R\n", "revision: R.\n", {"b": ("revision",)}),
        ("comparison: P", "comparison: P.", {"b": ("comparison",)}),
        ("polarity: worse", "polarity: better", {"b": ("polarity",)}),
        ("revision: V2", "revision: V3", {"b": ("examples",)}),
        ("principle: a, prompt: Q", "principle: b, prompt: Q", {"a": ("examples",), "b": ("examples",)}),
    ],
)
def test_a_change_of_meaning_changes_the_sha256_and_is_found_by_diff(
    old: str, new: str, changed: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    assert BASE.count(old) == 1
    before, after = load(tmp_path, BASE), load(tmp_path, BASE.replace(old, new))
    assert before.sha256 != after.sha256
    assert {change.id: change.parts for change in diff_constitutions(before, after)} == changed
    assert {change.kind for change in diff_constitutions(before, after)} == {"changed"}
    assert diff_constitutions(before, before) == []


def test_diff_names_added_and_removed_principles_with_what_they_say(tmp_path: Path) -> None:
    before = load(tmp_path, HEAD + "principles:\n  - {id: a, text: A.}\n  - {id: b, comparison: B., tags: [t]}\n")
    after = load(tmp_path, HEAD + "principles:\n  - {id: c, text: C., weight: 2}\n  - {id: a, text: A.}\n")
    removed, added = diff_constitutions(before, after)
    assert (removed.kind, removed.id, removed.parts, removed.after) == ("removed", "b", ("tags", "comparison"), None)
    assert (added.kind, added.id, added.parts, added.before) == ("added", "c", ("weight", "text"), None)
    assert added.after == after.principle("c")


@pytest.mark.parametrize("name", asset_names("constitutions", ".yaml"))
def test_frozen_copy_loads_to_the_same_constitution(name: str, tmp_path: Path) -> None:
    original = load_constitution(name)
    text = frozen_yaml(original)
    frozen = load(tmp_path, text)
    assert frozen == original
    assert frozen.sha256 == original.sha256
    assert "extends" not in text
    assert max(map(len, text.splitlines())) <= 120
    if name != "short":
        assert "critique: >-\n" in text


def test_frozen_copy_keeps_every_text_to_the_character(tmp_path: Path) -> None:
    rng = random.Random(20261121)
    alphabet = [
        "a",
        "b",
        "long-word",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\n  ",
        "\t",
        ": ",
        " #",
        "- ",
        "'",
        '"',
        "\\",
        "|",
        ">",
    ]
    alphabet += [
        "&",
        "*",
        "!",
        "%",
        "@",
        "`",
        "null",
        "1.0",
        "yes",
        "é",
        "日本",
        "🙂",
        "\u2028",
        "\u00a0",
        "---",
        "...",
    ]
    texts = ["".join(rng.choices(alphabet, k=rng.randint(1, 60))).strip() for _ in range(400)]
    principles = tuple(Principle(id=f"p{i}", text=text) for i, text in enumerate(texts) if text)
    original = Constitution(name="t", version="1", principles=principles)
    frozen = load(tmp_path, frozen_yaml(original))
    assert [p.text for p in frozen.principles] == [p.text for p in principles]
    assert frozen.sha256 == original.sha256


def test_advice_names_what_is_off_what_is_alike_and_what_no_principle_serves(tmp_path: Path) -> None:
    same = "Choose the reply that is kinder to the human and to everyone who is mentioned in it"
    found = load(
        tmp_path,
        HEAD
        + f"principles:\n  - {{id: a, comparison: {same}.}}\n  - {{id: b, comparison: {same}!}}\n"
        + "  - {id: c, comparison: Choose the shorter one., weight: 0}\n  - {id: d, text: Off., weight: 0}\n",
    )
    assert [str(problem) for problem in found.advice()] == [
        "critique: no principle serves critique, so no run can use the file for it",
        "c: is switched off (weight 0) and serves no part",
        "d: is switched off (weight 0) and serves no part",
        "b: says nearly the same as `a`",
    ]
