"""Renders the sample photos of the documentation and of the service's page.

    python -m benchmarks.accuracy.generate_samples

Everything on them is drawn by this project, so they can be distributed with it. docs/samples gets
each photo and a JSON file of its codes (class, payload, and box xyxy in pixels);
service/rest/static/samples gets the photos and, in classes.json, the classes of the models that
they are for. The same seed renders the same photos.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import zxingcpp
from PIL import Image

from benchmarks.accuracy.sample_renderer import materials, prints
from benchmarks.accuracy.sample_renderer.scene import (
    Box,
    Camera,
    Photo,
    Print,
    SeenCode,
    lay_sheet,
    lying,
    put_box,
    standing,
)
from benchmarks.report import ROOT
from model.labels import CODE_LABELS

MAX_BYTES = 250_000
_WIDTH, _HEIGHT = 1280, 960

Rng = np.random.Generator
Scene = Callable[[Rng], tuple[Photo, float]]  # the photo and its exposure


def main() -> None:
    """Renders all photos."""
    parser = argparse.ArgumentParser(description="Render the sample photos.")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "samples")
    parser.add_argument("--page", type=Path, default=ROOT / "service/rest/static/samples")
    options = parser.parse_args()
    for folder in (options.out, options.page):
        folder.mkdir(parents=True, exist_ok=True)
    scenes: dict[str, Scene] = {
        "codes": desk,
        "qr_close_up": cafe_table,
        "shelf": shelf,
        "no_codes": picnic,
    }
    classes: dict[str, list[str]] = {}
    for number, (name, scene) in enumerate(scenes.items()):
        rng = np.random.default_rng((options.seed, number))
        photo, exposure = scene(rng)
        data = _compress(Image.fromarray(photo.develop(rng, exposure=exposure)))
        _check_readable(name, data, photo.codes)
        (options.out / f"{name}.jpg").write_bytes(data)
        (options.out / f"{name}.json").write_text(_describe(photo.codes), encoding="utf-8")
        shutil.copyfile(options.out / f"{name}.jpg", options.page / f"{name}.jpg")
        classes[f"{name}.jpg"] = sorted({code.label for code in photo.codes} or CODE_LABELS)
        print(f"{name}.jpg: {len(data) / 1000:.0f} kB, {len(photo.codes)} codes")
    (options.page / "classes.json").write_text(json.dumps(classes, indent=2) + "\n", "utf-8")


def _compress(image: Image.Image) -> bytes:
    """The JPEG of the best quality with at most `MAX_BYTES`."""
    for quality in range(92, 60, -2):
        out = io.BytesIO()
        image.save(out, "JPEG", quality=quality, optimize=True, progressive=True)
        if out.tell() <= MAX_BYTES:
            return out.getvalue()
    raise SystemExit(f"no quality makes the photo smaller than {MAX_BYTES} bytes")


def _check_readable(name: str, data: bytes, codes: list[SeenCode]) -> None:
    """Exits if a decoder cannot read a code from its box."""
    image = Image.open(io.BytesIO(data))
    for code in codes:
        left, top, right, bottom = code.box
        x, y = 0.1 * (right - left), 0.1 * (bottom - top)
        crop = image.crop((int(left - x), int(top - y), int(right + x), int(bottom + y)))
        read = [found.text for found in zxingcpp.read_barcodes(np.asarray(crop))]
        if read != [code.payload]:
            raise SystemExit(f"{name}: {code.label} {code.payload!r} reads as {read}")


def _describe(codes: list[SeenCode]) -> str:
    """The photo's codes as JSON, one per line."""
    rows = [{**asdict(code), "box": [round(value, 1) for value in code.box]} for code in codes]
    lines = ",\n    ".join(json.dumps(row) for row in rows)
    listed = f"[\n    {lines}\n  ]" if rows else "[]"
    return f'{{\n  "width": {_WIDTH},\n  "height": {_HEIGHT},\n  "codes": {listed}\n}}\n'


def _ground(photo: Photo, print_: Print, centre: tuple[float, float]) -> None:
    photo.show(print_, lying(centre, print_.size, 0.0, 0.0))


