"""The rating page in a real browser. From the root of the checkout: `make browser-test`.

With CAI_SCREENSHOTS=1, the pictures under docs/images are made anew.
"""

import functools
import http.server
import os
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest
from browsers import DESKTOP, PHONE, Window, start_chrome
from rating_pages import Served, serving
from rating_samples import comparison, new_store
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.expected_conditions import staleness_of
from selenium.webdriver.support.ui import WebDriverWait

from cai.human.records import Answer
from cai.human.store import RatingStore
from cai.records import Comparison

pytestmark = [pytest.mark.browser, pytest.mark.enable_socket]

IMAGES = Path(__file__).parents[2] / "docs" / "images"


@pytest.fixture(scope="module")
def chrome() -> Iterator[Chrome]:
    with start_chrome() as found:
        yield found


@pytest.fixture
def browser(chrome: Chrome) -> Iterator["Page"]:
    page = Page(chrome)
    page.resize(DESKTOP)
    page.media()
    yield page
    chrome.get("about:blank")


class Page(Window):
    """What a rater sees and does."""

    def open(self, served: Served, name: str = "Ann") -> None:
        self.chrome.get(f"http://127.0.0.1:{served.port}/r/{served.store.add_rater(name)}")

    @property
    def title(self) -> str:
        return self.one("h1").text

    @property
    def responses(self) -> list[str]:
        return [one.text for one in self.all(".response .text")]

    @property
    def note(self) -> str:
        return self.one("#note").text

    @property
    def focus(self) -> WebElement:
        return self.chrome.switch_to.active_element

    def press(self, *keys: str) -> None:
        """Press keys one after the other, wherever the focus is."""
        for key in keys:
            ActionChains(self.chrome).send_keys(key).perform()

    def to_next(self, act: Callable[[], object]) -> None:
        """Do what leads to another page, and wait until it has begun: further commands wait until it is there."""
        left = self.one("html")
        act()
        self.until(lambda: staleness_of(left)(self.chrome))

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait; a page that is just being left may answer with all kinds of errors."""
        waiting = WebDriverWait(self.chrome, 30, poll_frequency=0.02, ignored_exceptions=(WebDriverException,))
        waiting.until(lambda _: holds())

    def click(self, value: str) -> None:
        self.to_next(self.one(f'button[name="answer"][value="{value}"]').click)


def now() -> datetime:
    return datetime.now(UTC)


def planted(number: int) -> list[Comparison]:
    """Comparisons whose better response says so; in every third, only a little; every second has it as a."""
    made = []
    for place in range(number):
        word = "slightly" if place % 3 == 0 else "clearly"
        good, bad = f"Number {place} is {word} better.", f"Number {place} is worse."
        a, b = (good, bad) if place % 2 else (bad, good)
        made.append(comparison(f"c{place}", prompt=[f"Question {place}?"], a=a, b=b))
    return made


def truth(place: int) -> Answer:
    """By hand: what a rater says who reads the texts of `planted`."""
    if place % 2:
        return "rather_a" if place % 3 == 0 else "a"
    return "rather_b" if place % 3 == 0 else "b"


def button_for(responses: list[str]) -> str:
    """The button of the response that says it is better."""
    good = 0 if "better" in responses[0] else 1
    slightly = "slightly" in responses[good]
    return [["1", "2"], ["4", "3"]][good][slightly]


def kept(store: RatingStore) -> dict[str, tuple[str, str]]:
    found = list(store.ratings())
    assert len({one.comparison_id for one in found}) == len(found)
    return {one.comparison_id: (one.answer, one.comment) for one in found}


def test_twenty_items_by_keyboard_and_mouse_with_undo_and_reload(browser: Page, tmp_path: Path) -> None:
    """The store holds exactly what was meant: the better text, whatever hand picked it and however often."""
    random = Random(6)
    arrows = {
        "1": [Keys.ARROW_LEFT] * 2,
        "2": [Keys.ARROW_LEFT],
        "3": [Keys.ARROW_RIGHT],
        "4": [Keys.ARROW_RIGHT] * 2,
    }
    ways = ["digit", "mouse", "arrows", "undo", "reload"] * 4
    random.shuffle(ways)
    wanted: dict[str, tuple[str, str]] = {}
    with new_store(tmp_path / "r.sqlite", planted(20), now=now) as store, serving(store) as served:
        browser.open(served)
        for count, way in enumerate(ways):
            assert browser.title == f"Comparison {count + 1}"
            responses = browser.responses
            place = int(responses[0].split()[1])
            button = button_for(responses)
            comment = ""
            if way == "undo":  # the wrong one first, and back
                browser.to_next(functools.partial(browser.press, "s" if count % 2 else "b"))
                browser.to_next(functools.partial(browser.press, "u"))
                assert browser.note == "Your last answer is taken back. Here it is again."
                assert browser.responses == responses
                assert browser.one(".chosen").get_attribute("value") == ("skipped" if count % 2 else "both_bad")
            if way == "reload":
                browser.one("#comment").send_keys("4 u s b: keys in a comment")
                browser.to_next(browser.chrome.refresh)
                assert browser.responses == responses
                comment = "4 u s b: keys in a comment"
                assert browser.one("#comment").get_property("value") == comment, "a draft outlives a reload"
            if way == "arrows":
                browser.press(*arrows[button])
                assert browser.focus.get_attribute("value") == button
                browser.to_next(functools.partial(browser.press, Keys.ENTER))
            elif way == "mouse" or way == "reload":
                browser.click(button)
            else:
                browser.to_next(functools.partial(browser.press, button))
            wanted[f"c{place}"] = (truth(place), comment)
        assert browser.title == "All done. Thank you!"
        browser.to_next(functools.partial(browser.press, "u"))
        assert browser.title == "Comparison 20"
        last = int(browser.responses[0].split()[1])
        browser.to_next(functools.partial(browser.press, "b"))
        wanted[f"c{last}"] = ("both_bad", wanted[f"c{last}"][1])
        assert browser.title == "All done. Thank you!"
        assert kept(store) == wanted
        assert browser.complaints() == []


def test_arrows_start_in_the_middle_and_stop_at_the_ends(browser: Page, tmp_path: Path) -> None:
    with new_store(tmp_path / "r.sqlite", planted(2), now=now) as store, serving(store) as served:
        browser.open(served)
        seen = []
        for key in (Keys.ARROW_RIGHT, *[Keys.ARROW_LEFT] * 5, *[Keys.ARROW_RIGHT] * 5):
            browser.press(key)
            seen.append(browser.focus.get_attribute("value"))
        assert "".join(seen) == "32111123444"
        assert list(store.ratings()) == [], "moving is not answering"


def test_keys_of_the_browser_and_of_a_comment_are_left_alone(browser: Page, tmp_path: Path) -> None:
    with new_store(tmp_path / "r.sqlite", planted(2), now=now) as store, serving(store) as served:
        browser.open(served)
        browser.one("#comment").click()
        browser.press("1", "s", "b", "u", Keys.ARROW_LEFT, Keys.ENTER, "x")
        assert browser.one("#comment").get_property("value") == "1sb\nxu"
        browser.js("document.activeElement.blur()")
        for modifier in (Keys.CONTROL, Keys.ALT):
            ActionChains(browser.chrome).key_down(modifier).send_keys("1").key_up(modifier).perform()
        assert browser.title == "Comparison 1"
        assert list(store.ratings()) == []


def test_keys_can_be_switched_off(browser: Page, tmp_path: Path) -> None:
    with new_store(tmp_path / "r.sqlite", planted(3), now=now) as store, serving(store) as served:
        browser.open(served)
        browser.one("#keys summary").click()
        browser.one("#shortcuts").click()
        browser.js("document.activeElement.blur()")
        browser.press("1", "s", "u", Keys.ARROW_LEFT)
        assert browser.title == "Comparison 1"
        browser.click("1")
        browser.press("1")
        assert browser.title == "Comparison 2", "it is kept for the next page"
        browser.one("#keys summary").click()
        browser.one("#shortcuts").click()
        browser.js("document.activeElement.blur()")
        browser.to_next(functools.partial(browser.press, "s"))
        assert [one.answer for one in store.ratings()][1] == "skipped"


def test_focus_and_status_follow_for_screen_readers(browser: Page, tmp_path: Path) -> None:
    with new_store(tmp_path / "r.sqlite", planted(3), now=now) as store, serving(store) as served:
        browser.open(served)
        assert browser.focus.text == "Comparison 1"
        browser.to_next(functools.partial(browser.press, "2"))
        assert browser.title == "Comparison 2"
        browser.until(lambda: browser.note == "Your answer is saved.")
        assert browser.focus.text == "Comparison 2"
        assert browser.one("#note").get_attribute("role") == "status"
        assert browser.chrome.current_url == f"http://127.0.0.1:{served.port}/"
        names = [one.accessible_name for one in browser.all("main section, .answer, [role=region]:not(.panel), #scale")]
        assert names == [
            *["Conversation"] * 2,
            *["Response 1"] * 2,
            *["Response 2"] * 2,
            "Your answer",
            "Which response is better?",
        ]


def test_time_out_of_sight_does_not_count(browser: Page, tmp_path: Path) -> None:
    """The page's own clock is moved by hand: 5 s in sight, 100 s hidden, 2 s in sight, and 3 s after a reload."""
    script = """
        let at = performance.now();
        performance.now = () => at;
        window.pass = (seconds) => { at += 1000 * seconds; };
        window.hide = (hidden) => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        };
    """
    added = browser.chrome.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    try:
        with new_store(tmp_path / "r.sqlite", planted(2), now=now) as store, serving(store) as served:
            browser.open(served)
            browser.js("pass(5); hide(true); pass(100); hide(false); pass(2)")
            browser.to_next(browser.chrome.refresh)
            browser.js("pass(3)")
            browser.js(
                """answer.addEventListener("submit", (event) => {
                    event.preventDefault();
                    document.title = answer.elements.seconds.value;
                })"""
            )
            browser.press("1")
            assert float(browser.chrome.title) == pytest.approx(10, abs=0.01)
            assert list(store.ratings()) == []
    finally:
        browser.chrome.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_long_texts_scroll_inside_and_leave_the_answers_in_sight(
    browser: Page, tmp_path: Path, size: tuple[int, int]
) -> None:
    long = "word " * 10_000
    items = [comparison(1, prompt=[long, "Reply.", "Go on."], a=f"A {long}", b="https://x.example/" + "y" * 5_000)]
    with new_store(tmp_path / "r.sqlite", items, now=now) as store, serving(store) as served:
        browser.resize(size)
        browser.open(served)
        width, height = size
        for button in browser.all("#scale button"):
            box = button.rect
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
        inside = "const r = arguments[0].getBoundingClientRect(); return r.top >= 0 && r.bottom <= innerHeight"
        assert all(browser.js(inside, one) for one in browser.all("#answer button"))
        assert browser.js("return document.documentElement.scrollWidth") <= width, "nothing scrolls sideways"
        for text in browser.all(".response .text"):
            assert browser.js("return arguments[0].scrollWidth <= arguments[0].clientWidth", text)
        tall = next(one for one in browser.all(".response .text") if "word" in one.text)
        assert tall.rect["height"] < height
        tall.click()
        browser.press(Keys.END)
        browser.until(lambda: browser.js("return arguments[0].scrollTop", tall) > 1000)


