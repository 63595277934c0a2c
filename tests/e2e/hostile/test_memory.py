"""Images of many pixels: all decoding together stays within its memory limit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.hostile import bombs
from tests.support.images import solid_png
from tests.support.running import DEFAULTS, Service

MIB = 1 << 20
LARGE = 8
# For connections, bodies and resized images.
SLACK_BYTES = 192 * MIB


@pytest.mark.slow
def test_eight_images_of_100_megapixels_stay_within_the_memory_limit() -> None:
    budget = {"decode_threads": "8", "decode_memory_bytes": str(1024 * MIB)}
    service = Service(**(DEFAULTS | budget | {"request_timeout_ms": "500000"}))
    image = bombs.png(10_000, 10_000)
    try:
        service.wait_until_ready()
        before = service.rss_bytes()

        def post(data: bytes) -> int:
            return service.http.post(f"{service.url}/detect", content=data, timeout=500).status_code

        with ThreadPoolExecutor(LARGE) as clients:
            large = [clients.submit(post, image) for _ in range(LARGE)]
            small = [post(solid_png((number, 1, 1))) for number in range(20)]
            waited = sum(not response.done() for response in large)
            assert [response.result() for response in large] == [200] * LARGE
        assert small == [200] * 20
        assert waited, "small images must be completed while large ones wait"
        assert service.rss_bytes("VmHWM") - before < 1024 * MIB + SLACK_BYTES
    finally:
        service.kill()
