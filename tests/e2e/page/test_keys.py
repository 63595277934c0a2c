"""The page's API key: keys that cannot be sent, blocked storage, and the curl command."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("selenium", reason="selenium (the dev extra) drives the browser")

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from service.access.api_keys import Scope, key_line, new_key
from tests.e2e.page.driver import TIMEOUT_S, Page, scripted, serving

KEY = new_key()
STORED = "return sessionStorage.getItem('lite-detr-api-key')"
BLOCKED_STORAGE = """
Object.defineProperty(window, "sessionStorage", {
  get() { throw new DOMException("blocked", "SecurityError"); },
});
"""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service that requires `KEY`."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(key_line("somebody", [Scope.DETECT], KEY))
    with serving(until="Ready", LITE_DETR_API_KEYS_FILE=str(file)) as address:
        yield address


@pytest.fixture
def locked(browser: Chrome, guarded: str) -> Iterator[Page]:
    """The page before a key is given."""
    yield Page(browser, guarded)
    browser.execute_script("sessionStorage.clear()")


def give(page: Page, key: str) -> None:
    page.browser.execute_script(
        "document.getElementById('key').value = arguments[0];"
        "document.getElementById('key-form').requestSubmit()",
        key,
    )


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("ldk_x\u200b", "character 6 is U+200B"),
        ("ldk\u2014x", "character 4 is U+2014"),
        ("\u0441\u0435kret", "character 1 is U+0441"),
        ("\U0001f511", "character 1 is U+1F511"),
        ("key\u00e9", "character 4 is U+00E9"),
        ("two words", "character 4 is a space"),
        (" ", "is empty"),
    ],
)
def test_a_key_that_cannot_be_sent_is_refused_with_the_reason(
    locked: Page, key: str, words: str
) -> None:
    locked.await_problem("An API key is required")
    give(locked, key)
    locked.await_problem("This API key cannot be used")
    assert words in locked.text("problem-detail")
    assert not locked.is_hidden("key-form")
    assert locked.browser.execute_script(STORED) is None
    give(locked, f"\u00a0{KEY} ")
    locked.until("return !document.getElementById('model').hidden")
    assert locked.is_hidden("key-form") and locked.is_hidden("problem")


def test_a_stored_key_that_cannot_be_sent_is_forgotten(locked: Page) -> None:
    store = "sessionStorage.setItem('lite-detr-api-key', 'b\u00f6se\u200b')"
    locked.browser.execute_script(store)
    locked.browser.refresh()
    locked.await_problem("An API key is required")
    assert not locked.is_hidden("key-form")
    assert locked.browser.execute_script(STORED) is None


def test_without_storage_the_page_works_and_keeps_the_key(
    browser: Chrome, guarded: str, photo: Path
) -> None:
    with scripted(browser, BLOCKED_STORAGE):
        page = Page(browser, guarded)
        page.await_problem("An API key is required")
        give(page, KEY)
        page.until("return !document.getElementById('model').hidden")
        page.choose(photo)
        page.await_results()
    assert page.text("summary") == "5 objects found"


def test_the_curl_command_takes_the_key_from_a_variable(locked: Page, photo: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is missing")
    give(locked, KEY)
    locked.until("return !document.getElementById('model').hidden")
    locked.choose(photo)
    locked.await_results()
    line = locked.text("curl")
    assert KEY not in line
    done = subprocess.run(
        ["sh", "-c", f"{line} --silent --fail"],
        cwd=photo.parent,
        env=os.environ | {"LITE_DETR_API_KEY": KEY},
        capture_output=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    assert done.stdout.count(b'"score"') == 5


def test_the_curl_command_has_no_key_where_none_is_used(page: Page, photo: Path) -> None:
    page.choose(photo)
    page.await_results()
    assert "Authorization" not in page.browser.find_element(By.ID, "curl").text
