"""libwebp's simple interface gives Pillow's pixels, or leaves the file to Pillow."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.images import decode, fast_webp
from model.images.costs import decoding_cost
from model.images.errors import DetectionError, InvalidImage
from model.images.fast_webp import decode_still_image, read_still_image
from model.images.limits import Cost, CostsMore, ImageLimits
from tests.e2e.hostile.mutations import damaged_images
from tests.support.decoder_images import encode

pytestmark = pytest.mark.skipif(
    not fast_webp.available(), reason="this build of Pillow has no shared libwebp"
)
LIMITS = ImageLimits(10**7, 10**7)
SIZES = [(1, 1), (1, 40), (41, 1), (7, 3), (16, 16), (33, 17), (130, 95)]
KINDS: dict[str, dict[str, Any]] = {
    "lossy": {"quality": 60},
    "lossy, best": {"quality": 100, "method": 6},
    "lossless": {"lossless": True},
    "lossless, exact": {"lossless": True, "exact": True},
    "coarse alpha": {"quality": 60, "alpha_quality": 20},
}


def _image(size: tuple[int, int], mode: str) -> Image.Image:
    coarse = np.random.default_rng(sum(size)).integers(0, 256, (4, 5, 4), dtype=np.uint8)
    return Image.fromarray(coarse, "RGBA").resize(size).convert(mode)


def _webp(size: tuple[int, int] = (33, 17), mode: str = "RGB", **options: Any) -> bytes:
    return encode(_image(size, mode), "WEBP", **options)


def _riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP"
    for kind, payload in chunks:
        body += kind + struct.pack("<I", len(payload)) + payload + bytes(len(payload) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _chunks(data: bytes) -> dict[bytes, bytes]:
    chunks, at = {}, 12
    while at < len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        chunks[kind] = data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return chunks


def _canvas(flags: int, width: int, height: int) -> tuple[bytes, bytes]:
    sides = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    return b"VP8X", bytes((flags, 0, 0, 0)) + sides


def _outcome(data: bytes, limits: ImageLimits = LIMITS) -> tuple[object, ...]:
    try:
        image = decode.open_upright(data, limits)[0]
    except DetectionError as error:
        return type(error), str(error)
    return image.size, image.tobytes()


@contextmanager
def _only_pillow() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_webp, "_library", lambda: None)
        yield


def _same_outcome(data: bytes, limits: ImageLimits = LIMITS) -> tuple[object, ...]:
    found = _outcome(data, limits)
    with _only_pillow():
        assert found == _outcome(data, limits)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_pixels_are_those_of_pillow(mode: str, kind: str) -> None:
    for size in SIZES:
        data = _webp(size, mode, **KINDS[kind])
        still = read_still_image(data)
        assert still is not None and (still.mode, still.size) == (mode, size)
        image = decode_still_image(still)
        assert image is not None
        by_pillow = Image.open(io.BytesIO(data))
        assert (image.mode, image.size) == (by_pillow.mode, by_pillow.size)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(by_pillow))


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_files_with_metadata_are_decoded_fast_and_the_same(
    mode: str, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _webp((33, 17), mode, exif=exif, icc_profile=b"profile", xmp=b"<x/>") + b"more"
    size, pixels = _same_outcome(data)
    assert size == ((17, 33) if orientation == 6 else (33, 17))
    monkeypatch.setattr(decode, "_open", None)  # Pillow's decoder
    assert _outcome(data) == (size, pixels)


def _left_to_pillow() -> dict[str, bytes]:
    lossy, alpha = _chunks(_webp()), _chunks(_webp(mode="RGBA"))
    lossless = _chunks(_webp(mode="RGBA", lossless=True))
    coded, lossless_coded = (b"VP8 ", lossy[b"VP8 "]), (b"VP8L", lossless[b"VP8L"])
    with_alpha = (b"ALPH", alpha[b"ALPH"]), (b"VP8 ", alpha[b"VP8 "])
    frames = [_image((33, 17), "RGB").rotate(angle) for angle in (0, 180)]
    animation = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    return {
        "an animation": animation,
        "an animation of one frame": _riff(*_chunks(animation).items()),
        "a canvas of another width": _riff(_canvas(0, 34, 17), coded),
        "a canvas of another height": _riff(_canvas(0, 33, 16), coded),
        "a huge canvas": _riff(_canvas(0, 1 << 24, 1 << 24), coded),
        "a canvas with transparency": _riff(_canvas(0x10, 33, 17), coded),
        "a canvas without transparency": _riff(_canvas(0, 33, 17), *with_alpha),
        "a lossless canvas without transparency": _riff(_canvas(0, 33, 17), lossless_coded),
        "a canvas with a reserved flag": _riff(_canvas(0x80, 33, 17), coded),
        "a canvas of an animation": _riff(_canvas(2, 33, 17), coded),
        "a short canvas": _riff((b"VP8X", _canvas(0, 33, 17)[1][:9]), coded),
        "alpha without a canvas": _riff(*with_alpha),
        "alpha after the image": _riff(_canvas(0x10, 33, 17), *with_alpha[::-1]),
        "alpha of a lossless image": _riff(_canvas(0x10, 33, 17), with_alpha[0], lossless_coded),
        "a canvas after the image": _riff(coded, _canvas(0, 33, 17)),
        "two images": _riff(coded, lossless_coded),
        "no image": _riff(_canvas(0, 33, 17)),
        "no chunks": _riff(),
        "no header of a frame": _riff((b"VP8 ", bytes(40))),
        "an empty image": _riff((b"VP8L", b"")),
    }


@pytest.mark.parametrize("name", _left_to_pillow())
def test_files_of_another_structure_are_left_to_pillow(name: str) -> None:
    data = _left_to_pillow()[name]
    assert read_still_image(data) is None
    _same_outcome(data)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("options", [{"quality": 60}, {"lossless": True}], ids=str)
def test_a_truncated_file_has_the_same_outcome(mode: str, options: dict[str, Any]) -> None:
    data = _webp((33, 17), mode, **options)
    for length in range(0, len(data), 3):
        cut = data[:length]
        _same_outcome(cut)
        if length > 20:  # the lengths of the file and the chunk state what is there
            kind = b"VP8L" if "lossless" in options else b"VP8 "
            at = data.index(kind) + 4
            if length > at + 4:
                shorter = bytearray(cut)
                struct.pack_into("<I", shorter, 4, length - 8)
                struct.pack_into("<I", shorter, at, length - at - 4)
                _same_outcome(bytes(shorter))


def test_damaged_files_have_the_same_outcome() -> None:
    seen = [_same_outcome(data)[0] for data in damaged_images(1500, seed=7) if b"WEBP" in data[:16]]
    assert len(seen) > 60
    assert sum(isinstance(size, tuple) for size in seen) > 10


def test_images_above_the_limit_of_pixels_are_refused_before_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = ImageLimits(10**7, 33 * 17 - 1)
    reference = _same_outcome(_webp(), limits)
    monkeypatch.setattr(decode, "decode_still_image", None)
    assert _outcome(_webp(), limits) == reference
    assert "33 x 17" in str(reference[1])


def test_the_cost_is_checked_before_decoding_and_is_lower_than_that_of_pillow() -> None:
    data = _webp((130, 95))
    still, pillow = (decoding_cost(name, 130 * 95, len(data)) for name in ("WEBP, still", "WEBP"))
    assert still.memory_bytes < pillow.memory_bytes and still.seconds < pillow.seconds
    decode.open_upright(data, LIMITS, still)
    with pytest.raises(CostsMore) as raised:
        decode.open_upright(data, LIMITS, Cost(still.memory_bytes - 1, 1.0))
    assert raised.value.cost == still
    with _only_pillow(), pytest.raises(CostsMore) as raised:
        decode.open_upright(data, LIMITS, still)
    assert raised.value.cost == pillow
    # Pillow is called for a damaged one, if its cost is granted.
    damaged = bytearray(_webp((130, 95), lossless=True))
    damaged[30:90] = b"\xff" * 60
    assert read_still_image(bytes(damaged)) is not None
    with pytest.raises(CostsMore):
        decode.open_upright(bytes(damaged), LIMITS, still)
    assert _same_outcome(bytes(damaged))[0] is InvalidImage


def test_without_the_library_pillow_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL._webp.__file__", "/missing.so")
    fast_webp._library.cache_clear()
    try:
        assert not fast_webp.available()
        assert read_still_image(_webp()) is None
    finally:
        monkeypatch.undo()
        fast_webp._library.cache_clear()
    assert fast_webp.available()
