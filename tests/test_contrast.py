"""The stage contrast: what is asked of the policy, and that the reply which follows the principle is the chosen one."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import datasets
import pytest
from cai_process import complete, exported, finish, manifest, records, run as cai, same_result, size, start, wait_until
from chain_samples import rows
from click.testing import CliRunner
from rich.console import Console

from cai import running
from cai.cli import cli
from cai.config import EngineConfig
from cai.constitution import Constitution, load_constitution
from cai.data.comparisons import ComparisonInput, read_comparisons
from cai.data.contrast_card import ContrastCounts
from cai.engines.base import EngineInfo
from cai.errors import DataError, RecordError, TemplateError
from cai.feedback.contrast import ContrastConfig, Contraster, Task, contrast, load_contrast_inputs
from cai.feedback.prompts import JudgePrompts
from cai.records import Comparison, ContrastSample, Generation, Message, Prompt, Sampling, Usage, stable_seed
from cai.rundir import read_records
from cai.running import Outcome
from cai.stage import WorkItem

datasets.disable_progress_bars()

CONSTITUTION = """\
name: three
version: "1"
principles:
  - {id: honest, tags: [truth], text: "Be honest about {{ topic }}."}
  - {id: kind, tags: [care], text: Be kind.}
  - {id: harm, tags: [care], question: Does the reply do harm?}
"""
OBEDIENT = re.compile(r"(DO|AVOID) (.*)", re.DOTALL)
TEMPLATE = """\
{% block follow %}DO {{ principle.text or principle.question }}{% endblock %}
{% block oppose %}AVOID {{ principle.text or principle.question }}{% endblock %}
"""


class Policy:
    """An engine that answers by system prompt and request, and keeps what it was asked; an exception is raised."""

    info = EngineInfo(engine="policy", model="policy-1", concurrency=4, seeded=True)

    def __init__(self, says: Callable[[str, str], str | Exception]) -> None:
        self.says = says
        self.asked: list[tuple[Sequence[Message], Sampling]] = []

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Generation:
        self.asked.append((messages, sampling))
        reply = self.says(messages[0].content, messages[-1].content)
        if isinstance(reply, Exception):
            raise reply
        return Generation(text=reply, finish_reason="stop", usage=Usage(prompt_tokens=5, completion_tokens=2))


def obey(system: str, request: str) -> str:
    """GOOD under a prompt that follows a principle, BAD under one that opposes it."""
    found = OBEDIENT.fullmatch(system)
    assert found
    return f"{'GOOD' if found[1] == 'DO' else 'BAD'}: {request} by {found[2]}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Constitution, template and 40 prompts."""
    (tmp_path / "three.yaml").write_text(CONSTITUTION)
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates/contrast.j2").write_text(TEMPLATE)
    lines = [{"id": f"p{n}", "prompt": f"question {n}?", "topic": f"topic {n % 4}"} for n in range(40)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "loose.yaml").write_text(json.dumps({"answers": [{"say": "Reply {seed} to {request}"}]}))
    return tmp_path


def config(folder: Path, **options: Any) -> ContrastConfig:
    return ContrastConfig.model_validate(
        {
            "prompts": str(folder / "prompts.jsonl"),
            "constitution": str(folder / "three.yaml"),
            "templates": folder / "templates",
            "engine": {"engine": "scripted", "script": folder / "loose.yaml"},
            **options,
        }
    )


def run(config: ContrastConfig, out: Path, **options: Any) -> Outcome[ContrastCounts]:
    return contrast(load_contrast_inputs(config), out, Console(quiet=True), **options)


def with_policy(monkeypatch: pytest.MonkeyPatch, says: Callable[[str, str], str | Exception]) -> Policy:
    policy = Policy(says)

    @asynccontextmanager
    async def opened(_: EngineConfig) -> AsyncIterator[Policy]:
        yield policy

    monkeypatch.setattr(running, "open_engine", opened)
    return policy


def comparisons(out: Path) -> list[Comparison]:
    lines = (out / "comparisons.jsonl").read_text(encoding="utf-8").splitlines()
    return [Comparison.model_validate_json(line) for line in lines]


def samples(out: Path) -> list[ContrastSample]:
    return list(read_records(out, ContrastSample))


def constitution(folder: Path) -> Constitution:
    return load_constitution(str(folder / "three.yaml"))


