"""The page's control of the options `tile` and `overlap`, in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("selenium", reason="selenium (the dev extra) drives the browser")

from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from tests.e2e.page.driver import FIVE_DETECTIONS, SMALL_CONTROLS, Page, serving

pytestmark = pytest.mark.slow  # test_page has one of the fast tier

REMEMBER_QUERIES = """
const fetch = window.fetch;
window.queries = [];
window.fetch = (url, options) => {
  if (String(url).startsWith("detect?")) window.queries.push(String(url).split("?")[1]);
  return fetch(url, options);
};
"""
OUTSIDE = """
return [...document.querySelectorAll("#tiling, #tiling *")].filter((element) => {
  const { left, right } = element.getBoundingClientRect();
  return left < 0 || right > innerWidth;
}).map((element) => element.id)
"""


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large.png"
    Image.new("RGB", (2000, 1500), FIVE_DETECTIONS).save(path)
    return path


def choose_tile(page: Page, value: str) -> None:
    Select(page.browser.find_element(By.ID, "tile")).select_by_value(value)


def replace_text(page: Page, name: str, text: str) -> None:
    field = page.browser.find_element(By.ID, name)
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(text, Keys.ENTER)


def queries(page: Page) -> list[str]:
    return list(page.browser.execute_script("return window.queries"))


def await_query(page: Page, query: str) -> None:
    """Waits until this request was the last one and its result is shown."""
    page.until(f"return window.queries.at(-1) === 'threshold=0.05{query}'")
    page.until("return !document.getElementById('panel').inert")
    page.await_results()


def test_every_change_is_one_request_with_the_options(page: Page, large: Path) -> None:
    page.browser.execute_script(REMEMBER_QUERIES)
    assert not page.browser.find_element(By.ID, "tiling").is_displayed()
    page.choose(large)
    page.await_results()
    whole = page.text("summary")
    choose_tile(page, "auto")
    await_query(page, "&tile=auto&overlap=0.20")
    assert page.text("summary") != whole
    choose_tile(page, "size")
    await_query(page, "&tile=512x384&overlap=0.20")  # the model's input
    replace_text(page, "tile-width", "900")
    await_query(page, "&tile=900x384&overlap=0.20")
    page.browser.find_element(By.ID, "overlap").send_keys(Keys.ARROW_RIGHT)
    await_query(page, "&tile=900x384&overlap=0.25")
    assert page.text("overlap-value") == "25 %"
    assert "tile=900x384&overlap=0.25" in page.text("curl")
    choose_tile(page, "")
    await_query(page, "")
    assert page.text("summary") == whole
    assert "tile" not in page.text("curl")
    assert len(queries(page)) == 6
    assert page.errors() == []


def test_tiles_stay_chosen_for_further_images(page: Page, large: Path, photo: Path) -> None:
    page.browser.execute_script(REMEMBER_QUERIES)
    page.choose(photo)
    page.await_results()
    choose_tile(page, "auto")
    await_query(page, "&tile=auto&overlap=0.20")
    page.browser.find_element(By.ID, "file-again").send_keys(f"{large}\n{photo}")
    page.until("return document.getElementById('files-title').textContent === '2 images'")
    assert queries(page)[2:] == ["threshold=0.05&tile=auto&overlap=0.20"] * 2
    choose_tile(page, "")
    page.until("return window.queries.length === 6")
    page.until("return document.getElementById('files-title').textContent === '2 images'")
    assert queries(page)[4:] == ["threshold=0.05"] * 2


def test_detections_of_tiles_are_not_explained(page: Page, photo: Path) -> None:
    page.choose(photo)
    page.await_results()
    assert page.browser.find_elements(By.CSS_SELECTOR, "#detections .button")
    page.browser.execute_script(REMEMBER_QUERIES)
    choose_tile(page, "auto")
    await_query(page, "&tile=auto&overlap=0.20")
    assert not page.browser.find_elements(By.CSS_SELECTOR, "#detections .button")


def test_an_error_of_the_service_is_shown_and_can_be_corrected(page: Page, large: Path) -> None:
    page.browser.execute_script(REMEMBER_QUERIES)
    page.choose(large)
    page.await_results()
    choose_tile(page, "size")
    await_query(page, "&tile=512x384&overlap=0.20")
    replace_text(page, "tile-width", "64")
    page.until("return !document.getElementById('problem').hidden")
    assert "at most 64 are accepted" in page.text("problem-detail")
    assert page.browser.find_element(By.ID, "problem").get_attribute("role") == "alert"
    assert not page.browser.find_element(By.ID, "panel").is_displayed()
    # A size that is no number is marked, and nothing is sent.
    count = len(queries(page))
    replace_text(page, "tile-width", Keys.DELETE)
    assert page.browser.execute_script("return document.activeElement.matches(':invalid')")
    assert len(queries(page)) == count
    replace_text(page, "tile-width", "600")
    await_query(page, "&tile=600x384&overlap=0.20")
    assert not page.browser.find_element(By.ID, "problem").is_displayed()


def test_the_error_of_a_format_that_browsers_do_not_show_can_be_corrected(
    page: Page, photo: Path, tmp_path: Path
) -> None:
    page.browser.execute_script(REMEMBER_QUERIES)
    page.choose(photo)
    page.await_results()
    choose_tile(page, "size")
    await_query(page, "&tile=512x384&overlap=0.20")
    replace_text(page, "tile-width", "64")
    await_query(page, "&tile=64x384&overlap=0.20")
    scan = tmp_path / "scan.tiff"
    Image.new("RGB", (4000, 1500), FIVE_DETECTIONS).save(scan, compression="tiff_lzw")
    page.browser.find_element(By.ID, "file-again").send_keys(str(scan))
    page.until("return !document.getElementById('problem').hidden")
    choose_tile(page, "auto")
    await_query(page, "&tile=auto&overlap=0.20")
    assert page.browser.execute_script("return document.getElementById('photo').naturalWidth")


def test_the_control_is_used_with_keys_only(page: Page, large: Path) -> None:
    page.browser.execute_script(REMEMBER_QUERIES)
    page.choose(large)
    page.await_results()
    page.browser.execute_script("document.getElementById('labels').focus()")
    actions = ActionChains(page.browser)
    actions.send_keys(Keys.TAB, Keys.ARROW_DOWN).perform()
    await_query(page, "&tile=auto&overlap=0.20")
    assert page.browser.switch_to.active_element.get_attribute("id") == "tile"
    ActionChains(page.browser).send_keys(Keys.TAB, Keys.ARROW_RIGHT).perform()
    await_query(page, "&tile=auto&overlap=0.25")


def test_the_control_fits_a_phone(page: Page, large: Path) -> None:
    with page.narrow():
        page.browser.execute_script(REMEMBER_QUERIES)
        page.choose(large)
        page.await_results()
        choose_tile(page, "size")
        await_query(page, "&tile=512x384&overlap=0.20")
        page.browser.execute_script("scrollTo(0, 0)")
        assert page.browser.execute_script(SMALL_CONTROLS) == []
        assert page.browser.execute_script(OUTSIDE) == []
        assert page.browser.execute_script("return document.documentElement.scrollWidth") <= 360


def test_a_service_without_tiles_has_no_control(browser: Chrome, photo: Path) -> None:
    with serving(until="Ready", LITE_DETR_MAX_TILES="0") as address:
        page = Page(browser, address)
        page.browser.execute_script(REMEMBER_QUERIES)
        page.choose(photo)
        page.await_results()
        assert not browser.find_element(By.ID, "tiling").is_displayed()
        assert queries(page) == ["threshold=0.05"]
