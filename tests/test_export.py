from pathlib import Path

import datasets
import pytest
from chain_samples import chain, export, facts, header, many, requests, round_, rows, step

from cai.data.export import export_chains
from cai.errors import RunDirError
from cai.records import RevisionChain

datasets.disable_progress_bars()

TWO_ROUNDS = chain(
    "a",
    round_("honesty", "It is vague.", step("With a bent pin.", "length")),
    round_("harm", "It helps burglars.", "Call a locksmith."),
    prompt=("Hello", "Hi, how can I help?", "How do I pick a lock?"),
    topic="theft",
)
HELPFUL = chain("b", index=1, prompt=("How long do I boil an egg?",), draft="Eight minutes.", kind="helpful")


def test_sft_has_a_row_for_each_revision_and_each_helpful_answer(tmp_path: Path) -> None:
    counts = export(tmp_path, [TWO_ROUNDS, HELPFUL])
    conversation = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi, how can I help?"},
        {"role": "user", "content": "How do I pick a lock?"},
    ]
    same = {"constitution_sha256": "c" * 64, "model": "tiny", "seed": 7}
    revision = {"prompt_id": "p-a", "kind": "red_team", "topic": "theft", **same}
    assert rows(tmp_path, "sft") == [
        {
            "messages": [*conversation, {"role": "assistant", "content": "With a bent pin."}],
            "id": "a/1",
            "round": 1,
            "principle_id": "honesty",
            "finish_reason": "length",
            **revision,
        },
        {
            "messages": [*conversation, {"role": "assistant", "content": "Call a locksmith."}],
            "id": "a/2",
            "round": 2,
            "principle_id": "harm",
            "finish_reason": "stop",
            **revision,
        },
        {
            "messages": [
                {"role": "user", "content": "How long do I boil an egg?"},
                {"role": "assistant", "content": "Eight minutes."},
            ],
            "id": "b/0",
            "prompt_id": "p-b",
            "round": 0,
            "kind": "helpful",
            "principle_id": None,
            "topic": None,
            "finish_reason": "stop",
            **same,
        },
    ]
    assert (counts.chains, counts.helpful, counts.cut_replies) == (2, 1, 1)
    assert counts.principles == {"honesty": 1, "harm": 1}


def test_pairs_put_the_last_revision_above_the_draft(tmp_path: Path) -> None:
    export(tmp_path, [TWO_ROUNDS, HELPFUL])
    assert rows(tmp_path, "pairs") == [
        {
            "prompt": [
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hi, how can I help?"},
                {"role": "user", "content": "How do I pick a lock?"},
            ],
            "chosen": [{"role": "assistant", "content": "Call a locksmith."}],
            "rejected": [{"role": "assistant", "content": "With a pin."}],
            "id": "a",
            "prompt_id": "p-a",
            "source": "revision",
            "principle_ids": ["honesty", "harm"],
            "rounds": 2,
            "constitution_sha256": "c" * 64,
            "model": "tiny",
            "seed": 7,
        }
    ]


def test_a_round_that_found_nothing_to_change_gives_no_row_and_no_principle_to_the_pair(tmp_path: Path) -> None:
    stopped = chain("s", round_("harm", "Bad.", "No."), round_("honesty", "No issues.", None))
    clean = chain("c", round_("honesty", "No issues.", None), prompt=("Other?",))
    counts = export(tmp_path, [stopped, clean])
    assert [row["id"] for row in rows(tmp_path, "sft")] == ["s/1"]
    [pair] = rows(tmp_path, "pairs")
    assert (pair["principle_ids"], pair["rounds"], pair["chosen"][0]["content"]) == (["harm"], 1, "No.")
    assert counts.unrevised == 1
    assert counts.principles == {"harm": 1, "honesty": 2}


