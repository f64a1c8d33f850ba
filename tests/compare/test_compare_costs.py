"""What labels took and cost, by hand."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from compare_jobs import config, write_rows

from cai.compare.costs import find_costs
from cai.compare.records import Costs
from cai.errors import ConfigError, DataError
from cai.human.config import RatingConfig
from cai.human.exporting import ExportConfig, export_ratings, load_export
from cai.human.page_directory import STORE, RateConfig, open_directory
from cai.human.records import Answer, Rating
from cai.human.store import RatingStore
from cai.records import Side, Usage
from cai.rundir import RunDir, State


def judged(run: Path, stage: str = "label", labels: int = 200, usage: Usage | None = None) -> Path:
    """The manifest of a run."""
    with RunDir.open(run, stage=stage, config={}, inputs={}, seed=0, keeps_records=False) as open_:
        open_.manifest.counts = {"finished": labels}
        open_.manifest.engine = {"model": "judge-7b"}
        open_.manifest.work_seconds = 50.0
        open_.manifest.usage = usage or Usage(prompt_tokens=60_000, cached_tokens=20_000, completion_tokens=1_000)
        open_.save("finished")
    return run


def rating(comparison: str, rater: str, answer: Answer, seconds: float, check: Side | None = None) -> dict[str, Any]:
    return Rating(
        comparison_id=comparison, rater=rater, answer=answer, first="a", seconds=seconds, at="2026-01-01", check=check
    ).model_dump()


def exported(run: Path, *, labels: int, dropped_ties: int = 0, state: State = "finished") -> Path:
    """A run of `cai export` that has made so many labels of `RATINGS`."""
    figures = {
        "labels": labels, "votes": 3, "overlap": 1, "disputed": 1, "ties": dropped_ties, "dropped_ties": dropped_ties,
        "confidence": 1.0,
    }  # fmt: skip
    counts = {"files": [], "figures": figures, "comparisons": 4, "unrated": 0, "unvoted": 2, "raters": []}
    with RunDir.open(run, stage="export", config={}, inputs={}, seed=0, keeps_records=False) as open_:
        open_.manifest.export = {"counts": counts}
        open_.save(state)
    write_rows(run / "ratings.jsonl", RATINGS)
    write_rows(run / "checks.jsonl", [CHECK])
    return run


RATINGS = [
    rating("c1", "ann", "a", 20.0),
    rating("c1", "ben", "rather_b", 40.0),
    rating("c2", "ann", "b", 30.0),
    rating("c3", "ann", "skipped", 10.0),
    rating("c4", "ben", "both_bad", 50.0),
]
CHECK = rating("k1", "ben", "b", 30.0, check="b")


@pytest.fixture
def costs(tmp_path: Path) -> Callable[..., Costs]:
    """The costs of a judge's run and of an export with ratings."""
    human = exported(tmp_path / "human", labels=2)

    def found(ai: Path | None = None, prices: dict[str, Any] | None = None, **settings: Any) -> Costs:
        return find_costs(config(ai or judged(tmp_path / "run"), human, prices=prices, **settings))

    return found


def test_effort_is_stated_without_any_price(costs: Callable[..., Costs]) -> None:
    found = costs()
    assert found.ai is not None
    assert (found.ai.model, found.ai.labels) == ("judge-7b", 200)
    assert (found.ai.prompt_tokens, found.ai.cached_tokens, found.ai.completion_tokens) == (300, 100, 5)
    assert found.ai.seconds == 0.25
    assert found.human is not None
    assert (found.human.raters, found.human.ratings, found.human.labels) == (2, 6, 2)
    assert found.human.seconds == (20 + 40 + 30 + 10 + 50 + 30) / 2
    assert found.human.median_seconds == 30
    assert (found.currency, found.ai_label, found.human_label) == (None, None, None)


def test_prices_of_tokens_and_hours_by_hand(costs: Callable[..., Costs]) -> None:
    found = costs(
        prices={
            "currency": "EUR", "ai_million_prompt_tokens": 2, "ai_million_completion_tokens": 8, "human_hour": 18,
        }
    )  # fmt: skip
    assert found.currency == "EUR"
    assert found.ai_label == pytest.approx((300 * 2 + 5 * 8) / 1e6)
    assert found.human_label == pytest.approx(90 / 3600 * 18)
    assert found.of("ai") == found.ai_label
    assert found.of("human") == found.human_label


