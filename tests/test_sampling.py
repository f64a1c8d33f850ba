"""The stage sample: what policies are asked, what is kept of their replies, and which pairs come out."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import datasets
import pytest
from click.testing import CliRunner
from rich.console import Console
from stub_engine import StubEngine

from cai import running
from cai.cli import cli
from cai.config import EngineConfig, load_config
from cai.constitution import load_constitution
from cai.data.comparisons import ComparisonInput, read_comparisons
from cai.data.sample_card import SampleCounts
from cai.engines.base import EngineInfo
from cai.errors import ConfigError, RecordError
from cai.feedback.judge import Judge
from cai.feedback.prompts import JudgePrompts
from cai.feedback.sampling import SampleConfig, Sampler, load_sample_inputs, read_samples, sample_responses
from cai.prompting import Templates
from cai.records import Comparison, Generation, Message, Prompt, Sampling, Usage, stable_seed
from cai.running import Outcome
from cai.stage import WorkItem

datasets.disable_progress_bars()


def prompts(path: Path, count: int) -> str:
    rows = [
        {"id": f"p{n}", "prompt": f"question {n}", "kind": "helpful" if n % 2 else "red_team", "topic": f"t{n}"}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def script(path: Path, *rules: dict[str, str]) -> str:
    path.write_text(json.dumps({"answers": rules}))
    return str(path)


@pytest.fixture
def loose(tmp_path: Path) -> str:
    """A script whose replies are all different."""
    return script(tmp_path / "loose.yaml", {"say": "My own reply is {seed} to {request}"})


def config(tmp_path: Path, script: str, count: int = 3, **options: Any) -> SampleConfig:
    return SampleConfig.model_validate(
        {
            "prompts": prompts(tmp_path / "prompts.jsonl", count),
            "engine": {"engine": "scripted", "script": script},
            **options,
        }
    )


def two_policies(tmp_path: Path, **options: Any) -> SampleConfig:
    policies = {name: {"script": script(tmp_path / f"{name}.yaml", {"say": f"I am {name} {{seed}}"})} for name in "xy"}
    return config(tmp_path, policies["x"]["script"], policies=policies, **options)


def run(config: SampleConfig, out: Path, **options: Any) -> Outcome[SampleCounts]:
    return sample_responses(load_sample_inputs(config), out, Console(quiet=True), **options)


def comparisons(out: Path) -> list[Comparison]:
    lines = (out / "comparisons.jsonl").read_text(encoding="utf-8").splitlines()
    return [Comparison.model_validate_json(line) for line in lines]


class Spy:
    """An engine that gives these replies in order and keeps what it was asked; an exception is raised."""

    info = EngineInfo(engine="spy", model="spy-1", concurrency=1, seeded=True)

    def __init__(self, *replies: str | Exception) -> None:
        self.replies = list(replies)
        self.asked: list[tuple[Sequence[Message], Sampling]] = []

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Generation:
        self.asked.append((messages, sampling))
        reply = self.replies[len(self.asked) - 1]
        if isinstance(reply, Exception):
            raise reply
        return Generation(text=reply, finish_reason="stop", usage=Usage(prompt_tokens=5, completion_tokens=2))


def sampled(spy: Spy, attempt: int = 0, **options: Any) -> Any:
    found = SampleConfig.model_validate({"seed": 3, **options})
    steps: list[Usage] = []
    sampler = Sampler(found, "policy", Templates(None), spy, steps.append)  # type: ignore[arg-type]
    prompt = Prompt(id="p", messages=(Message(role="user", content="Why?"),))
    sample = asyncio.run(sampler.sample(WorkItem(4, "p", prompt, attempt)))
    assert len(steps) == len(sample.replies)
    return sample


def test_each_reply_has_a_seed_of_its_own_and_a_new_try_has_new_ones() -> None:
    spy = Spy("one", " two\n", "three")
    sample = sampled(spy, responses=3, sampling={"max_tokens": 9})
    assert [reply.text for reply in sample.replies] == ["one", "two", "three"]
    seeds = [stable_seed(3, "p", f"reply {n}") for n in (1, 2, 3)]
    assert [reply.seed for reply in sample.replies] == seeds
    assert [asked.seed for _, asked in spy.asked] == seeds
    assert {(asked.temperature, asked.max_tokens) for _, asked in spy.asked} == {(1.0, 9)}
    assert (sample.id, sample.index, sample.model, sample.seed) == ("p", 4, "spy-1", 3)
    assert sample.usage == Usage(prompt_tokens=15, completion_tokens=6)
    again = sampled(Spy("one", "two", "three"), attempt=1, responses=3)
    assert [reply.seed for reply in again.replies] == [stable_seed(3, "p", f"reply {n}", 1) for n in (1, 2, 3)]


def test_the_policy_sees_the_prompt_as_the_draft_of_a_chain_does() -> None:
    spy = Spy("one", "two")
    sampled(spy, engine={"system": "Be brief."})
    talk = [[(message.role, message.content) for message in messages] for messages, _ in spy.asked]
    assert talk == [[("system", "Be brief."), ("user", "Why?")]] * 2


def test_a_failed_reply_fails_the_sample_and_is_named() -> None:
    with pytest.raises(RecordError) as caught:
        sampled(Spy("one", RecordError("timeout", "too slow")))
    assert (caught.value.reason, caught.value.step) == ("timeout", "reply 2")


def test_a_sample_fails_only_where_no_reply_has_text() -> None:
    assert [reply.text for reply in sampled(Spy("", "two")).replies] == ["", "two"]
    with pytest.raises(RecordError) as caught:
        sampled(Spy(" ", "\n"))
    assert (caught.value.reason, caught.value.step) == ("empty_reply", "reply")


def test_half_a_surrogate_pair_is_replaced() -> None:
    assert sampled(Spy("a\ud83d", "b")).replies[0].text == "a\ufffd"


def test_two_responses_to_each_prompt_make_one_comparison(tmp_path: Path, loose: str) -> None:
    outcome = run(config(tmp_path, loose), tmp_path / "run", command=("cai", "sample"))
    samples = list(read_samples(tmp_path / "run"))
    assert [(sample.id, sample.index, sample.policy, sample.model) for sample in samples] == [
        (f"p{n}", n, "policy", "script") for n in range(3)
    ]
    found = comparisons(tmp_path / "run")
    assert [comparison.id for comparison in found] == ["p0/1-2", "p1/1-2", "p2/1-2"]
    for sample, comparison in zip(samples, found, strict=True):
        assert comparison.prompt == sample.prompt
        assert {comparison.a.text, comparison.b.text} == {reply.text for reply in sample.replies}
        assert (comparison.a.origin, comparison.b.origin, comparison.source, comparison.gold) == (
            "policy", "policy", "sampled", None,
        )  # fmt: skip
    assert [(comparison.prompt.kind, comparison.prompt.topic) for comparison in found] == [
        ("red_team", "t0"), ("helpful", "t1"), ("red_team", "t2"),
    ]  # fmt: skip
    counts = outcome.counts
    assert (counts.prompts, counts.responses, counts.rows("comparisons")) == (3, 6, 3)
    assert (counts.cut, counts.dropped, counts.unpaired) == (0, {}, {})
    assert outcome.manifest.counts == {
        "prompts": 3, "policies": 1, "rejected_rows": 0, "finished": 3, "failed": 0,
    }  # fmt: skip
    assert outcome.progress.calls == 6


def test_the_table_holds_what_the_lines_hold_and_no_prompt_stands_on_both_sides(tmp_path: Path, loose: str) -> None:
    out = tmp_path / "run"
    run(config(tmp_path, loose, count=40, responses=3, test_share=0.4), out)
    loaded = datasets.load_dataset(str(out), "comparisons", cache_dir=str(tmp_path / "cache"))
    rows = {side: loaded[side].to_list() for side in ("train", "test")}
    texts = {(row["id"], row["response_a"], row["response_b"]) for side in rows.values() for row in side}
    assert texts == {(found.id, found.a.text, found.b.text) for found in comparisons(out)}
    assert len(texts) == 40 * 3
    sides = [{row["prompt"][0]["content"] for row in side} for side in rows.values()]
    assert all(sides)
    assert sides[0].isdisjoint(sides[1])
    first = rows["train"][0]
    assert (first["prompt_id"], first["kind"], first["topic"], first["origin_a"], first["seed"]) == (
        first["id"].split("/")[0], "helpful" if int(first["prompt_id"][1:]) % 2 else "red_team",
        f"t{first['prompt_id'][1:]}", "policy", 0,
    )  # fmt: skip


def test_labelling_reads_the_run_by_its_directory(tmp_path: Path, loose: str) -> None:
    run(config(tmp_path, loose), tmp_path / "run")
    read = list(read_comparisons(ComparisonInput(path=str(tmp_path / "run")), on_reject=pytest.fail))
    assert [(found.id, found.a, found.b) for found in read] == [
        (found.id, found.a, found.b) for found in comparisons(tmp_path / "run")
    ]


def test_responses_of_several_policies_are_compared_with_one_another(tmp_path: Path) -> None:
    outcome = run(two_policies(tmp_path), tmp_path / "run")
    samples = list(read_samples(tmp_path / "run"))
    assert [(sample.id, sample.index) for sample in samples] == [
        ("x/p0", 0), ("y/p0", 1), ("x/p1", 2), ("y/p1", 3), ("x/p2", 4), ("y/p2", 5),
    ]  # fmt: skip
    assert set(outcome.manifest.engine) == {"x", "y"}
    found = comparisons(tmp_path / "run")
    assert [comparison.id for comparison in found] == [
        f"p{n}/{i}-{j}" for n in range(3) for i, j in combinations(range(1, 5), 2)
    ]
    for comparison in found:
        wrote = ["x", "x", "y", "y"]
        expected = {wrote[int(place) - 1] for place in comparison.id.split("/")[1].split("-")}
        assert {comparison.a.origin, comparison.b.origin} == expected
        for side in (comparison.a, comparison.b):
            assert side.text.startswith(f"I am {side.origin} ")
    loaded = datasets.load_dataset(str(tmp_path / "run"), "comparisons", cache_dir=str(tmp_path / "cache"))
    assert [(row["origin_a"], row["origin_b"]) for side in loaded.values() for row in side] == [
        (row["response_a"].split()[2], row["response_b"].split()[2]) for side in loaded.values() for row in side
    ]


def test_two_policies_may_give_one_reply_each(tmp_path: Path) -> None:
    run(two_policies(tmp_path, responses=1), tmp_path / "run")
    assert [{found.a.origin, found.b.origin} for found in comparisons(tmp_path / "run")] == [{"x", "y"}] * 3


def test_the_pairing_is_the_one_that_was_asked_for(tmp_path: Path, loose: str) -> None:
    run(config(tmp_path, loose, responses=5, pairing="random"), tmp_path / "run")
    assert [found.id.split("/")[0] for found in comparisons(tmp_path / "run")] == ["p0", "p1", "p2"]


def test_responses_that_cannot_be_compared_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ["same words", "same  words", "", "other words", "", "alone"]

    @asynccontextmanager
    async def opened(_: EngineConfig) -> AsyncIterator[Spy]:
        yield Spy(*said)

    monkeypatch.setattr(running, "open_engine", opened)
    outcome = run(config(tmp_path, "unused", count=2, responses=3), tmp_path / "run")
    counts = outcome.counts
    assert (counts.prompts, counts.responses) == (2, 6)
    assert counts.dropped == {"exact_duplicate": 1, "empty": 2}
    assert counts.unpaired == {"too_few": 1}
    assert [found.id for found in comparisons(tmp_path / "run")] == ["p1/1-3"]


# Best of n: the policy rates its own replies


def rated_config(tmp_path: Path, **options: Any) -> SampleConfig:
    """Each reply is a number, and its rating that number's last digit and one."""
    rating = [{"when": rf"\nSay \d*{digit}\n", "choices": {str(digit + 1): 0.9}} for digit in range(10)]
    path = script(tmp_path / "rated.yaml", *rating, {"say": "Say {seed}"})  # type: ignore[arg-type]
    return config(tmp_path, path, responses=4, pairing="best-of-n", **options)


