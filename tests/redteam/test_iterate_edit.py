"""Edits of a constitution as text: what is meant comes out, comments stay, and the patch applies."""

import shutil
import subprocess
from pathlib import Path

import pytest

from cai.assets import asset_dir
from cai.constitution import load_constitution
from cai.errors import ConfigError
from cai.iterate.edit import Added, Change, Edited, Weight, edit_constitution, find_constitution
from cai.principles import Principle

HEAD = 'name: c\nversion: "1"\n'
NEW = Added(
    Principle(id="new-one", tags=("fraud",), text="A reply: says # no, 'kindly' and \"in full\" — ünd knapp."), "Why."
)
LONG = Added(Principle(id="new-one", text=" ".join(["A reply that goes on"] * 20)), " ".join(["because"] * 40))


def edit(folder: Path, text: str, *changes: Change) -> Edited:
    """The edit of a file with this text; checks that the original stays and that the patch gives the result."""
    path = folder / "c.yaml"
    path.write_bytes(text.encode())
    (folder / "out").mkdir(exist_ok=True)
    found = edit_constitution(path, changes, folder / "out/constitution.yaml")
    assert path.read_bytes() == text.encode()
    applied(folder, text, found)
    return found


def applied(folder: Path, before: str, found: Edited) -> None:
    if shutil.which("patch") is None:
        pytest.skip("needs the command patch")
    (folder / "patched.yaml").write_bytes(before.encode())
    (folder / "c.diff").write_bytes(found.diff.encode())
    command = ["patch", "--binary", "--quiet", str(folder / "patched.yaml"), str(folder / "c.diff")]
    subprocess.run(command, check=True, capture_output=True)
    assert (folder / "patched.yaml").read_bytes() == found.after.encode()


BLOCK = (
    HEAD
    + "# about all\nprinciples:\n  # about a\n  - id: a  # its name\n    text: Be a.\n"
    + "  - id: b\n    text: Be b.\n# end\n"
)


def test_a_weight_is_put_below_the_id_with_its_reason(tmp_path: Path) -> None:
    found = edit(tmp_path, BLOCK, Weight("a", 2.0, "Why."))
    assert found.after == BLOCK.replace("# its name\n", "# its name\n    # Why.\n    weight: 2\n")
    assert [(change.id, change.parts) for change in found.changes] == [("a", ("weight",))]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "  - id: a\n    weight: 1.5   # mine\n    text: Be a.\n",
            "  - id: a\n    # Why.\n    weight: 2   # mine\n    text: Be a.\n",
        ),
        ("  - weight: 1.5\n    id: a\n    text: Be a.\n", "  - weight: 2\n    id: a\n    text: Be a.\n"),
        ("  - text: Be a.\n    id: 'a'\n", "  - text: Be a.\n    id: 'a'\n    # Why.\n    weight: 2\n"),
        ("  - {id: a, text: Be a.}\n", "  - {id: a, weight: 2, text: Be a.}\n"),
        ("  - {id: a, weight: 1, text: Be a.}\n", "  - {id: a, weight: 2, text: Be a.}\n"),
        ("- id: a\n  text: Be a.\n", "- id: a\n  # Why.\n  weight: 2\n  text: Be a.\n"),
        ("  - text: Be a.\n    id: a", "  - text: Be a.\n    id: a\n    # Why.\n    weight: 2\n"),
    ],
    ids=["there", "first key", "id last", "flow", "flow, there", "no indent", "no line end"],
)
def test_a_weight_in_every_layout(tmp_path: Path, before: str, after: str) -> None:
    head = HEAD + "principles:\n"
    assert edit(tmp_path, head + before, Weight("a", 2.0, "Why.")).after == head + after


@pytest.mark.parametrize(
    ("weight", "written"),
    [
        (1.714286, "1.714286"),
        (2469134.0, "2469134.0"),
        (1e6, "1000000.0"),  # 1e+06 is text in YAML
        (2e-05, "2.0e-05"),
        (0.3, "0.3"),
    ],
)
def test_a_weight_is_written_with_all_its_digits(tmp_path: Path, weight: float, written: str) -> None:
    found = edit(tmp_path, BLOCK, Weight("a", weight, "Why."))
    assert found.after == BLOCK.replace("# its name\n", f"# its name\n    # Why.\n    weight: {written}\n")
    again = edit(tmp_path, found.after, Weight("a", 3 * weight, "Why."))
    assert again.changes[0].after is not None
    assert again.changes[0].after.weight == 3 * weight


