"""The page's button Retry repeats what failed, and the later of two choices is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("selenium", reason="selenium (the dev extra) drives the browser")

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from tests.e2e.page.driver import FIVE_DETECTIONS, Page, scripted

# Requests of `window.failing` get `window.status`; those of `window.slow` wait for a call of
# `window.release`; all are noted in `window.sent`.
CONTROL_REQUESTS = """
  const realFetch = window.fetch;
  const gate = new Promise((resolve) => { window.release = resolve; });
  Object.assign(window, { failing: FAILING, slow: "", status: 502, sent: [] });
  window.fetch = async (url, options) => {
    window.sent.push(String(url));
    if (window.failing && String(url).includes(window.failing)) {
      const cut = new ReadableStream({ start: (body) => body.error(new TypeError("cut")) });
      if (window.status === 200) return new Response(cut);
      return new Response("<h1>Bad Gateway</h1>", { status: window.status });
    }
    if (window.slow && String(url).includes(window.slow)) await gate;
    return realFetch(url, options);
  };
"""


def controlled(failing: str = "") -> str:
    return CONTROL_REQUESTS.replace("FAILING", f'"{failing}"')


def fail(page: Page, urls: str, status: int = 502) -> None:
    """Makes requests of these URLs fail from now on; "": none."""
    script = "Object.assign(window, {failing: arguments[0], status: arguments[1], sent: []})"
    page.browser.execute_script(script, urls, status)


def sent(page: Page) -> list[str]:
    return list(page.browser.execute_script("return window.sent"))


def press_sample(page: Page) -> None:
    samples = page.browser.find_elements(By.CSS_SELECTOR, "#sample-list button")
    if not samples:
        pytest.skip("no sample photos are shipped")
    page.browser.execute_script("arguments[0].click()", samples[0])


def image_of(path: Path, colour: tuple[int, int, int]) -> Path:
    Image.new("RGB", (64, 48), colour).save(path)
    return path


@pytest.mark.parametrize(
    ("urls", "status"), [("v1/models", 502), ("v1/models", 503), ("samples", 502)]
)
def test_retry_without_an_image_loads_the_model(
    browser: Chrome, address: str, urls: str, status: int
) -> None:
    with scripted(browser, controlled(urls) + f"window.status = {status};"):
        page = Page(browser, address)
    page.await_problem(f"Error {status}")
    assert not page.is_hidden("again")
    page.press("again")  # fails again
    page.await_problem(f"Error {status}")
    fail(page, "")
    page.press("again")
    page.until("return document.querySelectorAll('#sample-list img').length")
    assert page.text("model")
    assert page.is_hidden("problem")
    assert not [entry for entry in page.errors() if "TypeError" in entry]


def test_an_image_that_succeeds_loads_the_model_that_failed(
    browser: Chrome, address: str, photo: Path
) -> None:
    with scripted(browser, controlled("v1/models")):
        page = Page(browser, address)
    page.await_problem("Error 502")
    fail(page, "")
    page.choose(photo)
    page.await_results()
    page.until("return document.querySelectorAll('#sample-list img').length")
    assert not page.is_hidden("tiling")
    assert page.text("summary") == "5 objects found"


def test_retry_after_a_failed_sample_loads_the_sample(
    browser: Chrome, address: str, photo: Path
) -> None:
    with scripted(browser, controlled()):
        page = Page(browser, address)
    page.choose(photo)
    page.await_results()
    fail(page, "samples/")
    press_sample(page)
    page.await_problem("Error 502")
    assert page.text("filename") == photo.name
    fail(page, "")
    page.press("again")
    page.until(f"return document.getElementById('filename').textContent !== {photo.name!r}")
    page.await_results()
    urls = sent(page)
    assert urls[0].startswith("samples/") and urls[1].startswith("detect?") and len(urls) == 2


@pytest.mark.parametrize("status", [502, 200])
def test_retry_after_a_failed_image_sends_the_image(
    browser: Chrome, address: str, photo: Path, status: int
) -> None:
    with scripted(browser, controlled()):
        page = Page(browser, address)
    fail(page, "detect?", status)
    page.choose(photo)
    page.await_problem("Error 502" if status == 502 else "The response cannot be read")
    fail(page, "")
    page.press("again")
    page.await_results()
    assert page.text("summary") == "5 objects found"
    assert len(sent(page)) == 1


@pytest.mark.parametrize("choice", ["files", "listed"])
def test_a_slow_sample_does_not_replace_what_is_chosen_later(
    browser: Chrome, address: str, tmp_path: Path, choice: str
) -> None:
    photo = image_of(tmp_path / "five.png", FIVE_DETECTIONS)
    black = image_of(tmp_path / "black.png", (0, 0, 0))  # has one detection
    with scripted(browser, controlled()):
        page = Page(browser, address)
    page.browser.find_element(By.ID, "file").send_keys(f"{photo}\n{black}")
    page.await_results()
    page.browser.execute_script("window.slow = 'samples/'")
    press_sample(page)
    if choice == "files":
        page.choose(black)
    else:
        page.browser.execute_script("document.querySelectorAll('#file-list button')[1].click()")
    page.until("return document.getElementById('filename').textContent === 'black.png'")
    page.await_results()
    page.browser.execute_async_script("window.release(); setTimeout(arguments[0], 300)")
    assert page.text("filename") == "black.png"
    assert page.text("summary") == "1 object found"
    assert page.is_hidden("problem")
    assert not browser.find_elements(By.CSS_SELECTOR, "#sample-list [aria-pressed=true]")