def test_prices_of_labels_are_taken_as_they_are(costs: Callable[..., Costs]) -> None:
    found = costs(prices={"currency": "EUR", "ai_label": 0.01, "human_label": 2})
    assert (found.ai_label, found.human_label) == (0.01, 2)
    assert costs(prices={"currency": "EUR", "human_label": 2}).ai_label is None


def test_a_rater_who_is_left_out_took_time_and_gave_no_label(tmp_path: Path) -> None:
    pairs = [{"id": f"c{n}", "prompt": f"Question {n}?", "response_a": "One.", "response_b": "Two."} for n in range(6)]
    asked = {"source": str(write_rows(tmp_path / "pairs.jsonl", pairs)), "raters": ("ann", "ben")}
    alone = RatingConfig(check_every=0, overlap=0)
    open_directory(RateConfig.model_validate(asked | {"rating": alone}), tmp_path / "rated").store.close()
    time = datetime(2026, 1, 1, tzinfo=UTC)
    with RatingStore.open(tmp_path / "rated" / STORE, now=lambda: time) as store:
        for name, number in (("ann", 4), ("ben", 2)):
            rater = store.rater(store.add_rater(name))
            for n in range(number):
                shown = store.next(rater)
                assert shown is not None
                time += timedelta(seconds=30)
                store.answer(rater, shown.item, "a", comment="", seconds=30.0, key=f"{name} {n}")
    for leave_out, labels in (((), 6), (("ben",), 4)):
        settings = ExportConfig(ratings=str(tmp_path / "rated"), leave_out=leave_out)
        export_ratings(load_export(settings), tmp_path / "human")
        prices = {"currency": "EUR", "human_hour": 18}
        found = find_costs(config(judged(tmp_path / "run"), tmp_path / "human", prices=prices))
        assert found.human is not None
        assert (found.human.raters, found.human.ratings, found.human.labels) == (2, 6, labels)
        assert found.human.seconds == pytest.approx(6 * 30 / labels)
        assert found.human_label == pytest.approx(6 * 30 / labels / 3600 * 18)


def test_ties_that_the_export_drops_are_no_labels(tmp_path: Path) -> None:
    human = exported(tmp_path / "human", labels=2, dropped_ties=1)
    found = find_costs(config(judged(tmp_path / "run"), human)).human
    assert found is not None
    assert (found.labels, found.seconds) == (1, 180)


def test_an_export_that_was_not_finished_has_no_labels_to_count(tmp_path: Path) -> None:
    human = exported(tmp_path / "human", labels=2, state="running")
    with pytest.raises(DataError, match=r"human is no finished run of `cai export`"):
        find_costs(config(judged(tmp_path / "run"), human))


@pytest.mark.parametrize("kind", ["file", "other stage", "no labels", "no tokens"])
def test_a_price_of_tokens_needs_tokens(kind: str, costs: Callable[..., Costs], tmp_path: Path) -> None:
    ai = {
        "file": lambda: write_rows(tmp_path / "ai.jsonl", []),
        "other stage": lambda: judged(tmp_path / "other", stage="contrast"),
        "no labels": lambda: judged(tmp_path / "other", labels=0),
        "no tokens": lambda: judged(tmp_path / "other", usage=Usage()),
    }[kind]()
    assert costs(ai).ai is None
    prices = {"currency": "USD", "ai_million_prompt_tokens": 1, "ai_million_completion_tokens": 1}
    with pytest.raises(ConfigError, match=r"prices\.ai_million_prompt_tokens: the tokens of .* state ai_label"):
        costs(ai, prices=prices)


def test_a_price_of_hours_needs_times(tmp_path: Path) -> None:
    human, ai = write_rows(tmp_path / "human.jsonl", []), write_rows(tmp_path / "ai.jsonl", [])
    asked: dict[str, Any] = {"prices": {"currency": "USD", "human_hour": 20}}
    with pytest.raises(ConfigError, match=r"prices\.human_hour: the time that .*human\.jsonl took is not known"):
        find_costs(config(ai, human, **asked))
    ratings = write_rows(tmp_path / "my ratings.jsonl", [*RATINGS, CHECK])
    assert find_costs(config(ai, human, ratings=str(ratings), **asked)).human_label == pytest.approx(0.5)
    with pytest.raises(DataError, match=r"nothing is no file of ratings"):
        find_costs(config(ai, human, ratings=str(tmp_path / "nothing")))
    timeless = write_rows(tmp_path / "timeless.jsonl", [{**one, "seconds": 0.0} for one in RATINGS])
    assert find_costs(config(ai, human, ratings=str(timeless))).human is None
