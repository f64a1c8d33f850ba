"""Comparisons from end to end: planted truth comes out, nothing that is tested on was learned, the page says it all."""

import base64
import hashlib
import json
import random
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from cai_process import Finished, manifest
from compare_jobs import KIND, OTHER, REWARD, compare, comparisons, config, labelled, read_rows, write_rows
from rich.console import Console
from tiny_model import save_tiny_model

from cai.compare.config import CompareConfig
from cai.compare.records import Figure, PathComparison
from cai.compare.report import verdict
from cai.compare.run import Compared, compare_paths, plan_comparison
from cai.config import load_config
from cai.data.tables import split_of
from cai.errors import ConfigError, DataError, RunDirError
from cai.evaluate.ranking_records import Axis, LengthEffect, PolicyRating, Ranking
from cai.records import Message, Prompt
from cai.statistics import Mean

ROOT = Path(__file__).resolve().parent.parent.parent
Cai = Callable[..., Finished]


def value(figure: Figure | None) -> float:
    assert figure is not None
    return figure.mean.value


def accuracies(comparison: PathComparison) -> dict[tuple[str, str], float]:
    return {(one.trained_on, one.tested_on): value(one.accuracy) for one in comparison.cross}


def sources(folder: Path, number: int, ai_prefers: Callable[[int], bool | float]) -> tuple[Path, Path]:
    rows = list(comparisons(number))
    human = write_rows(folder / "human.jsonl", labelled(rows, lambda _: True))
    return write_rows(folder / "ai <b>&.jsonl", labelled(rows, ai_prefers, source="ai")), human


@pytest.fixture(scope="module")
def opposed(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """Sides of opposite rules, two seeds, a curve and prices."""
    folder = tmp_path_factory.mktemp("opposed")
    ai, human = sources(folder, 100, lambda _: False)
    model = save_tiny_model(folder / "<i>tiny</i>")
    prices = {"currency": "<USD>", "ai_label": 0.001, "human_label": 2}
    return compare(folder / "run", ai, human, model, seeds=2, sizes=[16, 40], prices=prices)


def test_opposite_rules_show_on_the_diagonal(opposed: Compared) -> None:
    found = accuracies(opposed.comparison)
    assert found["human", "human"] > 0.8
    assert found["ai", "ai"] > 0.8
    assert found["ai", "human"] == pytest.approx(1 - found["ai", "ai"])
    assert found["human", "ai"] == pytest.approx(1 - found["human", "human"])
    share = opposed.comparison.agreement.agreement
    assert share is not None
    assert share.value == 0.0
    human, ai = opposed.comparison.held_out
    assert human.gap is not None
    assert ai.gap is not None
    assert human.gap.value == pytest.approx(found["human", "human"] - found["ai", "human"])
    assert ai.gap.value == pytest.approx(found["human", "ai"] - found["ai", "ai"])
    loss = {(one.trained_on, one.tested_on): value(one.log_loss) for one in opposed.comparison.cross}
    assert loss["human", "human"] < 0.5 < 1 < loss["ai", "human"]


def test_noise_in_the_ai_labels_costs_accuracy_and_bounds_what_can_be_seen_of_it(tmp_path: Path, tiny: Path) -> None:
    draw = random.Random(3)
    flipped = [draw.random() < 0.3 for _ in range(160)]
    ai, human = sources(tmp_path, 160, lambda place: not flipped[place])
    done = compare(tmp_path / "run", ai, human, tiny, test_share=0.4, seed=1)
    found = accuracies(done.comparison)
    held = [n for n, row in enumerate(comparisons(160)) if in_test(row["prompt"], 0.4, 1)]
    agreed = sum(not flipped[n] for n in held) / len(held)
    assert found["human", "human"] > 0.9
    assert 0.6 < found["ai", "human"] < found["human", "human"] - 0.03
    assert found["human", "ai"] == pytest.approx(agreed, abs=0.1), (
        "who knows the rule agrees with the labels that keep it"
    )
    share = done.comparison.agreement.agreement
    assert share is not None
    assert share.value == pytest.approx(1 - sum(flipped) / 160)


def in_test(prompt: str, share: float, seed: int) -> bool:
    return split_of(Prompt(id="", messages=(Message(role="user", content=prompt),)), share, seed) == "test"


def test_both_sides_learn_from_the_same_nested_comparisons_and_never_from_held_out_prompts(opposed: Compared) -> None:
    out = opposed.path
    held = {row["prompt"] for row in comparisons(100) if in_test(row["prompt"], 0.2, 0)}
    learned: dict[tuple[str, int], list[str]] = {}
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (out / "pairs").iterdir()}
    assert files.keys() == {"ai.jsonl", "human.jsonl", "held_out.jsonl"}
    models = sorted(path.name for path in (out / "models").iterdir())
    assert len(models) == 2 * 3 * 2
    for name in models:
        side, size, _, seed = name.split("-")
        made = manifest(out / "models" / name)
        assert (made["stage"], made["state"], made["config"]["seed"]) == ("train-reward", "finished", int(seed))
        assert made["inputs"]["data 1"] == files[f"{side}.jsonl"]
        assert made["inputs"]["data 2"] == files["held_out.jsonl"]
        assert (made["counts"]["train"], made["counts"]["test"]) == (int(size), len(held))
        (source,) = made["config"]["data"]
        rows = read_rows(Path(source["path"]))[: source["limit"]]
        learned[side, int(size)] = [row["prompt"][0]["content"] for row in rows]
        assert {row["source"] for row in rows} == {side}
    for size in (16, 40):
        for side in ("ai", "human"):
            assert learned[side, size] == learned["human", 100 - len(held)][:size]
    for prompts in learned.values():
        assert not held & set(prompts)
    assert {row["prompt"][0]["content"] for row in read_rows(out / "pairs" / "held_out.jsonl")} == held
    for side, words in (("ai", OTHER), ("human", KIND)):
        assert len(read_rows(out / "pairs" / f"{side}.jsonl")) == 100 - len(held)
        for row in read_rows(out / "pairs" / f"{side}.jsonl"):
            assert set(row["chosen"][0]["content"].split()[1:]) <= set(words)


