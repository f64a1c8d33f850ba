"""Demonstrations to train on: the reply to learn is the right one, none was cut, mixtures have the sizes asked for."""

import gzip
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from chain_samples import chain, export, round_, rows, step, turns
from click.testing import CliRunner
from test_preference_source import asked, finished, write
from test_prompt_sets import paragraphs_as_turns, shared

from cai.cli import cli
from cai.data.demonstration_source import DemonstrationSource, read_demonstrations
from cai.data.training_rows import Demonstration, TrainingRows
from cai.errors import ConfigError, DataError
from cai.records import RevisionChain

HUMAN, REPLY = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good."}
TALK = {"messages": [HUMAN, REPLY]}


def read(
    *sources: str | DemonstrationSource,
    tests: tuple[str | DemonstrationSource, ...] = (),
    test_share: float = 0.0,
    seed: int = 7,
) -> TrainingRows[Demonstration]:
    named = [
        [DemonstrationSource(path=one) if isinstance(one, str) else one for one in given] for given in (sources, tests)
    ]
    found = read_demonstrations(*named, test_share=test_share, seed=seed)
    for facts in found.sources:
        assert facts.rows == facts.used + sum(facts.rejects.values()) + sum(facts.left_out.values())
    assert sum(facts.used for facts in found.sources) == len(found.train) + len(found.test)
    return found


def replies(found: Any) -> list[str]:
    assert all(row.messages[-1].role == "assistant" for row in found)
    return [row.messages[-1].content for row in found]


def answers(path: Path, number: int, word: str = "Q", **more: Any) -> str:
    """A file of answers to prompts of their own."""
    return write(path, *({"prompt": f"{word}{n}", "completion": f"Answer {n}."} | more for n in range(number)))


def revised(id: str, *revisions: Any, index: int = 0) -> RevisionChain:
    return chain(id, *(round_("harm", "Bad.", one) for one in revisions), index=index, prompt=(f"Question {id}?",))


def run_of(out: Path, *chains: RevisionChain, test_share: float = 0.0) -> str:
    return finished(out, "critique-revise", lambda run: export(run, chains, test_share=test_share))


def mixed_run(out: Path, test_share: float = 0.0) -> str:
    """Two revised prompts, one with a last revision that was cut, and one answer to a helpful prompt."""
    return run_of(
        out,
        revised("one", "First.", "Second.", "Third."),
        chain("help", draft="Eight minutes.", kind="helpful", prompt=("How long is an egg boiled?",)),
        revised("cut", "Whole.", step("Half of", finish_reason="length")),
        revised("silent", "Said.", " "),
        test_share=test_share,
    )


# Rows of files


@pytest.mark.parametrize(
    "row",
    [
        TALK,
        TALK | {"prompt": "Other", "completion": "Other."},
        {"prompt": "Hello", "completion": "Good."},
        {"prompt": "Hello", "response": "Good.", "completion": None},
        {"prompt": "Hello", "response": "Good.", "messages": None},
        {"prompt": [HUMAN], "completion": [REPLY]},
        {"prompt": "\n\nHuman: Hello\n\nAssistant:", "completion": "Good."},
        {"transcript": "\n\nHuman: Hello\n\nAssistant: Good."},
        {"chosen": "\n\nHuman: Hello\n\nAssistant: Good.", "rejected": "\n\nHuman: Hello\n\nAssistant: Bad."},
        {"chosen": [HUMAN, REPLY], "rejected": [HUMAN]},
        {"text": "\n\nHuman: Hello\n\nAssistant: Good."},
        TALK | {"kind": 5, "topic": ["x"], "tags": True},
    ],
)
def test_every_shape_gives_the_conversation_and_its_reply(tmp_path: Path, row: Any) -> None:
    [found] = read(write(tmp_path / "rows.jsonl", row)).train
    assert found.messages == turns("Hello", "Good.")
    assert found.prompt == turns("Hello")
    assert (found.source, found.finish_reason) == ("human", None)
    assert found.id == hashlib.sha256(b"user\0Hello\0assistant\0Good.").hexdigest()[:16]
    assert found.prompt_id == hashlib.sha256(b"user\0Hello").hexdigest()[:16]


