"""The critique–revision chain: what each step is asked, and what becomes of its reply."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cai.constitution import load_constitution
from cai.critique import CritiqueReviseConfig, Reviser
from cai.engines.base import EngineInfo
from cai.errors import RecordError
from cai.prompting import Templates
from cai.records import Generation, Message, Prompt, RevisionChain, Sampling, Usage
from cai.stage import WorkItem

CALL = Usage(prompt_tokens=7, cached_tokens=2, completion_tokens=3)


class Spy:
    """An engine that keeps what it was asked and answers by a function of the number of the call."""

    info = EngineInfo(engine="spy", model="spy-1", concurrency=1, seeded=True)

    def __init__(self, answer: Callable[[int], str]) -> None:
        self.answer = answer
        self.asked: list[tuple[Message, ...]] = []
        self.sampling: list[Sampling] = []

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Generation:
        self.asked.append(tuple(messages))
        self.sampling.append(sampling)
        return Generation(text=self.answer(len(self.asked) - 1), finish_reason="stop", usage=CALL)

    async def aclose(self) -> None:
        pass


def make(spy: Spy, prompt: Prompt, attempt: int = 0, **options: Any) -> RevisionChain:
    config = CritiqueReviseConfig.model_validate({"few_shot": 0, "rounds": 2, **options})
    reviser = Reviser(config, load_constitution("hhh"), Templates(), spy, on_step=lambda _: None)
    return asyncio.run(reviser.chain(WorkItem(5, prompt.id, prompt, attempt)))


def red_team(*turns: str, id: str = "p1") -> Prompt:
    roles = ("user", "assistant")
    messages = tuple(Message(role=roles[n % 2], content=turn) for n, turn in enumerate(turns))  # type: ignore[arg-type]
    return Prompt(id=id, messages=messages)


def test_each_round_criticises_and_revises_the_reply_before_it() -> None:
    spy = Spy(lambda n: ["the draft", "critique one", "revision one", "critique two", "revision two"][n])
    chain = make(spy, red_team("the question"))
    assert chain.draft.text == "the draft"
    assert [round_.critique.text for round_ in chain.rounds if round_.critique] == ["critique one", "critique two"]
    assert [step.text for step in chain.revisions] == ["revision one", "revision two"]
    assert chain.final.text == "revision two"
    assert [message.content for message in spy.asked[0]] == ["the question"]
    assert "the draft" in spy.asked[1][-1].content
    assert "critique one" not in spy.asked[1][-1].content
    # The revision's chat is the critique's, with the critique and the request for a revision after it.
    assert spy.asked[2][:-2] == spy.asked[1]
    assert spy.asked[2][-2] == Message(role="assistant", content="critique one")
    assert "revision one" in spy.asked[3][-1].content
    assert "the draft" not in spy.asked[3][-1].content


def test_each_round_is_asked_by_the_principle_that_stands_in_its_record() -> None:
    spy = Spy(lambda n: f"text {n}")
    chain = make(spy, red_team("q"), rounds=4)
    constitution = load_constitution("hhh")
    for number, round_ in enumerate(chain.rounds):
        principle = constitution.principle(round_.principle_id)
        assert principle.critique
        assert principle.revision
        assert principle.critique in spy.asked[1 + 2 * number][-1].content
        assert principle.revision in spy.asked[2 + 2 * number][-1].content
    assert len({round_.principle_id for round_ in chain.rounds}) > 1


def test_tags_limit_the_draw() -> None:
    constitution = load_constitution("hhh")
    drawn = {
        round_.principle_id
        for n in range(8)
        for round_ in make(Spy(lambda n: f"text {n}"), red_team("q", id=f"p{n}"), rounds=4, tags=["privacy"]).rounds
    }
    assert drawn == {principle.id for principle in constitution.select("critique", ["privacy"])}


def test_all_turns_of_the_conversation_are_seen_by_every_step() -> None:
    spy = Spy(lambda n: f"text {n}")
    make(spy, red_team("first question", "first answer", "second question"), rounds=1)
    assert [message.content for message in spy.asked[0]] == ["first question", "first answer", "second question"]
    for turn in ("first question", "first answer", "second question"):
        assert turn in spy.asked[1][-1].content
        assert any(turn in message.content for message in spy.asked[2])


def test_a_helpful_prompt_is_only_answered() -> None:
    spy = Spy(lambda n: f"text {n}")
    chain = make(spy, red_team("q").model_copy(update={"kind": "helpful"}))
    assert chain.rounds == ()
    assert len(spy.asked) == 1


def test_without_critique_the_revision_quotes_the_conversation_itself() -> None:
    spy = Spy(lambda n: f"text {n}")
    chain = make(spy, red_team("the question"), critique=False)
    assert [round_.critique for round_ in chain.rounds] == [None, None]
    assert len(spy.asked) == 3
    assert "the question" in spy.asked[1][-1].content
    assert "text 0" in spy.asked[1][-1].content
    assert "text 1" in spy.asked[2][-1].content


def test_stop_when_clean_ends_the_chain_and_keeps_the_critique() -> None:
    spy = Spy(lambda n: ["draft", "It is rude.", "revision", "No issues."][n])
    chain = make(spy, red_team("q"), rounds=4, stop_when_clean=True)
    assert len(chain.rounds) == 2
    assert chain.rounds[1].critique
    assert chain.rounds[1].critique.text == "No issues."
    assert chain.rounds[1].revision is None
    assert chain.final.text == "revision"


def test_without_stop_when_clean_a_clean_critique_is_followed_by_a_revision() -> None:
    spy = Spy(lambda n: ["draft", "No issues.", "revision"][n])
    assert len(make(spy, red_team("q"), rounds=1).revisions) == 1


def test_preambles_are_cut_from_revisions_and_kept_in_the_record() -> None:
    announced = "Sure, here is the rewritten response:\n\nKind words."
    spy = Spy(lambda _: announced)
    chain = make(spy, red_team("q"), rounds=1)
    assert chain.final.text == "Kind words."
    assert chain.final.removed == "Sure, here is the rewritten response:"
    assert chain.draft.text == announced, "a draft is the model's own reply and stays as it is"


def test_few_shot_examples_stand_before_critique_and_revision_but_not_before_the_draft() -> None:
    spy = Spy(lambda n: f"text {n}")
    make(spy, red_team("q"), rounds=1, few_shot=2)
    example = load_constitution("hhh").examples.critique_revision[0]
    assert len(spy.asked[0]) == 1
    for asked in spy.asked[1:]:
        assert any(message.content == example.critique for message in asked)
        assert any(message.content == example.revision for message in asked)


def test_the_system_prompt_is_for_the_draft() -> None:
    spy = Spy(lambda n: f"text {n}")
    make(spy, red_team("q"), rounds=1, engine={"system": "You are a pirate."})
    assert spy.asked[0][0] == Message(role="system", content="You are a pirate.")
    assert not any("pirate" in message.content for asked in spy.asked[1:] for message in asked)


def test_an_empty_reply_fails_the_record_and_names_the_step() -> None:
    spy = Spy(lambda n: " \n" if n == 2 else "text")
    with pytest.raises(RecordError) as caught:
        make(spy, red_team("q"))
    assert (caught.value.reason, caught.value.step) == ("empty_reply", "revision 1")


def test_half_a_surrogate_pair_does_not_reach_the_record() -> None:
    chain = make(Spy(lambda _: "smile \ud83d end"), red_team("q"), rounds=1)
    assert chain.draft.text == "smile � end"
    assert RevisionChain.model_validate_json(chain.model_dump_json()) == chain


def test_seeds_and_principles_repeat_for_a_prompt_and_change_with_seed_prompt_and_attempt() -> None:
    def seeds(prompt_id: str = "p1", attempt: int = 0, seed: int = 0) -> list[int]:
        chain = make(Spy(lambda _: "text"), red_team("q", id=prompt_id), attempt, seed=seed)
        return [step.seed for step in chain.steps]

    assert seeds() == seeds()
    assert len(set(seeds())) == 5
    for other in (seeds("p2"), seeds(attempt=1), seeds(seed=1)):
        assert set(seeds()).isdisjoint(other)


def test_steps_usage_and_provenance_are_in_the_record() -> None:
    spy = Spy(lambda _: "text")
    chain = make(spy, red_team("q"), sampling={"temperature": 0.5, "max_tokens": 9, "stop": ["\n\n"]})
    assert chain.usage == Usage(prompt_tokens=35, cached_tokens=10, completion_tokens=15)
    assert (chain.id, chain.index, chain.model) == ("p1", 5, "spy-1")
    assert chain.constitution_sha256 == load_constitution("hhh").sha256
    assert chain.templates_sha256 == Templates().sha256
    assert [sampling.seed for sampling in spy.sampling] == [step.seed for step in chain.steps]
    assert spy.sampling[0] == Sampling(max_tokens=9, temperature=0.5, stop=("\n\n",), seed=chain.draft.seed)
