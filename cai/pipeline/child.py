"""One stage in a process of its own, as the command that it is.

What a stage loads (torch, a model, a CUDA context, a server) goes with its process, so that the next one has all of the
memory. The process leads a session of its own. Ctrl-C and SIGTERM are passed on to it, once each; and it holds the
reading end of a pipe, so that it ends, with all it has started, when this process dies in whatever way.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

_MODULE = "cai.cli.child"
"""What the process runs; the command line lies above this module."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_child(words: Sequence[str]) -> int:
    """Run `cai` with these words and return its exit code, negative for the signal that killed it.

    Raises:
        KeyboardInterrupt: a signal came, and the process has ended.
    """
    reading, writing = os.pipe()
    try:
        with _signals_held() as asked:
            process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, str(reading), *words],
                stdin=subprocess.DEVNULL,
                pass_fds=(reading,),
                start_new_session=True,
            )
            with _passed_on(process, asked):
                code = process.wait()
    finally:
        os.close(reading)
        os.close(writing)
    if asked:
        raise KeyboardInterrupt
    return code


@contextmanager
def _signals_held() -> Iterator[list[int]]:
    """Signals that come are noted, so that none gets lost while the process is started."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        asked.append(number)

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _passed_on(process: subprocess.Popen[bytes], asked: list[int]) -> Iterator[None]:
    """Signals go on to the process, those that came before too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        asked.append(number)
        process.send_signal(number)

    for number in _SIGNALS:
        signal.signal(number, pass_on)
    for early in tuple(asked):
        process.send_signal(early)
    yield
