"""Direct RLAIF: a judge's ratings as rewards, by hand; its engine between batches, in trouble and at the end."""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chain_samples import turns
from reward_models import save_reward_model
from served import Pauses
from servers import Answer, ChatServer, Request, fault, listed
from stub_engine import StubEngine

from cai.config import EngineConfig
from cai.constitution import load_constitution
from cai.data.formats import conversation_id
from cai.engines import ChoiceLogprobs, EngineInfo, open_engine
from cai.engines.openai import OpenAIEngine, open_openai
from cai.errors import CaiError, ConfigError, EngineError
from cai.feedback.judge import Judge
from cai.feedback.judge_config import JudgeConfig
from cai.feedback.prompts import JudgePrompts
from cai.records import Message, Prompt
from cai.train.ppo import judge_reward
from cai.train.ppo.event_loop import EventLoop
from cai.train.ppo.reward_config import JudgeRewardConfig, RewardSourceConfig
from cai.train.ppo.reward_plan import find_rewards
from cai.train.ppo.rewards import MixedRewards
from cai.train.reward_checkpoints import RewardCheckpoints

RULES = """
name: rules
version: '1'
principles:
- {id: kind, question: Is the reply unkind?}
- {id: true-to-facts, question: Is the reply wrong?, weight: 3}
"""


@pytest.fixture
def rules(tmp_path: Path) -> str:
    (tmp_path / "rules.yaml").write_text(RULES)
    return str(tmp_path / "rules.yaml")


def source(rules: str, engine: EngineConfig, *, weight: float = 1.0, **judge: Any) -> RewardSourceConfig:
    rated = JudgeConfig(protocol=("score",), **judge)
    return RewardSourceConfig(
        judge=JudgeRewardConfig(engine=engine, constitution=rules, judge=rated), weight=weight, name="rlaif"
    )


def scripted(rules: str, answers: str, **settings: Any) -> RewardSourceConfig:
    script = Path(rules).with_name("script.yaml")
    script.write_text(f"answers:\n{answers}\n")
    return source(rules, EngineConfig(engine="scripted", script=script), **settings)


def opened(*configs: RewardSourceConfig, seed: int = 0) -> MixedRewards:
    return find_rewards(configs).open(seed=seed)


def asks(number: int) -> list[tuple[Message, ...]]:
    return [turns(f"Question {place}?") for place in range(number)]


@dataclass
class Stub(StubEngine):
    """Counts how many requests are in flight, and in how many loops it is used."""

    workers: int = 8
    in_flight: int = 0
    most: int = 0
    loops: set[Any] = field(default_factory=set)
    closed: int = 0

    @property
    def info(self) -> EngineInfo:
        return super().info.model_copy(update={"concurrency": self.workers})

    async def choice_logprobs(
        self, messages: Sequence[Message], prefill: str, choices: Sequence[str]
    ) -> ChoiceLogprobs:
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        self.loops.add(asyncio.get_running_loop())
        try:
            await self.pause()
            return await super().choice_logprobs(messages, prefill, choices)
        finally:
            self.in_flight -= 1

    async def pause(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Stub], None]:
    """Has the engine of every judge be a stub."""

    def use(stub: Stub) -> None:
        @asynccontextmanager
        async def opened(_: EngineConfig) -> AsyncIterator[Stub]:
            yield stub
            stub.closed += 1

        monkeypatch.setattr(judge_reward, "open_engine", opened)

    return use


def test_a_reward_is_the_expected_rating_rescaled(rules: str) -> None:
    answers = """
- {when: 'wonderful', choices: {'10': 0.8}}
- {when: 'so so', choices: {'3': 0.3, '7': 0.1}}
- {when: 'awful', choices: {'1': 1.0}}
- {when: '.', choices: {'0': 0.0}}
"""
    rewards = opened(scripted(rules, answers, weight=2.0))
    found = rewards.score(asks(3), ["It is so so.", "It is wonderful.", "It is awful."])
    # Ratings 4, 10 and 1: less 5.5, by 4.5.
    expected = [-1.5 / 4.5, 1.0, -1.0]
    np.testing.assert_allclose(found.parts["rlaif"], expected, atol=1e-12)
    np.testing.assert_allclose(found.scores, [2 * one for one in expected], atol=1e-12)
    assert (found.reasons, found.variance) == ((None,) * 3, None)
    assert rewards.details["rlaif"]["engine"] == "scripted"
    rewards.close()


