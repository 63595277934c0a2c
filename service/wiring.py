"""Puts the spine together from settings: slots, supervisor, batcher, detector; and takes it apart.

Used by `service.app` and by whoever wants a detector in its own event loop (tests, benchmarks).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from model.weights_file import ModelInfo, read_model_info, resolve_model
from service.batcher import Batcher
from service.cpus import usable_cpus
from service.detector import Detector, DetectorLimits
from service.fake_device import FAKE_MODEL
from service.images import ImageLimits
from service.messages import FakeDeviceSpec, Start
from service.metrics import Metrics
from service.scheduler import BatchPolicy, Scheduler
from service.settings import Settings
from service.slots import SlotLayout, SlotMemory, SlotPool, slot_layout
from service.supervisor import EnginePlan, Supervisor

_MOST_DECODE_THREADS = 8


@dataclass(frozen=True)
class Spine:
    """A detector whose engine is starting, and what its owner may want to know."""

    detector: Detector
    first_ready: asyncio.Future[None]  # fails with EngineStartError where it never will be
    supervisor: Supervisor


def find_model(settings: Settings) -> tuple[Path | None, ModelInfo]:
    """The weights file (None for the fake engine) and what it says of itself.

    Raises:
        CheckpointError: for a model that is not there or cannot be used.
    """
    if settings.engine == "fake":
        return None, FAKE_MODEL
    path = resolve_model(settings.model, settings.model_cache_dir).resolve()
    return path, read_model_info(path)


@asynccontextmanager
async def open_spine(settings: Settings) -> AsyncIterator[Spine]:
    """Builds the spine and starts its engine; on leaving, ends both.

    Raises:
        CheckpointError: for a model that is not there or cannot be used.
    """
    path, model = find_model(settings)
    layout = slot_layout(model.config, settings.slots)
    metrics = Metrics(settings.max_batch_size)
    metrics.describe_model(model)
    memory = SlotMemory.create(layout)
    pool = SlotPool(memory)
    plan = EnginePlan(
        start=_start_message(settings, path, layout),
        model=model,
        start_timeout_seconds=settings.start_timeout_seconds,
        watchdog_seconds=settings.watchdog_seconds,
        storm_restarts=settings.storm_restarts,
        storm_window_seconds=settings.storm_window_seconds,
    )
    supervisor = Supervisor(plan, memory, metrics)
    batcher = Batcher(Scheduler(_policy(settings)), (supervisor,), metrics)
    detector = Detector(model, pool, batcher, metrics, _limits(settings))
    _add_gauges(metrics, pool, batcher, detector, supervisor)
    try:
        yield Spine(detector, supervisor.begin(batcher), supervisor)
    finally:
        await supervisor.stop()
        batcher.close()
        detector.close()
        await asyncio.sleep(0)  # callers that were just answered leave before their slots do
        pool.close()


@asynccontextmanager
async def open_detector(settings: Settings) -> AsyncIterator[Detector]:
    """A detector that is ready, in the running event loop.

    Raises:
        CheckpointError: for a model that is not there or cannot be used.
        EngineStartError: where the engine cannot start.
    """
    async with open_spine(settings) as spine:
        await spine.first_ready
        yield spine.detector


def _start_message(settings: Settings, path: Path | None, layout: SlotLayout) -> Start:
    return Start(
        engine=settings.engine,
        model_path="" if path is None else str(path),
        device=settings.device,
        threads=settings.engine_threads or usable_cpus(),
        layout=layout,
        fake=FakeDeviceSpec(
            base_ms=settings.fake_base_ms,
            per_image_ms=settings.fake_per_image_ms,
            start_ms=settings.fake_start_ms,
            crash_colour=settings.fake_crash_colour,
            error_colour=settings.fake_error_colour,
            hang_colour=settings.fake_hang_colour,
        ),
        log_level=settings.log_level,
        log_format=settings.log_format,
    )


def _policy(settings: Settings) -> BatchPolicy:
    return BatchPolicy(
        max_batch_size=settings.max_batch_size,
        max_batch_pixels=settings.max_batch_pixels,
        max_wait_ms=settings.max_wait_ms,
    )


def _limits(settings: Settings) -> DetectorLimits:
    threads = settings.decode_threads or min(_MOST_DECODE_THREADS, usable_cpus())
    images = ImageLimits(max_bytes=settings.max_body_bytes, max_pixels=settings.max_image_pixels)
    return DetectorLimits(images, settings.request_timeout_ms, threads)


def _add_gauges(
    metrics: Metrics, pool: SlotPool, batcher: Batcher, detector: Detector, engine: Supervisor
) -> None:
    metrics.watch("queue_depth", "Images waiting for an engine", lambda: batcher.queue_depth)
    metrics.watch("slots_in_use", "Slots leased to requests", lambda: pool.in_use)
    metrics.watch("slots", "Slots there are", lambda: pool.memory.layout.count)
    metrics.watch("ready", "1 while requests are welcome", lambda: detector.ready)
    metrics.watch("live", "0 when only a restart can help", lambda: detector.live)
    metrics.watch(
        "predicted_wait_seconds",
        "Predicted wait of an image that came now",
        lambda: batcher.predicted_wait_seconds,
    )
    metrics.watch_engine(lambda: engine.pid)
