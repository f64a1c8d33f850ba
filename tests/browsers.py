"""A real browser for tests: chromium by selenium, and the axe accessibility rules. See `.ci/browser`."""

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

DESKTOP, PHONE = (1280, 800), (390, 844)


def start_chrome(*preferences: tuple[str, int]) -> Chrome:
    """A browser without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = os.environ["CAI_CHROMIUM"]
    arguments = ["--headless=new", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"]
    for argument in [*arguments, *(["--no-sandbox"] if os.geteuid() == 0 else [])]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    if preferences:
        options.add_experimental_option("prefs", dict(preferences))
    return webdriver.Chrome(options=options, service=Service(os.environ["CAI_CHROMEDRIVER"]))


@dataclass
class Window:
    """A page as its reader sees it."""

    chrome: Chrome

    def resize(self, size: tuple[int, int]) -> None:
        """As wide and high as `size`; one as narrow as a phone is touched."""
        wanted = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] == PHONE[0]}
        self.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", wanted)

    def media(self, *, dark: bool = False, paper: bool = False) -> None:
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},  # a colour half-way through has no contrast
        ]
        self.chrome.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"media": "print" if paper else "", "features": features}
        )

    def open_file(self, page: Path) -> None:
        self.chrome.get(page.resolve().as_uri())

    def one(self, selector: str) -> WebElement:
        return self.chrome.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.chrome.find_elements(By.CSS_SELECTOR, selector)

    def js(self, script: str, *arguments: object) -> Any:
        return self.chrome.execute_script(script, *arguments)

    def complaints(self) -> list[str]:
        """What the browser says of errors and of rules of the policy that were broken."""
        return [one["message"] for one in self.chrome.get_log("browser")]

    def violations(self) -> list[str]:
        """The serious and critical ones that axe finds."""
        found = self.chrome.execute_cdp_cmd(
            "Runtime.evaluate",
            {
                "expression": Path(os.environ["CAI_AXE"]).read_text(encoding="utf-8") + "; axe.run()",
                "awaitPromise": True,
                "returnByValue": True,
            },
        )["result"]["value"]
        assert len(found["passes"]) > 10, "the rules ran"
        return [
            f"{one['id']}: {json.dumps([node['html'] for node in one['nodes']])}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]

    def picture(self, path: Path) -> None:
        """Save what is in sight."""
        data = self.chrome.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
        path.write_bytes(base64.b64decode(data))
