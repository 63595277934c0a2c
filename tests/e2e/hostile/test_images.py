"""Hostile images: each gets a quick response in little memory and does not affect other images."""

from __future__ import annotations

import io
import struct

import httpx
import pytest
from PIL import Image

from model.geometry import padded_size, resized_size
from service.ipc.slots import largest_bucket_pixels
from tests.e2e.hostile import bombs
from tests.support import heif_files
from tests.support.fake_device import FAKE_MODEL
from tests.support.running import Service

MIB = 1 << 20


def _post(service: Service, data: bytes) -> httpx.Response:
    return service.http.post(f"{service.url}/detect", content=data)


def _frames(form: str, count: int, **options: object) -> bytes:
    frames = [Image.new("RGB", (32, 32), (number % 256, 7, 9)) for number in range(count)]
    data = io.BytesIO()
    frames[0].save(data, form, save_all=True, append_images=frames[1:], **options)
    return data.getvalue()


REFUSED = {
    "a PNG that claims 4 billion pixels": (lambda: bombs.png(65535, 65535, rows=1), 413),
    "a PNG that claims 2**31 rows": (lambda: bombs.png(1, 2**31 - 1, rows=1), 413),
    "a PNG of 100 million pixels with one row": (
        lambda: bombs.png(10001, 10000, rows=1),
        413,
    ),
    "a PNG of no width": (lambda: bombs.png(0, 8, rows=1), 400),
    "a PNG of two million chunks": (lambda: bombs.png_of_many_chunks(24 * MIB), 400),
    "a JPEG of millions of comments": (lambda: bombs.jpeg_of_many_segments(8 * MIB), 400),
    "a JPEG of thousands of scans": (lambda: bombs.jpeg_of_many_scans(5000), 400),
    "a large JPEG of many scans": (lambda: bombs.jpeg_of_many_scans(100, 8000, 8000), 400),
    "a GIF that claims 4 billion pixels": (
        lambda: bombs.gif()[:6] + b"\xff\xff\xff\xff" + bombs.gif()[10:],
        413,
    ),
    "a GIF of millions of blocks": (lambda: bombs.gif_of_many_blocks(8 * MIB), 400),
    "a BMP of 100 million pixels in run lengths": (
        lambda: bombs.bmp_run_lengths(1_000_000, 100),
        413,
    ),
    "a TIFF of a million strips": (lambda: bombs.grey_tiff(8, 8, 1_000_000, 1), 400),
    "a TIFF that claims 4 billion pixels": (lambda: bombs.grey_tiff(65535, 65535, 1, 65535), 413),
    "a TIFF of 60000 tags": (
        lambda: bombs.tiff([(i, 3, 1, 0) for i in range(60_000)]),
        400,
    ),
    "an AVIF that claims 4 billion pixels": (
        lambda: heif_files.with_properties(
            "AVIF", heif_files.encoded("AVIF"), heif_files.size(65535, 65535)
        ),
        413,
    ),
    "a WebP on a canvas of 268 million pixels": (lambda: bombs.webp_canvas(16383, 16383), 413),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bomb_is_refused_without_decoding_it(service: Service, name: str) -> None:
    make, status = REFUSED[name]
    before = service.rss_bytes()
    response = _post(service, make())
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] in {"invalid_image", "image_too_large"}
    assert response.json()["detail"]
    # The segments that were read before the limit, as small objects.
    assert service.rss_bytes() - before < 256 * MIB