@pytest.mark.parametrize("change", [NEW, LONG], ids=["hostile", "long"])
@pytest.mark.parametrize(
    "text",
    [
        BLOCK,
        BLOCK.replace("\n", "\r\n"),
        HEAD + "principles:\n- id: a\n  text: |-\n    Be a.\n\n    Really.\n\n# after\nexamples:\n  comparison: []\n",
        HEAD + "principles:\n    - {id: a, text: Be a.}  # in one line",
        HEAD + "extends: short\n",
        "\ufeff" + HEAD + "extends: short",
    ],
    ids=["block", "CRLF", "literal", "flow", "extends", "byte order mark"],
)
def test_a_principle_is_added_after_the_others(tmp_path: Path, text: str, change: Added) -> None:
    found = edit(tmp_path, text, change)
    assert [(one.id, one.kind) for one in found.changes] == [("new-one", "added")]
    assert found.changes[0].after == change.principle
    kept = [line for line in text.splitlines() if line.strip()]
    added = found.after.splitlines()
    assert [line for line in added if line in kept] == kept
    assert found.after.count("\r") == (found.after.count("\n") if "\r" in text else 0)
    assert max(len(line) for line in added) <= 120


def test_an_added_principle_stands_before_the_comments_that_follow_the_others(tmp_path: Path) -> None:
    found = edit(tmp_path, BLOCK, Added(Principle(id="c", text="Be c."), "Why."))
    assert found.after == BLOCK.replace("# end\n", "\n  # Why.\n  - id: c\n    text: >-\n      Be c.\n# end\n")


def test_what_is_inherited_gets_an_entry_of_its_own(tmp_path: Path) -> None:
    ids = [principle.id for principle in load_constitution("short").principles]
    found = edit(
        tmp_path, HEAD + "extends: short\nprinciples:\n  - id: more\n    text: More.\n", Weight(ids[0], 3.0, "Why.")
    )
    assert found.after.endswith(f"    text: More.\n\n  # Why.\n  - id: {ids[0]}\n    weight: 3\n")


def test_a_copy_in_another_folder_finds_what_it_extends_and_the_patch_does_not_move(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(HEAD + "principles: [{id: a, text: Be a.}]\n")
    text = HEAD + "extends: base.yaml  # ours\nprinciples:\n  - id: b\n    text: Be b.\n"
    found = edit(tmp_path, text, Weight("a", 2.0, "Why."))
    assert "extends: ../base.yaml  # ours\n" in (tmp_path / "out/constitution.yaml").read_text()
    assert "extends" not in "".join(line for line in found.diff.splitlines() if line[:1] in "+-")


def test_several_changes_at_once(tmp_path: Path) -> None:
    found = edit(tmp_path, BLOCK, Weight("a", 2.0, "Why."), Weight("b", 0.5, "Less."), NEW)
    assert [(one.id, one.kind) for one in found.changes] == [("a", "changed"), ("b", "changed"), ("new-one", "added")]


def test_no_change_gives_an_empty_patch(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(BLOCK)
    found = edit_constitution(path, [], tmp_path / "out.yaml")
    assert (found.diff, (tmp_path / "out.yaml").read_text()) == ("", BLOCK)


@pytest.mark.parametrize(
    ("text", "change"),
    [
        (
            "principles:\n  - id: a\n    weight: &w 1.0\n    text: A.\n  - id: b\n    weight: *w\n    text: B.\n",
            Weight("b", 2.0, ""),
        ),
        ("principles: [{id: a, text: Be a.}]\n", NEW),
        ("principles:\n  - &a\n    id: a\n    text: A.\n  - {<<: *a, id: b}\n", Weight("a", 2.0, "")),
    ],
    ids=["alias", "flow list", "merge"],
)
def test_a_layout_that_allows_no_edit_is_refused(tmp_path: Path, text: str, change: Change) -> None:
    with pytest.raises(ConfigError, match=r"by program"):
        edit(tmp_path, HEAD + text, change)


def test_a_weight_that_is_to_be_put_in_by_hand_has_all_its_digits(tmp_path: Path) -> None:
    text = HEAD + "principles:\n  - id: a\n    weight: &w 1.0\n    text: A.\n  - id: b\n    weight: *w\n    text: B.\n"
    with pytest.raises(ConfigError, match=r"put in by hand: weight 1\.714286 for `b`"):
        edit(tmp_path, text, Weight("b", 1.714286, ""))


def test_every_comment_of_the_shipped_constitution_survives(tmp_path: Path) -> None:
    path = find_constitution("hhh")
    assert path == asset_dir("constitutions") / "hhh.yaml"
    text = path.read_text(encoding="utf-8")
    ids = [principle.id for principle in load_constitution("hhh").principles]
    found = edit(tmp_path, text, *(Weight(id_, 2.0, "Why.") for id_ in ids[::5]), NEW)
    lines = iter(found.after.split("\n"))
    assert all(line in lines for line in text.split("\n"))  # all of them, in their order
    with pytest.raises(ConfigError, match="neither a file nor a shipped constitution"):
        find_constitution("hhhh")
