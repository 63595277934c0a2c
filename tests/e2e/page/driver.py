"""The page in a real browser, with a running service and the fake device."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

# The fake device gives five detections for this colour, with scores 0.95, 0.85, ... 0.55.
FIVE_DETECTIONS = (250, 200, 104)
TIMEOUT_S = 120
# The names of visible controls that are smaller than a finger needs.
SMALL_CONTROLS = """
return [...document.querySelectorAll("a, button, input, select, label.button")]
  .filter((element) => element.checkVisibility() && element.type !== "file")
  .filter((element) => !element.closest("p"))
  .filter((element) => {
    const { width, height } = element.getBoundingClientRect();
    return width < 44 || height < 44;
  })
  .map((element) => element.id || element.className || element.textContent)
"""


@contextmanager
def serving(until: str, **environment: str) -> Iterator[str]:
    """Runs a service with the fake device; yields its address once it has logged `until`."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.support.fake_serve",
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"LITE_DETR_HTTP_PORT": "0", "LITE_DETR_GRPC_PORT": "0"} | environment,
    )
    assert process.stderr is not None
    try:
        output = ""
        for line in process.stderr:
            output += line
            if until in line:
                break
        found = re.search(r"http://\S+", output)
        assert found, f"the service did not start: {output}"
        yield found.group()
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT_S)


# Changes responses before the page reads them: the service, as with another model.
ALTER_RESPONSES = """
  const realFetch = window.fetch;
  window.fetch = async (url, options) => {
    const response = await realFetch(url, options);
    const altered = (body) => Response.json(body, { status: response.status });
    if (String(url).endsWith("v1/models") && CLASSES) {
      const body = await response.json();
      body.models[0].classes = CLASSES.map((name, id) => ({ id, name }));
      return altered(body);
    }
    if (String(url).startsWith("detect?threshold") && response.ok && DETECTIONS) {
      return altered({ ...(await response.json()), detections: DETECTIONS });
    }
    return response;
  };
"""


@contextmanager
def altered(
    browser: Chrome,
    classes: Sequence[str] = (),
    detections: Sequence[dict[str, Any]] = (),
) -> Iterator[None]:
    """Pages that are opened meanwhile see a model of these classes, or these detections."""
    values = f"const CLASSES = {json.dumps(classes or None)};"
    values += f"const DETECTIONS = {json.dumps(detections or None)};"
    with scripted(browser, values + ALTER_RESPONSES):
        yield


@contextmanager
def scripted(browser: Chrome, script: str) -> Iterator[None]:
    """Pages that are opened meanwhile run a script first."""
    source = {"source": f"{{{script}}}"}
    added = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", source)
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


class Page:
    """The page and the actions of its users."""

    def __init__(self, browser: Chrome, address: str) -> None:
        self.browser = browser
        browser.get_log("browser")  # discards the entries of earlier pages
        browser.get(f"{address}/")
        self.until("return document.body.hasAttribute('data-ready')")

    def until(self, script: str) -> Any:
        return WebDriverWait(self.browser, TIMEOUT_S).until(
            lambda browser: browser.execute_script(script)
        )

    def text(self, name: str) -> str:
        return str(self.browser.find_element(By.ID, name).text)

    def choose(self, path: Path) -> None:
        self.browser.find_element(By.ID, "file").send_keys(str(path))

    def await_problem(self, title: str) -> None:
        """Waits until an error with this title is shown."""
        self.until(
            "return !document.getElementById('problem').hidden && "
            f"document.getElementById('problem-title').textContent === {json.dumps(title)}"
        )

    def is_hidden(self, name: str) -> bool:
        script = "return document.getElementById(arguments[0]).hidden"
        return bool(self.browser.execute_script(script, name))

    def await_results(self) -> None:
        self.until("return !document.getElementById('panel').hidden")
        self.until("return document.getElementById('working').hidden")

    def scores(self) -> list[str]:
        return [
            element.text
            for element in self.browser.find_elements(By.CSS_SELECTOR, "#detections .score")
        ]

    def labels(self) -> list[str]:
        script = "return [...document.querySelectorAll('#detections .name')]"
        return list(
            self.browser.execute_script(f"{script}.map((one) => one.firstChild.textContent)")
        )

    @contextmanager
    def narrow(self) -> Iterator[None]:
        """Shows the page as on a phone."""
        size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            yield
        finally:
            self.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def slide_to(self, threshold: float) -> None:
        self.browser.execute_script(
            "const slider = document.getElementById('threshold');"
            "slider.value = arguments[0]; slider.dispatchEvent(new Event('input'));",
            threshold,
        )

    def press(self, name: str) -> None:
        """Presses a button, wherever it is on the page."""
        self.browser.execute_script("document.getElementById(arguments[0]).click()", name)

    def placement(self) -> dict[str, float]:
        """The image's size, its place in the viewer (x, y) and in the window."""
        return dict(
            self.browser.execute_script(
                "const box = (id) => document.getElementById(id).getBoundingClientRect();"
                "const [seen, {width, height, left, top}] = [box('viewer'), box('photo')];"
                "return {width, height, x: left - seen.left, y: top - seen.top, left, top}"
            )
        )

    def canvas(self) -> str:
        """The drawn boxes, after the page had time to adapt them to a change of its layout."""
        script = (
            "const done = arguments[0], boxes = document.getElementById('boxes');"
            "const frame = window.requestAnimationFrame;"
            "frame(() => frame(() => setTimeout(() => done(boxes.toDataURL()))));"
        )
        return str(self.browser.execute_async_script(script))

    def errors(self) -> list[str]:
        logs = self.browser.get_log("browser")
        return [entry["message"] for entry in logs if entry["level"] == "SEVERE"]
