"""Comparisons, a clock and a rater's steps for tests of the store of ratings."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

from chain_samples import turns

from cai.human.config import RatingConfig
from cai.human.records import Answer
from cai.human.store import Rater, RatingStore, Shown
from cai.records import Comparison, Prompt, Response, Side


def comparison(
    id: int | str, gold: Side | None = None, *, prompt: Sequence[str] = (), a: str = "Text A.", b: str = "Text B."
) -> Comparison:
    """A comparison of a large and a small policy's answers."""
    return Comparison(
        id=str(id),
        prompt=Prompt(id=f"p-{id}", messages=turns(*(prompt or [f"Question {id}?"]))),
        a=Response(text=a, origin="small"),
        b=Response(text=b, origin="large"),
        source="sampled",
        gold=gold,
    )


def comparisons(number: int) -> list[Comparison]:
    return [comparison(f"c{place}") for place in range(number)]


def attention_checks(number: int) -> list[Comparison]:
    """Their better responses are a, b, a, b, …"""
    return [comparison(f"check{place}", "ab"[place % 2]) for place in range(number)]  # type: ignore[arg-type]


KEYS = count()
"""Numbers for keys that no other showing has."""


class Clock:
    """A clock that stands still unless it is moved; call it for the time."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def pass_(self, **time: float) -> None:
        """Move on by `seconds=…`, `minutes=…`."""
        self.time += timedelta(**time)


def new_store(
    path: Path,
    items: int | Iterable[Comparison] = 4,
    checks: int | Iterable[Comparison] = 0,
    *,
    now: Any = None,
    **config: Any,
) -> RatingStore:
    """A store of so many comparisons and checks, or of these; no overlap unless `config` says so."""
    return RatingStore.create(
        path,
        comparisons(items) if isinstance(items, int) else items,
        attention_checks(checks) if isinstance(checks, int) else checks,
        RatingConfig(**{"overlap": 0.0, **config}),
        "comparisons.jsonl",
        "5" * 64,
        now=now or Clock(),
    )


def new_rater(store: RatingStore, name: str = "Ann") -> Rater:
    rater = store.rater(store.add_rater(name))
    assert rater is not None
    return rater


def shown(store: RatingStore, rater: Rater) -> Shown:
    found = store.next(rater)
    assert found is not None
    return found


def give(store: RatingStore, rater: Rater, answer: Answer = "a", key: str | None = None, **more: Any) -> Shown:
    """Answer what the rater has open, or is given."""
    one = shown(store, rater)
    values = {"comment": "", "seconds": 0.0, **more}
    store.answer(rater, one.item, answer, key=f"key {next(KEYS)}" if key is None else key, **values)
    return one


def back(store: RatingStore, rater: Rater) -> Shown:
    found = store.undo(rater, key=f"key {next(KEYS)}")
    assert found is not None
    return found


def standing(store: RatingStore, **more: bool) -> list[tuple[str, str, str]]:
    return [(one.rater, one.comparison_id, one.answer) for one in store.ratings(**more)]


def spread(store: RatingStore) -> int:
    """Difference of the greatest and the least number of raters that a comparison was handed to, at this moment."""
    counts = "SELECT (SELECT count(*) FROM handouts WHERE item = id) AS given FROM items WHERE expected IS NULL"
    with store._database.snapshot() as connection:
        row = connection.execute(f"SELECT max(given) - min(given) FROM ({counts})").fetchone()
    return int(row[0])