def test_the_best_rated_reply_is_in_the_one_pair_of_each_prompt(tmp_path: Path) -> None:
    outcome = run(rated_config(tmp_path, count=30), tmp_path / "run")
    found = comparisons(tmp_path / "run")
    samples = list(read_samples(tmp_path / "run"))
    assert [comparison.prompt.id for comparison in found] == [f"p{n}" for n in range(30)]
    worse = 0
    for sample, comparison in zip(samples, found, strict=True):
        digits = {reply.text: int(reply.text[-1]) for reply in sample.replies}
        assert sample.ratings == pytest.approx([(digit + 1 - 5.5) / 4.5 for digit in digits.values()])
        pair = [digits[side.text] for side in (comparison.a, comparison.b)]
        assert max(pair) == max(digits.values())
        worse += min(pair) < max(pair)
    assert worse > 20  # the other one is drawn from the rest, so it is rarely as good
    assert 6 <= sum(found_.a.text[-1] > found_.b.text[-1] for found_ in found) <= 24
    assert outcome.progress.calls >= 30 * 4 * 2  # each reply is written and rated
    spent = [usage for sample in samples for usage in (sample.rating_usage, *(reply.usage for reply in sample.replies))]
    assert outcome.manifest.usage == sum(spent, Usage())
    assert all(sample.rating_usage.prompt_tokens > 0 for sample in samples)
    card = (tmp_path / "run/README.md").read_text(encoding="utf-8")
    assert "| rated by | the policy's own model, by the constitution hhh, version" in card


