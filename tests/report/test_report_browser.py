"""The report in a real browser. From the root of the checkout: `make browser-test`.

With CAI_REPORT=PAGE, such as that of a run of recipes/demo.yaml, the pictures of it under docs/images are made anew.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import DESKTOP, PHONE, Window, start_chrome
from chain_samples import chain, round_
from report_results import (
    FLAG,
    collapse,
    compare_run,
    iterate_run,
    ppo_run,
    red_team_run,
    reward_evaluation,
    training_run,
)
from report_runs import chain_run, check_run, evaluation_run, label_run, ranking_run, three_chains
from selenium.webdriver import Chrome
from selenium.webdriver.support.ui import Select
from test_report_injection import ODD, odd_runs

from cai.report.report import write_report

pytestmark = [pytest.mark.browser, pytest.mark.enable_socket]

IMAGES = Path(__file__).parents[2] / "docs" / "images"


@pytest.fixture(scope="module")
def chrome() -> Iterator[Chrome]:
    with start_chrome() as found:
        yield found


@pytest.fixture
def window(chrome: Chrome) -> Iterator[Window]:
    found = Window(chrome)
    found.resize(DESKTOP)
    found.media()
    yield found
    chrome.get("about:blank")
    found.complaints()


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with all chapters but that of changes."""
    folder = tmp_path_factory.mktemp("everything")
    runs = [
        chain_run(folder / "chains", state="running"),
        label_run(folder / "labels"),
        check_run(folder / "check", 25, 25),
        evaluation_run(folder / "eval", texts=["A reply.", "Another one."]),
        ranking_run(folder / "rank"),
        red_team_run(folder / "attacks"),
        training_run(
            folder / "rm", "train-reward", results={"evaluation": reward_evaluation(8, 2).model_dump(mode="json")}
        ),
        training_run(folder / "dpo", "train-dpo", results={"collapse": collapse(FLAG).model_dump(mode="json")}),
        ppo_run(folder / "ppo"),
        compare_run(folder / "compare"),
        iterate_run(folder / "next"),
    ]  # fmt: skip
    write_report(runs, folder / "report.html")
    return folder / "report.html"


def shown(window: Window) -> list[str]:
    """Ids of the transcripts that are in the list."""
    script = "return [...document.querySelectorAll('.transcript')].filter((one) => one.checkVisibility())"
    return [one.find_element("css selector", ".id").text for one in window.js(script)]


def choose(window: Window, name: str, value: str) -> None:
    menu = Select(window.one(f"select[name={name}]"))
    menu.select_by_index([one.get_attribute("value") for one in menu.options].index(value))


def test_filters_choose_transcripts(window: Window, tmp_path: Path) -> None:
    write_report([chain_run(tmp_path / "chains"), label_run(tmp_path / "labels")], tmp_path / "out.html")
    window.open_file(tmp_path / "out.html")
    found = window.one("#found")
    assert (len(shown(window)), found.text) == (7, "7 transcripts")
    choose(window, "topic", "crime")
    assert (shown(window), found.text) == (["c0", "c2"], "2 of 7 transcripts")
    choose(window, "principles", "harm")
    assert shown(window) == ["c2"]
    choose(window, "topic", "")
    assert shown(window) == ["c2", "0", "1", "2", "3"]
    choose(window, "run", "labels")
    assert shown(window) == ["0", "1", "2", "3"]
    search = window.one("input[name=text]")
    search.send_keys("qUESTION 3")
    assert (shown(window), found.text) == (["3"], "1 of 7 transcripts")
    search.send_keys("\n")
    assert shown(window) == ["3"], "Enter sends nothing away"
    search.send_keys(" nowhere")
    assert (shown(window), found.text) == ([], "0 of 7 transcripts")
    assert window.complaints() == []


def test_a_principle_is_found_whichever_round_it_was_drawn_for(window: Window, tmp_path: Path) -> None:
    both = chain("both", round_("honesty", "A.", "B."), round_("harm", "C.", "D."), index=9)
    write_report([chain_run(tmp_path / "chains", [*three_chains(), both])], tmp_path / "out.html")
    window.open_file(tmp_path / "out.html")
    choose(window, "principles", "harm")
    assert shown(window) == ["c2", "both"]
    choose(window, "principles", "honesty")
    assert shown(window) == ["c0", "c1", "both"]


