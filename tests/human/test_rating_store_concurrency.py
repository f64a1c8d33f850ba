"""Eight raters at a time, in threads of one process and in processes of their own."""

import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import rating_worker
from rating_samples import new_rater, new_store, spread

from cai.human.records import ANSWERS
from cai.human.store import Rater, RatingStore, Shown

pytestmark = pytest.mark.enable_socket  # processes are forked through a Unix socket

RATERS = [f"r{n}" for n in range(8)]


def check_hand_outs(store: RatingStore, comparisons: int, given: Counter[tuple[str, int]], spreads: set[int]) -> None:
    """Each comparison went to two raters, and everything that they answered is there."""
    assert set(given.values()) == {1}  # never one item to a rater twice
    raters_of = Counter(item for _, item in given)
    assert [raters_of[item] for item in range(1, comparisons + 1)] == [2] * comparisons
    assert spreads <= {0, 1}
    ratings = list(store.ratings())
    assert len(ratings) == 2 * comparisons
    ids = {one.id: place for place, one in enumerate(store.comparisons(), start=1)}
    data = {(rater, item) for rater, item in given if item <= comparisons}
    assert {(one.rater, ids[one.comparison_id]) for one in ratings} == data
    assert all(one.answer == ANSWERS["four"][ids[one.comparison_id] % 4] for one in ratings)
    for rater in RATERS:
        firsts = Counter(one.first for one in ratings if one.rater == rater)
        assert abs(firsts["a"] - firsts["b"]) <= 1
        checks = sum(item > comparisons for name, item in given if name == rater)
        number = sum(name == rater for name, _ in given)
        assert number // 50 <= checks <= -(-number // 50) or checks == 10
    assert sum(one.answered for one in store.progress()) == 2 * comparisons


def test_eight_raters_in_threads_of_one_process(tmp_path: Path) -> None:
    settings = {"overlap": 1.0, "overlap_raters": 2, "check_every": 50}
    with new_store(tmp_path / "ratings.sqlite", 500, 10, **settings) as store:
        raters = [new_rater(store, name) for name in RATERS]
        begin = Barrier(8)

        def rate(rater: Rater) -> tuple[list[Shown], set[int]]:
            begin.wait()
            seen: list[Shown] = []
            spreads: set[int] = set()
            while (one := store.next(rater)) is not None:
                spreads.add(spread(store))
                answer = ANSWERS["four"][one.item % 4]
                store.answer(rater, one.item, answer, comment="", seconds=0.0, key=f"key {one.item}")
                seen.append(one)
            return seen, spreads

        with ThreadPoolExecutor(8) as threads:
            results = list(threads.map(rate, raters))
        given = Counter(
            (rater.name, one.item) for rater, (seen, _) in zip(raters, results, strict=True) for one in seen
        )
        assert min(len(seen) for seen, _ in results) > 0
        check_hand_outs(store, 500, given, set().union(*(spreads for _, spreads in results)))


def test_eight_raters_in_eight_processes(tmp_path: Path) -> None:
    path = tmp_path / "ratings.sqlite"
    with new_store(path, 500, 10, overlap=1.0, overlap_raters=2, check_every=50) as store:
        tokens = [store.add_rater(name) for name in RATERS]
    # A worker writes to a file: a pipe that nobody reads would stop it.
    outputs = [tmp_path / name for name in RATERS]
    running = []
    for token, output in zip(tokens, outputs, strict=True):
        with output.open("wb") as file:
            words = [sys.executable, rating_worker.__file__, str(path), token]
            running.append(subprocess.Popen(words, stdout=file, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}))
    assert [process.wait() for process in running] == [0] * 8
    given: Counter[tuple[str, int]] = Counter()
    spreads: set[int] = set()
    for name, output in zip(RATERS, outputs, strict=True):
        lines = [line.split() for line in output.read_text().splitlines()]
        asked = [(int(words[1]), int(words[3])) for words in lines if words[0] == "asked"]
        assert [int(words[1]) for words in lines if words[0] == "done"] == [item for item, _ in asked]
        given.update((name, item) for item, _ in asked)
        spreads.update(spread for _, spread in asked)
    with RatingStore.open(path) as store:
        check_hand_outs(store, 500, given, spreads)


def test_raters_who_ask_at_the_same_moment_for_the_last_item_do_not_both_get_it(tmp_path: Path) -> None:
    with new_store(tmp_path / "ratings.sqlite", 1) as store:
        raters = [new_rater(store, name) for name in RATERS]
        begin = Barrier(8)

        def ask(rater: Rater) -> Shown | None:
            begin.wait()
            return store.next(rater)

        with ThreadPoolExecutor(8) as threads:
            assert sum(one is not None for one in threads.map(ask, raters)) == 1


def test_one_raters_answer_that_arrives_eight_times_at_once_is_recorded_once(tmp_path: Path) -> None:
    with new_store(tmp_path / "ratings.sqlite", 2) as store:
        rater = new_rater(store)
        one = store.next(rater)
        assert one is not None
        begin = Barrier(8)

        def send(_: int) -> None:
            begin.wait()
            store.answer(rater, one.item, "a", comment="", seconds=0.0, key="K")

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(send, range(8)))
        assert len(list(store.ratings())) == 1