def test_ratings_hang_on_the_constitution_which_the_run_keeps(tmp_path: Path) -> None:
    outcome = run(rated_config(tmp_path), tmp_path / "run")
    assert outcome.manifest.inputs.keys() == {"templates", "prompts", "constitution", "judge templates"}
    assert "name: hhh" in (tmp_path / "run/constitution.yaml").read_text(encoding="utf-8")
    another = load_sample_inputs(rated_config(tmp_path, constitution="short"))
    assert another.default_out != load_sample_inputs(rated_config(tmp_path)).default_out
    assert load_sample_inputs(config(tmp_path, "unused", constitution="nowhere")).constitution is None


def test_a_rated_run_that_goes_on_gives_what_one_run_gives(tmp_path: Path) -> None:
    for limit in (2, None):
        run(rated_config(tmp_path, count=6, limit=limit), tmp_path / "parts")
    run(rated_config(tmp_path, count=6), tmp_path / "whole")
    parts, whole = ((tmp_path / name / "comparisons.jsonl").read_bytes() for name in ("parts", "whole"))
    assert parts == whole


def self_rated(spy: StubEngine, says: Sequence[str]) -> Any:
    replies = iter(says)
    spy.says = lambda _: next(replies)
    found = SampleConfig.model_validate({"responses": len(says), "pairing": "best-of-n"})
    steps: list[Usage] = []
    judge = Judge(
        found.rating, load_constitution("hhh"), JudgePrompts(), spy, seed=found.seed, on_step=steps.append
    )  # fmt: skip
    sampler = Sampler(found, "policy", Templates(None), spy, steps.append, judge)
    prompt = Prompt(id="p", messages=(Message(role="user", content="Why?"),))
    sample = asyncio.run(sampler.sample(WorkItem(0, "p", prompt)))
    assert sample.usage == sum(steps, Usage())
    return sample


