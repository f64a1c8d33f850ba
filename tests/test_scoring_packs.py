"""How requests for log-probabilities share, wait and fail together on the transformers engine."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from scoring_asks import PREFIX, A, B, alone, choices_of, reply_alone, tiny_prompt, user, with_engine  # noqa: E402
from tiny_model import save_tiny_model  # noqa: E402

from cai.engines.scoring import Scorer  # noqa: E402
from cai.engines.transformers import TransformersEngine  # noqa: E402
from cai.errors import EngineError  # noqa: E402
from cai.records import Sampling  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"), context=1024)


TEXTS = ["a", PREFIX + "one", PREFIX + "another", PREFIX, "Why is the sky blue?", "ü" * 40]


def test_kinds_of_requests_that_wait_together_do_not_disturb_one_another(folder: Path) -> None:
    greedy = Sampling(max_tokens=8, temperature=0)

    async def mixed(engine: Any) -> Any:
        tasks = []
        for text in TEXTS:
            tasks += [
                engine.generate(user(text), greedy),
                engine.choice_logprobs(user(text), "", ("B", "A")),
                engine.reply_logprob(user(text), "so be it"),
            ]
        return await asyncio.gather(*tasks)

    async def generated(engine: Any) -> Any:
        return await asyncio.gather(*[engine.generate(user(text), greedy) for text in TEXTS])

    found = with_engine(folder, mixed)
    assert [reply.text for reply in found[::3]] == [reply.text for reply in with_engine(folder, generated)]
    for text, choice, reply in zip(TEXTS, found[1::3], found[2::3], strict=True):
        (logprobs,) = alone(folder, [tiny_prompt(text)])
        assert choice.logprobs == pytest.approx(logprobs[-1, [B, A]].tolist(), abs=1e-4)
        assert reply.logprob == pytest.approx(reply_alone(folder, text, "so be it"), abs=1e-3)


def test_neither_kind_of_request_has_to_wait_for_all_of_the_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[str] = []
    generate, score = TransformersEngine._run, Scorer.run
    monkeypatch.setattr(TransformersEngine, "_run", lambda *of: turns.append("generated") or generate(*of))
    monkeypatch.setattr(Scorer, "run", lambda *of: turns.append("scored") or score(*of))

    async def both(engine: Any) -> None:
        engine._scorer._budget = 1
        await asyncio.gather(
            *[engine.generate(user(text), Sampling(max_tokens=1)) for text in "abc"],
            *[engine.choice_logprobs(user(text), "", ("A", "B")) for text in "abc"],
        )

    with_engine(folder, both, batch_size=1)
    assert turns == ["generated", "scored"] * 3


CONVERSATION = "C" * 90
ORDERS = ("a" * 60 + "b" * 50, "b" * 50 + "a" * 60)
PRINCIPLES = [chr(ord("c") + n) + " is good" for n in range(16)]


def ensemble(conversation: str = CONVERSATION) -> list[str]:
    """Sixteen principles in two orders; each ends in a text of nine bytes that differ from the first on."""
    return [conversation + order + "\n" + principle for principle in PRINCIPLES for order in ORDERS]


def computed(answers: Iterable[Any]) -> int:
    return sum(answer.usage.prompt_tokens - answer.usage.cached_tokens for answer in answers)


def test_an_ensemble_in_two_orders_computes_what_is_shared_once(folder: Path) -> None:
    shared, single = (with_engine(folder, choices_of(ensemble()), on) for on in (True, False))
    # the turn's mark and the conversation; two orders of 110 and a line break; then by principle its nine bytes,
    # the end of the turn, the assistant's mark and the bracket
    assert computed(shared) == (1 + 90) + 2 * (110 + 1) + 32 * (9 + 3)
    assert computed(single) == 32 * (1 + 90 + 110 + 1 + 9 + 3)
    assert {answer.usage.prompt_tokens for answer in (*shared, *single)} == {214}
    for one, other in zip(shared, single, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("budget", [1, 150, 400, 600])
def test_packs_that_do_not_hold_all_share_through_the_kept_path(
    folder: Path, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = with_engine(folder, choices_of(ensemble()))
    sizes: list[int] = []
    run = Scorer.run
    monkeypatch.setattr(Scorer, "run", lambda self, pack: sizes.append(len(pack)) or run(self, pack))

    async def narrow(engine: Any) -> Any:
        engine._scorer._budget = budget
        return await choices_of(ensemble())(engine)

    cut = with_engine(folder, narrow)
    assert len(sizes) > 1
    assert computed(cut) == 91 + 2 * 111 + 32 * 12
    for one, other in zip(cut, whole, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    if budget == 600:
        assert sizes == [16, 16], "a pack ends where the next request shares least: between the orders"


def test_what_is_shared_with_an_earlier_pack_is_not_computed_again(folder: Path) -> None:
    async def in_turn(engine: Any) -> Any:
        return [(await choices_of([text])(engine))[0] for text in (PREFIX + "x", PREFIX + "y", PREFIX + "y", "z")]

    found = with_engine(folder, in_turn)
    # last, what is read always has to be computed: here the bracket
    prompt = 1 + len(PREFIX) + 1 + 3
    assert [answer.usage.cached_tokens for answer in found] == [0, 1 + len(PREFIX), prompt - 1, 0]
    for text, answer in zip((PREFIX + "x", PREFIX + "y", PREFIX + "y", "z"), found, strict=True):
        (logprobs,) = alone(folder, [tiny_prompt(text, "(")])
        assert answer.logprobs == pytest.approx(logprobs[-1, [A, B]].tolist(), abs=1e-4)


def test_replies_that_begin_within_a_kept_path_are_computed(folder: Path) -> None:
    async def in_turn(engine: Any) -> Any:
        await engine.reply_logprob(user(PREFIX), "yes, of course")
        return await engine.reply_logprob(user(PREFIX), "yes, or no")

    answer = with_engine(folder, in_turn)
    assert answer.logprob == pytest.approx(reply_alone(folder, PREFIX, "yes, or no"), abs=1e-3)
    assert answer.usage.cached_tokens == 1 + len(PREFIX) + 1, "the assistant's mark predicts the reply's first byte"


def test_only_a_few_paths_are_kept(folder: Path) -> None:
    async def many(engine: Any) -> list[int]:
        for letter in "abcdef":
            await choices_of([letter * 80])(engine)
        again = [(await choices_of([letter * 80 + "."])(engine))[0] for letter in "af"]
        return [answer.usage.cached_tokens for answer in again]

    assert with_engine(folder, many) == [0, 81]


def test_a_pack_that_runs_out_of_memory_is_tried_again_in_smaller_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    run = Scorer.run

    def small_memory(self: Scorer, pack: Any) -> Any:
        sizes.append(len(pack))
        if len(pack) > 2:
            raise torch.OutOfMemoryError
        return run(self, pack)

    monkeypatch.setattr(Scorer, "run", small_memory)
    texts = [letter * 40 for letter in "abcdef"]
    found = with_engine(folder, choices_of(texts))
    assert sizes[0] == 6
    assert max(sizes[-3:]) <= 2
    assert [answer.usage.prompt_tokens for answer in found] == [44] * 6


def test_a_single_request_that_does_not_fit_the_memory_is_an_engine_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(_self: Scorer, _pack: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Scorer, "run", no_memory)
    with pytest.raises(EngineError, match="out of memory with a single request of 5 tokens"):
        with_engine(folder, choices_of(["q", "q"]))


def test_closing_ends_requests_that_wait(folder: Path) -> None:
    async def close(engine: Any) -> None:
        tasks = [asyncio.ensure_future(engine.reply_logprob(user("x"), text)) for text in "ab"]
        while len(engine._scoring) < 2:
            await asyncio.sleep(0)
        await engine.aclose()
        for task in tasks:
            with pytest.raises(EngineError, match="closed"):
                await task
        with pytest.raises(EngineError, match="closed"):
            await engine.reply_logprob(user("x"), "y")
        with pytest.raises(EngineError, match="closed"):
            await engine.choice_logprobs(user("x"), "", ("A", "B"))

    with_engine(folder, close)


def test_requests_that_nobody_waits_for_are_dropped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    run = Scorer.run
    monkeypatch.setattr(Scorer, "run", lambda self, pack: sizes.append(len(pack)) or run(self, pack))

    async def cancelled(engine: Any) -> Any:
        task = asyncio.ensure_future(engine.reply_logprob(user("x"), "y"))
        while not engine._scoring:
            await asyncio.sleep(0)
        task.cancel()
        return await choices_of(["q"])(engine)

    with_engine(folder, cancelled)
    assert sizes == [1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_log_probabilities_on_cuda_equal_those_on_the_cpu(folder: Path) -> None:
    on_cuda, on_cpu = (with_engine(folder, choices_of(ensemble()), device=device) for device in ("cuda", "cpu"))
    assert computed(on_cuda) == computed(on_cpu)
    for one, other in zip(on_cuda, on_cpu, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
