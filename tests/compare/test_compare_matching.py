"""Rows of two sides are matched by what they say; prompts are held out from both; subsets grow and stay the same."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import test_preferences
from compare_jobs import comparisons, config, labelled, write_rows
from labels import both, label
from pydantic import ValidationError

from cai.compare.config import CompareConfig, Prices
from cai.compare.matching import Pairs, read_pairs, subset_sizes
from cai.data.preferences import PreferencesConfig
from cai.data.tables import split_of
from cai.errors import ConfigError, DataError
from cai.records import Message, Prompt
from cai.rundir import RunDir
from cai.train.encoding import Encoding
from cai.train.models import find_start


def pairs(ai: Path, human: Path, model: Path, *, max_length: int = 128, **settings: Any) -> Pairs:
    asked = config(ai, human, model, **settings)
    return read_pairs(asked, Encoding(find_start(asked.reward, generates=False).chat, max_length))


def both_sides(
    folder: Path, rows: Sequence[Mapping[str, Any]], ai_rows: Sequence[Mapping[str, Any]] | None = None
) -> Any:
    """Files of both sides, of which the AI prefers the rule's response with 0.7."""
    human = write_rows(folder / "human.jsonl", labelled(rows, lambda _: True))
    ai = write_rows(folder / "ai.jsonl", labelled(rows if ai_rows is None else ai_rows, lambda _: 0.7, source="ai"))
    return ai, human


