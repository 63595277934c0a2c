"""Sends thousands of damaged images to the service, with valid ones in between."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import httpx
import pytest

from tests.e2e.hostile.mutations import damaged_images, seed_images
from tests.support.images import solid_png
from tests.support.running import Service

SEED = 20_240_601
CLIENTS = 4
GOOD_EVERY = 25
GOOD_KINDS = 40
# Fragmentation of glibc's heaps: tens of megabytes, independent of the count.
SLACK_BYTES = 96 << 20

Expected = dict[bytes, list[object]]  # results of valid images before any damaged one


def _good(number: int) -> bytes:
    """One of 40 valid images, which differ in colour and size."""
    kind = number // GOOD_EVERY % GOOD_KINDS
    return solid_png((kind * 6, 255 - kind, 77), 40 + kind, 90 - kind)


def _detect(client: httpx.Client, url: str, data: bytes) -> list[object]:
    response = client.post(f"{url}/detect?threshold=0", content=data)
    assert response.status_code == 200, response.text
    body = response.json()
    return [body["image"], body["detections"]]


def _send(url: str, images: Sequence[bytes], first: int, expected: Expected) -> Counter[str]:
    """Sends images over one connection, checks each response and counts them by status."""
    seen: Counter[str] = Counter()
    with httpx.Client(timeout=150) as client:
        for number, data in enumerate(images, start=first):
            response = client.post(f"{url}/detect?threshold=0", content=data)
            seen[str(response.status_code)] += 1
            if response.status_code != 200:
                assert 400 <= response.status_code < 500, (number, response.text, data[:64])
                assert response.headers["content-type"] == "application/problem+json"
                assert response.json()["code"], number
            if number % GOOD_EVERY == 0:
                assert _detect(client, url, _good(number)) == expected[_good(number)], number
    return seen


@pytest.mark.parametrize(
    "count", [200, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.family])]
)
def test_damaged_images_get_responses_and_leave_no_memory(service: Service, count: int) -> None:
    with httpx.Client(timeout=150) as client:
        for seed_image in seed_images():
            assert client.post(f"{service.url}/detect", content=seed_image).status_code == 200
        good = [_good(number * GOOD_EVERY) for number in range(GOOD_KINDS)]
        expected = {data: _detect(client, service.url, data) for data in good}
    assert len({str(response) for response in expected.values()}) == GOOD_KINDS
    images = damaged_images(count, SEED)
    warm_up = count // 5
    seen = _send_all(service.url, list(islice(images, warm_up)), 0, expected)
    warm = service.rss_bytes()
    seen += _send_all(service.url, list(images), warm_up, expected)
    deadline = time.monotonic() + 60  # freed memory returns to the kernel after ten seconds
    while (grown := service.rss_bytes() - warm) > SLACK_BYTES and time.monotonic() < deadline:
        time.sleep(0.1)
    assert seen.total() == count
    assert seen["200"] > count / 20 and seen["400"] > count / 4, seen
    assert set(seen) <= {"200", "400", "413", "415"}, seen
    assert grown < SLACK_BYTES, f"{grown / 2**20:.0f} MiB more after {count} images"


def _send_all(url: str, images: Sequence[bytes], first: int, expected: Expected) -> Counter[str]:
    share = -(-len(images) // CLIENTS)
    starts = range(0, len(images), share)
    with ThreadPoolExecutor(CLIENTS) as pool:
        parts = [
            pool.submit(_send, url, images[start : start + share], first + start, expected)
            for start in starts
        ]
        return sum((part.result() for part in parts), Counter())