def test_figures_are_those_of_the_models_by_themselves(opposed: Compared) -> None:
    """Each model's own evaluation on the human labels, by `cai train reward`, is an independent route."""
    for trained_on in ("ai", "human"):
        own = [
            json.loads((opposed.path / "models" / f"{trained_on}-{size}-seed-{seed}" / "results.json").read_bytes())
            for size, seed in ((opposed.comparison.matching.train, 0), (opposed.comparison.matching.train, 1))
        ]
        figures = [one["evaluation"]["sources"][0] for one in own]
        cell = opposed.comparison.cell(trained_on, "human")  # type: ignore[arg-type]
        assert cell is not None
        assert cell.accuracy is not None
        assert cell.accuracy.seeds.values == pytest.approx([one["accuracy"]["value"] for one in figures])
        assert cell.log_loss.seeds.values == pytest.approx([one["log_loss"]["value"] for one in figures])
        assert cell.ece.values == pytest.approx([one["ece"] for one in figures])
        human = opposed.comparison.labels("human")
        assert human is not None
        assert human.longer_wins is not None
        assert human.longer_wins.value == pytest.approx(figures[0]["longer_wins"]["value"])


def test_the_curve_and_its_costs(opposed: Compared) -> None:
    points = {(one.trained_on, one.labels): one for one in opposed.comparison.efficiency}
    train = opposed.comparison.matching.train
    assert points.keys() == {(side, size) for side in ("ai", "human") for size in (16, 40, train)}
    found = accuracies(opposed.comparison)
    for side in ("ai", "human"):
        assert value(points[side, train].accuracy) == found[side, "human"]
    assert points["human", 40].cost == 80
    assert points["ai", 40].cost == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("low", "value", "high", "said"),
    [
        (0.01, 0.1, 0.2, "human labels make the better reward model"),
        (0.0, 0.1, 0.2, "these data do not tell the two apart"),
        (-0.2, -0.1, 0.0, "these data do not tell the two apart"),
        (-0.2, -0.1, -0.01, "AI labels make the better reward model"),
    ],
)
def test_only_an_interval_on_one_side_of_zero_is_a_verdict(
    low: float, value: float, high: float, said: str, opposed: Compared
) -> None:
    gap = Mean(value=value, low=low, high=high)
    human = opposed.comparison.held_out[0].model_copy(update={"gap": gap})
    found = verdict(opposed.comparison.model_copy(update={"held_out": (human,)}))
    assert found.endswith(f"by {100 * value:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}): {said}.")