def paired(folder: Path, policy: Policy, principle: str = "kind", attempt: int = 0, **options: Any) -> ContrastSample:
    """One pair; the prompt has a system turn of its own, and its topic looks like a template."""
    by = constitution(folder)
    steps: list[Usage] = []
    prompts = JudgePrompts(folder / "templates")
    maker = Contraster(
        config(folder, seed=3, **options), by, prompts, policy, steps.append  # type: ignore[arg-type]
    )  # fmt: skip
    talk = (Message(role="system", content="You are at sea."), Message(role="user", content="Why?"))
    task = Task(Prompt(id="p", messages=talk, topic="{{ 1/0 }}"), by.principle(principle))
    found = asyncio.run(maker.pair(WorkItem(4, f"p/{principle}", task, attempt)))
    assert len(steps) == 2
    return found


# What is asked


def test_the_policy_is_asked_to_follow_and_to_oppose_the_principle(folder: Path) -> None:
    policy = Policy(lambda system, _: f" {system.split()[0]}\ud83d\n")
    found = paired(folder, policy, sampling={"max_tokens": 9})
    talk = [[(message.role, message.content) for message in messages] for messages, _ in policy.asked]
    assert talk == [
        [("system", "DO Be kind.\n\nYou are at sea."), ("user", "Why?")],
        [("system", "AVOID Be kind.\n\nYou are at sea."), ("user", "Why?")],
    ]
    assert {(asked.temperature, asked.top_p, asked.max_tokens) for _, asked in policy.asked} == {(1.0, 1.0, 9)}
    assert (found.follow.text, found.oppose.text) == ("DO\ufffd", "AVOID\ufffd")
    assert (found.id, found.index, found.principle_id, found.model, found.seed) == ("p/kind", 4, "kind", "policy-1", 3)
    assert found.usage == Usage(prompt_tokens=10, completion_tokens=4)
    assert found.constitution_sha256 == constitution(folder).sha256
    assert found.templates_sha256 == JudgePrompts(folder / "templates").sha256


def test_a_system_prompt_of_the_policy_follows_that_of_the_principle(folder: Path) -> None:
    policy = Policy(lambda system, _: system)
    found = paired(folder, policy, engine={"system": "Be brief."})
    assert found.oppose.text == "AVOID Be kind.\n\nBe brief.\n\nYou are at sea."


def test_a_topic_is_filled_in_once_and_never_read_as_a_template(folder: Path) -> None:
    found = paired(folder, Policy(lambda system, _: system), "honest")
    assert found.follow.text.startswith("DO Be honest about {{ 1/0 }}.")


def test_each_reply_has_a_seed_of_its_own_and_a_new_try_has_new_ones(folder: Path) -> None:
    for attempt, more in ((0, ()), (2, (2,))):
        policy = Policy(lambda system, _: system)
        found = paired(folder, policy, attempt=attempt)
        seeds = [stable_seed(3, "p/kind", name, *more) for name in ("follow", "oppose")]
        assert [asked.seed for _, asked in policy.asked] == seeds == [found.follow.seed, found.oppose.seed]
        assert len(set(seeds)) == 2


@pytest.mark.parametrize(("begins", "step"), [("DO", "follow"), ("AVOID", "oppose")])
@pytest.mark.parametrize(("reply", "reason"), [(" \n", "empty_reply"), (RecordError("timeout", "slow"), "timeout")])
def test_a_reply_that_failed_or_is_empty_fails_the_pair_and_is_named(
    folder: Path, begins: str, step: str, reply: str | Exception, reason: str
) -> None:
    with pytest.raises(RecordError) as caught:
        paired(folder, Policy(lambda system, _: reply if system.startswith(begins) else "Words."))
    assert (caught.value.reason, caught.value.step) == (reason, step)


def test_the_shipped_prompts_ask_for_opposites(folder: Path) -> None:
    prompts = JudgePrompts()
    for principle, words in (("kind", "Be kind."), ("harm", "Does the reply do harm?")):
        follow, oppose = prompts.contrast(constitution(folder).principle(principle))
        assert words in follow
        assert words in oppose
        assert follow != oppose


