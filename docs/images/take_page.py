"""Takes docs/images/page.png: a screenshot of the page with the default model, in Chromium.

    python docs/images/take_page.py

Needs selenium, chromium and chromedriver (Debian: chromium chromium-driver).
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

SCREENSHOT = Path(__file__).with_name("page.png")
_TIMEOUT_S = 120
_WIDTH, _HEIGHT = 1180, 1000
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)


@contextmanager
def serving() -> Iterator[str]:
    """Starts the service on a free port; yields its URL once it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--port", "0", "--grpc-port", "-1"],
        stderr=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if not key.startswith("LITE_DETR_")},
    )
    assert process.stderr is not None
    try:
        output = ""
        for line in process.stderr:
            output += line
            if "Ready after" in line:  # lines are JSON without a terminal
                break
        found = re.search(r"listens on (http://[\w.:]+)", output)
        if found is None:
            raise SystemExit(f"the service did not start: {output}")
        yield found[1]
    finally:
        process.terminate()
        process.communicate(timeout=_TIMEOUT_S)


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SystemExit(f"{name} is not installed (Debian, Ubuntu: apt install chromium-driver)")
    return path


def take(url: str, target: Path) -> None:
    """Opens the page, clicks the first sample and saves a screenshot."""
    with tempfile.TemporaryDirectory() as profile:
        options = ChromeOptions()
        options.binary_location = _program("chromium")
        for flag in (*_FLAGS, f"--user-data-dir={profile}", f"--window-size={_WIDTH},{_HEIGHT}"):
            options.add_argument(flag)
        browser = Chrome(options=options, service=Service(_program("chromedriver")))
        try:
            browser.get(f"{url}/")
            wait = WebDriverWait(browser, _TIMEOUT_S)
            ready = "return document.body.hasAttribute('data-ready')"
            wait.until(lambda page: page.execute_script(ready))
            browser.find_elements(By.CSS_SELECTOR, "#sample-list button")[0].click()
            wait.until(lambda page: "found" in page.find_element(By.ID, "summary").text)
            screenshot = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        finally:
            browser.quit()
    screenshot.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    with serving() as url:
        take(url, SCREENSHOT)
    print(SCREENSHOT)