class Page(HTMLParser):
    """The tags, texts and tables of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data


@pytest.fixture
def page(opposed: Compared) -> Page:
    return Page((opposed.path / "comparison.html").read_text(encoding="utf-8"))


def test_the_page_has_the_figures_of_the_json(opposed: Compared, page: Page) -> None:
    saved = PathComparison.model_validate_json((opposed.path / "comparison.json").read_bytes())
    assert saved == opposed.comparison
    markdown = (opposed.path / "comparison.md").read_text(encoding="utf-8").replace("\\", "")
    by_name = {(row[0], row[1]): row for row in page.rows if len(row) == 7}
    assert [row[1] for row in page.rows if len(row) == 7] == ["tested on", *["human"] * 3, *["AI"] * 3]
    names = {"ai": "AI", "human": "human"}
    for cell in saved.cross:
        assert cell.accuracy is not None
        row = by_name[f"{cell.labels:,} {names[cell.trained_on]} labels", names[cell.tested_on]]
        accuracy, loss = cell.accuracy.mean, cell.log_loss.mean
        assert row[2] == f"{accuracy.value:.1%} ({accuracy.low:.1%} to {accuracy.high:.1%})"
        low, high = sorted(cell.accuracy.seeds.values)
        assert row[3].startswith(f"{low:.1%} to {high:.1%}, deviation ")
        assert row[4] == f"{loss.value:.3f} ({loss.low:.3f} to {loss.high:.3f})"
        assert row[6].startswith(f"{cell.ece.mean:.3f} (")
        for text in row[2:]:
            assert text in markdown
    for point in saved.efficiency:
        mean = point.accuracy.mean
        shown = f"{mean.value:.1%} ({mean.low:.1%} to {mean.high:.1%})"
        (row,) = [row for row in page.rows if row[0] == f"{point.labels:,}"]
        assert row[1 if point.trained_on == "ai" else 3] == shown
        (row,) = [row for row in page.rows if row[:2] == [names[point.trained_on], f"{point.labels:,}"]]
        assert row[3] == shown
        assert row[2].endswith(" <USD>")
        assert float(row[2].removesuffix(" <USD>").replace(",", "")) == pytest.approx(point.cost)
    human = saved.labels("human")
    assert human is not None
    assert human.gap is not None
    assert f"changes accuracy by {100 * human.gap.value:+.1f} points" in page.text
    assert "human labels make the better reward model" in page.text
    assert f"{saved.matching.matched} comparisons of 100 prompts have a label of each side" in page.text
    assert "50% is chance" in page.text


def test_the_page_is_one_file_without_network_and_escapes_names(opposed: Compared, page: Page) -> None:
    assert "ai <b>&.jsonl" in page.text
    assert "<i>tiny</i>" in page.text
    names = {name for name, _ in page.tags}
    assert not names & {"b", "i", "script", "link", "iframe", "usd"}
    drawings = [attributes["src"] for name, attributes in page.tags if name == "img"]
    assert len(drawings) == 3
    for drawing, name in zip(drawings, ("cross.svg", "efficiency.svg", "cost.svg"), strict=True):
        assert drawing is not None
        data = base64.b64decode(drawing.removeprefix("data:image/svg+xml;base64,"))
        assert data == (opposed.path / name).read_bytes()
        assert data.startswith(b"<?xml")
        assert b"mathdefault" not in data, "numbers are written as numbers"
    assert all(attributes["alt"] for name, attributes in page.tags if name == "img")
    html = (opposed.path / "comparison.html").read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)="(?!data:)', html)
    assert "http" not in html.replace("http-equiv", "")
    policy = next(attributes["content"] for name, attributes in page.tags if "http-equiv" in attributes)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    markdown = (opposed.path / "comparison.md").read_text(encoding="utf-8")
    assert "&lt;i>tiny" in markdown
    assert not [name for name in ("<i>", "<b>", "<USD>") if name in markdown]


def test_the_run_directory_says_what_it_was_made_from(opposed: Compared) -> None:
    made = manifest(opposed.path)
    assert (made["stage"], made["state"]) == ("compare", "finished")
    assert made["inputs"].keys() == {"model", "chat template", "AI labels", "human labels"}
    facts = opposed.comparison.matching
    assert made["counts"] == {
        "matched": 100, "train": facts.train, "held_out": facts.held_out, "models": 12, "rejected_rows": 0,
    }  # fmt: skip
    assert "trl" in made["versions"]
    assert not list(opposed.path.rglob("checkpoints")), "checkpoints of finished models are removed"
    assert all((path / "model" / "config.json").is_file() for path in (opposed.path / "models").iterdir())


def copy_of(opposed: Compared, copied: Path) -> Path:
    """The same run with the same models elsewhere, to go on with."""
    copied.mkdir()
    for path in (*opposed.path.glob("*.*"), *opposed.path.glob(".*")):
        (copied / path.name).write_bytes(path.read_bytes())
    (copied / "models").symlink_to(opposed.path / "models")
    return copied


def asked_anew(opposed: Compared, **settings: Any) -> CompareConfig:
    """The configuration of that run with other settings that may change, and with one seed and no sizes."""
    before = opposed.manifest.config
    return CompareConfig.model_validate(
        {
            **{name: {"path": before[name]["path"]} for name in ("ai", "human")},
            "reward": {**REWARD, "model": before["reward"]["model"]},
            "seeds": 1,
            "sizes": [],
            **settings,
        }
    )


def test_without_prices_or_sizes_the_page_says_so_and_old_plots_go(tmp_path: Path, opposed: Compared) -> None:
    """Sizes and prices may change between sessions; the models are kept."""
    copied = copy_of(opposed, tmp_path / "run")
    assert (copied / "cost.svg").exists()
    done = compare_paths(plan_comparison(asked_anew(opposed)), copied, Console(quiet=True))
    page = Page((copied / "comparison.html").read_text(encoding="utf-8"))
    assert "No price was stated, so nothing is said of cost" in page.text
    assert "there is no curve" in page.text
    assert [attributes.get("alt", "")[:8] for name, attributes in page.tags if name == "img"] == ["Accuracy"]  # type: ignore[index]
    assert not (copied / "cost.svg").exists()
    assert not (copied / "efficiency.svg").exists()
    cell = done.comparison.cell("human", "human")
    before = opposed.comparison.cell("human", "human")
    assert cell is not None
    assert before is not None
    assert cell.accuracy is not None
    assert before.accuracy is not None
    assert cell.accuracy.seeds.values == before.accuracy.seeds.values[:1]
    assert cell.accuracy.seeds.deviation is None
    assert f"{cell.ece.mean:.3f}" in page.text
    assert f"{cell.ece.mean:.3f} (" not in page.text, "one seed has no range"


def test_a_ranking_of_policies_is_shown_beside_and_a_broken_one_refused_at_once(
    tmp_path: Path, opposed: Compared
) -> None:
    mean = Mean(value=0.0, low=0.0, high=0.0)
    policy = PolicyRating(
        policy="<b>ai</b>",
        rating=mean,
        win_rate=Mean(value=0.625, low=0.5, high=0.75),
        comparisons=8,
        prompts=4,
        group=0,
    )
    axis = Axis(
        name="all", runs=(), comparisons=8, prompts=4, policies=(policy,), pairs=(), notes=("Few prompts.",),
        length=LengthEffect(effect=None, scale=None, ratio_effect=None, reason="all replies are equally long"),
    )  # fmt: skip
    ranking = Ranking(seed=0, baseline="base", axes=(axis,), warnings=("The judge has no certificate.",))
    (tmp_path / "ranking.json").write_text(ranking.model_dump_json())
    copied = copy_of(opposed, tmp_path / "run")
    assert "Policies" not in (copied / "comparison.md").read_text()
    done = compare_paths(plan_comparison(asked_anew(opposed, ranking=tmp_path)), copied, Console(quiet=True))
    assert done.comparison.ranking == ranking
    html = (copied / "comparison.html").read_text()
    for said in ("62.5% (50.0% to 75.0%)", "Few prompts.", "The judge has no certificate.", "Elo points against base"):
        assert said in html
    assert "&lt;b&gt;ai&lt;/b&gt;" in html
    assert "<b>ai" not in html
    (tmp_path / "ranking.json").write_text("{}")
    with pytest.raises(DataError, match=r"ranking\.json is not what a run of `cai rank` writes"):
        plan_comparison(asked_anew(opposed, ranking=tmp_path))
    with pytest.raises(DataError, match=r"ranking\.json cannot be read: .*; it is written by a run of `cai rank`"):
        plan_comparison(asked_anew(opposed, ranking=tmp_path / "run"))


def test_a_test_source_without_ai_labels_leaves_that_column_out(tmp_path: Path, tiny: Path) -> None:
    ai, human = sources(tmp_path, 30, lambda _: True)
    test = write_rows(tmp_path / "test.jsonl", labelled(comparisons(12, seed=1), lambda _: True))
    given: Any = {"max_steps": 2}
    done = compare(tmp_path / "run", ai, human, tiny, test={"path": str(test)}, reward=given)
    assert accuracies(done.comparison).keys() == {("ai", "human"), ("human", "human")}
    assert (done.comparison.matching.train, done.comparison.matching.held_out) == (30, 12)
    assert "No held-out comparison has an AI label" in (done.path / "comparison.md").read_text()
    assert set(manifest(done.path)["inputs"]) >= {"test"}
    # The same labels and seeds on both sides make the same models.
    human_labels = done.comparison.labels("human")
    assert human_labels is not None
    assert human_labels.gap is not None
    assert human_labels.gap.value == 0.0
    assert "these data do not tell the two apart" in (done.path / "comparison.md").read_text()


def test_the_command_compares_and_says_how_to_go_on_with_another_configuration(
    tmp_path: Path, tiny: Path, cai: Cai
) -> None:
    ai, human = sources(tmp_path, 30, lambda _: False)
    settings = tmp_path / "compare.yaml"
    reward = {**REWARD, "model": str(tiny), "max_steps": 1}
    settings.write_text(json.dumps({"reward": reward, "sizes": [], "seeds": 1, "test_share": 0.3}))
    words = ("compare", "--ai", ai, "--human", human, "--config", settings, "--out", tmp_path / "run")
    done = cai(*words)
    assert done.code == 0, done.err
    assert "matched: 30 of 30 prompts; train on " in done.out
    assert "model 2 of 2: human-" in done.out
    assert "On human held-out labels, training on human labels" in done.out
    assert f"written:   {tmp_path / 'run' / 'comparison.html'}\n" in done.out
    again = cai(*words)
    assert again.code == 0
    assert again.out.count(" is trained\n") == 2
    other = cai(*words, "--seed", 5)
    assert other.code == 1
    assert "seed is 5, was 0" in other.err
    test = write_rows(tmp_path / "test.jsonl", labelled(comparisons(3, seed=1), lambda _: True))
    anew = cai(*words, "--seed", 5, "--test", test, "--overwrite")
    assert anew.code == 0, anew.err
    assert "train on 30, held out: 3 of 3 prompts" in anew.out
    assert {path.name.rsplit("-", 1)[1] for path in (tmp_path / "run" / "models").iterdir()} == {"5"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "ai: is missing; add it"),
        (("--ai", "nothing.jsonl", "--human", "nothing.jsonl"), "nothing.jsonl"),
        (("--test-share", "1"), "test_share"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(
    words: tuple[str, ...], said: str, cai: Cai, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    failed = cai("compare", *words)
    assert failed.code == 2
    assert said in failed.err
    assert list(tmp_path.iterdir()) == []


def test_mistakes_in_a_file_are_named_with_their_line(
    cai: Cai, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = tmp_path / "c.yaml"
    settings.write_text("seed: 1\nprices: {currency: USD, ai_labels: 2}\nreward:\n  learning_rat: 1\n  bf16: false\n")
    failed = cai("compare", "--ai", "a", "--human", "h", "--config", settings)
    assert failed.code == 2
    assert f"{settings}:2: prices.ai_labels: is not a known key; did you mean `ai_label`?" in failed.err
    assert f"{settings}:4: reward.learning_rat: is not a known key; did you mean `learning_rate`?" in failed.err
    settings.write_text("seed: 1\nreward:\n  test_share: 0.5\n")
    failed = cai("compare", "--ai", "a", "--human", "h", "--config", settings)
    assert "reward: the comparison sets test_share itself; leave it out here" in failed.err


def test_too_large_sizes_and_trl_arguments_are_refused_before_training(tmp_path: Path, tiny: Path) -> None:
    ai, human = sources(tmp_path, 20, lambda _: False)
    with pytest.raises(ConfigError, match=r"^sizes: 21, 50: there are 1\d matched comparisons"):
        plan_comparison(config(ai, human, tiny, sizes=[21, 4, 50]))
    with pytest.raises(ConfigError, match=r"trainer\.optimum"):
        plan_comparison(config(ai, human, tiny, reward={"trainer": {"optimum": 1}}))


def test_another_source_model_or_reference_is_another_run(tmp_path: Path, tiny: Path) -> None:
    ai, human = sources(tmp_path, 20, lambda _: False)
    first = plan_comparison(config(ai, human, tiny)).default_out
    answers = write_rows(tmp_path / "answers.jsonl", [{"prompt": "Q", "response": "A"}])
    outs = {
        first,
        plan_comparison(config(human, human, tiny)).default_out,
        plan_comparison(config(ai, human, save_tiny_model(tmp_path / "other", seed=1))).default_out,
        plan_comparison(config(ai, human, tiny, reward={"reference": {"path": str(answers)}})).default_out,
        plan_comparison(config(ai, human, tiny, test={"path": str(human), "limit": 5})).default_out,
    }
    assert len(outs) == 5
    assert first.parent == Path("runs")
    renamed = ai.rename(tmp_path / "renamed.jsonl")
    price = {"currency": "USD", "ai_label": 1}
    same = config(renamed, human, tiny, sizes=[5], seeds=2, prices=price, reward={"save_steps": 7})
    assert plan_comparison(same).default_out == first
    renamed.write_text(renamed.read_text().replace("amber", "embers"))
    assert plan_comparison(same).default_out != first


def test_the_content_of_a_model_a_test_or_reference_answers_makes_another_run(tmp_path: Path) -> None:
    ai, human = sources(tmp_path, 20, lambda _: False)
    model = save_tiny_model(tmp_path / "model")
    answers = write_rows(tmp_path / "answers.jsonl", [{"prompt": "Q", "response": "A"}])
    test = write_rows(tmp_path / "test.jsonl", labelled(comparisons(4, seed=1), lambda _: True))
    asked = config(ai, human, model, test={"path": str(test)}, reward={"reference": {"path": str(answers)}})
    outs = [plan_comparison(asked).default_out]
    write_rows(answers, [{"prompt": "Q", "response": "B"}])
    outs.append(plan_comparison(asked).default_out)
    write_rows(test, labelled(comparisons(4, seed=1), lambda _: False))
    outs.append(plan_comparison(asked).default_out)
    save_tiny_model(model, seed=1)
    outs.append(plan_comparison(asked).default_out)
    assert len(set(outs)) == 4


def test_rewards_of_other_pairs_are_not_taken(tmp_path: Path, tiny: Path) -> None:
    ai, human = sources(tmp_path, 20, lambda _: False)
    plan = plan_comparison(config(ai, human, tiny, test_share=0.3))
    folder = tmp_path / "run" / "models" / plan.models[0].name
    compare_paths(plan, tmp_path / "run", Console(quiet=True))
    for broken, said in (("{}", "does not hold rewards"), ('{"held_out": [[1.0, 2.0]]}', "has rewards of 1 pairs")):
        (folder / "held_out.json").write_text(broken)
        with pytest.raises(RunDirError, match=rf"{said}.*remove {re.escape(str(folder))}, and it is trained anew"):
            compare_paths(plan, tmp_path / "run", Console(quiet=True))
        assert manifest(tmp_path / "run")["state"] == "stopped"


def test_the_shipped_recipe_is_read_and_differs_from_the_defaults_where_it_says_so() -> None:
    shipped = load_config(CompareConfig, ROOT / "recipes/compare.yaml", {})
    plain = CompareConfig.model_validate({"ai": {"path": "runs/label"}, "human": {"path": "runs/human"}})
    assert shipped.model_copy(update={"reward": plain.reward}) == plain
    text = (ROOT / "recipes/compare.yaml").read_text()
    opened = re.sub(r"^# (?=(prices|  |sizes|ratings|test))", "", text, flags=re.MULTILINE)
    known = load_config(CompareConfig, None, load_yaml(opened))
    assert known.prices is not None
    assert known.prices.human_label == 0.67
    assert known.sizes == (100, 300, 1000)
    assert known.test is not None


def load_yaml(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)