def test_an_empty_reply_has_the_worst_rating_without_being_rated() -> None:
    spy = StubEngine(lambda request, _: {"10" if "fine" in request else "1": 1.0})
    sample = self_rated(spy, ["", "fine words", " ", "others"])
    # "others" is a sure 1, which is never followed by a 0 here: the worst rating that there is.
    assert sample.ratings == pytest.approx((-1.0, 1.0, -1.0, -1.0))
    assert all("fine words" in asked or "others" in asked for asked, _ in spy.asked)


def test_a_rating_that_fails_fails_the_sample() -> None:
    with pytest.raises(RecordError) as caught:
        self_rated(StubEngine(lambda *_: {"5": 0.01}), ["one", "two"])
    assert caught.value.reason == "off_option"
    assert re.fullmatch(r"score [a-z-]+ reply", caught.value.step)


def test_replies_are_rated_for_best_of_n_alone(tmp_path: Path, loose: str) -> None:
    run(config(tmp_path, loose), tmp_path / "run")
    assert [sample.ratings for sample in read_samples(tmp_path / "run")] == [()] * 3
    assert "rated by" not in (tmp_path / "run/README.md").read_text(encoding="utf-8")


def test_an_engine_that_cannot_rate_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def opened(_: EngineConfig) -> AsyncIterator[StubEngine]:
        yield StubEngine(logprobs=False)

    monkeypatch.setattr(running, "open_engine", opened)
    with pytest.raises(ConfigError, match=r"offers no log-probabilities; set `sample_verdicts`"):
        run(rated_config(tmp_path), tmp_path / "run")