def test_what_is_folded_is_found_and_printed(window: Window, everything: Path) -> None:
    window.open_file(everything)
    inside = "return document.querySelector('.transcript .text').checkVisibility({contentVisibilityAuto: true})"
    seen = "return document.querySelector('.transcript .text').getBoundingClientRect().height"
    assert not window.js(inside)
    window.media(paper=True)
    assert window.js(seen) > 0, "without scripts too, by the style"
    assert not window.one("nav").is_displayed()
    window.media()
    window.js("dispatchEvent(new Event('beforeprint'))")
    assert window.js("return document.querySelectorAll('details:not([open])').length") == 0
    window.js("dispatchEvent(new Event('afterprint'))")
    assert window.js("return document.querySelectorAll('details[open]').length") == 0


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_nothing_but_tables_scrolls_sideways(
    window: Window, everything: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    wide = "w" * 5_000
    chains = [chain(f"c-{wide}", round_("harm", wide, wide), prompt=(wide,), draft=wide, topic=wide)]
    write_report([chain_run(tmp_path / "chains", chains)], tmp_path / "out.html", title=wide)
    window.resize(size)
    for page in (everything, tmp_path / "out.html"):
        window.open_file(page)
        window.js("for (const one of document.querySelectorAll('details')) one.open = true")
        assert window.js("return document.documentElement.scrollWidth") <= size[0]
        outside = window.js(
            """const outside = (one) => one.getBoundingClientRect().right > innerWidth + 1;
            const all = [...document.querySelectorAll("main *")].filter((one) => !one.closest(".wide"));
            return all.filter(outside).map((one) => one.outerHTML)"""
        )
        assert outside == []
    if size == PHONE:
        window.open_file(everything)
        assert window.js(
            "return [...document.querySelectorAll('.wide')].some((one) => one.scrollWidth > one.clientWidth)"
        )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_accessibility_rules_hold(window: Window, everything: Path, size: tuple[int, int], dark: bool) -> None:
    window.resize(size)
    window.media(dark=dark)
    window.open_file(everything)
    assert window.violations() == []
    window.js("for (const one of document.querySelectorAll('details')) one.open = true")
    assert window.violations() == []
    assert window.complaints() == []


@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
def test_odd_text_does_nothing(window: Window, tmp_path: Path, text: str) -> None:
    write_report(odd_runs(tmp_path, text), tmp_path / "out.html", title=text)
    window.open_file(tmp_path / "out.html")
    choose(window, "topic", text)
    assert len(shown(window)) == 2
    texts = window.js("return [...document.querySelectorAll('.transcript .text')].map((one) => one.textContent)")
    assert texts[0] == text
    assert window.chrome.title == text
    assert window.js("return window.ran") is None
    loaded = window.js("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert [one for one in loaded if not one.startswith("data:")] == []
    assert window.complaints() == []


def test_the_policy_holds(window: Window, everything: Path) -> None:
    """What would slip through the escaping is stopped all the same."""
    window.open_file(everything)
    window.js(
        """for (const [name, value] of [["src", "https://x.example/x.png"], ["onerror", "window.ran = 1"]]) {
            const image = document.createElement("img");
            image.setAttribute(name, value);
            document.body.append(image);
        }
        const script = document.createElement("script");
        script.textContent = "window.ran = 1";
        document.body.append(script);"""
    )
    assert window.js("return window.ran") is None
    assert len([one for one in window.complaints() if "Content Security Policy" in one]) == 3


def test_works_without_javascript(everything: Path) -> None:
    with start_chrome(("profile.managed_default_content_settings.javascript", 2)) as chrome:
        window = Window(chrome)
        window.open_file(everything)
        assert not window.one("#filters").is_displayed(), "filters are not offered where they do nothing"
        transcript = window.one(".transcript")
        transcript.find_element("css selector", "summary").click()
        assert "With a blue" in transcript.text
        assert window.one("#costs table").is_displayed()


@pytest.mark.skipif("CAI_REPORT" not in os.environ, reason="CAI_REPORT names no report to take new pictures of")
def test_pictures_for_the_documentation(window: Window) -> None:
    page = Path(os.environ["CAI_REPORT"])
    window.resize((1280, 1500))
    window.open_file(page)
    window.picture(IMAGES / "report-desktop.png")
    window.resize((390, 1300))
    window.open_file(page)
    window.js("document.querySelector('.transcript').open = true")
    window.js("document.querySelector('#transcripts').scrollIntoView()")
    window.picture(IMAGES / "report-phone.png")
