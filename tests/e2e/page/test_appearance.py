"""The page shows the pixels that the service sees, whatever the browser makes of the file."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("selenium", reason="selenium (the dev extra) drives the browser")

from selenium.webdriver.common.by import By

from tests.e2e.page.driver import FIVE_DETECTIONS, Page

SIZE = (400, 300)
BLACK = (0, 0, 0)
ORIENTATION_TAG = 0x0112
# The corners of the shown image: 1 is light, 0 is dark.
CORNERS = """
const photo = document.getElementById("photo");
const {naturalWidth: width, naturalHeight: height} = photo;
const canvas = Object.assign(document.createElement("canvas"), {width, height});
const pen = canvas.getContext("2d");
pen.drawImage(photo, 0, 0);
const light = (x, y) => Number(pen.getImageData(x, y, 1, 1).data[0] > 128);
const [right, bottom] = [width - 9, height - 9];
return [[width, height], [light(8, 8), light(right, 8), light(8, bottom), light(right, bottom)]];
"""
REMEMBER_URLS = """
const fetch = window.fetch;
window.urls = [];
window.fetch = (url, options) => { window.urls.push(String(url)); return fetch(url, options); };
"""


def cornered() -> Image.Image:
    """An image that is light, but for its top left quarter."""
    image = Image.new("RGB", SIZE, FIVE_DETECTIONS)
    image.paste(BLACK, (0, 0, SIZE[0] // 2, SIZE[1] // 2))
    return image


def xmp(orientation: int) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description '
        f'tiff:Orientation="{orientation}"/></rdf:RDF></x:xmpmeta>'
    ).encode()


def exif(orientation: int) -> bytes:
    found = Image.Exif()
    found[ORIENTATION_TAG] = orientation
    return found.tobytes()


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    chunk = struct.pack(">I", len(body)) + kind + body
    return png[:33] + chunk + struct.pack(">I", zlib.crc32(kind + body)) + png[33:]


def text_exif(orientation: int) -> bytes:
    """EXIF as ImageMagick writes it into a text of a PNG."""
    profile = b"Exif\0\0" + exif(orientation).removeprefix(b"Exif\0\0")
    return b"Raw profile type exif\0\nexif\n%8d\n" % len(profile) + profile.hex().encode() + b"\n"


def packed_xmp(orientation: int) -> bytes:
    return b"XML:com.adobe.xmp\0\x01\0\0\0" + zlib.compress(xmp(orientation))


def animated(form: str, **options: Any) -> bytes:
    """An animation whose second image is dark; the first one is shown for a short time."""
    more = [Image.new("RGB", SIZE, BLACK)]
    timing = {"save_all": True, "append_images": more, "duration": 50, "loop": 1}
    return encoded(cornered(), form, **timing, **options)


PNG = encoded(cornered(), "PNG")
UPRIGHT = (SIZE, [0, 1, 1, 1])
TURNED = (SIZE[::-1], [1, 0, 1, 1])  # orientation 6
HALF_TURN = (SIZE, [1, 1, 1, 0])  # orientation 3
CASES = {
    "jpeg-xmp-6": (encoded(cornered(), "JPEG", xmp=xmp(6)), TURNED),
    "jpeg-xmp-3": (encoded(cornered(), "JPEG", xmp=xmp(3)), HALF_TURN),
    "jpeg-exif-6": (encoded(cornered(), "JPEG", exif=exif(6)), TURNED),
    "png-text-exif-3": (with_chunk(PNG, b"tEXt", text_exif(3)), HALF_TURN),
    "png-exif-3": (with_chunk(PNG, b"eXIf", exif(3).removeprefix(b"Exif\0\0")), HALF_TURN),
    "png-packed-xmp-6": (with_chunk(PNG, b"iTXt", packed_xmp(6)), TURNED),
    "webp-xmp-3": (encoded(cornered(), "WEBP", lossless=True, xmp=xmp(3)), HALF_TURN),
    "webp-exif-6": (encoded(cornered(), "WEBP", lossless=True, exif=exif(6)), TURNED),
}
ANIMATIONS = {
    "gif": animated("GIF"),
    "webp": animated("WEBP", lossless=True),
    "png": animated("PNG"),
}


def shown(page: Page) -> tuple[tuple[int, ...], list[int]]:
    size, corners = page.browser.execute_script(CORNERS)
    return tuple(size), corners


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_image_is_shown_as_the_service_sees_it(page: Page, tmp_path: Path, case: str) -> None:
    data, expected = CASES[case]
    path = tmp_path / f"{case}.{case.partition('-')[0]}"
    path.write_bytes(data)
    page.choose(path)
    page.await_results()
    assert shown(page) == expected
    place = page.placement()
    assert place["width"] / place["height"] == pytest.approx(expected[0][0] / expected[0][1], 0.02)
    assert page.errors() == []


# A canvas gets the first image of an animation; the screen has the last one once it has ended.
@pytest.mark.slow
@pytest.mark.parametrize("form", ANIMATIONS)
def test_an_animation_is_not_played(page: Page, tmp_path: Path, form: str) -> None:
    path = tmp_path / f"animated.{form}"
    path.write_bytes(ANIMATIONS[form])
    page.choose(path)
    page.await_results()
    page.browser.execute_script("document.getElementById('boxes').style.display = 'none'")
    page.browser.execute_async_script("setTimeout(arguments[0], 600)")
    photo = page.browser.find_element(By.ID, "photo")
    screen = Image.open(io.BytesIO(photo.screenshot_as_png)).convert("RGB")
    pixel = screen.getpixel((screen.width * 3 // 4, screen.height * 3 // 4))
    assert isinstance(pixel, tuple) and pixel[0] > 128
    assert shown(page) == UPRIGHT


def test_only_an_image_that_may_differ_is_requested_from_the_service(
    page: Page, tmp_path: Path
) -> None:
    plain, turned = tmp_path / "plain.jpg", tmp_path / "turned.jpg"
    plain.write_bytes(encoded(cornered(), "JPEG", xmp=xmp(1)))
    turned.write_bytes(encoded(cornered(), "JPEG", xmp=xmp(8)))
    page.browser.execute_script(REMEMBER_URLS)
    page.choose(plain)
    page.await_results()
    assert shown(page) == UPRIGHT
    assert page.browser.execute_script("return window.urls") == ["detect?threshold=0.05"]
    page.browser.find_element(By.ID, "file-again").send_keys(str(turned))
    page.until("return document.getElementById('photo').naturalWidth === 300")
    page.await_results()
    assert shown(page) == (SIZE[::-1], [1, 1, 0, 1])
    assert page.browser.execute_script("return window.urls.at(-1)").startswith(
        "detect?format=image"
    )


# A browser that does not turn JPEG images by EXIF: only the size says so.
@pytest.mark.slow
def test_an_image_of_another_size_than_the_service_sees_is_requested_from_it(
    page: Page, tmp_path: Path
) -> None:
    path = tmp_path / "turned.jpg"
    path.write_bytes(encoded(cornered(), "JPEG", exif=exif(6)))
    page.browser.execute_script(
        "const decode = HTMLImageElement.prototype.decode;"
        "HTMLImageElement.prototype.decode = async function () {"
        "  await decode.call(this);"
        "  const first = this.naturalWidth === 300 && !window.stored;"
        "  if (!first) { delete this.naturalWidth; delete this.naturalHeight; return; }"
        "  window.stored = true;"
        "  Object.defineProperty(this, 'naturalWidth', {value: 400, configurable: true});"
        "  Object.defineProperty(this, 'naturalHeight', {value: 300, configurable: true});"
        "}"
    )
    page.choose(path)
    page.await_results()
    assert page.browser.execute_script("return window.stored")
    assert shown(page) == TURNED


def test_a_mark_at_the_edge_of_two_parts_is_found(page: Page) -> None:
    script = """
    const done = arguments[arguments.length - 1];
    import(new URL("static/appearance.js", document.baseURI).href).then(async ({ mayDiffer }) => {
      const mark = 'tiff:Orientation="6"';
      const places = [0, 1, 7, 19, 20].map((before) => 2 ** 20 - before);
      const blob = (at, text) => new Blob(["\\xff\\xd8", new Uint8Array(at - 4), text, "the end"]);
      done([
        await Promise.all(places.map((at) => mayDiffer(blob(at, mark)))),
        await mayDiffer(blob(2 ** 21, mark)),
        await mayDiffer(blob(2 ** 21, mark.replace("6", "1"))),
        await mayDiffer(new Blob([])),
      ]);
    }).catch((error) => done(String(error)));
    """
    found = page.browser.execute_async_script(script)
    assert found == [[True] * 5, True, False, False]
