"""`python -m cai.cli.child FD …`: the command line in a process that ends with the one that started it.

`FD` is the reading end of a pipe whose other end that process holds. See `cai.pipeline.child`.
"""

import os
import signal
import sys
import threading

from cai.cli import main as cai


def main() -> None:
    """Run the command line for as long as somebody holds the other end of the pipe."""
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    sys.argv = ["cai", *sys.argv[2:]]
    cai()


def _end_with(parent: int) -> None:
    """Wait until nobody holds the other end of the pipe, and end this session."""
    os.read(parent, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
