"""The page in a real browser: images, results, samples, downloads and the view."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("selenium", reason="selenium (the dev extra) drives the browser")

from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from service.access.api_keys import Scope, key_line, new_key
from tests.e2e.page.driver import (
    FIVE_DETECTIONS,
    SMALL_CONTROLS,
    TIMEOUT_S,
    Page,
    altered,
    serving,
)


def test_a_chosen_photo_shows_its_boxes_scores_and_timings(page: Page, photo: Path) -> None:
    page.choose(photo)
    page.await_results()
    assert page.text("summary") == "5 objects found"
    assert page.scores() == ["0.95", "0.85", "0.75", "0.65", "0.55"]
    drawn = page.browser.execute_script(
        "const canvas = document.getElementById('boxes');"
        "const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);"
        "return data.filter((value, index) => index % 4 === 3 && value > 0).length"
    )
    assert drawn > 1000
    assert page.text("total").endswith(" ms")
    assert page.text("timings").count(" ms") == 7
    assert page.text("filename") == photo.name
    assert page.errors() == []


def test_the_slider_filters_without_a_request(page: Page, photo: Path) -> None:
    page.choose(photo)
    page.await_results()
    before = page.canvas()
    page.slide_to(0.8)
    assert page.scores() == ["0.95", "0.85"]
    assert page.text("threshold-value") == "0.80"
    assert "threshold=0.80" in page.text("curl")
    page.slide_to(0.95)
    assert page.canvas() != before
    page.slide_to(0.5)
    assert page.canvas() == before


def test_a_threshold_above_all_scores_shows_the_number_of_hidden_detections(
    page: Page, photo: Path
) -> None:
    Image.new("RGB", (64, 48), (0, 0, 0)).save(photo)  # black has one detection
    page.choose(photo)
    page.await_results()
    page.browser.execute_script("document.getElementById('threshold').max = 1")
    page.slide_to(1)
    assert page.text("summary") == "Nothing found"
    assert page.text("nothing").startswith("1 detection has a lower score")


def test_pointing_at_a_row_highlights_its_box(page: Page, photo: Path) -> None:
    page.choose(photo)
    page.await_results()
    before = page.canvas()
    row = page.browser.find_element(By.CSS_SELECTOR, "#detections li:nth-child(2) button")
    ActionChains(page.browser).move_to_element(row).perform()
    page.until("return document.querySelectorAll('#detections .lit').length === 1")
    assert page.canvas() != before
    heading = page.browser.find_element(By.CSS_SELECTOR, ".brand")
    ActionChains(page.browser).move_to_element(heading).perform()
    page.until("return document.querySelectorAll('#detections .lit').length === 0")
    assert page.canvas() == before


def test_focusing_a_row_highlights_its_box(page: Page, photo: Path) -> None:
    page.choose(photo)
    page.await_results()
    before = page.canvas()
    page.browser.execute_script("document.querySelector('#detections button').focus()")
    assert page.canvas() != before


def test_a_detection_is_explained(page: Page, photo: Path) -> None:
    page.choose(photo)
    page.await_results()
    page.slide_to(0.6)
    assert len(page.browser.find_elements(By.CSS_SELECTOR, "#detections .button")) == 4
    # The request is refused first, as while another detection is explained.
    page.browser.execute_script(
        "const fetch = window.fetch; let refused = false; window.urls = [];"
        "window.fetch = async (url, options) => {"
        "  window.urls.push(url);"
        "  if (refused) return fetch(url, options);"
        "  refused = true;"
        "  const problem = {code: 'overloaded', detail: 'another detection is being explained'};"
        "  const init = {status: 429, headers: {'Retry-After': '1'}};"
        "  return new Response(JSON.stringify(problem), init);"
        "}"
    )
    button = page.browser.find_element(By.CSS_SELECTOR, "#detections li:nth-child(3) .button")
    assert button.get_attribute("aria-label") == "Explain " + page.labels()[2] + " 0.75"
    button.send_keys(Keys.ENTER)
    page.until("return !document.getElementById('explanation-problem').hidden")
    assert page.text("explanation-problem-title") == "The service is busy"
    assert page.text("explanation-problem-detail") == "Another detection is being explained."
    page.browser.find_element(By.ID, "explanation-again").send_keys(Keys.ENTER)
    page.until("return document.getElementById('explanation-figure').naturalWidth === 1504")
    assert page.text("explanation-title").endswith("0.75 looks")
    wanted = "detect?format=explain&threshold=0.05&detection=3"
    assert page.browser.execute_script("return window.urls") == [wanted, wanted]
    with page.narrow():
        edges = "const {left, right} = arguments[0].getBoundingClientRect(); return [left, right]"
        for name in ("explanation", "explanation-close"):
            shown = page.browser.find_element(By.ID, name)
            left, right = page.browser.execute_script(edges, shown)
            assert 0 <= left < right <= 360, name
    ActionChains(page.browser).send_keys(Keys.ESCAPE).perform()
    page.until("return !document.getElementById('explanation').open")
    assert page.browser.switch_to.active_element == button
    assert page.errors() == []


def test_an_image_is_cut_into_tiles(page: Page, photo: Path) -> None:
    """Further tests are in test_tiles."""
    Image.new("RGB", (1200, 900), FIVE_DETECTIONS).save(photo)
    page.choose(photo)
    page.await_results()
    Select(page.browser.find_element(By.ID, "tile")).select_by_value("auto")
    page.until("return document.querySelectorAll('#detections li').length > 5")
    assert "tile=auto&overlap=0.20" in page.text("curl")
    assert page.errors() == []


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_photo_may_be_dropped_or_pasted(page: Page, photo: Path, way: str) -> None:
    page.browser.execute_script(
        "const bytes = Uint8Array.from(atob(arguments[0]), (char) => char.charCodeAt(0));"
        "const transfer = new DataTransfer();"
        "transfer.items.add(new File([bytes], 'brought.png', { type: 'image/png' }));"
        "document.dispatchEvent(arguments[1] === 'drop'"
        "  ? new DragEvent('drop', { dataTransfer: transfer, cancelable: true })"
        "  : new ClipboardEvent('paste', { clipboardData: transfer }));",
        base64.b64encode(photo.read_bytes()).decode(),
        way,
    )
    page.await_results()
    assert page.text("summary") == "5 objects found"
    assert "@brought.png" in page.text("curl")


def test_a_format_that_browsers_do_not_support_is_shown(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "scan.tiff"
    Image.new("RGB", (320, 240), FIVE_DETECTIONS).save(path)
    page.choose(path)
    page.await_results()
    assert page.text("summary") == "5 objects found"
    assert (
        page.browser.execute_script("return document.getElementById('photo').naturalWidth") == 320
    )


def test_a_file_that_is_not_an_image_shows_an_error(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "notes.pdf"
    path.write_bytes(b"%PDF-1.7 and so on")
    page.choose(path)
    page.until("return !document.getElementById('problem').hidden")
    assert page.text("problem-title") == "This file type is not supported"
    assert "looks like a PDF document" in page.text("problem-detail")
    assert page.browser.find_element(By.ID, "invite").is_displayed()


def test_a_good_photo_after_a_bad_one_clears_the_problem(
    page: Page, photo: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff\xe0 broken")
    page.choose(bad)
    page.until("return !document.getElementById('problem').hidden")
    page.choose(photo)
    page.await_results()
    assert not page.browser.find_element(By.ID, "problem").is_displayed()
    assert page.text("summary") == "5 objects found"


def test_the_curl_command_gives_the_same_result(page: Page, photo: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is missing")
    page.choose(photo)
    page.await_results()
    line = page.text("curl")
    done = subprocess.run(
        ["sh", "-c", f"{line} --silent --fail"],
        cwd=photo.parent,
        capture_output=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    assert done.stdout.count(b'"score"') == 5


def test_a_narrow_screen_shows_image_and_results_together(page: Page, photo: Path) -> None:
    with page.narrow():
        assert page.browser.execute_script(SMALL_CONTROLS) == []
        page.choose(photo)
        page.await_results()
        width = page.browser.execute_script("return document.documentElement.scrollWidth")
        assert width <= 360
        assert page.browser.execute_script(SMALL_CONTROLS) == []
        place = (
            "const box = (query) => document.querySelector(query).getBoundingClientRect();"
            "return [box('#viewer').top, box('#drop').bottom, box('#detections li').top,"
            " box('#detections li:last-child').bottom, innerHeight]"
        )
        top, bottom, first, _, height = page.browser.execute_script(place)
        assert 0 <= top < bottom < first < height - 44
        page.browser.execute_script(
            "document.querySelector('#detections li:last-child').scrollIntoView({block: 'end'})"
        )
        top, bottom, _, last, height = page.browser.execute_script(place)
        assert 0 <= top < bottom < last <= height


def test_a_sample_is_detected_after_one_click(page: Page) -> None:
    samples = page.browser.find_elements(By.CSS_SELECTOR, "#sample-list button")
    if not samples:
        pytest.skip("no sample photos are shipped")
    samples[0].click()
    page.await_results()
    assert samples[0].get_attribute("aria-pressed") == "true"
    assert page.errors() == []


def test_a_model_of_other_classes_has_no_samples(browser: Chrome, address: str) -> None:
    with altered(browser, classes=["platelet", "red blood cell", "N/A"]):
        page = Page(browser, address)
    assert page.browser.find_elements(By.CSS_SELECTOR, "#sample-list img") == []
    text = page.browser.find_element(By.TAG_NAME, "body").text
    assert "platelet, red blood cell" in text
    assert "sample" not in text
    assert "code" not in text


@pytest.mark.slow
def test_a_model_of_some_of_the_classes_has_only_their_samples(
    browser: Chrome, address: str
) -> None:
    with altered(browser, classes=["QR code", "face"]):
        page = Page(browser, address)
    images = page.browser.find_elements(By.CSS_SELECTOR, "#sample-list img")
    names = [image.get_attribute("alt") for image in images]
    assert names == ["codes", "no codes", "qr close up"]


ODD_NAMES = [
    "\u0635\u0648\u0631\u0629 \u0634\u0645\u0633\u064a\u0629",  # Arabic
    "\u6761\u5f62\u7801",  # Chinese
    "\U0001f9d1\U0001f3fd\u200d\U0001f680 astronaut",
    "<img src=x onerror=alert(1)>",
    "Donaudampfschifffahrtsgesellschaft " * 20,
    "left\u202eright",
]


def detection(label: str, score: float, box: tuple[float, ...], class_id: int = 0) -> Any:
    corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return {"class_id": class_id, "label": label, "score": score, "box": corners}


def test_names_of_any_script_are_text(browser: Chrome, address: str, photo: Path) -> None:
    found = [
        detection(
            name, 0.9 - 0.05 * row, (60.0 * row, 50.0 * row, 60.0 * row + 90, 50.0 * row + 60)
        )
        for row, name in enumerate(ODD_NAMES)
    ]
    with altered(browser, classes=ODD_NAMES, detections=found):
        page = Page(browser, address)
    page.choose(photo)
    page.await_results()
    assert page.labels()[:4] == ODD_NAMES[:4]
    assert page.labels()[5] == "left right"
    listed, width = browser.execute_script(
        "return [document.querySelectorAll('#detections img, #finds img').length,"
        " document.documentElement.scrollWidth - document.documentElement.clientWidth]"
    )
    assert (listed, width) == (0, 0)
    assert page.errors() == []


PLACEMENT = r"""
const done = arguments[arguments.length - 1];
const load = (name) => import(new URL(`static/${name}.js`, document.baseURI).href);
Promise.all(["labels", "names", "service"].map(load)).then(([labels, names, service]) => {
  const { placeLabels, overlap } = labels;
  const date = (seconds) => new Date(Date.now() + 1000 * seconds).toUTCString();
  const bounds = { left: 0, top: 0, width: 390, height: 300 };
  let seed = 7;
  const random = (most) => { seed = (seed * 16807) % 2147483647; return seed % most; };
  const boxes = Array.from({ length: 24 }, () => (
    { left: random(340), top: random(260), width: 15 + random(50), height: 15 + random(50) }));
  const places = placeLabels(boxes, boxes.map(() => 95), boxes.map(() => 22), 20, bounds);
  const shown = places.filter((place) => place !== null);
  const pairs = shown.flatMap((one, i) => shown.slice(i + 1).map((other) => overlap(one, other)));
  const label = (box, within) => placeLabels([box], [95], [22], 20, within)[0];
  const lone = label({ left: 100, top: 100, width: 50, height: 50 }, bounds);
  const whole = label(bounds, bounds);
  const tiny = label(bounds, { ...bounds, width: 80 });
  const gone = label({ left: -90, top: 0, width: 50, height: 50 }, bounds);
  const fits = (text) => text.length <= 9;
  done({
    overlaps: pairs.filter((area) => area > 0).length,
    words: shown.filter((place) => !place.short).length,
    numbers: shown.filter((place) => place.short).length,
    outside: shown.filter(({ left, top, width, height }) =>
      left < 0 || top < 0 || left + width > 390 || top + height > 300).length,
    lone: [lone.left, lone.top + lone.height <= 100, lone.short],
    whole: [whole.short, whole.top >= 0], tiny: tiny.short, gone,
    family: names.shorten("\u{1f468}\u200d\u{1f469}\u200d\u{1f467}".repeat(3), fits),
    waits: ["7", date(20), date(-20), "soon", null].map(service.secondsUntil),
    stems: ["a/b.c.JPEG", "..", "x\u202egpj.exe", ".hidden", "\u6761.png"].map(names.fileStem),
  });
}, (error) => done(String(error)));
"""


def test_labels_do_not_overlap_and_give_way_to_numbers(page: Page) -> None:
    found = page.browser.execute_async_script(PLACEMENT)
    assert (found["overlaps"], found["outside"]) == (0, 0)
    assert found["words"] >= 4
    assert found["numbers"] >= 8
    assert found["words"] + found["numbers"] >= 22
    assert found["lone"] == [100, True, False]
    assert found["whole"] == [False, True]
    assert found["tiny"] is True
    assert found["gone"] is None
    assert found["family"] == "\U0001f468\u200d\U0001f469\u200d\U0001f467\u2026"
    assert found["waits"] == [7, pytest.approx(20, abs=1.5), 0.1, 0, 0]
    assert found["stems"] == ["a_b.c", "image", "x gpj", "hidden", "\u6761"]


def test_the_result_is_downloaded_as_json_and_as_an_image(
    page: Page, photo: Path, tmp_path: Path
) -> None:
    page.browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    page.choose(photo)
    page.await_results()
    labelled = page.canvas()
    page.press("labels")
    assert page.canvas() != labelled
    page.slide_to(0.8)
    page.press("zoom-in")  # the file shows the whole image all the same
    page.press("save-json")
    page.press("save-png")
    wanted = [tmp_path / f"it's a photo.detections.{ending}" for ending in ("json", "png")]
    WebDriverWait(page.browser, TIMEOUT_S, poll_frequency=0.05).until(
        lambda _: all(path.exists() for path in wanted)
    )
    saved = json.loads(wanted[0].read_text())
    assert [found["score"] for found in saved["detections"]] == pytest.approx([0.95, 0.85])
    assert saved["image"] == {"width": 640, "height": 480}
    with Image.open(wanted[1]) as drawn:
        assert drawn.size == (640, 480)
        colours = {colour for _, colour in drawn.convert("RGB").getcolors(1 << 20) or []}
        box = saved["detections"][0]["box"]
        edge = drawn.convert("RGB").getpixel((round(box["xmin"]), round(box["ymin"]) + 60))
    assert FIVE_DETECTIONS in colours
    assert edge != FIVE_DETECTIONS


def test_the_image_is_zoomed_and_moved(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "tall.png"
    Image.new("RGB", (300, 3000), FIVE_DETECTIONS).save(path)
    page.choose(path)
    page.await_results()
    viewer = page.browser.find_element(By.ID, "viewer")
    whole, fitted = page.placement(), page.canvas()
    assert whole["height"] <= viewer.size["height"] + 1
    page.press("zoom-in")
    assert page.placement()["width"] == pytest.approx(1.4 * whole["width"], abs=1)
    assert page.canvas() != fitted
    viewer.send_keys("+", "+", "+")
    near = page.placement()
    assert near["width"] == pytest.approx(1.4**4 * whole["width"], abs=1)
    viewer.send_keys(Keys.ARROW_DOWN)
    assert page.placement()["y"] == pytest.approx(near["y"] - 60, abs=1)
    ActionChains(page.browser, duration=0).drag_and_drop_by_offset(viewer, 0, 40).perform()
    assert page.placement()["y"] == pytest.approx(near["y"] - 20, abs=1)
    viewer.send_keys("0")
    assert (page.placement(), page.canvas()) == (whole, fitted)
    turn = (
        "arguments[0].dispatchEvent(new WheelEvent('wheel', {deltaY: arguments[1],"
        "clientX: 400, clientY: 300, cancelable: true, bubbles: true}))"
    )
    page.browser.execute_script("scrollTo(0, 0)")
    page.browser.execute_script(turn, viewer, -100)
    assert page.placement()["width"] > whole["width"]
    page.press("zoom-reset")
    assert page.placement() == whole
    # With the whole image shown the wheel scrolls the page.
    assert page.browser.execute_script(f"return {turn}", viewer, 100) is True
    assert page.placement() == whole


def test_several_files_are_listed_with_their_detections_and_errors(
    page: Page, photo: Path, tmp_path: Path
) -> None:
    black, notes = tmp_path / "black.png", tmp_path / "notes.pdf"
    Image.new("RGB", (64, 48)).save(black)  # black has one detection
    notes.write_bytes(b"%PDF-1.7 and so on")
    page.browser.find_element(By.ID, "file").send_keys(f"{photo}\n{black}\n{notes}")
    page.await_results()
    badges = "[...document.querySelectorAll('#file-list .badge')].map((one) => one.textContent)"
    page.until(f"return !{badges}.includes('…')")
    assert page.browser.execute_script(f"return {badges}") == ["5", "1", "!"]
    assert page.text("files-title") == "3 images, 1 error"
    assert page.text("summary") == "5 objects found"
    page.slide_to(0.8)
    assert page.browser.execute_script(f"return {badges}") == ["2", "1", "!"]
    buttons = page.browser.find_elements(By.CSS_SELECTOR, "#file-list button")
    names = [button.get_attribute("aria-label") for button in buttons]
    assert names[0] == "it's a photo.png: 2 objects found"
    assert names[2] == "notes.pdf: This file type is not supported"
    page.browser.execute_script("arguments[0].click()", buttons[1])
    page.until("return document.getElementById('summary').textContent === '1 object found'")
    assert "@black.png" in page.text("curl")
    page.browser.execute_script("arguments[0].click()", buttons[2])
    page.until("return !document.getElementById('problem').hidden")
    assert page.text("problem-title") == "This file type is not supported"
    page.browser.execute_script("arguments[0].click()", buttons[0])
    page.until("return document.getElementById('summary').textContent === '2 objects found'")
    assert not page.browser.find_element(By.ID, "problem").is_displayed()


@pytest.mark.slow
def test_a_file_that_is_gone_is_not_an_error_of_the_network(page: Page, photo: Path) -> None:
    page.browser.execute_script(
        "File.prototype.slice = () => ({ arrayBuffer: () => Promise.reject(new Error('gone')) })"
    )
    page.choose(photo)
    page.until("return !document.getElementById('problem').hidden")
    assert page.text("problem-title") == "This file cannot be read"
    assert page.errors() == []


# Refuses the second request; counts the requests in flight and notes when each was sent.
BUSY_SERVICE = """
const fetch = window.fetch;
Object.assign(window, { active: 0, most: 0, sent: [], refusedAt: 0 });
window.fetch = async (url, options) => {
  if (!String(url).startsWith("detect?threshold")) return fetch(url, options);
  window.sent.push(Date.now());
  window.most = Math.max(window.most, ++window.active);
  try {
    if (window.sent.length === 2) {
      const headers = { "Retry-After": "1" };
      const problem = { code: "overloaded", detail: "all slots are taken" };
      window.refusedAt = Date.now();
      return new Response(JSON.stringify(problem), { status: 429, headers });
    }
    return await fetch(url, options);
  } finally {
    window.active -= 1;
  }
};
const bytes = Uint8Array.from(atob(arguments[0]), (char) => char.charCodeAt(0));
const transfer = new DataTransfer();
for (let number = 0; number < 12; number += 1) {
  transfer.items.add(new File([bytes], `${number}.png`, { type: "image/png" }));
}
document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, cancelable: true }));
"""


@pytest.mark.slow
def test_several_files_wait_for_as_long_as_a_busy_service_says(page: Page, photo: Path) -> None:
    page.browser.execute_script(BUSY_SERVICE, base64.b64encode(photo.read_bytes()).decode())
    page.until("return document.getElementById('files-title').textContent === '12 images'")
    most, sent, refused = page.browser.execute_script(
        "return [window.most, window.sent, window.refusedAt]"
    )
    assert most <= 3
    assert len(sent) == 13
    assert [at for at in sent if refused + 200 < at < refused + 1000] == []
    assert page.errors() == []


@pytest.mark.slow
def test_the_image_is_zoomed_with_two_fingers(page: Page, photo: Path) -> None:
    with page.narrow():
        page.choose(photo)
        page.await_results()
        whole = page.placement()
        left, top = whole["left"], whole["top"]

        def touch(kind: str, *xs: int) -> None:
            points = [{"x": left + x, "y": top + 80, "id": index} for index, x in enumerate(xs)]
            page.browser.execute_cdp_cmd(
                "Input.dispatchTouchEvent", {"type": kind, "touchPoints": points}
            )

        touch("touchStart", 140, 180)
        touch("touchMove", 120, 200)
        touch("touchMove", 100, 220)
        touch("touchEnd")
        assert page.placement()["width"] == pytest.approx(3 * whole["width"], rel=0.1)
        page.press("zoom-reset")
        assert page.placement()["width"] == whole["width"]


@pytest.mark.slow
def test_an_image_chosen_while_the_model_loads_is_sent_when_it_is_ready(
    browser: Chrome, photo: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "start"
    gate.touch()
    with serving(until="listens", LITE_DETR_FAKE_START_GATE=str(gate)) as address:
        page = Page(browser, address)
        page.choose(photo)
        page.until("return !document.getElementById('problem').hidden")
        assert page.text("problem-title") == "The model is loading"
        gate.unlink()
        page.await_results()
        assert page.text("summary") == "5 objects found"
        assert not page.browser.find_element(By.ID, "problem").is_displayed()


@pytest.mark.slow
def test_the_page_asks_for_an_api_key_if_one_is_required(
    browser: Chrome, photo: Path, tmp_path: Path
) -> None:
    key, file = new_key(), tmp_path / "keys"
    file.write_text(key_line("somebody", [Scope.DETECT], key))
    with serving(until="Ready", LITE_DETR_API_KEYS_FILE=str(file)) as address:
        page = Page(browser, address)
        page.until("return !document.getElementById('key-form').hidden")
        assert "key" in page.text("problem-title")
        browser.find_element(By.ID, "key").send_keys("a-wrong-one\n")
        page.until(
            "return document.getElementById('problem-detail').textContent.includes('unknown')"
        )
        browser.find_element(By.ID, "key").send_keys(key + "\n")
        page.until("return !document.getElementById('model').hidden")
        assert browser.execute_script("return document.getElementById('key-form').hidden")
        page.choose(photo)
        page.await_results()
        assert page.text("summary") == "5 objects found"
        assert not browser.find_elements(By.CSS_SELECTOR, "#detections .button"), "explain is off"
        browser.execute_script("sessionStorage.clear()")


def test_the_api_documentation_needs_no_internet(browser: Chrome, address: str) -> None:
    browser.get_log("browser")
    browser.get(f"{address}/docs")
    WebDriverWait(browser, TIMEOUT_S).until(
        lambda browser: len(browser.find_elements(By.CSS_SELECTOR, ".opblock")) >= 6
    )
    logs = browser.get_log("browser")
    assert [entry["message"] for entry in logs if entry["level"] == "SEVERE"] == []
    urls = browser.execute_script(
        "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    )
    assert urls
    assert all(url.startswith((address, "data:", "blob:")) for url in urls)
