"""Coroutines within a training loop that is none."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class EventLoop:
    """An event loop that runs only while something is waited for."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end, even where that is a KeyboardInterrupt."""
        begun: list[asyncio.Task[Any]] = []

        async def noted() -> T:
            task = asyncio.current_task()
            assert task is not None
            begun.append(task)
            return await work

        try:
            return self._runner.run(noted())
        except KeyboardInterrupt:
            # The runner cancels what Ctrl-C interrupts. The signal handler of a caller raises this in the midst of the
            # loop, which then leaves its tasks as they are.
            for task in begun:
                task.cancel()
                with suppress(asyncio.CancelledError, KeyboardInterrupt):
                    self._runner.get_loop().run_until_complete(task)
            raise
        finally:
            if not begun:
                work.close()

    def close(self) -> None:
        """End it; nothing can be run any more."""
        self._runner.close()