def _stuck_on(box: Print, label: Print, left: float, top: float) -> Print:
    """A print with another one pasted onto it."""
    scale = box.colour.shape[1] / box.size[0]
    fine = label.colour.shape[1] / label.size[0]
    factor = fine / scale
    size = (round(box.colour.shape[1] * factor), round(box.colour.shape[0] * factor))
    under = Image.fromarray(box.colour[..., :3].clip(0, 255).astype(np.uint8)).resize(size)
    over = Image.fromarray(label.colour.astype(np.uint8), "RGBA")
    under.paste(over, (round(left * fine), round(top * fine)), over)
    codes = tuple(
        replace(
            code,
            box=(
                code.box[0] + left,
                code.box[1] + top,
                code.box[2] + left,
                code.box[3] + top,
            ),
        )
        for code in label.codes
    )
    return Print(np.asarray(under, np.float32), box.size, codes)


def desk(rng: Rng) -> tuple[Photo, float]:
    """A desk with a parcel, a medicine box, a boarding pass and a railway ticket: all classes."""
    camera = Camera((0.5, -21.0, 43.0), (0.2, 0.2, 0.0), 1300.0, _WIDTH, _HEIGHT)
    photo = Photo(camera, (0.55, -0.35, -1.0))
    _ground(photo, materials.wood(rng, (70.0, 60.0)), (0.0, 5.0))
    parcel = _stuck_on(materials.cardboard(rng, (17.5, 14.5)), prints.shipping_label(), 2.2, 1.6)
    sides = (materials.cardboard(rng, (17.5, 4.5)), materials.cardboard(rng, (14.5, 4.5)))
    put_box(photo, Box(parcel, *sides, 4.5), (-7.4, 5.6), 4.0)
    white = (244.0, 245.0, 245.0)
    sides = (materials.plain(rng, (13.0, 2.6), white), materials.plain(rng, (7.6, 2.6), white))
    put_box(photo, Box(prints.medicine_top(), *sides, 2.6), (9.2, 6.6), -9.0, softness=6.0)
    lay_sheet(photo, prints.boarding_pass(), (-3.6, -7.4), -3.0)
    lay_sheet(photo, prints.train_ticket(), (11.4, -4.6), 11.0)
    return photo, 1.0


def cafe_table(rng: Rng) -> tuple[Photo, float]:
    """A bar's menu card with a QR code, close up."""
    camera = Camera((3.0, -24.0, 30.0), (0.2, -0.6, 0.0), 1200.0, _WIDTH, _HEIGHT)
    photo = Photo(camera, (-0.5, -0.3, -1.0))
    _ground(photo, materials.wood(rng, (80.0, 70.0), (96, 70, 52), 14.0), (0.0, 10.0))
    lay_sheet(photo, prints.menu_card(), (0.0, 0.0), -7.0)
    return photo, 1.04


def _ean13(body: str) -> str:
    """Twelve digits and their check digit."""
    total = sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(body))
    return f"{body}{-total % 10}"


def shelf(rng: Rng) -> tuple[Photo, float]:
    """A shop's shelf with packs behind a rail of price tags."""
    camera = Camera((-4.0, -46.0, 8.0), (0.0, 0.0, 4.2), 1350.0, _WIDTH, _HEIGHT)
    photo = Photo(camera, (0.4, 0.5, -1.0))
    photo.show(materials.plain(rng, (90.0, 60.0), (58, 60, 66)), standing((-45.0, 14.0, 45.0)))
    boards = materials.plain(rng, (90.0, 12.0), (188, 190, 193))
    photo.show(boards, lying((0.0, 6.0), (90.0, 12.0), 0.0, 0.0))
    packs = (
        (-11.6, (188, 70, 50), "TOMATOES", "chopped, 400 g"),
        (0.0, (58, 122, 84), "GARDEN PEAS", "extra fine"),
        (11.6, (72, 92, 158), "BLUEBERRY", "jam, 340 g"),
        (23.2, (226, 180, 66), "SWEETCORN", "no added sugar"),
    )
    for middle, *_ in packs:
        foot = ((middle + x, y, 0.0) for x, y in ((-5.5, 3), (5.5, 3), (5.5, 9), (-5.5, 9)))
        photo.shade(np.array(list(foot)), 1.0, 8.0, 0.6)
    for middle, tone, name, detail in packs:
        photo.show(_pack(tone, name, detail), standing((middle - 5.5, 3.0, 18.0)), 0.92)
    rail = materials.plain(rng, (90.0, 7.0), (224, 226, 228))
    photo.show(rail, standing((-45.0, 0.0, 0.0)))
    tags = (
        (-11.6, "Tomatoes", "400 g   3.73 / kg", "1.49", "501234500017"),
        (0.0, "Garden peas", "300 g   4.30 / kg", "1.29", "501234500224"),
        (11.6, "Blueberry jam", "340 g   8.79 / kg", "2.99", "501234500648"),
    )
    for middle, name, detail, price, body in tags:
        tag = prints.price_tag(name, detail, price, _ean13(body))
        pose = standing((middle - tag.size[0] / 2, -0.1, -0.6))
        wide, high = tag.size
        edge = np.array(((0, 0), (wide, 0), (wide, high + 0.15), (0, high + 0.15)))
        photo.shade(pose.points(edge), 0.0, 3.0, 0.35)
        photo.show(tag, pose)
    photo.show(materials.plain(rng, (90.0, 20.0), (40, 41, 44)), standing((-45.0, 0.1, -7.0)))
    return photo, 1.0


