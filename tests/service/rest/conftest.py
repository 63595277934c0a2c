"""The REST adapter around a stand-in detector, called without a socket."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from PIL import Image

from service.rest import create_app
from service.settings import Settings, load_settings
from tests.service.rest.standin import StandIn

MakeImage = Callable[..., bytes]


@pytest.fixture
def standin() -> StandIn:
    return StandIn()


@pytest.fixture
def settings() -> Settings:
    return load_settings(max_body_bytes=1 << 20, max_image_pixels=4_000_000, max_files=3)


@pytest.fixture
async def client(standin: StandIn, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(standin.as_detector(), settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        yield client


@pytest.fixture
def image() -> MakeImage:
    def make(size: tuple[int, int] = (200, 100), form: str = "JPEG", colour: str = "teal") -> bytes:
        encoded = io.BytesIO()
        Image.new("RGB", size, colour).save(encoded, form)
        return encoded.getvalue()

    return make
