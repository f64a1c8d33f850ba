"""The card of a trained model: its code runs and gives what the model gives, its figures are those of the run."""

import contextlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from training_rows import QUIET, conversations, pairs, write_rows

from cai.data.rows import Reject
from cai.data.training_rows import SourceFacts
from cai.engines.weights import DEFAULT_HUB_ID, DEFAULT_MODEL
from cai.errors import RunDirError
from cai.records import Message
from cai.rundir import Manifest
from cai.train.card import render_model_card, write_model_cards
from cai.train.config import DpoConfig, RewardConfig, SftConfig
from cai.train.lifecycle import TrainedModel
from cai.train.plan import Plan, plan_dpo, plan_reward, plan_sft
from cai.train.policy import train_dpo, train_sft
from cai.train.reward import train_reward
from cai.train.reward_model import raw_rewards

KINDS: Mapping[str, Any] = {
    "sft": (SftConfig, plan_sft, train_sft),
    "reward": (RewardConfig, plan_reward, train_reward),
    "dpo": (DpoConfig, plan_dpo, train_dpo),
}
QUESTION = Message(role="user", content="How long do I boil an egg?")
ANSWER = Message(role="assistant", content="Eight minutes.")
COMMAND = ("cai", "train", "reward", "--data", "my pairs.jsonl")


def planned(kind: str, model: Path, rows: Path, **settings: Any) -> Plan[Any, Any]:
    config, plan, _ = KINDS[kind]
    found: Plan[Any, Any] = plan(
        config.model_validate({**QUIET, "model": str(model), "data": [{"path": str(rows)}], **settings})
    )
    return found


def trained(plan: Plan[Any, Any], out: Path) -> TrainedModel:
    """Train, with cards."""
    found: TrainedModel = KINDS[plan.kind][2](plan, out, Console(quiet=True), command=COMMAND)
    write_model_cards(out, plan, found.results, found.manifest)
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rows")
    preferences = write_rows(folder / "pairs.jsonl", pairs(30))
    return {
        "sft": write_rows(folder / "conversations.jsonl", conversations(20)),
        "reward": preferences,
        "dpo": preferences,
    }


def run_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the Python block of a card as its reader would, in the folder of the card."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(io.StringIO()):
        exec(compile(code, "README.md", "exec"), names)
    names["printed"] = printed.getvalue()
    return names


def front_matter(card: str) -> dict[str, Any]:
    _, header, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(header)
    return found


