"""Labels become preference data: the right text is chosen in every row, nothing is lost uncounted, no prompt leaks."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from chain_samples import TWO, header, rows, run_facts
from labels import both, judgement, label

from cai.data.card_parts import escaped
from cai.data.preference_card import PreferenceCounts, PreferenceFacts
from cai.data.preferences import PreferencesConfig, export_labels
from cai.errors import DataError
from cai.records import Label, Side, Verdict

datasets.disable_progress_bars()

FACTS = PreferenceFacts(
    run=run_facts(failures={"context_overflow": 3, "off_mass": 1}, rejects={"unknown_gold": 2}),
    constitution=TWO,
    judge={"model": "tiny", "protocol": "pairwise"},
    comparisons="runs/locks",
    certificate=None,
)


def export(
    out: Path, labels: Sequence[Label], seed: int = 7, facts: PreferenceFacts = FACTS, **config: Any
) -> PreferenceCounts:
    out.mkdir(exist_ok=True)
    options = PreferencesConfig.model_validate({"test_share": 0.0} | config)
    return export_labels(labels, out, config=options, seed=seed, card=facts)


def card(out: Path) -> str:
    return (out / "README.md").read_text(encoding="utf-8")


def humans(path: Path, number: int, prompt: str = "Human question {n}?") -> str:
    """A file of human choices, of which `right` ones are chosen, on either side."""
    with path.open("w") as file:
        for n in range(number):
            right, wrong = f"right h{n}", f"wrong h{n}"
            row = {"id": f"h{n}", "prompt": prompt.format(n=n)}
            if n % 3 == 0:
                row |= {"chosen": right, "rejected": wrong}
            elif n % 3 == 1:
                row |= {"response_a": right, "response_b": wrong, "gold": "a"}
            else:
                row |= {"response_a": wrong, "response_b": right, "gold": "model_b"}
            file.write(json.dumps(row) + "\n")
    return str(path)


def planted(number: int, seed: int) -> list[Label]:
    """Labels of a judge that favours the right text, more or less, in either order and on either side."""
    draw = random.Random(seed)
    found = []
    for n in range(number):
        right_is_a = draw.random() < 0.5
        p_first, p_second = draw.uniform(0.55, 1), draw.uniform(0.45, 1)
        one = label(
            f"n{n}",
            *both(*((p_first, p_second) if right_is_a else (1 - p_second, 1 - p_first))),
            prompt=("Hello", "Hi", f"Question {n % 40}?") if n % 2 else (f"Question {n % 40}?",),
            a=f"right {n}" if right_is_a else f"wrong {n}",
            b=f"wrong {n}" if right_is_a else f"right {n}",
        )
        found.append(one)
    return found


# Planted truth


def test_the_right_text_is_chosen_in_every_row_of_every_table(tmp_path: Path) -> None:
    labels = planted(300, seed=0)
    swapped = [one.model_copy(update={"comparison": one.comparison.swap()}) for one in planted(300, seed=1)]
    # The verdict of a swapped comparison speaks of the other side.
    labels += [
        one.model_copy(
            update={
                "id": f"s-{one.id}",
                "comparison": one.comparison.model_copy(update={"id": f"s-{one.comparison.id}"}),
                "verdict": Verdict(
                    p_a=1 - one.verdict.p_a,
                    judgements=tuple(
                        judgement(1 - found.p_a, {"ab": "ba", "ba": "ab"}[str(found.order)])
                        for found in one.verdict.judgements
                    ),
                ),
            }
        )
        for one in swapped
    ]
    file = humans(tmp_path / "humans.jsonl", 90)
    counts = export(tmp_path / "run", labels, test_share=0.3, human=file, human_ratio=0.1)
    run = tmp_path / "run"
    preferences = rows(run, "preferences")
    assert len(preferences) == 660
    for row in preferences:
        [chosen], [rejected] = row["chosen"], row["rejected"]
        assert chosen["role"] == rejected["role"] == "assistant"
        assert chosen["content"].split()[0] == "right"
        assert rejected["content"] == chosen["content"].replace("right", "wrong")
        assert row["p_chosen"] > 0.5
        if row["source"] == "ai":
            assert row["p_chosen"] == pytest.approx((row["p_ab"] + row["p_ba"]) / 2)
            assert row["p_ab"] >= 0.55
    for row in rows(run, "kto"):
        assert row["completion"][0]["content"].split()[0] == ("right" if row["label"] else "wrong")
    for row in rows(run, "llm_swarm"):
        assert row["chosen"] == row["messages"]
        assert row["chosen"][:-1] == row["rejected"][:-1]
        assert row["prompt"] == row["chosen"][-2]["content"]
        assert row["chosen"][-1]["content"].split()[0] == "right"
        assert row["rejected"][-1]["content"].split()[0] == "wrong"
    tasks = json.loads((run / "label-studio.json").read_text())
    assert len(tasks) == 600
    for task in tasks:
        [prediction] = task["predictions"]
        side = {"left": "response_a", "right": "response_b"}[prediction["result"][0]["value"]["selected"]]
        assert task["data"][side].split()[0] == "right"
    assert (counts.labels, counts.human_rows) == (600, 60)


# Columns


def test_the_columns_of_a_label_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    asked = (
        judgement(0.2, "ab", "harm", 0.1),
        judgement(0.4, "ba", "harm", 0.0),
        judgement(0.6, "ab", "honesty", 0.2),
        judgement(0.0, "ba", "honesty", 0.1),
    )
    export(tmp_path, [label("x", *asked, prompt=("Hello", "Hi", "How do I pick a lock?"), topic="theft")])
    [row] = rows(tmp_path, "preferences")
    # p_a is 0.3 in all, 0.4 where a was shown first and 0.2 where b was. So b is chosen, with 0.8 where it was first.
    # By honesty, a wins in one order and b in the other; by harm, b wins in both.
    numbers = {name: row.pop(name) for name in ("p_chosen", "p_ab", "p_ba", "off_mass")}
    assert numbers == pytest.approx({"p_chosen": 0.7, "p_ab": 0.8, "p_ba": 0.6, "off_mass": 0.1})
    assert row == {
        "prompt": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": "How do I pick a lock?"},
        ],
        "chosen": [{"role": "assistant", "content": "Text B."}],
        "rejected": [{"role": "assistant", "content": "Text A."}],
        "position_flip": 0.5,
        "principle_ids": ["harm", "honesty"],
        "judge_model": "judge",
        "constitution_sha256": "c" * 64,
        "seed": 7,
        "source": "ai",
        "annotator_id": None,
        "id": "x",
        "prompt_id": "p-x",
        "chosen_origin": "large",
        "rejected_origin": "small",
        "response_source": "sampled",
        "kind": "red_team",
        "topic": "theft",
    }


def test_a_chosen_a_keeps_the_orders_as_they_are(tmp_path: Path) -> None:
    export(tmp_path, [label("x", *both(0.9, 0.4))])
    [row] = rows(tmp_path, "preferences")
    assert row["chosen"][0]["content"] == "Text A."
    assert (row["p_chosen"], row["p_ab"], row["p_ba"]) == pytest.approx((0.65, 0.9, 0.4))
    assert row["position_flip"] == 1.0


def test_a_clamped_verdict_is_exported_as_it_is_and_its_orders_unclamped(tmp_path: Path) -> None:
    export(tmp_path, [label("x", *both(0.1, 0.0), p_a=0.4)])
    [row] = rows(tmp_path, "preferences")
    assert (row["p_chosen"], row["p_ab"], row["p_ba"]) == pytest.approx((0.6, 1.0, 0.9))


def test_orders_are_null_where_responses_were_judged_one_at_a_time(tmp_path: Path) -> None:
    export(tmp_path, [label("x", judgement(0.2, None))])
    [row] = rows(tmp_path, "preferences")
    assert (row["p_chosen"], row["p_ab"], row["p_ba"], row["position_flip"]) == (0.8, None, None, None)


def test_human_rows_have_no_columns_of_a_judge(tmp_path: Path) -> None:
    export(tmp_path, planted(3, seed=0), human=humans(tmp_path / "humans.jsonl", 3), seed=5)
    found = [row for row in rows(tmp_path, "preferences") if row["source"] == "human"]
    assert sorted(row["id"] for row in found) == ["h0", "h1", "h2"]
    judged = ("p_ab", "p_ba", "position_flip", "off_mass", "judge_model", "constitution_sha256", "annotator_id")
    for row in found:
        assert {row[name] for name in judged} == {None}
        assert (row["p_chosen"], row["principle_ids"], row["response_source"], row["seed"]) == (1.0, [], "file", 5)


def test_kto_has_two_rows_a_pair(tmp_path: Path) -> None:
    export(tmp_path, [label("x", *both(0.1, 0.3))])
    prompt = [{"role": "user", "content": "Question x?"}]
    same = {"prompt": prompt, "prompt_id": "p-x", "source": "ai"}
    assert rows(tmp_path, "kto") == [
        {"completion": [{"role": "assistant", "content": "Text B."}], "label": True, "id": "x/chosen", **same},
        {"completion": [{"role": "assistant", "content": "Text A."}], "label": False, "id": "x/rejected", **same},
    ]


def test_llm_swarm_has_the_columns_of_its_model_in_preference_splits(tmp_path: Path) -> None:
    export(tmp_path, [label("x", *both(0.1, 0.3), prompt=("Hello", "Hi", "More?"))], test_share=1.0)
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    talk.append({"role": "user", "content": "More?"})
    chosen = [*talk, {"role": "assistant", "content": "Text B."}]
    [row] = rows(tmp_path, "llm_swarm", "test_prefs")
    assert list(row.items()) == [
        ("prompt", "More?"),
        ("messages", chosen),
        ("chosen", chosen),
        ("rejected", [*talk, {"role": "assistant", "content": "Text A."}]),
    ]


def test_label_studio_tasks(tmp_path: Path) -> None:
    odd = 'Say "[",\n<b>, \u2028 and 日本'
    export(tmp_path, [label("x", *both(0.1, 0.3), prompt=("Hello", "Hi", "More?"), a=odd), label("t", *both(0.9, 0.1))])
    assert json.loads((tmp_path / "label-studio.json").read_text(encoding="utf-8")) == [
        {
            "data": {
                "id": "x",
                "prompt": "Human: Hello\n\nAssistant: Hi\n\nHuman: More?\n\nAssistant:",
                "messages": [
                    {"role": "user", "content": "Hello"},
                    {"role": "assistant", "content": "Hi"},
                    {"role": "user", "content": "More?"},
                ],
                "response_a": odd,
                "response_b": "Text B.",
            },
            "predictions": [
                {
                    "model_version": "judge",
                    "score": 0.8,
                    "result": [
                        {
                            "from_name": "pairwise",
                            "to_name": "pairwise",
                            "type": "pairwise",
                            "value": {"selected": "right"},
                        }
                    ],
                }
            ],
        },
        {
            "data": {
                "id": "t",
                "prompt": "Human: Question t?\n\nAssistant:",
                "messages": [{"role": "user", "content": "Question t?"}],
                "response_a": "Text A.",
                "response_b": "Text B.",
            },
            "predictions": [],
        },
    ]


# Ties


def test_an_exact_tie_is_kept_with_its_p_and_a_drawn_side(tmp_path: Path) -> None:
    # A judge that always answers A, by principles whose mean rounds differently.
    ties = [label(f"t{n}", *both(0.9, 0.1), *both(0.99 - n / 7e3, 0.01 + n / 7e3, "honesty")) for n in range(400)]
    assert any(one.verdict.p_a != 0.5 for one in ties)
    counts = export(tmp_path, ties)
    found = rows(tmp_path, "preferences")
    assert {round(row["p_chosen"], 12) for row in found} == {0.5}
    assert all(row["p_chosen"] >= 0.5 for row in found)
    # 400 draws at 1/2: mean 200, standard deviation 10.
    assert 150 <= sum(row["chosen"][0]["content"] == "Text A." for row in found) <= 250
    assert (counts.labels, counts.ties, counts.dropped_ties) == (400, 400, 0)
    assert (counts.both_orders, counts.position_flip) == (400, 1.0)
    assert rows(tmp_path, "kto") == rows(tmp_path, "llm_swarm") == []
    again = tmp_path / "again"
    export(again, ties[::-1])
    assert rows(again, "preferences") == found[::-1]


def test_ties_within_a_margin_keep_their_order_and_are_dropped_only_when_asked(tmp_path: Path) -> None:
    labels = [label(f"n{p}", *both(p / 100, p / 100)) for p in (40, 44, 46, 50, 54, 56, 60)]
    kept = export(tmp_path, labels, tie_margin=0.05)
    assert [row["p_chosen"] for row in rows(tmp_path, "preferences")] == pytest.approx(
        [0.6, 0.56, 0.54, 0.5, 0.54, 0.56, 0.6]
    )
    assert [row["chosen"][0]["content"] for row in rows(tmp_path, "preferences")[2:5:2]] == ["Text B.", "Text A."]
    assert (kept.ties, kept.dropped_ties, kept.rows("kto")) == (3, 0, 8)
    dropped = export(tmp_path, labels, tie_margin=0.05, drop_ties=True)
    assert [row["id"] for row in rows(tmp_path, "preferences")] == ["n40", "n44", "n56", "n60"]
    assert (dropped.ties, dropped.dropped_ties, dropped.labels) == (3, 3, 7)
    assert len(json.loads((tmp_path / "label-studio.json").read_text())) == 7
    exact = export(tmp_path, labels, drop_ties=True)
    assert (exact.ties, exact.rows("preferences")) == (1, 6)


# Split and mix


def test_no_prompt_stands_on_both_sides_whatever_the_seed_and_the_source(tmp_path: Path) -> None:
    labels = planted(120, seed=0)
    # Human choices about the single-turn prompts that the judge was asked about too, and others.
    file = humans(tmp_path / "humans.jsonl", 60, prompt="Question {n}?")
    sides_seen = set()
    for seed in range(25):
        run = tmp_path / f"run{seed}"
        export(run, labels, seed=seed, test_share=0.4, human=file)
        for table, suffix in (("preferences", ""), ("kto", "")):
            sides = {
                side: {json.dumps(row["prompt"]) for row in rows(run, table, side + suffix)}
                for side in ("train", "test")
            }
            assert sides["train"].isdisjoint(sides["test"])
            assert len(sides["train"] | sides["test"]) == 80
        swarm = {
            side: {json.dumps(row["messages"][:-1]) for row in rows(run, "llm_swarm", f"{side}_prefs")}
            for side in ("train", "test")
        }
        assert swarm == sides
        sides_seen.add(frozenset(sides["test"]))
        # 80 draws at 0.4: mean 32, standard deviation 4.4.
        assert 12 <= len(sides["test"]) <= 52
    assert len(sides_seen) == 25


@pytest.mark.parametrize(("ratio", "available", "expected"), [(0.5, 90, 20), (1, 90, 40), (2, 90, 80), (3, 90, 90)])
def test_human_rows_are_drawn_by_ratio_and_all_where_there_are_too_few(
    tmp_path: Path, ratio: float, available: int, expected: int
) -> None:
    file = humans(tmp_path / "humans.jsonl", available)
    labels = [*planted(40, seed=0), *(label(f"t{n}", *both(0.9, 0.1)) for n in range(10))]
    counts = export(tmp_path, labels, human=file, human_ratio=ratio, drop_ties=True)
    drawn = [row["id"] for row in rows(tmp_path, "preferences") if row["source"] == "human"]
    assert len(drawn) == len(set(drawn)) == expected
    assert (counts.human_found, counts.human_wanted, counts.human_rows) == (available, round(40 * ratio), expected)
    assert counts.rows("preferences") == 50 - 10 + expected
    assert counts.rows("kto") == 2 * (40 + expected)


def test_the_draw_of_human_rows_hangs_on_the_seed_and_grows_with_the_ratio(tmp_path: Path) -> None:
    file = humans(tmp_path / "humans.jsonl", 90)

    def drawn(name: str, ratio: float, seed: int) -> set[str]:
        export(tmp_path / name, planted(40, seed=0), human=file, human_ratio=ratio, seed=seed)
        return {row["id"] for row in rows(tmp_path / name, "preferences") if row["source"] == "human"}

    small = drawn("small", 0.5, 7)
    assert drawn("again", 0.5, 7) == small
    assert drawn("large", 1.0, 7) > small
    assert drawn("other", 0.5, 8) != small


def test_human_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "humans.jsonl"
    humans(path, 3)
    with path.open("a") as file:
        for row in ({"gold": "tie"}, {"gold": "c"}, {}, {"response_b": "x", "gold": "a"}):
            file.write(json.dumps({"id": str(row), "prompt": "Q", "response_a": "x", "response_b": "y"} | row) + "\n")
    counts = export(tmp_path, planted(9, seed=0), human=str(path))
    assert counts.human_rejects == {"gold_tie": 1, "unknown_gold": 1, "no_gold": 1, "identical_responses": 1}
    assert (counts.human_found, counts.human_rows) == (3, 3)


def test_the_columns_of_human_choices_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "humans.jsonl"
    row = {"prompt": "Wrong.", "question": "Right?", "response_a": "A.", "response_b": "B.", "gold": "a", "winner": "b"}
    path.write_text(json.dumps(row) + "\n")
    export(tmp_path, planted(1, seed=0), human=str(path), human_column="question", human_gold_column="winner")
    found = rows(tmp_path, "preferences")[-1]
    assert (found["prompt"][0]["content"], found["chosen"][0]["content"]) == ("Right?", "B.")


def test_a_missing_file_of_human_choices_leaves_the_last_export(tmp_path: Path) -> None:
    export(tmp_path, planted(4, seed=0))
    before = card(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        export(tmp_path, planted(5, seed=0), human="gone.jsonl")
    assert card(tmp_path) == before
    assert len(rows(tmp_path, "preferences")) == 4


# Loading, card


def test_load_dataset_opens_every_table_by_the_card(tmp_path: Path) -> None:
    run = tmp_path / "run"
    counts = export(run, planted(80, seed=0), test_share=0.3, human=humans(tmp_path / "humans.jsonl", 20))
    for table in ("preferences", "kto", "llm_swarm"):
        loaded = datasets.load_dataset(str(run), table, cache_dir=str(tmp_path / "cache"))
        names = ["train_prefs", "test_prefs"] if table == "llm_swarm" else ["train", "test"]
        assert list(loaded) == names
        for split in names:
            assert loaded[split].to_list() == rows(run, table, split)
            assert loaded[split].num_rows == counts.rows(table, split) > 0
    features = datasets.load_dataset(str(run), cache_dir=str(tmp_path / "cache"))["train"].features
    assert features["p_chosen"].dtype == features["p_ab"].dtype == "float64"
    assert (
        datasets.load_dataset(str(run), "kto", cache_dir=str(tmp_path / "cache"))["train"].features["label"].dtype
        == "bool"
    )


def test_an_export_without_labels_is_a_card_and_no_tasks(tmp_path: Path) -> None:
    counts = export(tmp_path, [])
    assert (counts.files, counts.confidence, header(tmp_path)["configs"]) == ((), None, [])
    assert json.loads((tmp_path / "label-studio.json").read_text()) == []


def test_the_card_says_what_is_known_of_judge_and_labels(tmp_path: Path) -> None:
    labels = [
        label("one", judgement(0.9, "ab", off_mass=0.2), judgement(0.7, "ba")),
        label("two", *both(0.9, 0.1)),
        label("three", *both(0.8, 0.3)),
        label("four", judgement(0.6, None, "honesty", off_mass=0.3)),
    ]
    export(tmp_path, labels, human=humans(tmp_path / "humans.jsonl", 9), human_ratio=0.5)
    text = card(tmp_path)
    for line in (
        "| judge: model | tiny |",
        "| judge: protocol | pairwise |",
        "| ties (p exactly 0.5) | 25.0% (1 of 4) |",
        "| of them asked in both orders | 3 |",
        "| position flips: another response wins in the other order, mean over principles | 0.667 |",
        # (0.8 + 0.5 + 0.55 + 0.6) / 4, and (0.1 + 0.3) / 4.
        "| mean confidence: probability of the likelier response | 0.613 |",
        "| mean probability outside the options | 0.100 |",
        "| labels | 4 |",
        "| of them with responses from `sampled` | 4 |",
        f"| human choices | {escaped(str(tmp_path / 'humans.jsonl'))} |",
        "| human choices that can be used | 9 |",
        "| human rows written | 2 |",
        "| rejected: unknown\\_gold | 2 |",
        "| comparisons that could not be labelled | 4 |",
        "| failed: context\\_overflow | 3 |",
        "| harm | 3 |",
        "| honesty | 1 |",
        "**No certificate.**",
        "offensive",
    ):
        assert line in text
    for column in rows(tmp_path, "preferences")[0]:
        assert f"| `{column}` | " in text


def test_the_card_quotes_the_certificate_literally(tmp_path: Path) -> None:
    facts = FACTS.model_copy(update={"certificate": "pass: 71% [68%, 74%] on *planted*\n# not a heading"})
    export(tmp_path, planted(3, seed=0), facts=facts)
    assert "**No certificate.**" not in card(tmp_path)
    assert "- **Certificate**: pass: 71% \\[68%, 74%\\] on \\*planted\\* \\# not a heading\n" in card(tmp_path)


def test_a_side_of_gold_does_not_matter_to_a_judge_label(tmp_path: Path) -> None:
    sides: tuple[Side, ...] = ("a", "b")
    labels = [label(f"x{gold}", *both(0.9, 0.8)) for gold in sides]
    labels = [
        one.model_copy(update={"comparison": one.comparison.model_copy(update={"gold": gold})})
        for one, gold in zip(labels, sides, strict=True)
    ]
    export(tmp_path, labels)
    assert [row["chosen"][0]["content"] for row in rows(tmp_path, "preferences")] == ["Text A.", "Text A."]