def test_replies_all_alike_give_no_comparison_and_the_card_says_so(tmp_path: Path) -> None:
    same = script(tmp_path / "same.yaml", {"say": "The same to everyone", "finish_reason": "length"})
    outcome = run(config(tmp_path, same), tmp_path / "run")
    assert (outcome.counts.dropped, outcome.counts.unpaired) == ({"exact_duplicate": 3}, {"too_few": 3})
    assert outcome.counts.cut == 6
    assert (tmp_path / "run/comparisons.jsonl").read_bytes() == b""
    card = (tmp_path / "run/README.md").read_text(encoding="utf-8")
    for line in (
        "| responses | 6 |",
        "| of them cut at the token limit | 6 |",
        "| left out: exact\\_duplicate | 3 |",
        "| prompts without a comparison: too\\_few | 3 |",
        "| comparisons | 0 |",
        "| model of the policy policy | script |",
    ):
        assert line in card
    assert "`comparisons` train, `comparisons` test" in card


@pytest.mark.parametrize("policies", [1, 2])
def test_a_run_that_goes_on_gives_what_one_run_gives(tmp_path: Path, loose: str, policies: int) -> None:
    def limited(limit: int | None) -> SampleConfig:
        return (
            config(tmp_path, loose, count=6, limit=limit)
            if policies == 1
            else two_policies(tmp_path, count=6, limit=limit)
        )

    run(limited(2), tmp_path / "parts")
    early = (tmp_path / "parts/comparisons.jsonl").read_bytes()
    run(limited(5), tmp_path / "parts")
    run(limited(None), tmp_path / "parts")
    run(limited(None), tmp_path / "whole")
    parts, whole = ((tmp_path / name / "comparisons.jsonl").read_bytes() for name in ("parts", "whole"))
    assert parts == whole
    assert whole.startswith(early)
    assert len(early.splitlines()) == 2 * (1 if policies == 1 else 6)


def test_a_failed_policy_leaves_the_others_to_be_compared(tmp_path: Path) -> None:
    found = two_policies(tmp_path, max_failure_share=0.5)
    script(tmp_path / "y.yaml", {"when": "question 1", "fail": "timeout"}, {"say": "I am y {seed}"})
    outcome = run(found, tmp_path / "run")
    assert outcome.manifest.failures == {"timeout": 1}
    assert [found.id for found in comparisons(tmp_path / "run") if found.prompt.id == "p1"] == ["p1/1-2"]


