"""The runner of all generating stages: how many are in flight, what failures do, how it ends."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from cai.errors import EngineError, RecordError, StageError
from cai.records import Failure
from cai.stage import GIVE_UP_AFTER, run_interruptible, run_stage, sigterm_interrupts


@dataclass(frozen=True)
class Thing:
    index: int

    @property
    def id(self) -> str:
        return f"t{self.index}"


@dataclass
class Bench:
    """Work that waits to be told, and what came of it."""

    results: list[int] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    drawn: int = 0
    running: int = 0
    most: int = 0
    fails: frozenset[int] = frozenset()
    gates: dict[int, asyncio.Event] = field(default_factory=dict)

    def items(self, count: int) -> Iterator[Thing]:
        for index in range(count):
            self.drawn += 1
            yield Thing(index)

    async def work(self, item: Thing) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if item.index in self.gates:
                await self.gates[item.index].wait()
            else:
                await asyncio.sleep(0)
            if item.index in self.fails:
                raise RecordError("timeout", f"no answer to {item.id}", "draft")
            return item.index
        finally:
            self.running -= 1

    async def run(self, count: int, concurrency: int) -> None:
        await run_stage(
            self.items(count),
            self.work,
            concurrency=concurrency,
            on_result=self.results.append,
            on_failure=self.failures.append,
        )


async def settle() -> None:
    """Let all tasks go as far as they can."""
    for _ in range(50):
        await asyncio.sleep(0)


def test_as_many_as_allowed_are_in_flight_and_all_are_done_once() -> None:
    bench = Bench()
    asyncio.run(bench.run(100, concurrency=7))
    assert bench.most == 7
    assert sorted(bench.results) == list(range(100))
    assert bench.failures == []


def test_items_are_drawn_when_a_place_is_free() -> None:
    async def scenario() -> None:
        bench = Bench(gates={index: asyncio.Event() for index in range(10)})
        stage = asyncio.create_task(bench.run(10, concurrency=3))
        await settle()
        assert bench.drawn == 3
        bench.gates[1].set()
        await settle()
        assert (bench.drawn, bench.results) == (4, [1])
        for gate in bench.gates.values():
            gate.set()
        await stage
        assert sorted(bench.results) == list(range(10))

    asyncio.run(scenario())


def test_a_slow_item_holds_no_other_up() -> None:
    async def scenario() -> None:
        bench = Bench(gates={0: asyncio.Event()})
        stage = asyncio.create_task(bench.run(20, concurrency=2))
        await settle()
        assert bench.results == list(range(1, 20))
        bench.gates[0].set()
        await stage
        assert bench.results[-1] == 0

    asyncio.run(scenario())


def test_a_failed_item_is_told_with_its_reason_and_the_others_go_on() -> None:
    bench = Bench(fails=frozenset({2}))
    asyncio.run(bench.run(5, concurrency=1))
    assert bench.results == [0, 1, 3, 4]
    assert bench.failures == [Failure(id="t2", index=2, step="draft", reason="timeout", message="no answer to t2")]


def test_the_stage_gives_up_after_too_many_failures_in_a_row() -> None:
    bench = Bench(fails=frozenset(range(1, 1000)))
    with pytest.raises(StageError) as caught:
        asyncio.run(bench.run(1000, concurrency=1))
    assert (len(bench.results), len(bench.failures)) == (1, GIVE_UP_AFTER)
    assert str(caught.value) == (
        "stopped after 50 failures in a row, the last one at draft: no answer to t50. What is finished is kept; "
        "mend the cause and run the same command again with --retry-failed"
    )


def test_a_success_between_failures_keeps_the_stage_going() -> None:
    bench = Bench(fails=frozenset(range(1000)) - {49, 99})
    asyncio.run(bench.run(149, concurrency=1))
    assert (bench.results, len(bench.failures)) == ([49, 99], 147)


def test_many_in_flight_may_fail_at_once_before_the_stage_gives_up() -> None:
    bench = Bench(fails=frozenset(range(1000)))
    with pytest.raises(StageError, match="stopped after 80 failures"):
        asyncio.run(bench.run(1000, concurrency=40))


def test_an_error_of_the_engine_ends_the_stage_and_all_that_is_in_flight() -> None:
    ended: list[int] = []

    async def work(item: Thing) -> int:
        try:
            if item.index == 3:
                raise EngineError("the server has gone")
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # whoever tidies up is waited for
            ended.append(item.index)
        return item.index

    async def scenario() -> None:
        things = (Thing(index) for index in range(10))
        with pytest.raises(EngineError, match="the server has gone"):
            await run_stage(things, work, concurrency=5, on_result=print, on_failure=print)
        assert sorted(ended) == [0, 1, 2, 3, 4]

    asyncio.run(scenario())


def test_a_result_that_cannot_be_stored_ends_the_stage() -> None:
    def full(_: int) -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        asyncio.run(
            run_stage(iter([Thing(0), Thing(1)]), Bench().work, concurrency=1, on_result=full, on_failure=print)
        )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_work_and_lets_it_tidy_up(number: signal.Signals) -> None:
    tidied: list[str] = []
    before = signal.getsignal(number)

    async def main() -> None:
        try:
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), number)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            tidied.append("yes")

    with pytest.raises(KeyboardInterrupt):
        run_interruptible(main())
    assert tidied == ["yes"]
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_does_not_tear_a_step_of_the_work_apart(number: signal.Signals) -> None:
    stored: list[str] = []

    async def work() -> None:
        signal.raise_signal(number)
        stored.append("and counted")  # as a record is, once it is written

    async def main() -> None:
        await asyncio.gather(work(), asyncio.Event().wait())

    with pytest.raises(KeyboardInterrupt):
        run_interruptible(main())
    assert stored == ["and counted"]


def test_what_is_not_interrupted_returns_its_value() -> None:
    async def main() -> int:
        return 5

    assert run_interruptible(main()) == 5


def test_sigterm_interrupts_before_and_after_the_event_loop() -> None:
    async def main() -> int:
        return 5

    before = signal.getsignal(signal.SIGTERM)
    with sigterm_interrupts():
        assert run_interruptible(main()) == 5
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_work_can_run_outside_the_main_thread() -> None:
    results: list[int] = []

    async def main() -> int:
        return 5

    thread = threading.Thread(target=lambda: results.append(run_interruptible(main())))
    thread.start()
    thread.join()
    assert results == [5]