def test_principles_are_drawn_by_prompt_and_seed(folder: Path) -> None:
    run(config(folder, seed=5), folder / "one")
    run(config(folder, seed=5, principles=2), folder / "two")
    by = constitution(folder)
    drawn = [by.draw("question", 5, f"p{n}").id for n in range(40)]
    assert [sample.principle_id for sample in samples(folder / "one")] == drawn
    assert len(set(drawn)) == 3
    both = [(sample.index, sample.id) for sample in samples(folder / "two")]
    assert [id_ for _, id_ in both[::2]] == [f"p{n}/{principle}" for n, principle in enumerate(drawn)]
    assert [index for index, _ in both] == list(range(80))
    assert all(one[1].split("/")[0] == other[1].split("/")[0] for one, other in zip(both[::2], both[1::2], strict=True))
    assert len({id_ for _, id_ in both}) == 80


def test_tags_limit_the_draw(folder: Path) -> None:
    run(config(folder, tags=["truth"], limit=5), folder / "run")
    assert {sample.principle_id for sample in samples(folder / "run")} == {"honest"}


# What comes out


def test_the_reply_that_follows_is_chosen_in_every_row_of_every_table(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_policy(monkeypatch, obey)
    out = folder / "run"
    outcome = run(config(folder, principles=3, test_share=0.3, seed=9), out)
    preferences = rows(out, "preferences")
    assert len(preferences) == 120
    texts = {"honest": "Be honest about topic {}.", "kind": "Be kind.", "harm": "Does the reply do harm?"}
    for row in preferences:
        number, principle = int(row["prompt_id"][1:]), row["id"].split("/")[1]
        said = f"question {number}? by {texts[principle].format(number % 4)}"
        assert row["prompt"] == [{"role": "user", "content": f"question {number}?"}]
        assert row["chosen"] == [{"role": "assistant", "content": f"GOOD: {said}"}]
        assert row["rejected"] == [{"role": "assistant", "content": f"BAD: {said}"}]
        assert (row["chosen_origin"], row["rejected_origin"]) == ("follow", "oppose")
        assert (row["source"], row["response_source"], row["p_chosen"], row["seed"]) == ("contrast", "contrast", 1.0, 9)
        assert (row["principle_ids"], row["constitution_sha256"]) == ([principle], constitution(folder).sha256)
        unknown = ("p_ab", "p_ba", "position_flip", "off_mass", "judge_model", "annotator_id")
        assert {row[name] for name in unknown} == {None}
    kto, swarm = rows(out, "kto"), rows(out, "llm_swarm")
    assert (len(kto), len(swarm)) == (240, 120)
    for row in kto:
        assert row["completion"][0]["content"].startswith("GOOD" if row["label"] else "BAD")
        assert row["source"] == "contrast"
    for row in swarm:
        assert row["chosen"][-1]["content"].startswith("GOOD")
        assert row["rejected"][-1]["content"].startswith("BAD")
    found = comparisons(out)
    for comparison in found:
        assert (comparison.a if comparison.gold == "a" else comparison.b).text.startswith("GOOD")
        assert {comparison.a.origin, comparison.b.origin} == {"follow", "oppose"}
    # 120 draws at 1/2: mean 60, standard deviation 5.5.
    assert 38 <= sum(comparison.gold == "a" for comparison in found) <= 82
    sides = [{row["prompt"][0]["content"] for row in rows(out, "preferences", side)} for side in ("train", "test")]
    assert all(sides)
    assert sides[0].isdisjoint(sides[1])
    assert outcome.counts.principles == {"honest": 40, "kind": 40, "harm": 40}
    assert (outcome.counts.pairs, outcome.counts.dropped, outcome.progress.calls) == (120, {}, 240)


LONG = " ".join(f"word{n}" for n in range(30))


def test_pairs_that_say_the_same_are_left_out_and_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "question 0?": ("The same\n words", " The  same words "),
        "question 1?": (LONG, f"{LONG} more"),  # 28 shared word triples of 29
        "question 2?": ("", "Words."),
        "question 3?": ("Yes, it is safe.", "No, it is not safe."),
    }
    with_policy(monkeypatch, lambda system, request: said[request][system.startswith("AVOID")])
    outcome = run(config(folder, limit=4, max_failure_share=0.5), folder / "run")
    assert outcome.counts.dropped == {"exact_duplicate": 1, "near_duplicate": 1}
    assert outcome.manifest.failures == {"empty_reply": 1}
    assert outcome.counts.pairs == 3
    [row] = rows(folder / "run", "preferences")
    assert (row["prompt_id"], row["chosen"][0]["content"]) == ("p3", "Yes, it is safe.")
    assert [found.prompt.id for found in comparisons(folder / "run")] == ["p3"]
    [line] = (folder / "run/failures.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == "follow"
    card = (folder / "run/README.md").read_text(encoding="utf-8")
    for text in (
        "| pairs sampled | 3 |",
        "| left out: exact\\_duplicate | 1 |",
        "| left out: near\\_duplicate | 1 |",
        "| pairs written | 1 |",
        "| failed: empty\\_reply | 1 |",
        "**No judge has compared the two replies of a pair; the order is assumed from the prompts.**",
        "| model | policy-1 |",
    ):
        assert text in card


def test_the_card_says_what_run_and_inputs_made_the_pairs(folder: Path) -> None:
    with (folder / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": ""}\n{"id": "p1", "prompt": "once more"}\n')
    options = config(folder, limit=1)
    inputs = load_contrast_inputs(options)
    assert [reject.reason for reject in inputs.rejects] == ["empty_prompt", "duplicate_id"]
    run(options, folder / "run", command=("cai", "contrast", "--limit", "1"))
    card = (folder / "run/README.md").read_text(encoding="utf-8")
    assert inputs.constitution.sha256 != inputs.judge_prompts.sha256
    for text in (
        "```sh\ncai contrast --limit 1\n```\n",
        f"| sha256 of the constitution | {inputs.constitution.sha256} |",
        f"| sha256 of the templates | {inputs.judge_prompts.sha256} |",
        "| input rows rejected before the run | 2 |",
        "## Licence\n\nNo licence is granted here.",
    ):
        assert text in card


def test_cut_replies_are_counted(folder: Path) -> None:
    answers = [
        {"when": "question 1", "say": "Cut {seed} and", "finish_reason": "length"},
        {"say": "Whole {seed}, question {request}."},
    ]
    (folder / "loose.yaml").write_text(json.dumps({"answers": answers}))
    outcome = run(config(folder, limit=3), folder / "run")
    assert (outcome.counts.cut, outcome.counts.rows("preferences")) == (1, 3)


def test_load_dataset_opens_every_table_by_the_card(folder: Path) -> None:
    out = folder / "run"
    counts = run(config(folder, test_share=0.4), out).counts
    for table in ("preferences", "kto", "llm_swarm"):
        loaded = datasets.load_dataset(str(out), table, cache_dir=str(folder / "cache"))
        assert sum(split.num_rows for split in loaded.values()) == counts.rows(table) > 0
        assert [row for split in loaded.values() for row in split.to_list()] == rows(out, table)


def test_a_judge_can_be_asked_about_the_pairs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        with_policy(patched, obey)
        run(config(folder, limit=12), folder / "pairs")
    script = {"answers": [{"when": r'\(A\)\n"+\nGOOD', "choices": {"A": 0.2, "B": 0.7}}, {"choices": {"A": 0.8}}]}
    (folder / "judge.yaml").write_text(json.dumps(script))  # prefers BAD, whatever the pairs assume
    words = ["label", "--comparisons", str(folder / "pairs"), "--constitution", str(folder / "three.yaml")]
    words += ["--engine", "scripted"]
    words += ["--script", str(folder / "judge.yaml"), "--out", str(folder / "labels")]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = rows(folder / "labels", "preferences")
    assert len(found) == 12
    for row in found:
        assert row["chosen"][0]["content"].startswith("BAD")
        assert (row["source"], row["response_source"], row["chosen_origin"]) == ("ai", "contrast", "oppose")


def test_no_judge_is_certified_by_an_assumed_order(folder: Path) -> None:
    run(config(folder), folder / "pairs")
    (folder / "judge.yaml").write_text("answers: [{choices: {A: 0.6, B: 0.4}}]")
    words = ["judge-check", "--comparisons", "pairs", "--engine", "scripted", "--script", "judge.yaml"]
    refused = cai([*words, "--out", "check"], folder)
    assert refused.code == 2
    assert "pairs is a run of `cai contrast`: which response is better was assumed there" in refused.err
    assert not (folder / "check").exists()


def test_pairs_mixed_into_labels_are_not_taken_for_human_choices(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_preferences import export, planted

    with_policy(monkeypatch, obey)
    run(config(folder, limit=3), folder / "pairs")
    export(folder / "labels", planted(3, seed=0), human=str(folder / "pairs"))
    mixed = [row for row in rows(folder / "labels", "preferences") if row["source"] != "ai"]
    assert [(row["source"], row["chosen_origin"]) for row in mixed] == [("contrast", "follow")] * 3


def test_a_directory_of_a_run_that_is_not_exported_yet_is_explained(folder: Path) -> None:
    run(config(folder, limit=2), folder / "pairs")
    (folder / "pairs/comparisons.jsonl").unlink()
    source = ComparisonInput(path=str(folder / "pairs"))
    with pytest.raises(DataError, match=r"has no comparisons\.jsonl yet; run its `cai contrast` command again"):
        list(read_comparisons(source, on_reject=pytest.fail))


# Going on


def test_a_raised_limit_gives_what_one_run_gives(folder: Path) -> None:
    for limit in (2, 5, None):
        run(config(folder, principles=2, limit=limit), folder / "parts")
    run(config(folder, principles=2), folder / "whole")
    assert records(folder / "parts") == records(folder / "whole")
    parts, whole = ((folder / name / "comparisons.jsonl").read_bytes() for name in ("parts", "whole"))
    assert parts == whole
    assert len(whole.splitlines()) == 80


def words(*more: str) -> list[str]:
    paths = ("--prompts", "prompts.jsonl", "--constitution", "three.yaml", "--script", "loose.yaml")
    return ["contrast", *paths, "--engine", "scripted", "--principles", "2", *more]


def test_kills_change_nothing(folder: Path) -> None:
    complete([*words(), "--out", "whole"], folder)
    journal, line = folder / "killed/records.jsonl", size(folder / "whole/records.jsonl") // 80
    for kill in range(1, 4):
        process = start([*words(), "--concurrency", "2", "--out", "killed"], folder)
        wait_until(process, lambda kill=kill: size(journal) > kill * 15 * line)  # type: ignore[misc]
        process.kill()
        finish(process)
    assert 0 < len(records(folder / "killed")) < 80
    complete([*words(), "--out", "killed"], folder)
    same_result(folder / "whole", folder / "killed")
    assert exported(folder / "whole")


# The command


def test_the_command_prints_what_came_and_what_to_do_next(folder: Path) -> None:
    said = complete(words("--limit", "3", "--out", "my run", "--max-tokens", "77"), folder)
    assert "constitution: three 1 (sha256 " in said.out
    assert "prompts: 3 × 2 principles; 12 model calls" in said.out
    assert "\nrun directory: my run\n" in said.out
    assert re.search(r"pairs sampled +6 \(0 with a reply cut at max tokens\)", said.out)
    assert re.search(r"rows, preferences / kto +6 / 12", said.out)
    assert said.out.endswith("have a judge compare them:  cai label --comparisons 'my run'\n")
    found = manifest(folder / "my run")
    assert (found["stage"], found["config"]["sampling"]["max_tokens"]) == ("contrast", 77)
    assert found["inputs"].keys() == {"constitution", "templates", "prompts"}


def test_the_run_directory_is_named_after_the_settings(folder: Path) -> None:
    def out(**options: Any) -> Path:
        return load_contrast_inputs(config(folder, **options)).default_out

    assert out().name.startswith("contrast-three-")
    assert out(limit=3) == out()
    assert out(seed=1) != out()
    assert out(principles=2) != out()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--principles", "4"], "4 principles cannot be drawn for question: constitution `three` has 3"),
        (["--principles", "0"], "principles: input should be greater than or equal to 1"),
        (["--tag", "cares"], "constitution `three` has no tag `cares`; did you mean `care`?"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--templates", "nowhere"], "there is no template folder nowhere"),
        (["--constitution", "bad.yaml"], "no principle of constitution `bad` serves question"),
    ],
)
def test_mistakes_are_named_before_any_work(folder: Path, more: list[str], message: str) -> None:
    (folder / "bad.yaml").write_text('name: bad\nversion: "1"\nprinciples: [{id: a, comparison: Which is better?}]\n')
    done = cai(words(*more, "--out", "run"), folder)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert message in done.err
    assert not (folder / "run").exists()


def test_a_principle_that_cannot_be_phrased_is_named_before_any_work(folder: Path) -> None:
    (folder / "three.yaml").write_text(CONSTITUTION.replace("{{ topic }}", "{{ round / 0 }}"))
    with pytest.raises(TemplateError, match=r"principle `honest`, text: the text cannot be filled in"):
        load_contrast_inputs(config(folder))
