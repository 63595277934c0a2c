"""Generates damaged images, reproducibly: mutations of small images of every format."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable, Iterator

from PIL import Image

from model.images import heif_decoders
from tests.e2e.hostile import bombs

# Numbers that reveal errors in decoders: limits of integer types.
_ODD_INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_HEADER_BYTES = 128


def seed_images() -> list[bytes]:
    """One small image of every accepted format, mode and compression."""
    heif_decoders.register()
    gradient = Image.linear_gradient("L").resize((37, 29))
    image = Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180)))
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
        ("RGB", "AVIF", {"exif": exif}),
        ("RGBA", "AVIF", {}),
        ("RGB", "HEIF", {"exif": exif.tobytes()}),
        ("RGBA", "HEIF", {}),
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
    seeds = [_encode(image.convert(mode), form, options) for mode, form, options in variants]
    seeds.append(bombs.bmp_run_lengths(20, 20))
    seeds.append(bombs.webp_canvas(32, 32))
    return seeds


def _encode(image: Image.Image, form: str, options: dict[str, object]) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def damaged_images(count: int, seed: int) -> Iterator[bytes]:
    """`count` images, each with one to four mutations; the same for the same seed."""
    rng = random.Random(seed)
    seeds = seed_images()
    for _ in range(count):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            if data:
                rng.choice(_MUTATIONS)(data, rng, seeds)
        yield bytes(data)


Mutation = Callable[[bytearray, random.Random, list[bytes]], None]


def _flip_bits(data: bytearray, rng: random.Random, _seeds: list[bytes]) -> None:
    for _ in range(rng.choice((1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _edit_header(data: bytearray, rng: random.Random, _seeds: list[bytes]) -> None:
    data[rng.randrange(min(len(data), _HEADER_BYTES))] = rng.randrange(256)


def _edit_number(data: bytearray, rng: random.Random, _seeds: list[bytes]) -> None:
    """Overwrites two or four bytes, which may be a length, offset, size or count."""
    near = min(len(data), _HEADER_BYTES if rng.random() < 0.7 else len(data))
    at = rng.randrange(near)
    number = rng.choice((*_ODD_INTEGERS, rng.randrange(1 << 16)))
    wide = struct.pack(rng.choice("<>") + "I", number)
    piece = wide if rng.random() < 0.5 else wide[:2] if wide[0] else wide[2:]
    data[at : at + len(piece)] = piece


def _cut_end(data: bytearray, rng: random.Random, _seeds: list[bytes]) -> None:
    del data[rng.randrange(len(data)) :]


def _cut_out(data: bytearray, rng: random.Random, _seeds: list[bytes]) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 2, 4, 16, 256))]


def _repeat(data: bytearray, rng: random.Random, _seeds: list[bytes]) -> None:
    at = rng.randrange(len(data))
    data[at:at] = data[at : at + rng.choice((1, 4, 12, 64))] * rng.choice((1, 3, 100))


def _splice(data: bytearray, rng: random.Random, seeds: list[bytes]) -> None:
    other = rng.choice(seeds)
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]


def _append_random_bytes(data: bytearray, rng: random.Random, _seeds: list[bytes]) -> None:
    data += rng.randbytes(rng.choice((1, 100, 5000)))


_MUTATIONS: tuple[Mutation, ...] = (
    _flip_bits,
    _edit_header,
    _edit_number,
    _edit_number,
    _cut_end,
    _cut_out,
    _repeat,
    _splice,
    _append_random_bytes,
)
