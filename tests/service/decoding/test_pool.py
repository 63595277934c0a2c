"""Decoder processes: faults of one image do not affect other images or the service."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from model.images import fast_jpeg
from model.images.decode import ImageLimits, decode_image
from model.images.errors import ImageTooLarge, InvalidImage, UnsupportedImage
from model.images.limits import Cost
from service.decoding import dispatch, messages
from service.decoding import grants as grants_module
from service.decoding.messages import InboxMemory
from service.decoding.pool import DecoderPool
from service.decoding.processes import WorkerProcess
from service.decoding.task_queue import TaskQueue
from service.decoding.tasks import DecoderBug, ImageInSlot, Turn
from service.ipc.child_process import children_of
from service.ipc.slot_pool import SlotLease, SlotPool
from service.ipc.slots import SlotMemory, slot_layout
from service.types import Priority
from tests.support.fake_device import FAKE_MODEL
from tests.support.faulty_decode import CRASH, EXHAUST, HANG, RAISE, crash_once, wait_while
from tests.support.heif_files import encoded, grid
from tests.support.images import encode_png, solid_png

CONFIG = FAKE_MODEL.config
LIMITS = ImageLimits(10**6, 10**6)
DECODE = "tests.support.faulty_decode:decode_image"
GOOD = solid_png((1, 2, 3))


class Decoders:
    """A pool with slots, and the reasons of its restarts."""

    def __init__(self, workers: int = 1, memory_bytes: int = 64 << 20) -> None:
        self.restarts: list[str] = []
        self.pool = DecoderPool(workers, memory_bytes, 10**6, DECODE, self.restarts.append)
        self.dispatcher = self.pool._dispatcher
        self.slots = SlotPool(SlotMemory.create(slot_layout(CONFIG, 16)))

    async def decode(self, data: bytes, limits: ImageLimits = LIMITS) -> ImageInSlot:
        lease = self.slots.acquire()
        try:
            return await self.pool.decode(data, CONFIG, limits, lease)
        finally:
            lease.release()

    async def pixels(self, data: bytes) -> tuple[ImageInSlot, np.ndarray]:
        """The decoded image with the pixels in its slot."""
        lease: SlotLease = self.slots.acquire()
        try:
            image = await self.pool.decode(data, CONFIG, LIMITS, lease)
            return image, lease.pixels(image.image.size).copy()
        finally:
            lease.release()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.002)

    def close(self) -> None:
        self.pool.close()
        self.slots.close()


@pytest_asyncio.fixture
async def decoders() -> AsyncIterator[Decoders]:
    made = Decoders()
    made.pool.start()
    yield made
    made.close()


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
async def test_images_of_phones_are_decoded_within_the_limit_of_memory(
    decoders: Decoders, form: str
) -> None:
    tile = encoded(form, Image.new("RGB", (512, 512), "red"))
    one = await decoders.decode(tile)
    assert one.image.original_size == (512, 512)
    many = grid(form, [tile] * 324, 18, 18, (9216, 9216))
    limits = ImageLimits(10**6, 10**8)
    with pytest.raises(ImageTooLarge, match="more memory than decode_memory_bytes"):
        await decoders.decode(many, limits)
    assert decoders.restarts == []  # neither library crashes without memory
    assert await decoders.decode(tile)


async def test_pixels_are_those_of_the_decoder(decoders: Decoders) -> None:
    data = encode_png(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    expected = decode_image(data, CONFIG, LIMITS)
    image, pixels = await decoders.pixels(data)
    np.testing.assert_array_equal(pixels, expected.pixels)
    assert image.image.original_size == expected.original_size == (90, 70)
    assert image.ended >= image.started


@pytest.mark.parametrize(
    ("data", "limits", "error"),
    [
        (bytes(range(1, 30)), LIMITS, InvalidImage),
        (b"%PDF-1.7 and more", LIMITS, UnsupportedImage),
        (GOOD, ImageLimits(10**6, 10), ImageTooLarge),
        (b"", LIMITS, InvalidImage),
    ],
)
async def test_errors_are_those_of_the_decoder(
    decoders: Decoders, data: bytes, limits: ImageLimits, error: type[Exception]
) -> None:
    with pytest.raises(error) as here:
        decode_image(data, CONFIG, limits)
    with pytest.raises(error) as there:
        await decoders.decode(data, limits)
    assert str(there.value) == str(here.value)
    assert not decoders.restarts


async def test_an_image_that_crashes_its_decoder_is_invalid_and_its_neighbours_are_not(
    decoders: Decoders,
) -> None:
    files = [GOOD, GOOD + CRASH, GOOD, GOOD + CRASH, GOOD]
    results = await asyncio.gather(*map(decoders.decode, files), return_exceptions=True)
    assert [type(result) for result in results] == [
        ImageInSlot,
        InvalidImage,
        ImageInSlot,
        InvalidImage,
        ImageInSlot,
    ]
    assert decoders.restarts == ["crash"] * 4  # each file was tried twice


async def test_an_image_whose_decoder_died_by_chance_is_decoded_again(
    decoders: Decoders, tmp_path: Path
) -> None:
    await decoders.decode(GOOD + crash_once(tmp_path / "marker"))
    assert decoders.restarts == ["crash"]


async def test_a_hanging_decoder_is_killed_after_its_request_was_cancelled(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_GRACE_SECONDS", 0.01)
    hanging = asyncio.create_task(decoders.decode(GOOD + HANG))
    waiting = asyncio.create_task(decoders.decode(GOOD))
    await decoders.until(lambda: decoders.slots.in_use == 2)
    hanging.cancel()
    await waiting  # needs the place of the one that hung
    await decoders.until(lambda: decoders.slots.in_use == 0)
    assert decoders.restarts == ["killed"]


async def test_hanging_decoders_are_killed_early_if_others_wait(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_GRACE_SECONDS", 600.0)
    hanging = [asyncio.create_task(decoders.decode(GOOD + HANG)) for _ in range(8)]
    waiting = asyncio.create_task(decoders.decode(GOOD))
    await asyncio.sleep(0.05)
    for task in hanging:
        task.cancel()
    await asyncio.wait_for(waiting, 60)


async def test_a_slot_stays_leased_until_the_decoder_has_finished(
    decoders: Decoders, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    await decoders.decode(GOOD)
    task = asyncio.create_task(decoders.decode(GOOD + wait_while(gate)))
    await decoders.until(lambda: bool(decoders.dispatcher._busy))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert decoders.slots.in_use == 1
    gate.unlink()
    await decoders.until(lambda: decoders.slots.in_use == 0)
    assert not decoders.restarts


async def test_a_cancelled_image_leaves_the_queue(decoders: Decoders, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    first = asyncio.create_task(decoders.decode(GOOD + wait_while(gate)))
    second = asyncio.create_task(decoders.decode(GOOD))
    await decoders.until(lambda: len(decoders.dispatcher._queue) == 1)
    second.cancel()
    await decoders.until(lambda: decoders.slots.in_use == 1)
    gate.unlink()
    await first


async def test_memory_beyond_the_limit_fails_in_the_decoder_only(decoders: Decoders) -> None:
    with pytest.raises(ImageTooLarge, match="decode_memory_bytes"):
        await decoders.decode(GOOD + EXHAUST)
    await decoders.decode(GOOD)
    assert not decoders.restarts


async def test_a_bug_in_the_decoder_is_reported_with_its_traceback(decoders: Decoders) -> None:
    with pytest.raises(DecoderBug, match="a bug of the decoder"):
        await decoders.decode(GOOD + RAISE)
    await decoders.decode(GOOD)


async def test_large_images_wait_for_memory_and_are_decoded() -> None:
    decoders = Decoders(2, memory_bytes=2 << 20)  # a share is 512 KiB: 43,000 pixels
    decoders.pool.start()
    try:
        large = encode_png(np.zeros((400, 400, 3), np.uint8))
        await asyncio.gather(*(decoders.decode(data) for data in [large, GOOD] * 4))
    finally:
        decoders.close()


@pytest.mark.skipif(not fast_jpeg.available(), reason="simplejpeg is missing")
async def test_a_file_that_is_decoded_again_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A JPEG whose data end early: the results with two endings are compared."""
    decoders = Decoders(2, memory_bytes=2 << 20)
    asked = []
    take = decoders.pool._grants.take

    async def recorded(cost: Cost, *more: Any) -> Any:
        asked.append(cost)
        return await take(cost, *more)

    monkeypatch.setattr(decoders.pool._grants, "take", recorded)
    file = io.BytesIO()
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(file, "JPEG")
    data = file.getvalue()
    decoders.pool.start()
    try:
        with pytest.raises(InvalidImage, match="truncated"):
            await decoders.decode(data[: len(data) // 2] + b"\xff\xd9")
    finally:
        decoders.close()
    once, compared = asked
    assert compared.memory_bytes > once.memory_bytes
    assert compared.seconds > 2.5 * once.seconds


async def test_images_that_take_long_do_not_delay_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long ones use all workers but the one in reserve, and none of them waits for ever."""
    monkeypatch.setattr(grants_module, "_LONG_SECONDS", 1e-4)  # 3,000 pixels of a PNG
    gate = tmp_path / "gate"
    gate.touch()
    decoders = Decoders(2)
    decoders.pool.start()
    try:
        long = encode_png(np.zeros((200, 200, 3), np.uint8)) + wait_while(gate)
        waiting = [asyncio.create_task(decoders.decode(long)) for _ in range(6)]
        await decoders.until(lambda: len(decoders.dispatcher._busy) == 2)
        for _ in range(5):
            async with asyncio.timeout(60):
                await decoders.decode(GOOD)
        assert not any(task.done() for task in waiting)
        gate.unlink()
        await asyncio.gather(*waiting)
    finally:
        decoders.close()


async def test_an_image_that_hangs_does_not_delay_others(decoders: Decoders) -> None:
    hanging = asyncio.create_task(decoders.decode(GOOD + HANG))
    await decoders.until(lambda: bool(decoders.dispatcher._busy))
    async with asyncio.timeout(60):
        for _ in range(3):
            await decoders.decode(GOOD)
    assert not hanging.done()
    hanging.cancel()


async def test_without_long_tasks_the_reserve_is_not_used(
    decoders: Decoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_RESERVE_SECONDS", 600.0)
    gate = tmp_path / "gate"
    gate.touch()
    tasks = [asyncio.create_task(decoders.decode(GOOD + wait_while(gate))) for _ in range(3)]
    await decoders.until(lambda: len(decoders.dispatcher._queue) == 2)
    assert len(decoders.dispatcher._busy) == 1
    gate.unlink()
    await asyncio.gather(*tasks)


async def test_the_memory_of_a_large_file_is_returned_after_a_kill(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "_KEPT_BYTES", 1 << 16)
    large = GOOD + bytes(900_000) + HANG
    task = asyncio.create_task(decoders.decode(large, ImageLimits(10**6, 10**6)))
    await decoders.until(lambda: bool(decoders.dispatcher._busy))
    task.cancel()
    await decoders.until(lambda: decoders.restarts == ["killed"])
    kept = [os.fstat(inbox.fd).st_blocks * 512 for inbox in decoders.dispatcher._workers._inboxes]
    assert max(kept) <= 1 << 16


async def test_a_killed_template_is_replaced(decoders: Decoders) -> None:
    await decoders.decode(GOOD)
    template = decoders.dispatcher._workers._template
    assert template is not None
    os.kill(template.pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        # Its worker may still finish an image.
        while decoders.dispatcher._workers._template is template:
            await decoders.decode(GOOD)
    await decoders.decode(GOOD)


async def test_an_image_is_not_blamed_for_the_end_of_all_decoders(decoders: Decoders) -> None:
    await decoders.decode(GOOD)
    template = decoders.dispatcher._workers._template
    assert template is not None
    for _ in range(2):
        for pid in (workers := children_of(template.pid)):
            os.kill(pid, signal.SIGKILL)
        while not set(workers).isdisjoint(children_of(template.pid)):
            time.sleep(0.002)  # blocking, so that the pool sees all ends at once
        await decoders.decode(GOOD)


@pytest.mark.parametrize("who", [pytest.param("template", marks=pytest.mark.slow), "worker"])
async def test_stopped_decoders_are_replaced(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    await decoders.decode(GOOD)
    template = decoders.dispatcher._workers._template
    assert template is not None
    for pid in [template.pid] if who == "template" else children_of(template.pid):
        os.kill(pid, signal.SIGSTOP)
    if who == "template":  # its workers go on, but nobody replaces one that ends
        for pid in children_of(template.pid):
            os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(120):
        await decoders.decode(GOOD)
    assert decoders.dispatcher._workers._template is not template


async def test_closing_ends_a_hanging_decoder_at_once(decoders: Decoders) -> None:
    task = asyncio.create_task(decoders.decode(GOOD + HANG))
    await decoders.until(lambda: bool(decoders.dispatcher._busy))
    decoders.pool.close()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert decoders.slots.in_use == 0


async def test_slots_of_another_model_are_attached(decoders: Decoders) -> None:
    await decoders.decode(GOOD)
    before, decoders.slots = decoders.slots, SlotPool(SlotMemory.create(slot_layout(CONFIG, 2)))
    data = solid_png((9, 8, 7))
    _, pixels = await decoders.pixels(data)
    np.testing.assert_array_equal(pixels, decode_image(data, CONFIG, LIMITS).pixels)
    before.close()


def _reversed(data: bytes, *, suffix: bytes) -> tuple[bytes, str]:
    return data[::-1] + suffix, "text/plain"


async def test_a_function_is_called_with_the_file(decoders: Decoders) -> None:
    function = partial(_reversed, suffix=b"!")
    assert await decoders.pool.call(function, b"abc" * 100_000, Cost(10, 10)) == (
        b"cba" * 100_000 + b"!",
        "text/plain",
    )


async def test_high_priority_is_decoded_before_images_that_wait(
    decoders: Decoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_RESERVE_SECONDS", 600.0)
    gate, order = tmp_path / "gate", []
    gate.touch()

    async def decode(name: str, data: bytes, turn: Turn) -> None:
        lease = decoders.slots.acquire()
        try:
            await decoders.pool.decode(data, CONFIG, LIMITS, lease, turn)
            order.append(name)
        finally:
            lease.release()

    normal = Turn(Priority.NORMAL, urgency=1.0)
    tasks = [asyncio.create_task(decode("running", GOOD + wait_while(gate), normal))]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(decode("normal", GOOD, normal)) for _ in range(5)]
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(decode("high", GOOD, Turn(Priority.HIGH, urgency=0.5))))
    await asyncio.sleep(0)
    gate.unlink()
    await asyncio.gather(*tasks)
    assert order == ["running", "high", *["normal"] * 5]


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (InboxMemory, "write"),
        (InboxMemory, "release_pages"),
        (WorkerProcess, "send"),
        (WorkerProcess, "attach"),
        (TaskQueue, "take"),
    ],
)
async def test_an_unexpected_error_of_the_pool_costs_one_worker(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    original, calls = getattr(owner, name), 0

    def faulty(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyError("lost")
        return original(*args)

    monkeypatch.setattr(owner, name, faulty)
    for _ in range(3):
        async with asyncio.timeout(60):
            await asyncio.gather(*(decoders.decode(GOOD) for _ in range(4)))
    assert calls > 2
    await decoders.until(lambda: decoders.pool.worker_count == 2)
