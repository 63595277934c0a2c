"""A reproducible stream of damaged images: mutations of one small image of every kind."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable, Iterator

from PIL import Image

from tests.e2e.hostile import bombs

# What readers trip over: limits of integer types, and sizes just beyond the usual ones.
_ODD_INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_HEADER_BYTES = 128


def seed_images() -> list[bytes]:
    """One small image of every format, mode and way of packing that is accepted."""
    gradient = Image.linear_gradient("L").resize((37, 29))
    picture = Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180)))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    variants: tuple[tuple[str, str, dict[str, object]], ...] = (
        ("RGB", "JPEG", {"quality": 80}),
        ("RGB", "JPEG", {"progressive": True, "exif": exif}),
        ("L", "JPEG", {"restart_marker_blocks": 1}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {"exif": exif}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {"transparency": 3}),
        ("I;16", "PNG", {}),
        ("1", "PNG", {}),
        ("RGB", "WEBP", {"quality": 50, "exif": exif}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("P", "GIF", {"comment": b"a comment"}),
        ("RGB", "BMP", {}),
        ("P", "BMP", {}),
        ("RGB", "TIFF", {}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("L", "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("RGB", "TIFF", {"compression": "jpeg"}),
        ("1", "TIFF", {"compression": "group4"}),
        ("F", "TIFF", {}),
        ("I", "TIFF", {"compression": "packbits"}),
        ("RGB", "TIFF", {"big_tiff": True}),
    )
    seeds = [_encode(picture.convert(mode), form, options) for mode, form, options in variants]
    seeds.append(bombs.bmp_run_lengths(20, 20))
    seeds.append(bombs.webp_canvas(32, 32))
    return seeds


def _encode(picture: Image.Image, form: str, options: dict[str, object]) -> bytes:
    data = io.BytesIO()
    picture.save(data, form, **options)
    return data.getvalue()


def damaged_images(count: int, seed: int) -> Iterator[bytes]:
    """So many images, each damaged in one to four ways; the same for the same seed."""
    chance = random.Random(seed)
    seeds = seed_images()
    for _ in range(count):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            if data:
                chance.choice(_DAMAGES)(data, chance, seeds)
        yield bytes(data)


Damage = Callable[[bytearray, random.Random, list[bytes]], None]


def _flip_bits(data: bytearray, chance: random.Random, _seeds: list[bytes]) -> None:
    for _ in range(chance.choice((1, 2, 8, 64))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _edit_header(data: bytearray, chance: random.Random, _seeds: list[bytes]) -> None:
    data[chance.randrange(min(len(data), _HEADER_BYTES))] = chance.randrange(256)


def _edit_number(data: bytearray, chance: random.Random, _seeds: list[bytes]) -> None:
    """Overwrites two or four bytes with a number that is odd: lengths, offsets, sizes, counts."""
    near = min(len(data), _HEADER_BYTES if chance.random() < 0.7 else len(data))
    at = chance.randrange(near)
    number = chance.choice((*_ODD_INTEGERS, chance.randrange(1 << 16)))
    wide = struct.pack(chance.choice("<>") + "I", number)
    piece = wide if chance.random() < 0.5 else wide[:2] if wide[0] else wide[2:]
    data[at : at + len(piece)] = piece


def _cut_end(data: bytearray, chance: random.Random, _seeds: list[bytes]) -> None:
    del data[chance.randrange(len(data)) :]


def _cut_out(data: bytearray, chance: random.Random, _seeds: list[bytes]) -> None:
    at = chance.randrange(len(data))
    del data[at : at + chance.choice((1, 2, 4, 16, 256))]


def _repeat(data: bytearray, chance: random.Random, _seeds: list[bytes]) -> None:
    at = chance.randrange(len(data))
    data[at:at] = data[at : at + chance.choice((1, 4, 12, 64))] * chance.choice((1, 3, 100))


def _splice(data: bytearray, chance: random.Random, seeds: list[bytes]) -> None:
    other = chance.choice(seeds)
    data[chance.randrange(len(data)) :] = other[chance.randrange(len(other)) :]


def _append_rubbish(data: bytearray, chance: random.Random, _seeds: list[bytes]) -> None:
    data += chance.randbytes(chance.choice((1, 100, 5000)))


_DAMAGES: tuple[Damage, ...] = (
    _flip_bits,
    _edit_header,
    _edit_number,
    _edit_number,
    _cut_end,
    _cut_out,
    _repeat,
    _splice,
    _append_rubbish,
)