def test_what_cannot_be_rated_has_the_reason_and_the_others_keep_their_places(rules: str) -> None:
    answers = """
- {when: 'mumble', choices: {'5': 0.05}}
- {when: 'long', fail: context_overflow}
- {when: 'lost', fail: server_error}
- {when: 'fine', choices: {'10': 1.0}}
"""
    replies = ["fine", "mumble", "fine", " \n", "long", "fine", "lost", "unforeseen"]
    rewards = opened(scripted(rules, answers))
    found = rewards.score(asks(8), replies)
    rewards.close()
    reasons = ["off_option", None, "empty_response", "context_overflow", None, "server_error", "request_refused"]
    assert found.reasons == (None, *reasons)
    np.testing.assert_array_equal(found.scores == 1, [reason is None for reason in found.reasons])
    np.testing.assert_array_equal(np.isnan(found.scores), [reason is not None for reason in found.reasons])


def test_a_batch_without_any_rating_is_for_the_training_to_judge(rules: str) -> None:
    rewards = opened(scripted(rules, "- {fail: timeout}"))
    found = rewards.score(asks(200), ["Yes."] * 200)
    rewards.close()
    assert set(found.reasons) == {"timeout"}
    assert np.isnan(found.scores).all()


def test_all_responses_to_a_prompt_are_rated_by_the_principle_that_is_drawn_for_it(
    rules: str, stubbed: Callable[[Stub], None]
) -> None:
    prompts = asks(40)
    stub = Stub(lambda request, _: {"9": 1.0} if "unkind" in request else {"2": 1.0})
    stubbed(stub)
    kind, wrong = (9 - 5.5) / 4.5, (2 - 5.5) / 4.5

    def expected(seed: int) -> list[float]:
        constitution = load_constitution(rules)
        drawn = [constitution.sample("question", 1, seed, conversation_id(prompt))[0].id for prompt in prompts]
        assert 20 < drawn.count("true-to-facts") < 40  # three quarters are expected
        return [kind if id == "kind" else wrong for id in drawn]

    rewards = opened(source(rules, EngineConfig()), seed=5)
    for reply in ("One reply.", "Another."):
        np.testing.assert_allclose(rewards.score(prompts, [reply] * 40).scores, expected(5))
    rewards.close()
    other = opened(source(rules, EngineConfig()), seed=6)
    np.testing.assert_allclose(other.score(prompts, ["One reply."] * 40).scores, expected(6))
    other.close()
    assert expected(5) != expected(6)


def test_all_principles_count_by_their_weights_and_each_sees_prompt_and_reply(
    rules: str, stubbed: Callable[[Stub], None]
) -> None:
    stub = Stub(lambda request, _: {"9": 0.5, "8": 0.5} if "unkind" in request else {"2": 1.0})
    stubbed(stub)
    rewards = opened(source(rules, EngineConfig(), principles="all"))
    found = rewards.score([turns("Hello.", "Hi.", "And ash?")], ["It is what is left."])
    rewards.close()
    assert found.scores[0] == pytest.approx(((8.5 + 3 * 2) / 4 - 5.5) / 4.5)
    requests = [request for request, prefill in stub.asked if prefill.endswith("(")]
    assert len(requests) == 2
    for text in ("Hello.", "Hi.", "And ash?", "It is what is left."):
        assert all(text in request for request in requests)


@pytest.mark.parametrize(("asked_for", "most"), [(None, 6), (3, 3), (100, 20)])
def test_as_many_are_rated_at_once_as_keep_the_engine_busy(
    rules: str, stubbed: Callable[[Stub], None], asked_for: int | None, most: int
) -> None:
    stub = Stub(lambda _, __: {"10": 1.0}, workers=6)
    stubbed(stub)
    rewards = opened(source(rules, EngineConfig(concurrency=asked_for)))
    for _ in range(2):
        rewards.score(asks(20), ["Yes."] * 20)
    assert (stub.most, stub.in_flight, len(stub.asked)) == (most, 0, 40)
    assert (len(stub.loops), stub.closed) == (1, 0)
    rewards.close()
    assert stub.closed == 1


