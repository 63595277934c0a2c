"""Hundreds of damaged images: each gets a result or an error, none breaks the service."""

from __future__ import annotations

import io
import random

import httpx
import pytest
from PIL import Image

from model.images import heif_decoders

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF")
heif_decoders.register()


def seeds() -> list[bytes]:
    gradient = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    files = []
    for form in FORMATS:
        encoded = io.BytesIO()
        gradient.save(encoded, form)
        files.append(encoded.getvalue())
    return files


def damage(data: bytes, dice: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(dice.randint(1, 8)):
        # Headers are short and at the start: that is where most can go wrong.
        reach = len(damaged) if dice.random() < 0.3 else min(len(damaged), 120)
        damaged[dice.randrange(reach)] = dice.choice((0, 1, 127, 128, 255, dice.randrange(256)))
    if dice.random() < 0.3:
        del damaged[dice.randrange(len(damaged)) :]
    return bytes(damaged)


@pytest.mark.parametrize("answer_format", ["json", "image"])
@pytest.mark.parametrize("form", [False, True], ids=["raw", "form"])
async def test_damaged_images_get_a_result_or_an_error(
    client: httpx.AsyncClient, answer_format: str, form: bool
) -> None:
    dice = random.Random(f"{answer_format} {form}")
    files = seeds()
    for _ in range(120):
        data = damage(dice.choice(files), dice)
        upload = {"files": {"f": ("a", data)}} if form else {"content": data}
        response = await client.post(f"/detect?format={answer_format}", **upload)  # type: ignore[arg-type]
        assert response.status_code in {200, 400, 413, 415}, data
        assert response.status_code == 200 or response.json()["detail"]