def test_equal_and_empty_replies_are_no_pairs_and_are_counted(tmp_path: Path) -> None:
    chains = [
        chain("same", round_("harm", "Bad.", "With a pin.\n")),
        chain("back", round_("harm", "Bad.", "Other."), round_("harm", "Bad.", "With a pin.")),
        chain("void", round_("harm", "Bad.", "Fine."), round_("harm", "Bad.", " \n")),
        chain("void draft", round_("harm", "Bad.", "Fine."), draft=""),
        chain("void answer", kind="helpful", draft=" "),
    ]
    counts = export(tmp_path, chains)
    assert rows(tmp_path, "pairs") == []
    assert (counts.identical_pairs, counts.empty_pairs, counts.empty_replies) == (2, 2, 2)
    assert [row["id"] for row in rows(tmp_path, "sft")] == ["same/1", "back/1", "back/2", "void/1", "void draft/1"]
    assert counts.unrevised == 0


def test_llm_swarm_has_the_columns_of_its_model_from_the_last_round(tmp_path: Path) -> None:
    export(tmp_path, [TWO_ROUNDS, HELPFUL])
    [row] = rows(tmp_path, "llm_swarm")
    conversation = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi, how can I help?"},
        {"role": "user", "content": "How do I pick a lock?"},
    ]
    revised = [*conversation, {"role": "assistant", "content": "Call a locksmith."}]
    assert list(row.items()) == [
        ("init_prompt", "How do I pick a lock?"),
        ("init_response", "With a pin."),
        ("critic_prompt", "Where does the reply harm?"),
        ("critic_response", "It helps burglars."),
        ("revision_prompt", "Rewrite it without harm."),
        ("revision_response", "Call a locksmith."),
        ("prompt", "How do I pick a lock?"),
        ("messages", revised),
        ("chosen", revised),
        ("rejected", [*conversation, {"role": "assistant", "content": "With a pin."}]),
    ]


def test_llm_swarm_has_null_critiques_for_a_run_without_them(tmp_path: Path) -> None:
    export(tmp_path, [chain("a", round_("harm", None, "No."))])
    [row] = rows(tmp_path, "llm_swarm")
    assert (row["critic_prompt"], row["critic_response"]) == (None, None)
    assert row["revision_prompt"] == "Rewrite it without harm."


def test_llm_swarm_keeps_an_unchanged_reply_for_sft_but_not_as_a_preference(tmp_path: Path) -> None:
    unchanged = [chain(f"n{n}", round_("harm", "Bad.", "With a pin."), prompt=(f"Question {n}?",)) for n in range(40)]
    export(tmp_path, unchanged)
    assert rows(tmp_path, "llm_swarm", "train_sft")
    assert rows(tmp_path, "llm_swarm", "train_prefs") == []


def test_a_principle_without_requests_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=r"record a names the principle `gone`, which the run's constitution lacks"):
        export(tmp_path, [chain("a", round_("gone", "Bad.", "No."))])
    assert list(tmp_path.iterdir()) == []


def test_no_conversation_stands_on_both_sides_whatever_its_id(tmp_path: Path) -> None:
    twins = [
        chain(f"{copy}-{n}", round_("harm", "Bad.", "No."), round_("honesty", "Bad.", "Never."), prompt=(f"Q {n}?",))
        for n in range(200)
        for copy in ("first", "second")
    ]
    export(tmp_path, twins, test_share=0.3)
    sides = {side: {row["messages"][0]["content"] for row in rows(tmp_path, "sft", side)} for side in ("train", "test")}
    assert sides["train"].isdisjoint(sides["test"])
    assert len(sides["train"] | sides["test"]) == 200
    # 200 draws at 0.3: mean 60, standard deviation 6.5.
    assert 40 <= len(sides["test"]) <= 80
    for side in ("train", "test"):
        assert {row["prompt"][0]["content"] for row in rows(tmp_path, "pairs", side)} == sides[side]
        halves = [{row["prompt"] for row in rows(tmp_path, "llm_swarm", f"{side}_{half}")} for half in ("sft", "prefs")]
        assert halves[0].isdisjoint(halves[1])
        assert halves[0] | halves[1] == sides[side]
        assert min(map(len, halves)) > len(sides[side]) / 4