def test_texts_are_text(browser: Page, tmp_path: Path) -> None:
    """What is shown is what the data hold, character by character, and nothing of it runs."""
    odd = [
        "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'></div>",
        "**bold** [x](javascript:alert(1))\n\n# no heading\n\n  two  blanks\tand a tab  ",
        "مرحبا بالعالم\nEnglish again\n\u202eevil\u202c שלום",
        "a\u0301 \u200b\u200d \U0001f468\u200d\U0001f469\u200d\U0001f467 \ufeff \u2028 \x07",
    ]
    items = [comparison(n, prompt=[text], a=f"{text}\nA", b=f"{text}\nB") for n, text in enumerate(odd)]
    with new_store(tmp_path / "r.sqlite", items, now=now) as store, serving(store) as served:
        browser.open(served)
        seen = set()
        for _ in odd:
            both = browser.js("return [...document.querySelectorAll('.response .text')].map((one) => one.textContent)")
            talk = browser.js("return document.querySelector('.turns .text').textContent")
            assert sorted(both) == [f"{talk}\nA", f"{talk}\nB"]
            seen.add(talk)
            if "مرحبا" in talk:
                assert browser.js("return getComputedStyle(document.querySelector('.turns .text')).direction") == "rtl"
            browser.click("1")
        assert seen == set(odd)
        assert browser.js("return window.ran") is None
        assert browser.complaints() == []


