"""Serving, `lite-detr detect`, drawing, training and evaluation read a file as the same pixels.

What serving decodes is the reference: transparency is laid on white, EXIF, XMP and TIFF
orientations are applied, deep samples are scaled to 8 bits, and a file that lacks pixels is
refused.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from model.config import ModelConfig
from model.data.annotations import DataError, ImageAnnotations
from model.data.image_files import read_pixels
from model.detections import Detections
from model.evaluation.batches import image_batches
from model.images import heif_decoders
from model.images.decode import decode_image, open_upright
from model.images.errors import DetectionError
from model.training.sources import CacheSource
from model.weights.info import ModelInfo
from service.cli.inputs import ImageFile
from service.cli.offline import OfflineDetector
from service.images import drawing
from service.types import DetectOptions
from tests.support.decoder_images import LIMITS, UINT8, corners, encode
from tests.support.repository import ROOT

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

# Both sides of the images here: nothing is resized.
SAME_SIZE = ModelConfig(shortest_side=20, longest_side=40)
NO_DETECTIONS = Detections(np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros((0, 4), "f"))
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description '
    'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></x:xmpmeta>'
)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _translucent() -> Image.Image:
    image = corners().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def _palette() -> Image.Image:
    return corners().quantize(4)


def _deep(kind: str) -> Image.Image:
    ramp = np.linspace(0, 1, 40 * 20).reshape(20, 40)
    return Image.fromarray((ramp * (1 if kind == "float32" else 65535)).astype(kind))


def _png_xmp() -> bytes:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP)
    return encode(corners(), "PNG", pnginfo=info)


def _files() -> dict[str, bytes]:
    files = {
        "JPEG": encode(corners(), "JPEG"),
        "JPEG, progressive": encode(corners(), "JPEG", progressive=True),
        "JPEG, grey": encode(corners().convert("L"), "JPEG"),
        "JPEG, CMYK": encode(corners().convert("CMYK"), "JPEG"),
        "JPEG, XMP orientation": encode(corners(), "JPEG", xmp=XMP.encode()),
        "PNG": encode(corners(), "PNG"),
        "PNG, black and white": encode(corners().convert("1"), "PNG"),
        "PNG, RGBA": encode(_translucent(), "PNG"),
        "PNG, grey and alpha": encode(_translucent().convert("LA"), "PNG"),
        "PNG, palette": encode(_palette(), "PNG"),
        "PNG, transparent palette entry": encode(_palette(), "PNG", transparency=1),
        "PNG, palette with alpha": encode(_palette(), "PNG", transparency=b"\x00\x40\x80\xff"),
        "PNG, transparent colour": encode(corners(), "PNG", transparency=(255, 0, 0)),
        "PNG, 16-bit grey": encode(_deep("uint16"), "PNG"),
        "PNG, XMP orientation": _png_xmp(),
        "WEBP": encode(corners(), "WEBP"),
        "WEBP, RGBA": encode(_translucent(), "WEBP", lossless=True),
        "WEBP, XMP orientation": encode(corners(), "WEBP", xmp=XMP.encode()),
        "BMP": encode(corners(), "BMP"),
        "BMP, palette": encode(_palette(), "BMP"),
        "TIFF": encode(corners(), "TIFF"),
        "TIFF, LZW": encode(corners(), "TIFF", compression="tiff_lzw"),
        "TIFF, RGBA": encode(_translucent(), "TIFF"),
        "TIFF, CMYK": encode(corners().convert("CMYK"), "TIFF"),
        "TIFF, L*a*b*": encode(Image.new("LAB", (40, 20)), "TIFF"),
        "TIFF, 16-bit grey": encode(_deep("uint16"), "TIFF"),
        "TIFF, 32-bit grey": encode(_deep("int32"), "TIFF"),
        "TIFF, float": encode(_deep("float32"), "TIFF"),
        "GIF": encode(corners(), "GIF"),
        "GIF, transparent palette entry": encode(_palette(), "GIF", transparency=1),
        "GIF, two frames": encode(
            corners(), "GIF", save_all=True, append_images=[corners().rotate(180)]
        ),
        "AVIF": encode(corners(), "AVIF"),
        "AVIF, RGBA": encode(_translucent(), "AVIF"),
        "AVIF, two frames": encode(
            corners(), "AVIF", save_all=True, append_images=[corners().rotate(180)]
        ),
        "HEIF": encode(corners(), "HEIF"),
        "HEIF, RGBA": encode(_translucent(), "HEIF"),
        "no image": b"a text file, whatever its name ends with",
        "no bytes": b"",
        "PDF": encode(corners(), "PDF"),
    }
    for name in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"):
        for orientation in (6,) if name in {"AVIF", "HEIF"} else range(2, 9):
            exif = _exif(orientation).tobytes()
            data = encode(corners(), name, exif=exif)
            files[f"{name}, orientation {orientation}"] = data
    for name in ("JPEG", "JPEG, progressive", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF"):
        files[f"{name}, without its last two bytes"] = files[name][:-2]
        files[f"{name}, half of it"] = files[name][: len(files[name]) // 2]
    return files


heif_decoders.register()
FILES = _files()


class _RecordingDevice:
    """A device that keeps the pixels of its batch."""

    name = "recording"
    model = ModelInfo("recording", "0", SAME_SIZE, ("thing",), 0.5, "keeps its pixels")

    def __init__(self) -> None:
        self.pixels: UINT8 | None = None

    def run(self, images: Sequence[UINT8], *_: object) -> None:
        [pixels] = images
        self.pixels = np.array(pixels)
        raise RuntimeError("there is no model")


def _served(file: Path, _: pytest.MonkeyPatch) -> UINT8:
    return decode_image(file.read_bytes(), SAME_SIZE, LIMITS).pixels


def _trained(file: Path, _: pytest.MonkeyPatch) -> UINT8:
    scene = {"file": file.name, "boxes": [], "labels": []}
    (file.parent / "scenes.jsonl").write_text(json.dumps(scene) + "\n", encoding="utf-8")
    return CacheSource(file.parent, ()).load(0).pixels


def _evaluated(file: Path, _: pytest.MonkeyPatch) -> UINT8:
    [[image]] = image_batches([ImageAnnotations(1, file.name, ())], file.parent, SAME_SIZE, 1)
    return image.pixels


def _detected(file: Path, _: pytest.MonkeyPatch) -> UINT8:
    device = _RecordingDevice()
    detector = OfflineDetector(device, LIMITS, DetectOptions())  # type: ignore[arg-type]
    outcome = detector.detect(ImageFile(str(file)), "request")
    if device.pixels is None:
        assert outcome.error is not None
        raise DataError(outcome.error.detail)
    return device.pixels


def _drawn(file: Path, monkeypatch: pytest.MonkeyPatch) -> UINT8:
    monkeypatch.setattr(drawing, "_LOSSY_FORMATS", frozenset())  # always PNG: the same pixels
    drawn = drawing.render_detections(file.read_bytes(), NO_DETECTIONS, (), LIMITS)
    return np.asarray(Image.open(io.BytesIO(drawn.data)))


def _read(file: Path, _: pytest.MonkeyPatch) -> UINT8:
    return read_pixels(file)  # the generator's background photos


@pytest.mark.parametrize("user", [_served, _detected, _drawn, _trained, _evaluated, _read])
@pytest.mark.parametrize("name", FILES)
def test_every_user_gets_the_same_pixels_or_the_same_error(
    name: str,
    user: Callable[[Path, pytest.MonkeyPatch], UINT8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "image.bin"
    file.write_bytes(FILES[name])
    try:
        expected: npt.NDArray[np.uint8] = np.asarray(open_upright(FILES[name], LIMITS)[0])
    except DetectionError as refusal:
        with pytest.raises((DetectionError, DataError), match=re.escape(refusal.detail) + "$"):
            user(file, monkeypatch)
    else:
        np.testing.assert_array_equal(user(file, monkeypatch), expected)


def test_serving_detection_and_evaluation_scale_the_same_jpeg_to_the_same_pixels(
    tmp_path: Path,
) -> None:
    noise = np.random.default_rng(6).integers(0, 256, (93, 171, 3), np.uint8)
    file = tmp_path / "image.jpg"
    file.write_bytes(encode(Image.fromarray(noise), "JPEG"))
    exact, scaled = (
        decode_image(file.read_bytes(), SAME_SIZE, LIMITS, jpeg_decoding=mode)
        for mode in ("exact", "scaled")
    )
    assert (exact.pixels != scaled.pixels).any()
    annotated = [ImageAnnotations(1, file.name, ())]
    [[image]] = image_batches(annotated, tmp_path, SAME_SIZE, 1, jpeg_decoding="scaled")
    np.testing.assert_array_equal(image.pixels, scaled.pixels)
    assert image.original_size == scaled.original_size == (93, 171)
    device = _RecordingDevice()
    options = DetectOptions()
    detector = OfflineDetector(device, LIMITS, options, jpeg_decoding="scaled")  # type: ignore[arg-type]
    detector.detect(ImageFile(str(file)), "request")
    np.testing.assert_array_equal(device.pixels, scaled.pixels)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
def test_orientation_that_only_xmp_tells_is_applied(name: str) -> None:
    image, _ = open_upright(FILES[f"{name}, XMP orientation"], LIMITS)
    by_exif, _ = open_upright(FILES[f"{name}, orientation 6"], LIMITS)
    assert image.size == (20, 40)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(by_exif))


@pytest.mark.parametrize("name", ["JPEG", "JPEG, progressive", "PNG", "GIF"])
def test_a_file_that_only_lacks_its_end_has_all_its_pixels(name: str) -> None:
    cut, _ = open_upright(FILES[f"{name}, without its last two bytes"], LIMITS)
    whole, _ = open_upright(FILES[name], LIMITS)
    np.testing.assert_array_equal(np.asarray(cut), np.asarray(whole))


@pytest.mark.parametrize("name", ["WEBP", "BMP", "TIFF", "AVIF", "HEIF"])
def test_a_file_that_lacks_its_last_pixel_is_refused(name: str) -> None:
    with pytest.raises(DetectionError, match="truncated"):
        open_upright(FILES[f"{name}, without its last two bytes"], LIMITS)


def test_only_one_module_decodes_image_files() -> None:
    decoders = re.compile(r"Image\.open\(|\bimread\(|\bimdecode\(|exif_transpose")
    folders = (ROOT / "model", ROOT / "service")
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in folder.rglob("*.py")
        if decoders.search(path.read_text(encoding="utf-8"))
    }
    # image_files: sizes in headers, for the check of a data set; its pixels come from `decode`.
    # optics: JPEG artefacts, which the generator makes by encoding and decoding its own pixels.
    assert found == {
        "model/data/image_files.py",
        "model/images/decode.py",
        "model/training/codes/optics.py",
    }