def test_the_split_depends_on_prompt_and_seed_only_and_a_larger_share_keeps_the_smaller(tmp_path: Path) -> None:
    def test_side(name: str, chains: list[RevisionChain], share: float, seed: int = 7) -> set[str]:
        run = tmp_path / name
        run.mkdir()
        export_chains(chains, run, requests=requests, test_share=share, seed=seed, card=facts())
        return {row["id"] for row in rows(run, "pairs", "test")}

    small = test_side("small", many(100), 0.2)
    assert test_side("reversed", many(100)[::-1], 0.2) == small
    assert test_side("part", many(50), 0.2) == {id_ for id_ in small if int(id_[1:]) < 50}
    assert test_side("large", many(100), 0.5) > small
    assert test_side("other seed", many(100), 0.2, seed=8) != small


def test_load_dataset_opens_every_table_by_the_card(tmp_path: Path) -> None:
    run = tmp_path / "run"
    counts = export(run, [*many(60), TWO_ROUNDS, HELPFUL], test_share=0.3)
    (run / "records.jsonl").write_text("{}\n", encoding="utf-8")
    (run / "manifest.json").write_text("{}\n", encoding="utf-8")
    for table, splits in (
        ("sft", ["train", "test"]),
        ("pairs", ["train", "test"]),
        ("llm_swarm", ["train_sft", "train_prefs", "test_sft", "test_prefs"]),
    ):
        loaded = datasets.load_dataset(str(run), table, cache_dir=str(tmp_path / "cache"))
        assert list(loaded) == splits
        for split in splits:
            assert loaded[split].to_list() == rows(run, table, split)
            assert loaded[split].num_rows == counts.rows(table, split) > 0
    assert counts.rows("sft") == 60 + 2 + 1
    assert datasets.load_dataset(str(run), cache_dir=str(tmp_path / "cache"))["train"].column_names[0] == "messages"


def test_a_split_without_rows_is_left_out_and_the_card_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    export(run, [HELPFUL])
    assert [path.name.split("-")[0] for path in (run / "data").iterdir()] == ["sft"]
    loaded = datasets.load_dataset(str(run), "sft", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == {"train": 1}
    text = (run / "README.md").read_text(encoding="utf-8")
    assert "`sft` test, `pairs` train, `pairs` test, `llm_swarm` train_sft" in text
    assert 'load_dataset(folder, "pairs")' not in text


def test_an_export_without_any_chain_is_a_card_alone(tmp_path: Path) -> None:
    counts = export(tmp_path, [])
    assert counts.files == ()
    assert header(tmp_path)["configs"] == []
    assert "No chain has a round." in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_later_export_takes_the_place_of_the_former_and_leaves_other_files_alone(tmp_path: Path) -> None:
    export(tmp_path, many(3))
    (tmp_path / "data" / "notes.parquet").write_text("mine", encoding="utf-8")
    export(tmp_path, many(5))
    assert len(rows(tmp_path, "sft")) == 5
    named = {Path(file["path"]).name for config in header(tmp_path)["configs"] for file in config["data_files"]}
    assert {path.name for path in (tmp_path / "data").iterdir()} == named | {"notes.parquet"}
    assert {path.name for path in tmp_path.iterdir()} == {"data", "README.md"}


def test_the_same_chains_give_the_same_files(tmp_path: Path) -> None:
    first = export(tmp_path / "one", many(20))
    assert export(tmp_path / "two", many(20)).files == first.files
    assert export(tmp_path / "one", many(20)).files == first.files
    assert len(rows(tmp_path / "one", "sft")) == 20


def test_any_text_comes_back_unchanged(tmp_path: Path) -> None:
    texts = ["\x00\x1b[31m", "---\n# no\n", "日本 🎉 \u202e", "a\r\nb", " spaced "]
    export(tmp_path, [chain(f"n{n}", round_("harm", "Bad.", text)) for n, text in enumerate(texts)])
    assert [row["messages"][-1]["content"] for row in rows(tmp_path, "sft")] == texts
