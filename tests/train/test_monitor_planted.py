"""The monitor on synthetic runs with a planted fault, ten of each; see `probe_runs`."""

import pytest
from probe_runs import EVERY, LOOKS, run

from cai import statistics
from cai.train.monitor import length
from cai.train.monitor.looking import look
from cai.train.monitor.records import MonitorReport

SEEDS = range(10)


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bootstrap's ends are then a little rougher, and the tests several times faster."""
    for module in (statistics, length):
        monkeypatch.setattr(module, "RESAMPLES", 1000)


def alerts(report: MonitorReport) -> set[str]:
    """Names of those that stand."""
    return {alert.name for alert in report.alerts}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_reward_that_pays_for_length_is_caught(seed: int) -> None:
    report = look([], run(seed, "length"))
    assert {"longer", "length_pays"} <= alerts(report) | {alert.name for alert in report.past_alerts}
    assert "longer" in alerts(report)
    assert not {"comfort", "refusal", "flattery", "distinct_2"} & alerts(report)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_reward_that_pays_for_comfort_is_caught_by_the_list_and_by_the_search(seed: int) -> None:
    report = look([], run(seed, "comfort"))
    assert alerts(report) == {"comfort", "phrases"}
    assert report.alerts[0].action == "raise_kl_coef"
    found = report.looks[-1].phrases[0]
    assert found.text in "you are valid valued and cared for"
    assert found.share > 0.4
    assert (found.start, found.fallen) == (0, 0)


@pytest.mark.parametrize("fault", ["clean", "noise"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_sound_run_raises_no_alert_at_any_look(seed: int, fault: str) -> None:
    report = look([], run(seed, fault))
    assert (report.alerts, report.past_alerts) == ((), ())
    assert len(report.looks) == LOOKS + 1


@pytest.mark.parametrize("seed", SEEDS)
def test_gold_that_falls_while_the_proxy_rises_stops_the_run(seed: int) -> None:
    report = look([], run(seed, "gold"))
    assert alerts(report) == {"gold_falls"}
    assert report.alerts[0].action == "stop"
    assert report.best is not None
    assert report.best.step <= LOOKS * EVERY / 2  # gold is planted to fall from 0.3 of the run on, or a little later
    gold = [one.figures["gold"].mean.value for one in report.looks]
    assert report.best.step == gold.index(max(gold)) * EVERY


@pytest.mark.parametrize("seed", SEEDS)
def test_a_collapse_to_one_response_stops_the_run(seed: int) -> None:
    report = look([], run(seed, "collapse"))
    assert alerts(report) == {"distinct_2", "phrases"}
    assert report.alerts[0].action == "stop"
    assert report.looks[-1].repeated_closing > 0.9
    assert report.looks[-1].phrases[0].share > 0.9