def test_link_on_another_site_opens_the_page(browser: Page, tmp_path: Path) -> None:
    """Mail in the browser, say: the strict cookie is there from the second request on."""
    with new_store(tmp_path / "r.sqlite", planted(1), now=now) as store, serving(store) as served:
        link = f"http://127.0.0.1:{served.port}/r/{store.add_rater('Ann')}"
        folder = tmp_path / "site"
        folder.mkdir()
        (folder / "mail.html").write_text(
            f'<title>Mail</title><link rel="icon" href="data:,"><a href="{link}">Rate</a>'
        )
        handler = functools.partial(_Quiet, directory=str(folder))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
            thread = threading.Thread(target=site.serve_forever)
            thread.start()
            try:
                browser.chrome.get(f"http://localhost:{site.server_port}/mail.html")
                browser.chrome.delete_all_cookies()
                browser.one("a").click()
                browser.until(lambda: browser.title == "Comparison 1")
                browser.click("1")
                assert browser.title == "All done. Thank you!"
            finally:
                site.shutdown()
                thread.join()
        browser.complaints()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_works_without_javascript(tmp_path: Path) -> None:
    with (
        start_chrome(("profile.managed_default_content_settings.javascript", 2)) as chrome,
        new_store(tmp_path / "r.sqlite", planted(4), now=now) as store,
        serving(store) as served,
    ):
        page = Page(chrome)
        page.open(served)
        assert not page.one("#keys").is_displayed(), "keys are not offered where they do nothing"
        wanted = {}
        for count in range(4):
            place = int(page.responses[0].split()[1])
            if count == 1:
                page.click("skipped")
                page.to_next(page.one('button[form="undo"]').click)
                assert page.note == "Your last answer is taken back. Here it is again."
                assert int(page.responses[0].split()[1]) == place
            page.one("#guidelines summary").click()
            assert "more respect and patience" in page.one("#guidelines").text
            page.one("#comment").send_keys("plain")
            page.click(button_for(page.responses))
            wanted[f"c{place}"] = (truth(place), "plain")
        assert page.title == "All done. Thank you!"
        assert kept(store) == wanted


