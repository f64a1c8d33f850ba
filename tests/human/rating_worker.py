"""A rater without a page, in a process that may be killed at any moment: `python rating_worker.py STORE TOKEN [DEATH]`.

Prints `asked ITEM ANSWER SPREAD` before each answer and `done ITEM` after it. DEATH is where the process kills itself:
`before`, `amid` or `after` the commit of the third answer.
"""

import os
import signal
import sys
from pathlib import Path

from rating_samples import spread

from cai.human.records import ANSWERS
from cai.human.store import RatingStore


def main(path: str, token: str, death: str = "") -> None:
    """Rate until nothing is left."""
    store = RatingStore.open(Path(path))
    rater = store.rater(token)
    assert rater is not None
    done = 0

    def die(moment: str) -> None:
        if death == moment and done == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(statement: str) -> None:
        if answering and statement.startswith("INSERT INTO events"):
            die("before")
        if answering and statement == "COMMIT":
            die("amid")

    answering = False
    store._database._connection.set_trace_callback(watch)
    while (one := store.next(rater)) is not None:
        answer = ANSWERS["four"][one.item % 4]
        print("asked", one.item, answer, spread(store), flush=True)
        answering = True
        store.answer(rater, one.item, answer, comment="", seconds=0.0, key=f"key {one.item}")
        answering = False
        die("after")
        print("done", one.item, flush=True)
        done += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
