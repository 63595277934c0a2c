"""Builds the core of the service from settings: slots, engines, batcher and detector.

Used by `service.app`, and by tests and benchmarks for a detector in their own event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from model.geometry import padded_size
from model.images.decode import ImageLimits
from model.weights.info import CheckpointError, ModelInfo, read_model_info, resolve_model
from service.batching.batcher import Batcher
from service.batching.scheduler import BatchPolicy, Scheduler
from service.core.detector import Detector, DetectorLimits
from service.core.model_switch import ModelSwitch
from service.core.served_model import ServedModel
from service.core.sizing import default_decoders, default_engine_threads, default_slots
from service.cpus import usable_cpus
from service.decoding.pool import DEFAULT_DECODE, DecoderPool
from service.descriptors import allow_descriptors
from service.ipc.messages import Start
from service.ipc.slot_pool import SlotPool
from service.ipc.slots import SlotLayout, SlotMemory, slot_layout
from service.observability.log_output import call_when_lines_are_lost
from service.observability.metrics import Metrics
from service.settings import Settings
from service.supervision.plan import EnginePlan
from service.supervision.supervisor import Supervisor
from service.supervision.weights_file import OpenWeightsFile


@dataclass(frozen=True)
class Backend:
    """Which device the engines open. Only tests and benchmarks use another one than torch.

    Attributes:
        device_factory: "module:function". The engine process imports it by this name, because
            the edge must not import torch, and calls it with the `Start` message.
        device_options: `Start.device_options`, for that function; JSON values.
        model: the model that the device runs; None: the weights file that the settings name.
        decode: "module:function" that decoder processes call; see `service.decoding.worker`.
    """

    device_factory: str = "service.engine.gpu_device:open_device"
    device_options: Mapping[str, Any] = field(default_factory=dict)
    model: ModelInfo | None = None
    decode: str = DEFAULT_DECODE


TORCH = Backend()


@dataclass(frozen=True)
class ServiceCore:
    """A detector whose engines are starting, and the control of its model."""

    detector: Detector
    control: ModelSwitch
    first_ready: asyncio.Future[None]  # fails with EngineStartError if an engine cannot start


def _open_model(settings: Settings, backend: Backend) -> tuple[OpenWeightsFile, ModelInfo]:
    """Opens the weights file, unless the backend needs none, and reads its header.

    The header is read from the open file: another file may take its place in the meantime.

    Raises:
        CheckpointError: for a model that does not exist or cannot be used.
    """
    if backend.model is not None:
        return OpenWeightsFile(None), _named(backend.model, settings)
    path = resolve_model(settings.model, settings.model_cache_dir).resolve()
    try:
        file = OpenWeightsFile(path)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    try:
        return file, _named(read_model_info(file.engine_path), settings)
    except CheckpointError as error:
        file.close()
        raise CheckpointError(path, error.problem) from error


def _find_weights(settings: Settings, backend: Backend) -> Path | None:
    """Returns the weights file that the settings name now; None if the backend needs none.

    Raises:
        CheckpointError: if there is no such file.
    """
    if backend.model is not None:
        return None
    return resolve_model(settings.model, settings.model_cache_dir).resolve()


def _named(model: ModelInfo, settings: Settings) -> ModelInfo:
    """Returns the model under the name that the settings give it."""
    return model if settings.name is None else replace(model, name=settings.name)


def build_served_model(
    settings: Settings, metrics: Metrics, backend: Backend = TORCH
) -> ServedModel:
    """Builds a model with its own slots and engines, which are not started yet.

    Raises:
        CheckpointError: for a model that does not exist or cannot be used.
    """
    file, model = _open_model(settings, backend)
    devices = settings.engine_devices
    slots = _num_slots(settings, model) + settings.priority_slots
    slots += len(devices)  # one per engine for canaries
    pool = SlotPool(SlotMemory.create(slot_layout(model.config, slots)), settings.priority_slots)
    layout = pool.memory.layout
    starts = [_start_message(settings, backend, file, layout, device) for device in devices]
    engines = tuple(
        Supervisor(
            _engine_plan(settings, start=start, model=model, weights_name=file.path), pool, metrics
        )
        for start in starts
    )
    batcher = Batcher(Scheduler(_policy(settings)), engines, metrics)
    return ServedModel(model, pool, batcher, engines, file)


@asynccontextmanager
async def open_core(settings: Settings, backend: Backend = TORCH) -> AsyncIterator[ServiceCore]:
    """Builds the core and starts its engines; on exit, stops both.

    Raises:
        CheckpointError: for a model that does not exist or cannot be used.
    """
    metrics = Metrics(settings.max_batch_size)
    call_when_lines_are_lost(metrics.log_lines_lost.inc)
    served = build_served_model(settings, metrics, backend)
    limits = _limits(settings)
    allow_descriptors(settings, limits.decode_threads)
    decoders = DecoderPool(
        limits.decode_threads,
        settings.decode_memory_bytes,
        settings.max_body_bytes,
        backend.decode,
        lambda reason: metrics.decoder_restarts.labels(reason).inc(),
        settings.jpeg_decoding,
    )
    decoders.start()
    detector = Detector(served, metrics, limits, decoders)
    first_ready = served.begin()
    control = ModelSwitch(
        detector,
        settings.model,
        lambda: build_served_model(settings, metrics, backend),
        first_ready=first_ready,
        start_timeout_seconds=settings.start_timeout_seconds,
        find_weights=partial(_find_weights, settings, backend),
    )
    _add_gauges(metrics, detector, settings.canary_max_age_seconds)
    try:
        yield ServiceCore(detector, control, first_ready)
    finally:
        first_ready.cancel()
        await control.stop()
        detector.close()
        control.free()


@asynccontextmanager
async def open_detector(settings: Settings, backend: Backend = TORCH) -> AsyncIterator[Detector]:
    """Opens a detector in the running event loop and waits until it is ready.

    Raises:
        CheckpointError: for a model that does not exist or cannot be used.
        EngineStartError: if the engine cannot start.
    """
    async with open_core(settings, backend) as core:
        await core.first_ready
        yield core.detector


def _engine_plan(
    settings: Settings, *, start: Start, model: ModelInfo, weights_name: str
) -> EnginePlan:
    return EnginePlan(
        start=start,
        model=model,
        start_timeout_seconds=settings.start_timeout_seconds,
        watchdog_seconds=settings.watchdog_seconds,
        canary_interval_seconds=settings.canary_interval_seconds,
        canary_timeout_seconds=settings.canary_timeout_seconds,
        storm_restarts=settings.storm_restarts,
        storm_window_seconds=settings.storm_window_seconds,
        weights_name=weights_name,
    )


def _start_message(
    settings: Settings, backend: Backend, file: OpenWeightsFile, layout: SlotLayout, device: str
) -> Start:
    share = default_engine_threads(len(settings.engine_devices), usable_cpus())
    return Start(
        device_factory=backend.device_factory,
        device_options=dict(backend.device_options),
        model_path=file.engine_path,
        weights_fd=file.fd,
        device=device,
        threads=settings.engine_threads or share,
        layout=layout,
        log_level=settings.log_level,
        log_format=settings.log_format,
        max_batch_size=settings.max_batch_size,
        max_batch_pixels=settings.max_batch_pixels,
        warm_up_seconds=settings.warm_up_seconds,
        precision=settings.precision,
        max_cuda_graphs=settings.max_cuda_graphs,
    )


def _num_decoders(settings: Settings) -> int:
    return settings.decode_threads or default_decoders(len(settings.engine_devices), usable_cpus())


def _num_slots(settings: Settings, model: ModelInfo) -> int:
    """The slots for requests of normal priority: as set, or by default enough for all engines."""
    if settings.slots is not None:
        return settings.slots
    config = model.config
    # Nearly all images are resized to at least this many pixels.
    square = padded_size(config.shortest_side, config.shortest_side, config.bucket_stride)
    batch_size = _policy(settings).capacity(square)
    return default_slots(len(settings.engine_devices), batch_size, _num_decoders(settings))


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
        decode_threads=_num_decoders(settings),
        canary_max_age_seconds=settings.canary_max_age_seconds,
        explain=settings.explain,
        max_tiles=settings.max_tiles,
    )


def _add_gauges(metrics: Metrics, detector: Detector, max_canary_age_seconds: float) -> None:
    """Adds gauges that are read on each scrape, from the model that serves at that time."""
    add_gauge = metrics.add_gauge
    add_gauge("queue_depth", "Images waiting for an engine", lambda: _batcher(detector).queue_depth)
    add_gauge("slots_in_use", "Slots leased to requests", lambda: detector.served.pool.in_use)
    add_gauge(
        "slots",
        "Slots in use at which requests of normal priority are refused",
        lambda: detector.served.pool.normal_count,
    )
    add_gauge(
        "priority_slots_in_use",
        "Slots in use beyond lite_detr_slots, by requests of high priority",
        lambda: detector.served.pool.priority_in_use,
    )
    add_gauge(
        "priority_slots",
        "Additional slots, only for requests of high priority",
        lambda: detector.served.pool.priority_count,
    )
    add_gauge("ready", "1 while the service is ready for requests", lambda: detector.ready)
    add_gauge("live", "0 if only a restart of the service can help", lambda: detector.live)
    add_gauge(
        "predicted_wait_seconds",
        "Predicted wait of an image that arrived now",
        lambda: detector.predicted_wait_seconds,
    )
    metrics.add_optional_gauge(
        "engine_busy_ratio",
        "Share of the recent time (weighted, time constant 30 s) in which an engine ran batches",
        lambda: detector.served.engines_busy_share,
    )
    add_gauge(
        "canary_age_seconds",
        "Time since an engine last completed a batch or a canary; +Inf before the first",
        lambda: detector.canary_age_seconds,
    )
    add_gauge(
        "canary_max_age_seconds",
        "The canary age at which the service is not ready",
        lambda: max_canary_age_seconds,
    )
    add_gauge(
        "engines_ready",
        "Engines that are ready for batches",
        lambda: sum(engine.ready for engine in detector.served.engines),
    )
    for number in range(len(detector.served.engines)):
        metrics.add_engine(partial(_pid, detector, number), str(number))
    metrics.add_gpus()


def _pid(detector: Detector, number: int) -> int | None:
    """Process id of an engine of the model that serves now."""
    return detector.served.engine_pids[number]


def _batcher(detector: Detector) -> Batcher:
    return detector.served.batcher