def section(card: str, heading: str) -> str:
    return re.split(r"^## ", card.split(f"## {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def cells(table: str) -> list[list[str]]:
    """The cells of all tables in a piece of Markdown, without the rules below the heads."""
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert all(line.endswith(" |") for line in lines)
    return [line[2:-2].split(" | ") for line in lines if not line.startswith("| ---")]


@pytest.fixture(scope="module")
def reward_run(tmp_path_factory: pytest.TempPathFactory, tiny: Path, files: dict[str, Path]) -> Any:
    plan = planned("reward", tiny, files["reward"], test_share=0.3, lora_r=4)
    return plan, trained(plan, tmp_path_factory.mktemp("reward") / "run")


SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "whole": {},
    "adapter": {"use_peft": True, "lora_r": 4},
    "merged": {"use_peft": True, "lora_r": 4, "merge_adapter": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_code_of_a_reward_models_card_gives_the_models_reward(
    name: str, tmp_path: Path, tiny: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned("reward", tiny, files["reward"], **SETTINGS[name])
    offset = trained(plan, tmp_path).results["offsets"][0]
    folder = tmp_path / "model"
    assert front_matter((folder / "README.md").read_text())["library_name"] == (
        "peft" if name == "adapter" else "transformers"
    )
    names = run_code(folder, monkeypatch)
    assert names["printed"] == f"{names['reward']}\n"
    ids = plan.start.chat.whole([QUESTION, ANSWER])
    raw = raw_rewards(names["model"], [ids], pad_token_id=0, batch_size=1)
    assert names["reward"] == pytest.approx(raw[0] - offset, abs=1e-5)
    # The model of the card is the one that was trained: on the reference answers its rewards average 0.
    answers = raw_rewards(names["model"], plan.reference.rows, pad_token_id=0, batch_size=4)
    assert answers.mean() - offset == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("kind", "name"), [("sft", "whole"), ("dpo", "adapter"), ("sft", "merged")])
def test_the_code_of_a_policys_card_makes_it_reply(
    kind: str, name: str, tmp_path: Path, tiny: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(kind, tiny, files[kind], collapse={"prompts": 0}, max_steps=1, **SETTINGS[name])
    trained(plan, tmp_path)
    names = run_code(tmp_path / "model", monkeypatch)
    prompt = plan.start.chat.opened([QUESTION])
    assert names["tokens"][0, : len(prompt)].tolist() == prompt
    assert names["reply"] == plan.start.tokenizer.decode(names["tokens"][0, len(prompt) :], skip_special_tokens=True)
    assert names["printed"] == f"{names['reply']}\n"
    assert len(names["tokens"][0]) > len(prompt)
    has_adapter = any("lora_" in part for part, _ in names["model"].named_parameters())
    assert has_adapter == (name == "adapter")


def test_each_member_of_an_ensemble_has_its_card(tmp_path: Path, tiny: Path, files: dict[str, Path]) -> None:
    plan = planned("reward", tiny, files["reward"], ensemble=2, max_steps=1, seed=5, test_share=0.3)
    found = trained(plan, tmp_path)
    assert not (tmp_path / "model").exists()
    for member in (0, 1):
        card = (tmp_path / f"member-{member}" / "model" / "README.md").read_text()
        assert f"member {member} of an ensemble of 2" in card
        assert f"is {found.results['offsets'][member]:.6g}:" in card
        assert f"is {found.results['offsets'][1 - member]:.6g}:" not in card
        assert ["seed", f"{5 + member}"] in cells(section(card, "How it was made"))
        own, whole = (
            cells(section(card, name))[1][6]
            for name in ("Evaluation", "Evaluation of the ensemble, by the mean of its rewards")
        )
        assert own.startswith(f"{found.results['members'][member]['sources'][0]['log_loss']['value']:.3f} (")
        assert whole.startswith(f"{found.results['evaluation']['sources'][0]['log_loss']['value']:.3f} (")


def test_an_ensemble_without_held_out_pairs_has_cards_too(
    tmp_path: Path, tiny: Path, files: dict[str, Path], reward_run: Any
) -> None:
    plan = planned("reward", tiny, files["reward"], ensemble=2)
    cards = [tmp_path / f"member-{member}" / "model" / "README.md" for member in (0, 1)]
    for card in cards:
        card.parent.mkdir(parents=True)
    results = {"offsets": [1.5, 2.5], "metrics": [{}, {}], "evaluation": None, "members": []}
    write_model_cards(tmp_path, plan, results, reward_run[1].manifest)
    for card, offset in zip(cards, ("1.5", "2.5"), strict=True):
        text = card.read_text()
        assert "**Not measured.**" in section(text, "Evaluation")
        assert f"is {offset}:" in section(text, "Offset")


def test_figures_of_the_evaluation_are_those_of_the_results(reward_run: Any) -> None:
    plan, found = reward_run
    card = (found.path / "model" / "README.md").read_text()
    (source,) = found.results["evaluation"]["sources"]
    ((head, row),) = [cells(section(card, "Evaluation"))]
    shown = dict(zip(head, row, strict=True))
    for name, key in (
        ("accuracy", "accuracy"),
        ("the longer one wins", "longer_wins"),
        ("better than that by", "gain"),
    ):
        mean = source[key]
        assert shown[name] == f"{mean['value']:.1%} ({mean['low']:.1%} to {mean['high']:.1%})"
    for name, key in (("mean margin", "margin"), ("log loss", "log_loss")):
        mean = source[key]
        assert shown[name] == f"{mean['value']:.3f} ({mean['low']:.3f} to {mean['high']:.3f})"
    assert shown["labels"] == "`human`"
    assert int(shown["pairs"]) == len(plan.test.items)
    assert shown["least possible"] == f"{source['label_entropy']:.3f}"
    assert shown["calibration error"] == f"{source['ece']:.3f}"
    assert f"is {found.results['offsets'][0]:.6g}: the mean raw reward of {len(plan.reference.rows)} " in card


def changed(results: Mapping[str, Any], **source: Any) -> dict[str, Any]:
    """The results with other figures of their only source."""
    copy: dict[str, Any] = json.loads(json.dumps(results))
    copy["evaluation"]["sources"][0].update(source)
    return copy


def test_what_intervals_do_not_show_is_said(reward_run: Any) -> None:
    plan, found = reward_run
    good = changed(found.results, beats_chance=True, beats_length=True)
    bad = changed(found.results, beats_chance=False, beats_length=False)
    no_length = changed(found.results, beats_chance=True, beats_length=False)
    said = {
        name: re.findall(r"not shown to be better than ([\w ]+)", render_model_card(plan, results, found.manifest))
        for name, results in (("good", good), ("bad", bad), ("no length", no_length))
    }
    assert said == {
        "good": [],
        "bad": ["a coin", "taking the longer reply"],
        "no length": ["taking the longer reply"],
    }


def test_figures_that_do_not_apply_have_none(reward_run: Any) -> None:
    plan, found = reward_run
    ties = changed(found.results, accuracy=None, margin=None, longer_wins=None, gain=None)
    endless = changed(found.results, margin={"value": 1.5, "low": "-Infinity", "high": "Infinity"})
    shown = [
        cells(section(render_model_card(plan, results, found.manifest), "Evaluation"))[1] for results in (ties, endless)
    ]
    assert shown[0][2:6] == ["–", "–", "–", "–"]
    assert shown[1][5] == "1.500 (no interval)"


def test_what_made_the_model_is_in_its_card(reward_run: Any, tiny: Path) -> None:
    plan, found = reward_run
    card = (found.path / "model" / "README.md").read_text()
    made = section(card, "How it was made")
    assert "cai train reward --data 'my pairs.jsonl'\n" in made
    rows = dict(cells(made))
    assert rows["sha256 of the start"] == plan.start.sha256
    assert rows["start"].replace("\\", "") == str(tiny)
    assert rows["made"] == f"{found.manifest.created}, cai {found.manifest.versions['cai']}"
    for name in ("torch", "transformers", "trl", "peft"):
        assert f"{name} {found.manifest.versions[name]}" in rows["versions"]


def test_arguments_that_are_not_the_default_are_marked(reward_run: Any) -> None:
    plan, found = reward_run
    rows = dict(cells(section(render_model_card(plan, found.results, found.manifest), "Arguments")))
    assert rows["**`lora_r`**"] == "**4**"
    assert rows["**`learning_rate`**"] == "**0.01**"
    assert rows["`lora_alpha`"] == "32"
    assert {name.strip("*`") for name in rows} == {"argument", *RewardConfig.model_fields} - {
        *("model", "adapter", "data", "eval_data", "reference"),  # told elsewhere
    }


def test_what_was_chosen_for_the_user_is_shown(tiny: Path, files: dict[str, Path], tmp_path: Path) -> None:
    plan = planned("sft", tiny, files["sft"], max_length=None, bf16=None, collapse={"prompts": 0}, max_steps=1)
    found = trained(plan, tmp_path)
    card = (tmp_path / "model" / "README.md").read_text()
    rows = dict(cells(section(card, "Arguments")))
    assert rows["`max_length`"] == "512"
    assert rows["`bf16`"] in ("true", "false")
    assert "- learns from all turns of the assistant\n" in card
    assert "**Not checked.**" in section(card, "Collapse check")
    assert found.manifest.state == "finished"


FACTS = SourceFacts(
    path="evil`|<b>*.jsonl\n## Forged",
    for_test=False,
    sha256="a" * 64,
    rows=20,
    used=11,
    rejects={"not_text": 3, "no|table": 1},
    left_out={"in_test": 4, "cut": 1},
    notes={"odd": 2},
    constitution_sha256s=("b" * 64,),
    weight=2.5,
    missing=7,
)
HELD = FACTS.model_copy(
    update={"path": "held.jsonl", "for_test": True, "weight": 1.0, "rejects": {}, "left_out": {}, "missing": 0}
)


def told(plan: Plan[Any, Any], manifest: Manifest, results: Mapping[str, Any]) -> str:
    """The card of a plan with sources of many faults."""
    rejects = tuple(Reject(source="evil", row=row, reason="not_text", message="") for row in range(4))
    rows = replace(plan.rows, sources=(FACTS, HELD), rejects=rejects, duplicates=6)
    return render_model_card(
        replace(plan, rows=rows, counts={"shortened": 5, "too_long": 8, "tie": 0}), results, manifest
    )


def test_rows_and_their_reasons_are_counted(reward_run: Any) -> None:
    plan, found = reward_run
    data = cells(section(told(plan, found.manifest, found.results), "Data"))
    sources = [row for row in data if len(row) == 6]
    assert [row[1:5] for row in sources[1:]] == [
        ["training", "20", "11", "weight 2.5"],
        ["held-out rows", "20", "11", "weight 1"],
    ]
    assert sources[1][5] == f"`{'a' * 64}`"
    labels = next(row for row in data if row[0] == "`human`")
    assert labels[1:] == [str(len(plan.train.items)), str(len(plan.test.items))]
    counted = {row[0]: int(row[1]) for row in data if len(row) == 2 and row[1].isdigit()}
    assert counted == {
        "trained on": len(plan.train.items),
        "held out": len(plan.test.items),
        "cannot be used": 4,
        r"rejected: not\_text": 3,
        r"rejected: no\|table": 1,
        r"left out: in\_test": 4,
        "left out: cut": 1,
        r"left out: too\_long": 8,
        "lost their oldest turns to fit": 5,
        "repeat an earlier training row": 6,
        "odd, and used: odd": 4,
        "asked for by a ratio, and not there": 7,
    }
    assert f"`{'b' * 64}`\n" in told(plan, found.manifest, found.results)


def test_text_from_outside_shows_as_it_is(reward_run: Any) -> None:
    plan, found = reward_run
    evil = "m`</td>|# *x*\n## Forged\n```"
    manifest = found.manifest.model_copy(update={"command": ("cai", "```", "--data", "a\nb")})
    card = told(replace(plan, start=replace(plan.start, name=evil)), manifest, found.results)
    assert "\n## Forged" not in card
    assert "<b>" not in card
    assert "</td>" not in card
    assert r"evil\`\|&lt;b>\*.jsonl \#\# Forged" in card
    assert "````sh\ncai '```' --data 'a b'\n````\n" in card
    headings = re.findall(r"^## (.*)$", card, re.MULTILINE)
    assert headings == re.findall(r"^## (.*)$", render_model_card(plan, found.results, found.manifest), re.MULTILINE)


def test_the_front_matter_names_what_the_hub_knows(reward_run: Any) -> None:
    plan, found = reward_run

    def front(**start: Any) -> dict[str, Any]:
        changed_plan = replace(plan, start=replace(plan.start, **start))
        return front_matter(render_model_card(changed_plan, found.results, found.manifest))

    tags = ["constitutional-ai", "rlaif", "reward-model"]
    assert front() == {"library_name": "transformers", "tags": tags}  # a folder has no name on the hub
    hub = front(name="owner/name", weights=replace(plan.start.weights, base="owner/name"))
    assert hub == {"base_model": "owner/name", "library_name": "transformers", "tags": tags}
    assert front(name=DEFAULT_MODEL)["base_model"] == DEFAULT_HUB_ID


COLLAPSED = {
    "start": {
        "replies": 31,
        "mean_words": 40.0,
        "median_words": 38.5,
        "eos_rate": 0.9,
        "distinct_1": 0.5,
        "distinct_2": 0.8,
        "repeated_closing": 0.0,
        "closing": "",
        "repetition": 0.01,
        "empty": 0,
    },
    "flags": [
        {"name": "repeated_closing", "value": 0.7, "start": 0.0, "threshold": 0.2, "sentence": "70% end <alike>."}
    ],
    "failures": {"context_overflow": 1},
    "cannot_see": "It does not see quality.",
}


def test_the_collapse_check_is_in_a_policys_card(tiny: Path, files: dict[str, Path], reward_run: Any) -> None:
    plan = planned("dpo", tiny, files["dpo"])
    moved = {"repeated_closing": 0.7, "closing": "you matter!", "empty": 3}
    check = {**COLLAPSED, "trained": {**COLLAPSED["start"], **moved}}
    manifest = reward_run[1].manifest
    text = section(render_model_card(plan, {"metrics": {}, "collapse": check}, manifest), "Collapse check")
    rows = {row[0]: row[1:] for row in cells(text)}
    assert rows["share a closing"] == ["0%", "70%"]
    assert rows["words, median"] == ["38.5", "38.5"]
    assert rows["empty"] == ["0", "3"]
    assert rows[r"failed: context\_overflow"] == ["1"]
    assert "- **70% end &lt;alike>.**\n" in text
    assert "It does not see quality.\n" in text
    assert "Nothing suggests" not in text
    calm = {**check, "flags": []}
    assert "Nothing suggests a collapse.\n" in render_model_card(plan, {"metrics": {}, "collapse": calm}, manifest)


def test_how_to_serve_it_fits_what_was_saved(tiny: Path, files: dict[str, Path], reward_run: Any) -> None:
    results, manifest = {"metrics": {}, "collapse": None}, reward_run[1].manifest
    whole, adapter = (
        section(render_model_card(planned("sft", tiny, files["sft"], **more), results, manifest), "How to use it")
        for more in ({}, {"use_peft": True})
    )
    assert "vllm serve FOLDER\n" in whole
    assert "vllm serve BASE --enable-lora" in adapter
    assert "This is a LoRA adapter." in adapter
    assert "LoRA" not in whole
    for text in (whole, adapter):
        assert "cai critique-revise --model FOLDER\n" in text
        assert "trust_remote_code" not in text
    trusted = planned("sft", tiny, files["sft"], trust_remote_code=True)
    assert "trust_remote_code=True" in section(render_model_card(trusted, results, manifest), "How to use it")


def test_a_reward_adapter_on_a_start_with_an_adapter_says_what_it_needs(
    tmp_path: Path, tiny: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = planned("sft", tiny, files["sft"], use_peft=True, collapse={"prompts": 0}, max_steps=1)
    trained(first, tmp_path / "first")
    plan = planned("reward", tmp_path / "first", files["reward"], use_peft=True, max_steps=1)
    trained(plan, tmp_path / "second")
    folder = tmp_path / "second" / "model"
    card = (folder / "README.md").read_text()
    assert "the folder `start` of the run" in card
    assert "adapter of the start" in dict(cells(section(card, "How it was made")))
    names = run_code(folder, monkeypatch)
    assert names["base"] == str(tmp_path / "second" / "start")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, reward_run: Any) -> None:
    plan, found = reward_run
    (tmp_path / "model").write_text("in the way")
    with pytest.raises(RunDirError, match="README"):
        write_model_cards(tmp_path, plan, found.results, found.manifest)