def _pack(tone: tuple[int, int, int], name: str, detail: str) -> Print:
    """The front of a carton of food."""
    cream = (250, 247, 240)
    sheet = prints.Sheet(11.0, 18.0, tone, 0.15)
    sheet.fill((0.8, 2.2, 10.2, 7.0), cream, radius=0.6)
    sheet.text(5.5, 3.4, name, 1.15, ink=tone, bold=True, anchor="ma")
    sheet.text(5.5, 5.2, detail, 0.75, ink=(70, 70, 70), anchor="ma")
    sheet.disc((5.5, 11.8), 3.2, cream).disc((5.5, 11.8), 2.8, tone)
    for x, y in ((4.4, 11.2), (6.6, 11.0), (5.5, 12.9)):
        sheet.disc((x, y), 0.95, cream)
    return sheet.done()


def picnic(rng: Rng) -> tuple[Photo, float]:
    """A notebook, a ruler and a checked cloth: similar to codes, but none."""
    camera = Camera((-2.0, -22.0, 34.0), (0.0, 0.0, 0.0), 1450.0, _WIDTH, _HEIGHT)
    photo = Photo(camera, (0.5, -0.4, -1.0))
    _ground(photo, materials.wood(rng, (80.0, 70.0), (190, 160, 122), 9.0), (0.0, 8.0))
    cloth = materials.checked_cloth(rng, (24.0, 20.0))
    lay_sheet(photo, cloth, (8.5, 6.5), 14.0)
    lay_sheet(photo, _notebook(), (-7.0, 0.5), 7.0)
    lay_sheet(photo, _ruler(), (7.2, -6.2), -16.0)
    return photo, 1.0


def _notebook() -> Print:
    """An open page of a shopping list."""
    sheet = prints.Sheet(14.0, 19.0, (251, 250, 244), 0.3)
    for number in range(20):
        y = 2.4 + number * 0.8
        sheet.line((0.0, y), (14.0, y), 0.025, (150, 178, 206))
    sheet.line((2.0, 0.0), (2.0, 19.0), 0.03, (214, 120, 120))
    for hole in range(9):
        sheet.disc((0.9, 1.5 + hole * 2.0), 0.22, (120, 100, 80))
    lines = ("For Sunday", "bread, two loaves", "cherries and plums", "lemonade", "a kite")
    for number, words in enumerate(lines):
        sheet.text(2.5, 1.65 + number * 1.6, words, 0.85, ink=(38, 54, 120), bold=number == 0)
    return sheet.done()


def _ruler() -> Print:
    """A wooden ruler with millimetres, similar to a linear code."""
    sheet = prints.Sheet(21.0, 3.0, (232, 200, 138), 0.1)
    for millimetre in range(201):
        x = 0.5 + millimetre / 10
        long = 1.0 if millimetre % 10 == 0 else 0.75 if millimetre % 5 == 0 else 0.5
        sheet.line((x, 0.0), (x, long), 0.03)
        if millimetre % 10 == 0:
            sheet.text(x, 1.15, str(millimetre // 10), 0.5, anchor="ma")
    return sheet.done()


if __name__ == "__main__":
    main()