DECODED = {
    "a PNG with huge compressed texts": (bombs.png_text_bomb, (8, 8)),
    "a PNG with huge compressed UTF-8 texts": (bombs.png_itxt_bomb, (8, 8)),
    "a PNG with a huge compressed colour profile": (bombs.png_profile_bomb, (8, 8)),
    "a JPEG of fill bytes": (lambda: bombs.jpeg_of_fill_bytes(8 * MIB), (64, 64)),
    "a PNG of 100000 x 1": (lambda: bombs.png(100_000, 1), (100_000, 1)),
    "a PNG of 1 x 100000": (lambda: bombs.png(1, 100_000), (1, 100_000)),
    "a PNG of 1 x 1": (lambda: bombs.png(1, 1), (1, 1)),
    "a BMP of 100000 x 1": (
        lambda: bombs.encode(Image.new("RGB", (100_000, 1)), "BMP"),
        (100_000, 1),
    ),
    "a TIFF of 1 x 100000, one strip per row": (
        lambda: bombs.grey_tiff(1, 100_000, 100_000, 1),
        (1, 100_000),
    ),
    "a JPEG of 65500 x 1": (lambda: bombs.jpeg(65500, 1), (65500, 1)),
    "a JPEG of 1 x 65500": (lambda: bombs.jpeg(1, 65500), (1, 65500)),
    "a WebP of 16383 x 1": (
        lambda: bombs.encode(Image.new("RGB", (16383, 1)), "WEBP"),
        (16383, 1),
    ),
    "a progressive JPEG": (lambda: bombs.jpeg(progressive=True), (64, 64)),
    "a JPEG with trailing bytes": (lambda: bombs.jpeg() + bytes(range(256)) * 400, (64, 64)),
    "a photo with a trailing video": (
        lambda: bombs.jpeg() + b"\xff\xda\x00\x04ab" * 1000,
        (64, 64),
    ),
    "a PNG with trailing bytes": (lambda: bombs.png(9, 9) + b"PK\3\4" * 999, (9, 9)),
    "a JPEG with an EXIF loop": (lambda: bombs.jpeg(exif=bombs.exif_loop()), (64, 64)),
    "a PNG with an EXIF loop": (
        lambda: bombs.png(9, 9, extra=bombs.png_chunk(b"eXIf", bombs.exif_loop())),
        (9, 9),
    ),
    "a PNG with 2000 EXIF entries that share a value": (
        lambda: bombs.png(9, 9, extra=bombs.png_chunk(b"eXIf", bombs.exif_bomb(2000, 4 * MIB))),
        (9, 9),
    ),
    "a TIFF directory followed by itself": (
        lambda: bombs.grey_tiff(8, 8, 1, 8, next_ifd=8),
        (8, 8),
    ),
    "a GIF of a thousand frames": (lambda: _frames("GIF", 1000), (32, 32)),
    "a TIFF of a thousand frames": (lambda: _frames("TIFF", 1000), (32, 32)),
    "an animated WebP": (lambda: _frames("WEBP", 200, lossless=True, method=0), (32, 32)),
    "an animated PNG": (lambda: _frames("PNG", 200), (32, 32)),
    "a CMYK JPEG": (lambda: bombs.encode(Image.new("CMYK", (20, 10)), "JPEG"), (20, 10)),
    "a 16-bit PNG": (lambda: bombs.encode(Image.new("I;16", (20, 10)), "PNG"), (20, 10)),
    "a palette with too few colours": (
        lambda: bombs.png(9, 9, colour_type=3, extra=bombs.png_chunk(b"PLTE", b"\1\2\3")),
        (9, 9),
    ),
}


@pytest.mark.parametrize("name", DECODED)
def test_an_unusual_but_complete_image_is_decoded(service: Service, name: str) -> None:
    make, size = DECODED[name]
    before = service.rss_bytes()
    response = _post(service, make())
    assert response.status_code == 200, response.text
    assert (response.json()["image"]["width"], response.json()["image"]["height"]) == size
    assert service.rss_bytes() - before < 256 * MIB


def test_a_missing_palette_or_a_false_size_is_no_server_error(
    service: Service,
) -> None:
    for data in (bombs.png(9, 9, colour_type=3), bombs.grey_tiff(8, 8, 1, 2**31)):
        response = _post(service, data)
        assert response.status_code in {200, 400, 413}, response.text


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_file_truncated_anywhere_is_no_server_error(service: Service, form: str) -> None:
    image = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    whole = bombs.encode(image, form)
    step = max(1, len(whole) // 100)
    with httpx.Client(timeout=150) as client:
        for end in range(0, len(whole), step):
            response = client.post(f"{service.url}/detect", content=whole[:end])
            assert response.status_code in {200, 400, 415}, (end, response.text)


@pytest.mark.parametrize(("height", "width"), [(1, 100_000), (100_000, 1), (1, 1), (7, 65535)])
def test_a_slot_fits_images_of_any_shape(height: int, width: int) -> None:
    config = FAKE_MODEL.config
    resized = resized_size(height, width, config.shortest_side, config.longest_side)
    padded = padded_size(*resized, config.bucket_stride)
    assert min(resized) >= 1
    assert padded[0] * padded[1] <= largest_bucket_pixels(config)


def test_a_bomb_does_not_affect_the_other_files_of_a_request(service: Service) -> None:
    good = bombs.jpeg()
    files = [
        ("file", (f"{number}.bin", good if number % 2 else bombs.jpeg_of_many_scans(5000)))
        for number in range(8)
    ]
    response = service.http.post(f"{service.url}/detect", files=files)
    assert response.status_code == 200
    results = response.json()["results"]
    assert ["error" in result for result in results] == [True, False] * 4


def test_a_truncated_header_of_any_format_is_refused(service: Service) -> None:
    for magic in (b"\xff\xd8\xff", bombs.PNG_MAGIC, b"GIF89a", b"II*\0", b"MM\0*", b"II+\0"):
        for tail in (b"", b"\0" * 30, b"\xff" * 300, struct.pack("<Q", 2**63) * 9):
            assert _post(service, magic + tail).status_code in {400, 413, 415}