def test_a_policy_has_the_keys_of_the_engine_that_it_lacks() -> None:
    found = SampleConfig.model_validate(
        {
            "engine": {"model": "base", "dtype": "float32"},
            "policies": {"plain": {}, "tuned": {"adapter": "lora", "dtype": "auto"}},
        }
    )
    assert {name: (engine.model, engine.dtype, engine.adapter) for name, engine in found.engines.items()} == {
        "plain": ("base", "float32", None), "tuned": ("base", "auto", Path("lora")),
    }  # fmt: skip
    shared = EngineConfig(model="base", dtype="float32")
    assert SampleConfig.model_validate({**found.model_dump(), "engine": shared}) == found
    assert SampleConfig.model_validate({"engine": shared, "policies": {"plain": {}}}).engines == {"plain": shared}
    assert SampleConfig.model_validate(found.model_dump(mode="json")) == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"responses": 1}, "`responses` is 1 and there is one policy, so there is nothing to compare"),
        ({"policies": {"a/b": {}}}, "policies.a/b"),
        ({"policies": {"a": {"modle": "x"}}}, "policies.a.modle: is not a known key; did you mean `model`?"),
        ({"pairing": "best-of-n", "policies": {"a": {}, "b": {}}}, "`pairing: best-of-n` takes one policy"),
        ({"rating": {"protocol": ["pointwise"]}}, "`rating.protocol` must be score"),
        ({"rating": {"protocol": ["score", "pointwise"]}}, "`rating.protocol` must be score"),
    ],
)
def test_a_wrong_configuration_is_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(SampleConfig, None, options)
    assert message in str(caught.value)


def test_keys_that_replies_do_not_depend_on_may_change_for_each_policy(tmp_path: Path) -> None:
    def out(**keys: Any) -> Path:
        found = two_policies(tmp_path).model_dump(mode="json")
        found["policies"]["x"] |= keys
        return load_sample_inputs(SampleConfig.model_validate(found)).default_out

    base = out()
    assert base.name.startswith("sample-")
    assert out(concurrency=3, timeout=9) == base
    assert out(system="Be brief.") != base


def test_the_command_prints_what_came_and_what_to_do_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "xy":
        script(tmp_path / f"{name}.yaml", {"say": f"I am {name} {{seed}}"})
    (tmp_path / "config.yaml").write_text(
        "engine: {engine: scripted, script: x.yaml}\npolicies:\n  x: {}\n  y: {script: y.yaml}\n"
    )
    prompts(tmp_path / "prompts.jsonl", 4)
    words = ["sample", "--config", "config.yaml", "--prompts", "prompts.jsonl", "--limit", "3", "--out", "my run"]
    words += ["--max-tokens", "77"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False, env={"COLUMNS": "120"})
    assert done.exit_code == 0
    assert "prompts: 3 × 2 responses from the policies x, y; 12 model calls" in done.output
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    assert "responses 12 to 3 prompts (0 cut at max tokens)" in lines
    assert "comparisons 18" in lines
    assert "run directory: my run" in lines
    assert done.output.endswith("have them compared:  cai label --comparisons 'my run'\n")
    assert len(comparisons(tmp_path / "my run")) == 18
    assert json.loads((tmp_path / "my run/manifest.json").read_text())["config"]["sampling"]["max_tokens"] == 77


@pytest.mark.parametrize(
    ("values", "message"),
    [(["base"], "'base' must be written NAME=MODEL"), (["a=x", "a=y"], "the name 'a' stands twice")],
)
def test_a_wrong_policy_option_is_explained(values: list[str], message: str) -> None:
    words = [word for value in values for word in ("--policy", value)]
    done = CliRunner().invoke(cli, ["sample", *words])
    assert (done.exit_code, message in done.output) == (2, True)


def test_a_policy_option_names_a_model(tmp_path: Path, loose: str) -> None:
    prompts(tmp_path / "prompts.jsonl", 1)
    words = ["--prompts", str(tmp_path / "prompts.jsonl"), "--engine", "scripted", "--script", loose]
    done = CliRunner().invoke(
        cli, ["sample", *words, "--policy", "a=one", "--policy", "b=two", "--out", str(tmp_path / "r")]
    )
    assert isinstance(done.exception, ConfigError), "the scripted engine refuses a model"
    manifest = json.loads((tmp_path / "r/manifest.json").read_text())
    assert {name: policy["model"] for name, policy in manifest["config"]["policies"].items()} == {
        "a": "one",
        "b": "two",
    }
