"""The runner every generating stage uses: N items in flight, back-pressure, counted failures, a clean stop.

An item's work is a coroutine, written in its natural order. No item waits for another. Items are drawn from their
iterator only when a place is free, so memory does not grow with their number.
"""

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from cai.errors import RecordError, StageError
from cai.records import Failure, Usage

T = TypeVar("T")
InputT = TypeVar("InputT")

OnStep = Callable[[Usage], None]
"""To be called after each model call, with what it took."""
GIVE_UP_AFTER = 50
"""Failures in a row, with no success between them, after which the stage stops: something is wrong for all."""


@dataclass(frozen=True, slots=True)
class WorkItem(Generic[InputT]):
    """One input of a run, and what its record will be known by."""

    index: int
    id: str
    of: InputT
    attempt: int = 0
    """Number of tries that failed before; a new try draws new replies."""


class Item(Protocol):
    """What a stage works on."""

    @property
    def id(self) -> str: ...
    @property
    def index(self) -> int: ...


ItemT = TypeVar("ItemT", bound=Item)
ResultT = TypeVar("ResultT")


async def run_stage(
    items: Iterator[ItemT],
    work: Callable[[ItemT], Awaitable[ResultT]],
    *,
    concurrency: int,
    on_result: Callable[[ResultT], None],
    on_failure: Callable[[Failure], None],
) -> None:
    """Do `work` on all items, at most `concurrency` at a time.

    `on_result` and `on_failure` are called in order of completion and are expected to store what they get at once.

    Raises:
        StageError: `GIVE_UP_AFTER` items (or twice `concurrency`, where that is more) failed in a row.
        CaiError: whatever else `work` raises ends the stage; other items in flight are cancelled.
    """
    in_a_row = 0
    limit = max(GIVE_UP_AFTER, 2 * concurrency)

    async def worker() -> None:
        nonlocal in_a_row
        for item in items:
            try:
                result = await work(item)
            except RecordError as error:
                in_a_row += 1
                on_failure(
                    Failure(id=item.id, index=item.index, step=error.step, reason=error.reason, message=str(error))
                )
                if in_a_row >= limit:
                    raise StageError(
                        f"stopped after {in_a_row} failures in a row, the last one at {error.step}: {error}. What is "
                        "finished is kept; mend the cause and run the same command again with --retry-failed"
                    ) from None
            else:
                in_a_row = 0
                on_result(result)

    workers = [asyncio.ensure_future(worker()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def gather_all(work: Sequence[Awaitable[T]]) -> list[T]:
    """Await everything together; what failed is raised only when all has ended, graver errors first.

    So no call for an item that failed is still on its way when the next item begins.
    """
    found = await asyncio.gather(*work, return_exceptions=True)
    errors = [one for one in found if isinstance(one, BaseException)]
    for error in sorted(errors, key=lambda error: isinstance(error, RecordError)):
        raise error
    return [one for one in found if not isinstance(one, BaseException)]


def run_interruptible(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` so that Ctrl-C and SIGTERM cancel it and let it tidy up.

    Raises:
        KeyboardInterrupt: it was interrupted by either signal.
    """

    async def guarded() -> T:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        with suppress(NotImplementedError, ValueError, RuntimeError):
            loop.add_signal_handler(signal.SIGTERM, task.cancel)
        return await main

    try:
        with sigterm_interrupts():  # the loop's own handler goes with the loop
            return asyncio.run(guarded())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within the block, SIGTERM raises KeyboardInterrupt as Ctrl-C does. Without effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