def test_the_whole_conversation_is_kept(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Be brief."}, HUMAN, REPLY, HUMAN, {"role": "assistant", "content": " Bye "}]
    [row] = read(write(tmp_path / "rows.jsonl", {"id": 3, "prompt_id": "p", "messages": talk})).train
    assert [message.model_dump() for message in row.messages] == talk
    assert (row.id, row.prompt_id) == ("3", "p")


@pytest.mark.parametrize(
    ("row", "reason", "words"),
    [
        ({"messages": [HUMAN]}, "missing_response", "`messages` does not end with a reply"),
        ({"text": "Just a line."}, "missing_response", "`text` does not end with a reply"),
        ({"prompt": "Hello"}, "missing_response", "has neither `messages`, nor `prompt` and `completion`"),
        ({"prompt": None, "completion": "Good."}, "missing_response", "only `prompt`, `completion`"),
        ({"prompt": "Hello", "completion": " \n"}, "empty_response", "the reply has no text"),
        ({"prompt": "Hello", "completion": [HUMAN, REPLY]}, "missing_response", "one message of the assistant"),
        ({"prompt": "Hello", "completion": [HUMAN]}, "missing_response", "one message of the assistant"),
        ({"prompt": "Hello", "completion": 5}, "not_text", "`completion` must be text"),
        ({"prompt": "Hello", "completion": "nul\0"}, "not_text", "`completion` has a NUL"),
        ({"prompt": [HUMAN, REPLY], "completion": "More."}, "last_turn_not_user", "beside `completion`"),
        ({"messages": [HUMAN, HUMAN, REPLY]}, "bad_turn_order", "turn 2 must be of the assistant"),
        ({"messages": [REPLY]}, "empty_prompt", "no human turn"),
        ({"chosen": "Good."}, "not_a_transcript", "must begin with"),
        (TALK | {"finish_reason": 3}, "not_text", "`finish_reason` must be text"),
        (TALK | {"prompt_id": 0.5}, "bad_id", "`prompt_id` must be text"),
        ("Hello", "not_an_object", "must be an object"),
    ],
)
def test_a_row_without_a_reply_to_learn_is_a_reject(tmp_path: Path, row: Any, reason: str, words: str) -> None:
    path = write(tmp_path / "rows.jsonl", row, TALK)
    found = read(path)
    assert replies(found.train) == ["Good."]
    [reject] = found.rejects
    assert (reject.source, reject.row, reject.reason) == (path, 1, reason)
    assert words in reject.message
    with pytest.raises(DataError, match=rf"no row can be used \(1 {reason}\)"):
        read(write(tmp_path / "rows.jsonl", row))


def test_sources_of_replies_are_kept_where_they_are_known(tmp_path: Path) -> None:
    values = ["revision", "helpful", "human", "", None, "ai", {"name": "web"}]
    found = read(write(tmp_path / "rows.jsonl", *(TALK | {"source": value} for value in values)))
    assert [row.source for row in found.train] == ["revision", "helpful", "human", "human", "human", "human", "human"]
    assert found.sources[0].notes == {"unknown_source": 2}
    assert found.duplicates == 6


def test_replies_that_were_cut_are_left_out_of_train_and_test_rows(tmp_path: Path) -> None:
    reasons = ["stop", "length", None, "", "length", "eos"]
    path = write(tmp_path / "rows.jsonl", *(TALK | {"finish_reason": reason} for reason in reasons))
    other = answers(tmp_path / "other.jsonl", 1)
    found, tests = read(path), read(other, tests=(path,))
    assert [row.finish_reason for row in found.train] == ["stop", None, None, "eos"]
    assert [row.finish_reason for row in tests.test] == ["stop", None, None, "eos"]
    assert found.left_out == tests.left_out == {"cut": 2}
    with pytest.raises(DataError, match=r"no row is left of those that can be used \(1 cut\)"):
        read(write(tmp_path / "rows.jsonl", TALK | {"finish_reason": "length"}))


def test_the_better_replies_of_hh_rlhf_are_read() -> None:
    path = shared("hh-rlhf-harmless-base.jsonl.gz")
    found = read(str(path), test_share=0.1)
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        texts = [json.loads(line)["chosen"] for line in stream]
    expected, learnt = [], []
    for number, text in enumerate(texts, start=1):
        before, _, reply = text.rpartition("\n\nAssistant:")
        order = "".join(speaker[0] for speaker, _ in paragraphs_as_turns(before))
        if order.endswith("A"):
            expected.append((number, "last_turn_not_user"))
        elif order != "HA" * (len(order) // 2) + "H":
            expected.append((number, "bad_turn_order"))
        elif not reply.strip():
            expected.append((number, "empty_response"))
        else:
            learnt.append(reply.strip())
    assert [(reject.row, reject.reason) for reject in found.rejects] == expected
    assert sorted(replies((*found.train, *found.test))) == sorted(learnt)
    assert len(learnt) > 1480
    # 1,500 draws at 0.1: mean 150, standard deviation 12.
    assert 100 < len(found.test) < 200


# Runs


def test_all_rounds_of_a_run_are_learnt_from(tmp_path: Path) -> None:
    found = read(mixed_run(tmp_path / "run"))
    assert replies(found.train) == ["First.", "Second.", "Third.", "Eight minutes.", "Whole.", "Said."]
    assert [row.source for row in found.train] == [*["revision"] * 3, "helpful", *["revision"] * 2]
    assert [row.prompt_id for row in found.train] == ["p-one"] * 3 + ["p-help", "p-cut", "p-silent"]
    assert [row.id for row in found.train[:2]] == ["one/1", "one/2"]
    assert found.left_out == {"cut": 1}
    assert found.sources[0].constitution_sha256s == ("c" * 64,)


def test_the_last_round_alone_is_that_of_each_prompt(tmp_path: Path) -> None:
    found = read(DemonstrationSource(path=mixed_run(tmp_path / "run"), rounds="last"))
    assert replies(found.train) == ["Third.", "Eight minutes.", "Said."]
    assert found.left_out == {"earlier_round": 3, "cut": 1}


def test_one_kind_of_prompts_can_be_taken(tmp_path: Path) -> None:
    run = mixed_run(tmp_path / "run")
    helpful = read(DemonstrationSource(path=run, kinds=("helpful",)))
    assert replies(helpful.train) == ["Eight minutes."]
    assert helpful.left_out == {"other_kind": 6}
    revisions = read(DemonstrationSource(path=run, kinds=("red_team",), rounds="last"))
    assert replies(revisions.train) == ["Third.", "Said."]
    assert revisions.left_out == {"earlier_round": 3, "cut": 1, "other_kind": 1}
    with pytest.raises(ValueError, match="kinds"):
        DemonstrationSource(path=run, kinds=())


def test_a_run_keeps_its_splits(tmp_path: Path) -> None:
    (tmp_path / "script.yaml").write_text("answers: [{say: 'Words {seed}.'}]")
    words = ["critique-revise", "--engine", "scripted", "--script", str(tmp_path / "script.yaml"), "--rounds", "2"]
    words += ["--limit", "40", "--test-share", "0.3", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    run = str(tmp_path / "run")
    found = read(run, test_share=1.0, seed=99)
    for side, given in (("train", found.train), ("test", found.test)):
        table = rows(tmp_path / "run", "sft", side)
        assert [(row.id, row.prompt_id) for row in given] == [(row["id"], row["prompt_id"]) for row in table]
        assert replies(given) == [row["messages"][-1]["content"] for row in table]
    assert Counter(row.source for row in (*found.train, *found.test)) == {"revision": 80, "helpful": 20}
    assert len(found.test) > 8
    last = read(DemonstrationSource(path=run, rounds="last"))
    assert [row.id for row in last.train] == [row.id for row in found.train if not row.id.endswith("/1")]
    assert last.left_out == {"earlier_round": 40}
    named = read(run, tests=(answers(tmp_path / "tests.jsonl", 3),))
    assert (named.train, len(named.test)) == (found.train, 3)
    assert named.left_out == {"own_test": len(found.test)}


def test_what_is_no_run_of_critique_revise_is_explained(tmp_path: Path) -> None:
    run, file = mixed_run(tmp_path / "run"), answers(tmp_path / "file.jsonl", 3)
    for wrong in ({"rounds": "last"}, {"kinds": ("helpful",)}):
        for path in (file, "hub:owner/name"):
            with pytest.raises(ConfigError, match="is not the directory of a run: leave `rounds` and `kinds` out"):
                read(DemonstrationSource(path=path, **wrong))
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    (tmp_path / "run/manifest.json").write_text(json.dumps(manifest | {"stage": "label"}))
    with pytest.raises(DataError, match=r"is a run of `cai label`, .* name a run of `cai critique-revise`"):
        read(run)
    for path in (str(tmp_path / "nowhere.jsonl"), "helpful"):
        with pytest.raises(DataError, match="there is no such file, and no such directory of a run"):
            read(path)


# Mixtures


def test_a_ratio_draws_so_many_rows_for_each_row_without_one(tmp_path: Path) -> None:
    base = answers(tmp_path / "base.jsonl", 10), answers(tmp_path / "more.jsonl", 10, "M")
    extra = answers(tmp_path / "extra.jsonl", 40, "E")

    def drawn(ratio: float, seed: int = 7) -> list[str]:
        found = read(base[0], DemonstrationSource(path=extra, ratio=ratio), base[1], seed=seed)
        assert asked(found.train)[:10] == [f"Q{n}" for n in range(10)]
        assert asked(found.train)[-10:] == [f"M{n}" for n in range(10)]
        wanted = round(20 * ratio)
        facts = found.sources[1]
        assert (facts.ratio, facts.used, facts.missing) == (ratio, min(40, wanted), max(0, wanted - 40))
        assert found.left_out == ({"over_ratio": 40 - wanted} if wanted < 40 else {})
        return asked(found.train)[10:-10]

    few, many = drawn(0.25), drawn(1.5)
    assert (len(few), len(many)) == (5, 30)
    assert set(few) < set(many)
    assert many == sorted(many, key=lambda prompt: int(prompt[1:])) != [f"E{n}" for n in range(30)]
    assert drawn(1.5) == many != drawn(1.5, seed=8)
    assert drawn(2) == drawn(3.05) == [f"E{n}" for n in range(40)]
    # 30 draws out of 40 are no beginning of the file: the mean place is 19.5, with a standard deviation of 1.05.
    assert 15 < sum(int(prompt[1:]) for prompt in many) / 30 < 24


def test_test_rows_are_drawn_for_themselves_and_train_rows_behind_the_leak_check(tmp_path: Path) -> None:
    base, extra = answers(tmp_path / "base.jsonl", 20), answers(tmp_path / "extra.jsonl", 60, "E")
    tests = answers(tmp_path / "base-tests.jsonl", 4), answers(tmp_path / "extra-tests.jsonl", 9, "E")
    found = read(
        base,
        DemonstrationSource(path=extra, ratio=0.5),
        tests=(tests[0], DemonstrationSource(path=tests[1], ratio=2)),
    )
    # Q0 … Q3 are test prompts, so 16 base rows are left and half as many are drawn; of the tests 2 × 4.
    assert Counter(prompt[0] for prompt in asked(found.train)) == {"Q": 16, "E": 8}
    assert Counter(prompt[0] for prompt in asked(found.test)) == {"Q": 4, "E": 8}
    assert set(asked(found.train)).isdisjoint(asked(found.test))
    assert [one.missing for one in found.sources] == [0, 0, 0, 0]
    assert [one.left_out.get("in_test", 0) for one in found.sources] == [4, 8, 0, 0]
    own = read(base, DemonstrationSource(path=extra, ratio=1), test_share=0.4)
    assert Counter(prompt[0] for prompt in asked(own.test)) == {"Q": len(own.test) // 2, "E": len(own.test) // 2}
    assert Counter(prompt[0] for prompt in asked(own.train)) == {"Q": len(own.train) // 2, "E": len(own.train) // 2}
    assert len(own.train) + len(own.test) == 40


def test_a_ratio_to_nothing_is_refused(tmp_path: Path) -> None:
    base, extra = answers(tmp_path / "base.jsonl", 5), answers(tmp_path / "extra.jsonl", 5, "E")
    alone = DemonstrationSource(path=extra, ratio=1)
    with pytest.raises(ConfigError, match="every source of train rows has a ratio"):
        read(alone)
    with pytest.raises(ConfigError, match="every source of test rows has a ratio"):
        read(base, tests=(alone,))
    for ratio in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="ratio"):
            DemonstrationSource(path=extra, ratio=ratio)


def test_skip_and_limit_count_rows_that_are_wanted(tmp_path: Path) -> None:
    run = mixed_run(tmp_path / "run")
    found = read(DemonstrationSource(path=run, kinds=("red_team",), skip=1, limit=3))
    assert replies(found.train) == ["Second.", "Third.", "Whole."]
    # Behind the limit nothing is read: the cut reply and the silent chain's.
    assert found.left_out == {"skipped": 1, "other_kind": 1}
    assert found.sources[0].rows == 5


def test_a_prompt_falls_on_one_side_whatever_its_source(tmp_path: Path) -> None:
    one, other = answers(tmp_path / "one.jsonl", 80), answers(tmp_path / "two.jsonl", 80, completion="Else.")
    found = read(one, other, test_share=0.4)
    sides = [set(asked(given)) for given in (found.train, found.test)]
    assert sides[0].isdisjoint(sides[1])
    assert sides[0] | sides[1] == {f"Q{n}" for n in range(80)}
    assert (found.left_out, found.duplicates) == ({}, 0)
    assert len(found.test) == 2 * len(sides[1])
    assert min(map(len, sides)) > 15
    assert read(one, other, test_share=0.4) == found