# ---- Accessibility rules, and pictures ------------------------------------------------------------------------------

REPLIES = (
    "You can get most of it back. Ask your bank today to reverse the payment, send the seller a dated letter naming "
    "the fault and the sum, and keep the receipt and the photos. If nothing comes within two weeks, the small claims "
    "court takes cases like this one without a lawyer; the fee is refunded when you win.\n\n"
    "1. Call the bank (today).\n2. Write to the seller.\n3. Note the dates.",
    "Sellers like that never pay, so there is no point in trying. Next time, read the reviews first! Everybody knows "
    "that one should not buy a washing machine from a shop without any.",
)
TALK = (
    "The washing machine that I bought last month leaks, and the shop does not answer my calls.",
    "I am sorry, that is annoying. Did you pay by card, and do you still have the receipt?",
    "By card, and yes. What can I do now?",
)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_accessibility_rules_hold(browser: Page, tmp_path: Path, size: tuple[int, int], dark: bool) -> None:
    items = [comparison(n, prompt=TALK, a=REPLIES[0] * 5, b=REPLIES[1]) for n in range(2)]
    with new_store(tmp_path / "r.sqlite", items, now=now) as store, serving(store) as served:
        browser.resize(size)
        browser.media(dark=dark)
        browser.open(served)
        base = browser.chrome.current_url
        found = {"item": browser.violations()}
        browser.one("#guidelines summary").click()
        if size == DESKTOP:
            browser.one("#keys summary").click()
        found["guidelines"] = browser.violations()
        browser.one("#guidelines summary").click()
        browser.click("1")
        browser.to_next(browser.one('button[form="undo"]').click)
        found["undone"] = browser.violations()
        browser.click("1")
        browser.chrome.get(f"{base}nothing")
        found["error"] = browser.violations()
        browser.chrome.get(base)
        browser.click("1")
        assert browser.title == "All done. Thank you!"
        found["done"] = browser.violations()
        browser.chrome.delete_all_cookies()
        browser.chrome.get(base)
        found["refused"] = browser.violations()
        assert not any(found.values()), found
        browser.complaints()


@pytest.mark.parametrize(("size", "name"), [(DESKTOP, "desktop"), (PHONE, "phone")])
def test_whole_page_fits_the_window(browser: Page, tmp_path: Path, size: tuple[int, int], name: str) -> None:
    items = [comparison(n, prompt=TALK, a=REPLIES[0], b=REPLIES[1]) for n in range(40)]
    with new_store(tmp_path / "r.sqlite", items, now=now) as store, serving(store) as served:
        browser.resize(size)
        browser.open(served, "first")
        for _ in range(12):
            browser.click("1")
        browser.to_next(browser.chrome.refresh)
        bottom = browser.js("return document.querySelector('#scale').getBoundingClientRect().bottom")
        assert re.fullmatch(r"Comparison 13", browser.title)
        assert bottom <= size[1]
        if os.environ.get("CAI_SCREENSHOTS"):
            IMAGES.mkdir(parents=True, exist_ok=True)
            assert browser.chrome.save_screenshot(str(IMAGES / f"rating-{name}.png"))