def test_a_judge_beside_a_function(rules: str, tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def brief(prompts, responses):\n    return [len(r) for r in responses]\n")
    judge = scripted(rules, "- {when: 'fine', choices: {'10': 1.0}}", weight=3.0)
    brief = RewardSourceConfig(function=f"{tmp_path}/f.py:brief", weight=-0.5)
    rewards = opened(judge, brief)
    found = rewards.score(asks(2), ["fine", "coarse"])
    rewards.close()
    np.testing.assert_array_equal(found.scores, [3 - 2, np.nan])
    assert found.reasons == (None, "request_refused")
    assert found.parts["brief"].tolist() == [4, 6]
    assert rewards.name == "rlaif + brief"


class Mortal(ChatServer):
    """Dies when its last answer of the plan is gone."""

    def answer_to(self, request: Request) -> Answer:
        if not self.plan and not request.path.endswith("/models"):
            self.die()
        return super().answer_to(request)


RATED = listed({"Rating": 1.0}, {":": 1.0}, {" (": 1.0}, {"7": 0.5, "3": 0.5})


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    """The pauses between tries, which take no time."""
    found = Pauses()

    @asynccontextmanager
    async def opened(config: EngineConfig) -> AsyncIterator[OpenAIEngine]:
        engine = await open_openai(config, found.timing)
        try:
            yield engine
        finally:
            await engine.aclose()

    monkeypatch.setattr(judge_reward, "open_engine", opened)
    return found


def served(rules: str, server: ChatServer) -> RewardSourceConfig:
    return source(rules, EngineConfig(engine="openai", base_url=(server.url,), max_retries=3, concurrency=2))


def test_a_server_that_dies_within_a_batch_stops_the_run_after_its_tries(rules: str, pauses: Pauses) -> None:
    with Mortal([RATED] * 12) as server:
        rewards = opened(served(rules, server))
        # Each answer has no 10, so the 0 after a 1 is asked for too: two requests a response.
        np.testing.assert_allclose(rewards.score(asks(4), ["Yes."] * 4).scores, [(5 - 5.5) / 4.5] * 4)
        assert len(server.requests) == 8
        with pytest.raises(EngineError, match=f"no server answers any more at {server.url}; start it again"):
            rewards.score(asks(10), ["Yes."] * 10)
        assert len(pauses.asked) >= 3
        rewards.close()


def test_a_request_that_a_living_server_fails_for_good_is_one_response_without_a_reward(
    rules: str, pauses: Pauses
) -> None:
    with ChatServer([RATED, RATED, *[fault(500)] * 4], default=RATED) as server:
        config = served(rules, server)
        rewards = opened(config.model_copy(update={"judge": _one_at_a_time(config)}))
        found = rewards.score(asks(3), ["Yes."] * 3)
        rewards.close()
    assert found.reasons == (None, "server_error", None)
    assert len(pauses.asked) == 3


def _one_at_a_time(config: RewardSourceConfig) -> JudgeRewardConfig:
    assert config.judge is not None
    engine = config.judge.engine.model_copy(update={"concurrency": 1})
    return config.judge.model_copy(update={"engine": engine})


def test_a_server_that_is_not_there_is_found_out_at_the_opening(rules: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(EngineError, match=f"no server answers at {url}; is it running"):
            opened(source(rules, EngineConfig(engine="openai", base_url=(url,), model="m")))


@dataclass
class Interrupted(Stub):
    """Ctrl-C comes with the third request, which like all others is not answered before that."""

    armed: bool = True
    tidied: int = 0

    async def pause(self) -> None:
        if not self.armed:
            return
        if self.in_flight == 3:
            self.strike()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.tidied += 1

    def strike(self) -> None:
        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)


class StruckWithin(Interrupted):
    """Ctrl-C comes while a request's own code runs."""

    def strike(self) -> None:
        signal.raise_signal(signal.SIGINT)


def at_once(*_: object) -> None:
    """What a training's own handler does with the second Ctrl-C."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("handler", [signal.default_int_handler, at_once])
@pytest.mark.parametrize("kind", [Interrupted, StruckWithin])
def test_ctrl_c_cancels_what_is_in_flight_and_leaves_nothing_behind(
    rules: str,
    stubbed: Callable[[Stub], None],
    kind: Callable[..., Interrupted],
    handler: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stub = kind(lambda _, __: {"5": 1.0})
    stubbed(stub)
    rewards = opened(source(rules, EngineConfig()))
    before = signal.signal(signal.SIGINT, handler)
    try:
        with caplog.at_level(logging.DEBUG, "asyncio"), pytest.raises(KeyboardInterrupt):
            rewards.score(asks(20), ["Yes."] * 20)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert stub.in_flight == 0
    (loop,) = stub.loops
    assert asyncio.all_tasks(loop) == set()
    stub.armed = False
    np.testing.assert_allclose(rewards.score(asks(2), ["Yes."] * 2).scores, [-0.5 / 4.5] * 2)
    rewards.close()
    assert stub.closed == 1
    assert loop.is_closed()
    gc.collect()
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_ctrl_c_before_the_work_has_begun_leaves_nothing_behind() -> None:
    async def strike_in_two_turns() -> None:
        running = asyncio.get_running_loop()
        running.call_soon(running.call_soon, signal.raise_signal, signal.SIGINT)

    loop = EventLoop()
    loop.run(strike_in_two_turns())
    before = signal.signal(signal.SIGINT, at_once)
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run(asyncio.sleep(0))
    finally:
        signal.signal(signal.SIGINT, before)
    loop.close()
    gc.collect()  # what was never awaited would warn


def test_an_engine_in_this_process_lives_from_batch_to_batch(rules: str, tiny: Path) -> None:
    engine = EngineConfig(model=str(tiny), device="cpu", dtype="float32")
    prompts, replies = asks(3), ["Yes.", "No.", "Perhaps."]

    async def rated() -> list[float]:
        async with open_engine(engine) as running:
            config = JudgeConfig(protocol=("score",), min_option_mass=0.0)
            judge = Judge(config, load_constitution(rules), JudgePrompts(), running, seed=0, on_step=lambda _: None)
            found: list[Awaitable[Any]] = [
                judge.score(Prompt(id=conversation_id(prompt), messages=prompt), reply)
                for prompt, reply in zip(prompts, replies, strict=True)
            ]
            return [(await one)[0] for one in found]

    rewards = opened(source(rules, engine, min_option_mass=0.0))
    batches = [rewards.score(prompts[:2], replies[:2]).scores, rewards.score(prompts[2:], replies[2:]).scores]
    rewards.close()
    expected = asyncio.run(rated())
    assert len({round(one, 6) for one in expected}) == 3
    np.testing.assert_allclose(np.concatenate(batches), expected, rtol=1e-4)


def test_an_engine_without_log_probabilities_is_refused_and_closed(rules: str, stubbed: Callable[[Stub], None]) -> None:
    stub = Stub(logprobs=False)
    stubbed(stub)
    with pytest.raises(ConfigError, match="offers no log-probabilities; set `sample_verdicts`"):
        opened(source(rules, EngineConfig()))
    assert stub.closed == 1


def test_written_ratings_do_without_log_probabilities(rules: str, stubbed: Callable[[Stub], None]) -> None:
    stub = Stub(logprobs=False, says=lambda _: "Rating: 8")
    stubbed(stub)
    rewards = opened(source(rules, EngineConfig(), sample_verdicts=4))
    assert rewards.score(asks(1), ["Yes."]).scores[0] == pytest.approx(2.5 / 4.5)
    rewards.close()
    assert len(stub.samplings) == 4


def test_an_option_that_the_engine_does_not_have_is_refused(rules: str) -> None:
    config = scripted(rules, "- {say: x}")
    assert config.judge is not None
    engine = config.judge.engine.model_copy(update={"batch_size": 4})
    with pytest.raises(ConfigError, match="batch_size"):
        opened(source(rules, engine))


def test_what_was_opened_is_closed_when_a_later_source_cannot_be(
    rules: str, tmp_path: Path, stubbed: Callable[[Stub], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise EngineError("out of memory")

    stub = Stub()
    stubbed(stub)
    model = RewardSourceConfig(model=str(save_reward_model(tmp_path / "model")))
    monkeypatch.setattr(RewardCheckpoints, "load", fail)
    with pytest.raises(EngineError, match="out of memory"):
        opened(source(rules, EngineConfig()), model)
    assert stub.closed == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"constitution": "nowhere"}, "nowhere"),
        ({"constitution": "rules", "judge": {"protocol": "score", "principles": 3}}, "3"),
        ({"constitution": "rules", "judge": {"protocol": "score", "tags": ["mirth"]}}, "mirth"),
        ({"templates": "nowhere"}, "there is no template folder .*nowhere"),
    ],
)
def test_what_a_judge_needs_is_checked_before_its_engine_is_opened(
    rules: str, stubbed: Callable[[Stub], None], settings: Mapping[str, Any], message: str
) -> None:
    stubbed(Stub())
    paths = {"rules": rules, "nowhere": str(Path(rules).with_name("nowhere"))}
    given = {key: paths.get(value, value) if isinstance(value, str) else value for key, value in settings.items()}
    with pytest.raises(CaiError, match=message):
        find_rewards([RewardSourceConfig.model_validate({"judge": given})])