def row(prompt: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def test_rows_match_by_content_whichever_is_chosen_and_whatever_the_id(tmp_path: Path, tiny: Path) -> None:
    human = write_rows(
        tmp_path / "human.jsonl",
        [row("Q1", "good ", "bad", id="one"), row(" Q2", "zeta", "alpha", id="two"), row("Q3", "only", "here")],
    )
    ai = write_rows(
        tmp_path / "ai.jsonl",
        [
            row("Q2", "alpha", "zeta\n", p_chosen=0.9, id="other"),
            row("Q1", "good", "bad", p_chosen=0.8, id="two"),
            row("Q3", "only", "there"),
            row("Q1", "good", "better", id="one"),
        ],
    )
    found = pairs(ai, human, tiny, test_share=0.5, seed=0)
    by_text = {pair.a: pair for pair in found.matched}
    assert by_text.keys() == {"bad", "alpha"}
    assert (by_text["bad"].b, by_text["bad"].human) == ("good ", 0.0)
    assert by_text["bad"].ai == pytest.approx(0.2)
    assert (by_text["alpha"].human, by_text["alpha"].ai) == (0.0, 0.9)
    facts = found.facts
    assert (facts.matched, facts.human.alone, facts.ai.alone) == (2, 1, 2)
    assert (facts.human.comparisons, facts.ai.comparisons, facts.ai.prompts) == (3, 4, 3)
    preferred = by_text["alpha"].preference("ai")
    assert (preferred.chosen, preferred.rejected, preferred.p_chosen) == ("alpha", "zeta", 0.9)
    assert by_text["bad"].preference("ai").p_chosen == pytest.approx(0.8)
    assert by_text["bad"].preference("human").chosen == "good "
    assert by_text["bad"].preference("human").source == "human"


def test_labels_of_one_comparison_are_averaged(tmp_path: Path, tiny: Path) -> None:
    human = write_rows(
        tmp_path / "human.jsonl",
        [row("Q1", "good", "bad"), row("Q1", "bad", "good"), row("Q1", "good", "bad"), row("Q2", "x", "y")],
    )
    ai = write_rows(tmp_path / "ai.jsonl", [row("Q1", "good", "bad", p_chosen=0.6), row("Q2", "x", "y")])
    found = pairs(ai, human, tiny, test_share=0.5, seed=0)
    label_ = {pair.a: pair.human for pair in found.matched}
    assert label_["bad"] == pytest.approx(1 / 3)
    assert (found.facts.human.merged, found.facts.human.comparisons, found.facts.human.rows) == (2, 2, 4)


def test_held_out_prompts_are_those_that_cai_holds_out_and_stand_on_no_other_side(tmp_path: Path, tiny: Path) -> None:
    rows = [
        {**one, "prompt": f"Prompt {place % 40}"} for place, one in enumerate(comparisons(120))
    ]  # three comparisons of each prompt
    ai, human = both_sides(tmp_path, rows)
    held: list[set[str]] = []
    for share in (0.2, 0.5):
        found = pairs(ai, human, tiny, test_share=share, seed=3)
        tested = {pair.prompt[0].content for pair in found.held_out}
        assert tested == {
            f"Prompt {n}"
            for n in range(40)
            if split_of(Prompt(id="", messages=(Message(role="user", content=f"Prompt {n}"),)), share, 3) == "test"
        }
        assert not tested & {pair.prompt[0].content for pair in found.train}
        assert len(found.held_out) + len(found.train) == 120
        assert (found.facts.held_out, found.facts.held_out_prompts) == (3 * len(tested), len(tested))
        assert found.facts.train_prompts == 40 - len(tested)
        assert found.facts.held_out_ai == len(found.held_out)
        held.append(tested)
    assert held[0] < held[1]
    other = pairs(ai, human, tiny, test_share=0.5, seed=4)
    assert {pair.prompt[0].content for pair in other.held_out} != held[1]


def test_white_space_around_a_prompt_does_not_bring_it_to_both_parts(tmp_path: Path, tiny: Path) -> None:
    rows = []
    for n in range(40):
        rows += [row(f"Prompt {n}", f"good {n}", "bad"), row(f"Prompt {n} \n", f"fine {n}", "bad")]
    human = write_rows(tmp_path / "human.jsonl", rows)
    ai = write_rows(tmp_path / "ai.jsonl", rows)
    found = pairs(ai, human, tiny, test_share=0.5)
    tested = {pair.prompt[0].content.strip() for pair in found.held_out}
    assert 0 < len(tested) < 40
    assert not tested & {pair.prompt[0].content.strip() for pair in found.train}


def test_subsets_are_the_same_whatever_the_order_of_the_rows(tmp_path: Path, tiny: Path) -> None:
    rows = list(comparisons(60))
    ai, human = both_sides(tmp_path, rows)
    first = [pair.id for pair in pairs(ai, human, tiny).train]
    shuffled = random.Random(1).sample(rows, 60)
    (tmp_path / "other").mkdir()
    ai, human = both_sides(tmp_path / "other", shuffled)
    assert [pair.id for pair in pairs(ai, human, tiny).train] == first
    in_file = [pair.id for pair in pairs(ai, human, tiny).matched]
    assert first != [id_ for id_ in in_file if id_ in first], "subsets are drawn, not cut from the file"
    # Another seed draws other subsets of the same comparisons.
    held = pairs(ai, human, tiny, seed=9)
    common = set(first) & {pair.id for pair in held.train}
    assert [id_ for id_ in first if id_ in common] != [pair.id for pair in held.train if pair.id in common]


def test_a_source_of_the_test_gives_the_held_out_labels_and_takes_its_prompts_from_training(
    tmp_path: Path, tiny: Path
) -> None:
    rows, new = list(comparisons(20)), list(comparisons(4, seed=1))
    ai, human = both_sides(tmp_path, rows, [*rows, *new[:1]])
    other = {**rows[1], "kind": "1 amber", "other": "1 pond"}
    test = write_rows(tmp_path / "test.jsonl", labelled([rows[0], other, *new], lambda n: n != 0))
    found = pairs(ai, human, tiny, test={"path": str(test)})
    assert (found.facts.in_test, found.facts.train, found.facts.held_out) == (2, 18, 6)
    assert found.facts.matched == 20
    prompts = {pair.prompt[0].content for pair in found.train}
    assert prompts == {one["prompt"] for one in rows[2:]}
    labels = {pair.prompt[0].content: (pair.human_of_kind, pair.ai) for pair in map(Seen, found.held_out)}
    assert labels[rows[0]["prompt"]] == (0.0, pytest.approx(0.7)), "the label is the test's, not the human side's"
    assert labels[rows[1]["prompt"]] == (1.0, None), "other responses have no AI label"
    assert labels[new[0]["prompt"]] == (1.0, pytest.approx(0.7))
    assert found.facts.held_out_ai == 2
    assert found.facts.test is not None
    assert found.facts.test.comparisons == 6


class Seen:
    """A pair, turned so that labels speak of the response that the rule prefers."""

    def __init__(self, pair: Any) -> None:
        from compare_jobs import KIND

        a_is_kind = pair.a.split()[1] in KIND
        self.prompt = pair.prompt
        self.human_of_kind = pair.human if a_is_kind else 1 - pair.human
        self.ai = None if pair.ai is None else pair.ai if a_is_kind else 1 - pair.ai


def test_comparisons_that_no_model_could_read_are_counted_and_left_out(tmp_path: Path, tiny: Path) -> None:
    rows = list(comparisons(30))
    rows[3]["kind"] = rows[7]["other"] = "word " * 60
    ai, human = both_sides(tmp_path, rows)
    found = pairs(ai, human, tiny, max_length=120)
    assert found.facts.unfit == {"too_long": 2}
    assert (found.facts.matched, found.facts.train + found.facts.held_out) == (30, 28)
    texts = {text for pair in (*found.train, *found.held_out) for text in (pair.a, pair.b)}
    assert "word " * 60 not in texts


def test_a_conversation_that_loses_turns_is_counted(tmp_path: Path, tiny: Path) -> None:
    rows = list(comparisons(30))
    turns = [("user", "long " * 40), ("assistant", "Yes."), ("user", "And?")]
    rows[0]["prompt"] = [{"role": role, "content": content} for role, content in turns]
    found = pairs(*both_sides(tmp_path, rows), tiny, max_length=120)
    assert (found.facts.shortened, found.facts.unfit) == (1, {})


def label_run(run: Path, human: Path, number: int) -> Path:
    """A run of `cai label` with human choices mixed in."""
    labels = [
        label(f"n{n}", *both(0.8, 0.8), prompt=(f"Question {n}?",), a=f"good {n}", b="bad") for n in range(number)
    ]
    mixed = PreferencesConfig(test_share=0.3, human=str(human), human_ratio=0.5)
    with RunDir.open(run, stage="label", config={}, inputs={}, seed=7) as open_:
        counts = test_preferences.export(run, labels, test_share=0.3, human=mixed.human, human_ratio=0.5)
        open_.manifest.export = {"counts": counts.model_dump(mode="json")}
        open_.save("finished")
    return run


def test_labels_of_the_other_kind_are_left_out_and_counted(tmp_path: Path, tiny: Path) -> None:
    rows = [row(f"Question {n}?", f"good {n}", "bad") for n in range(20)]
    human = write_rows(tmp_path / "human.jsonl", [*rows, row("Judged?", "a", "b", source="ai")])
    run = label_run(tmp_path / "run", write_rows(tmp_path / "mixed.jsonl", rows), 20)
    found = pairs(run, human, tiny)
    assert found.facts.ai.left_out["other_source"] == 10
    assert found.facts.ai.marks == {"ai": 20}
    assert found.facts.human.left_out["other_source"] == 1
    assert found.facts.human.marks == {"human": 20}
    assert found.facts.matched == 20, "both splits of the run count"
    assert [pair.ai for pair in found.matched] == pytest.approx([0.2] * 20), "a is `bad`, of which the judge says 0.2"
    # A file that does not say who gave its labels may be anybody's, and is taken by its word.
    unmarked = write_rows(tmp_path / "unmarked.jsonl", rows)
    assert pairs(unmarked, human, tiny).facts.ai.marks == {"human": 20}
    with pytest.raises(DataError, match=r"unmarked2\.jsonl has no human label: .* 20 rows says ai; .* --human"):
        pairs(run, write_rows(tmp_path / "unmarked2.jsonl", [{**one, "source": "ai"} for one in rows]), tiny)
    only = write_rows(tmp_path / "test.jsonl", [{**rows[0], "source": "ai"}])
    with pytest.raises(DataError, match="name another source for --test"):
        pairs(run, human, tiny, test={"path": str(only)})


def test_nothing_that_matches_is_explained(tmp_path: Path, tiny: Path) -> None:
    human = write_rows(tmp_path / "human.jsonl", [row("Q1", "good", "bad"), row("Q2", "good", "bad\x1b[1m")])
    ai = write_rows(tmp_path / "ai.jsonl", [row("Q2", "fine", "worse"), row("Q3", "good", "bad")])
    with pytest.raises(DataError) as other:
        pairs(ai, human, tiny)
    assert str(other.value) == (
        f"no comparison is on both sides: {ai} (--ai) has 2 comparisons of 2 prompts and {human} (--human) has 2 "
        "comparisons of 2 prompts; prompts on both sides: 1, but with other responses, such as “fine” and “bad␛[1m”; "
        "have the same responses labelled on both sides"
    )
    far = write_rows(tmp_path / "far.jsonl", [row("Elsewhere " + "x" * 80, "a", "b")])
    with pytest.raises(
        DataError, match=r"no prompt is on both sides either, the first ones are “Elsewhere x+…” and “Q1”"
    ):
        pairs(far, human, tiny)


def test_an_empty_part_is_an_error(tmp_path: Path, tiny: Path) -> None:
    ai, human = both_sides(tmp_path, list(comparisons(12)))
    with pytest.raises(
        DataError, match=r"none of the 12 matched comparisons of 12 prompts is held out with a test_share"
    ):
        pairs(ai, human, tiny, test_share=1e-6)
    with pytest.raises(DataError, match=r"none of the 12 matched comparisons is left to train on; give a smaller"):
        pairs(ai, human, tiny, test_share=1 - 1e-6)
    with pytest.raises(
        DataError, match=r"left to train on; 12 have a prompt of the test; name another source for --test"
    ):
        pairs(ai, human, tiny, test={"path": str(human)})
    with pytest.raises(DataError, match=r"is held out .*; 12 are too_long; give a greater one"):
        pairs(ai, human, tiny, max_length=10)
    ties = write_rows(tmp_path / "ties.jsonl", labelled(comparisons(12), lambda _: 0.5))
    with pytest.raises(DataError, match=r"every human label of the \d+ held-out comparisons is a tie"):
        pairs(ai, ties, tiny, test_share=0.5)


def test_sizes_rise_to_all_labels_and_not_beyond() -> None:
    def asked(sizes: Any) -> CompareConfig:
        return config(Path("a"), Path("h"), sizes=sizes)

    assert subset_sizes(asked(None), 100) == (12, 25, 50, 100)
    assert subset_sizes(asked(None), 3) == (1, 3)
    assert subset_sizes(asked([]), 100) == (100,)
    assert subset_sizes(asked([40, 10, 40, 100]), 100) == (10, 40, 100)
    with pytest.raises(ConfigError, match=r"^sizes: 101, 400: there are 100 matched comparisons to train on"):
        subset_sizes(asked([400, 50, 101]), 100)


@pytest.mark.parametrize(
    "name", ["data", "eval_data", "test_share", "seed", "ensemble", "load_best_model_at_end", "metric_for_best_model"]
)
def test_what_the_comparison_sets_is_refused_under_reward(name: str) -> None:
    values: Mapping[str, Any] = {
        "data": [], "eval_data": [], "load_best_model_at_end": False, "metric_for_best_model": "loss",
    }  # fmt: skip
    with pytest.raises(ValidationError, match=f"the comparison sets {name} itself"):
        config(Path("a"), Path("h"), reward={name: values.get(name, 1)})


@pytest.mark.parametrize(
    ("prices", "said"),
    [
        ({}, "states no price"),
        ({"ai_label": 1, "ai_million_prompt_tokens": 1, "ai_million_completion_tokens": 1}, "not both"),
        ({"ai_million_prompt_tokens": 1}, "or neither"),
        ({"ai_million_completion_tokens": 1}, "or neither"),
        ({"human_label": 1, "human_hour": 1}, "not both"),
        ({"ai_label": -1}, "greater than or equal to 0"),
        ({"ai_label": 1, "dollars": 1}, "Extra inputs"),
    ],
)
def test_prices_that_say_two_things_or_none_are_refused(prices: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Prices.model_validate({"currency": "USD", **prices})
    with pytest.raises(ValidationError, match="currency"):
        Prices.model_validate({"ai_label": 1})
