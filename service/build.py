"""Puts the spine together from settings: slots, engines, batcher, detector; and takes it apart.

Used by `service.app` and by whoever wants a detector in its own event loop (tests, benchmarks).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from model.images import resize
from model.images.decode import ImageLimits
from model.weights.info import CheckpointError, ModelInfo, read_model_info, resolve_model
from service.batching.batcher import Batcher
from service.batching.scheduler import BatchPolicy, Scheduler
from service.core.detector import Detector, DetectorLimits
from service.core.model_switch import ModelSwitch
from service.core.served_model import ServedModel
from service.cpus import usable_cpus
from service.engine.fake_device import FAKE_MODEL
from service.ipc.messages import FakeDeviceSpec, Start
from service.ipc.slots import SlotLayout, SlotMemory, SlotPool, slot_layout
from service.observability.metrics import Metrics
from service.settings import Settings
from service.supervision.plan import EnginePlan
from service.supervision.supervisor import Supervisor
from service.supervision.weights_file import OpenWeightsFile

_MOST_DECODE_THREADS = 8


@dataclass(frozen=True)
class Spine:
    """A detector whose engines are starting, and what its owner may want to know."""

    detector: Detector
    control: ModelSwitch
    first_ready: asyncio.Future[None]  # fails with EngineStartError where it never will be


def _hold_model(settings: Settings) -> tuple[OpenWeightsFile, ModelInfo]:
    """The weights file (none for the fake engine), held, and what it says of itself.

    Held first: another file that takes its place meanwhile must not be the one that is read.

    Raises:
        CheckpointError: for a model that is not there or cannot be used.
    """
    if settings.engine == "fake":
        return OpenWeightsFile(None), FAKE_MODEL
    path = resolve_model(settings.model, settings.model_cache_dir).resolve()
    try:
        file = OpenWeightsFile(path)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    try:
        return file, read_model_info(file.engine_path)
    except CheckpointError as error:
        file.close()
        raise CheckpointError(path, error.problem) from error


def build_served_model(settings: Settings, metrics: Metrics) -> ServedModel:
    """A model with slots and engines of its own, which are not started yet.

    Raises:
        CheckpointError: for a model that is not there or cannot be used.
    """
    file, model = _hold_model(settings)
    devices = settings.engine_devices
    slots = settings.slots + settings.priority_slots + len(devices)  # the last are for canaries
    pool = SlotPool(SlotMemory.create(slot_layout(model.config, slots)), settings.priority_slots)
    layout = pool.memory.layout
    engines = tuple(
        Supervisor(_engine_plan(settings, file, model, layout, device), pool, metrics)
        for device in devices
    )
    batcher = Batcher(Scheduler(_policy(settings)), engines, metrics)
    return ServedModel(model, pool, batcher, engines, file)


@asynccontextmanager
async def open_spine(settings: Settings) -> AsyncIterator[Spine]:
    """Builds the spine and starts its engines; on leaving, ends both.

    Raises:
        CheckpointError: for a model that is not there or cannot be used.
    """
    metrics = Metrics(settings.max_batch_size)
    served = build_served_model(settings, metrics)
    detector = Detector(served, metrics, _limits(settings))
    first_ready = served.begin()
    # Found or compiled before the first image needs it.
    asyncio.get_running_loop().run_in_executor(None, resize.available)
    control = ModelSwitch(
        detector,
        settings.model,
        lambda: build_served_model(settings, metrics),
        first_ready=first_ready,
        start_timeout_seconds=settings.start_timeout_seconds,
    )
    _add_gauges(metrics, detector)
    try:
        yield Spine(detector, control, first_ready)
    finally:
        first_ready.cancel()
        await control.stop()
        detector.close()
        control.free()


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


def _engine_plan(
    settings: Settings, file: OpenWeightsFile, model: ModelInfo, layout: SlotLayout, device: str
) -> EnginePlan:
    return EnginePlan(
        start=_start_message(settings, file, layout, device),
        model=model,
        start_timeout_seconds=settings.start_timeout_seconds,
        watchdog_seconds=settings.watchdog_seconds,
        canary_interval_seconds=settings.canary_interval_seconds,
        canary_timeout_seconds=settings.canary_timeout_seconds,
        storm_restarts=settings.storm_restarts,
        storm_window_seconds=settings.storm_window_seconds,
        weights_name=file.path,
    )


def _start_message(
    settings: Settings, file: OpenWeightsFile, layout: SlotLayout, device: str
) -> Start:
    share = max(1, usable_cpus() // len(settings.engine_devices))
    return Start(
        engine=settings.engine,
        model_path=file.engine_path,
        weights_fd=file.fd,
        device=device,
        threads=settings.engine_threads or share,
        layout=layout,
        fake=FakeDeviceSpec(
            base_ms=settings.fake_base_ms,
            per_image_ms=settings.fake_per_image_ms,
            start_ms=settings.fake_start_ms,
            crash_colour=settings.fake_crash_colour,
            error_colour=settings.fake_error_colour,
            hang_colour=settings.fake_hang_colour,
            sticky_colour=settings.fake_sticky_colour,
            memory_colour=settings.fake_memory_colour,
        ),
        log_level=settings.log_level,
        log_format=settings.log_format,
        max_batch_size=settings.max_batch_size,
        max_batch_pixels=settings.max_batch_pixels,
        warm_up_seconds=settings.warm_up_seconds,
        precision=settings.precision,
        max_cuda_graphs=settings.max_cuda_graphs,
    )


def _policy(settings: Settings) -> BatchPolicy:
    return BatchPolicy(
        max_batch_size=settings.max_batch_size,
        max_batch_pixels=settings.max_batch_pixels,
        max_wait_ms=settings.max_wait_ms,
    )


def _limits(settings: Settings) -> DetectorLimits:
    return DetectorLimits(
        images=ImageLimits(
            settings.max_body_bytes, settings.max_image_pixels, settings.max_jpeg_scans
        ),
        request_timeout_ms=settings.request_timeout_ms,
        decode_threads=settings.decode_threads or min(_MOST_DECODE_THREADS, usable_cpus()),
        decode_memory_bytes=settings.decode_memory_bytes,
        canary_max_age_seconds=settings.canary_max_age_seconds,
    )


def _add_gauges(metrics: Metrics, detector: Detector) -> None:
    """Gauges that are read when somebody asks, each from the model that serves then."""
    add_gauge = metrics.add_gauge
    add_gauge("queue_depth", "Images waiting for an engine", lambda: _batcher(detector).queue_depth)
    add_gauge("slots_in_use", "Slots leased to requests", lambda: detector.served.pool.in_use)
    add_gauge("slots", "Slots for requests, of both priorities", lambda: detector.served.pool.count)
    add_gauge("ready", "1 while requests are welcome", lambda: detector.ready)
    add_gauge("live", "0 when only a restart can help", lambda: detector.live)
    add_gauge(
        "predicted_wait_seconds",
        "Predicted wait of an image that came now",
        lambda: detector.predicted_wait_seconds,
    )
    add_gauge(
        "canary_age_seconds",
        "Since an engine last answered, a canary where nobody else asked; +Inf before the first",
        lambda: detector.canary_age_seconds,
    )
    add_gauge(
        "engines_ready",
        "Engines that take batches",
        lambda: sum(engine.ready for engine in detector.served.engines),
    )
    for number in range(len(detector.served.engines)):
        metrics.add_engine(partial(_pid, detector, number), str(number))
    metrics.add_gpus()


def _pid(detector: Detector, number: int) -> int | None:
    """Of an engine of the model that serves just then."""
    return detector.served.engine_pids[number]


def _batcher(detector: Detector) -> Batcher:
    return detector.served.batcher
