"""The service's one entry point: `Detector.detect` turns an encoded image into detections.

    admit -> slot -> decode (processes) -> batcher (engine) -> select -> DetectResult

Adapters (REST, gRPC, OIP) parse the request, call `detect` and encode the result.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from model.images.decode import ImageLimits
from model.weights.info import ModelInfo
from service.core.admission import Admission
from service.core.drawing import Drawing
from service.core.explanations import Explanations
from service.core.formats import Encoded, EncodeInput, OutputFormat
from service.core.image_stages import ImageStages
from service.core.outcomes import Outcomes
from service.core.request import ImageRequest, finish_request
from service.core.selection import resolve_options
from service.core.served_model import ServedModel
from service.core.tiled_images import TiledImages
from service.core.tiling.options import check_tiles
from service.decoding.pool import DecoderPool
from service.errors import (
    DeadlineExceeded,
    DetectionError,
    NotReady,
    ShuttingDown,
)
from service.ipc.slot_pool import SlotLease
from service.observability.metrics import Metrics
from service.observability.request_scope import forget_completed_image
from service.types import DetectOptions, DetectResult, Priority
from service.usage import UseCounter

_NOT_READY_RETRY_SECONDS = 2
_DRAINING_RETRY_SECONDS = 5


@dataclass(frozen=True)
class DetectorLimits:
    """Limits of a request; see the settings of the same names."""

    images: ImageLimits
    request_timeout_ms: float
    decode_threads: int
    canary_max_age_seconds: float
    explain: bool = False
    max_tiles: int = 64


class Detector:
    """Detects in images; all adapters share one."""

    def __init__(
        self,
        served: ServedModel,
        metrics: Metrics,
        limits: DetectorLimits,
        decoders: DecoderPool,
    ) -> None:
        """Creates a detector that becomes ready with the first engine.

        Args:
            served: the model that serves, until `swap`.
            metrics: count its images.
            limits: of a request.
            decoders: started; the detector closes them.
        """
        self.metrics = metrics
        self._served = served
        self._loaded = True
        self._limits = limits
        self._admission = Admission(limits.decode_threads)
        metrics.set_model(served.info)
        self._decoders = decoders
        self._draining = False
        self._refusing = False
        self._accepted = UseCounter()
        self._outcomes = Outcomes(metrics)
        self._explanations = Explanations(metrics, offered=limits.explain)
        self._drawing = Drawing(decoders, self._explanations, limits.request_timeout_ms / 1000)
        tiled = TiledImages(decoders, metrics, limits.images, limits.max_tiles)
        self._stages = ImageStages(
            decoders, limits.images, self._admission, self._explanations, tiled
        )

    @property
    def model(self) -> ModelInfo:
        """The model that serves; after `unload`, the one that served last."""
        return self._served.info

    @property
    def served(self) -> ServedModel:
        """The model that serves, with its engines; for its owner and for gauges."""
        return self._served

    @property
    def loaded(self) -> bool:
        """Whether a model is loaded; false between `unload` and the next `swap`."""
        return self._loaded

    @property
    def ready(self) -> bool:
        """Whether a load balancer should send requests here."""
        return not self.not_ready_reason

    @property
    def live(self) -> bool:
        """False if only a restart of the whole service can help."""
        return self._served.batcher.live or not self._loaded

    @property
    def not_ready_reason(self) -> str:
        """Why `ready` is false, for people; empty if it is true."""
        if self._draining:
            return "the service is shutting down"
        if not self._loaded:
            return "no model is loaded"
        if not self._served.batcher.ready:
            return "the model is being loaded"
        age = self.canary_age_seconds
        if age > self._limits.canary_max_age_seconds:
            return f"no engine has completed a batch for {age:.0f} s"
        return ""

    @property
    def kernel(self) -> str:
        """Name of the attention implementation; empty before the engine is ready."""
        return self._served.batcher.kernel

    @property
    def canary_age_seconds(self) -> float:
        """Seconds since an engine last completed a batch; infinite if none ever did."""
        return self._served.canary_age_seconds()

    @property
    def predicted_wait_seconds(self) -> float:
        """Predicted wait of an image that arrived now."""
        return self._admission.predicted_wait_seconds(self._served)

    @property
    def active(self) -> int:
        """Images in flight: accepted and not yet finished."""
        return self._accepted.count

    async def detect(  # noqa: PLR0913 - the fields of a request
        self,
        data: bytes,
        options: DetectOptions,
        *,
        request_id: str,
        deadline: float | None = None,
        priority: Priority = Priority.NORMAL,
        read_ms: float = 0.0,
        drawn: bool = False,
        served: ServedModel | None = None,
    ) -> DetectResult:
        """Detects in one encoded image.

        Args:
            data: the image file.
            options: which detections to return.
            request_id: for logs and the result.
            deadline: monotonic seconds; can only shorten the service's own timeout.
            priority: which waiting images go first.
            read_ms: time the adapter took to receive the body, for the timings.
            drawn: whether the result is passed to `encode_with_image`, which then counts the image.
            served: the model, of `one_model`; None: the one that serves now.

        Returns:
            The detections, in pixels of the image after EXIF rotation.

        Raises:
            DetectionError: one subclass per kind of failure (`service.errors`).
        """
        started = time.monotonic()
        served = served or self._served
        try:
            check_tiles(options.tiles, self._limits.max_tiles, explains=options.explain is not None)
            latest = started + self._limits.request_timeout_ms / 1000
            request = ImageRequest(
                served=served,
                data=data,
                selection=resolve_options(options, served.info),
                request_id=request_id,
                started=started,
                deadline=latest if deadline is None else min(deadline, latest),
                priority=priority,
                read_ms=read_ms,
                explain=options.explain,
                tiles=options.tiles,
            )
            result = await self._detect(request)
        except BaseException as error:
            self._outcomes.record_failure(error, request_id, started)
            raise
        if not drawn:
            self._record_success(result)
        return result

    @contextmanager
    def one_model(self) -> Iterator[ServedModel]:
        """Context manager around a request of several images that get results of the same model.

        The model runs until the end of the request, also if another one replaces it meanwhile.
        """
        served = self._served
        with served.in_use():
            yield served

    @contextmanager
    def explaining(self, request_id: str) -> Iterator[None]:
        """Context manager around a request that explains a detection, its drawing included.

        Args:
            request_id: for logs.

        Raises:
            InvalidOptions: if explanations are turned off.
            Overloaded: while another detection is explained.
        """
        started, admitted = time.monotonic(), False
        try:
            with self._explanations.turn():
                admitted = True
                yield
        except DetectionError as error:
            if not admitted:  # otherwise it is recorded already
                self._outcomes.record_failure(error, request_id, started)
            raise

    async def encode_with_image(  # noqa: PLR0913, PLR0917 - the fields of a request
        self,
        output_format: OutputFormat,
        job: EncodeInput,
        image: bytes,
        deadline: float | None = None,
        priority: Priority = Priority.NORMAL,
        accept: Callable[[Encoded], object] | None = None,
    ) -> Encoded:
        """Encodes a result for a format that decodes the image again (`draws_images`).

        The image is counted as completed or failed here.

        Args:
            output_format: whose encoder can be pickled.
            job: with one result, of `detect` with `drawn`.
            image: the encoded image file of that result.
            deadline: monotonic seconds; can only shorten the service's own timeout.
            priority: which waiting images go first.
            accept: called with the encoded result; can refuse it with a DetectionError.

        Raises:
            DetectionError: as `detect`.
        """
        result = job.files[0].result
        assert result is not None, "files with an error are not drawn"
        started = time.monotonic() - result.timings.total / 1000
        try:
            with self._accepted:
                encoded = await self._drawing.draw(output_format, job, image, deadline, priority)
            if accept is not None:
                accept(encoded)
        except BaseException as error:
            forget_completed_image()
            self._outcomes.record_failure(error, result.request_id, started)
            raise
        self._record_success(result)
        return encoded

    def swap(self, served: ServedModel) -> ServedModel:
        """Serves another model from now on; requests in flight stay with the previous one.

        Returns:
            The previous model; its owner closes it after `wait_until_unused`.
        """
        before, self._served = self._served, served
        self._loaded = True
        self.metrics.set_model(served.info)
        return before

    def unload(self) -> ServedModel:
        """Serves no model from now on, until `swap`.

        Returns:
            The previous model; its owner closes it after `wait_until_unused`.
        """
        self._loaded = False
        return self._served

    def begin_drain(self) -> None:
        """Becomes not ready. Requests are still accepted: load balancers need time to notice."""
        self._draining = True

    async def drain(self, timeout_seconds: float) -> int:
        """Refuses new images and waits for those in flight.

        Returns:
            How many are still in flight; 0 unless the time ran out.
        """
        self._draining = self._refusing = True
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._accepted.wait_for_zero()
        except TimeoutError:
            return self._accepted.count
        return 0

    def close(self) -> None:
        """Ends the decoder processes; no call of `detect` is allowed afterwards."""
        self._draining = self._refusing = True
        self._decoders.close()

    def _record_success(self, result: DetectResult) -> None:
        """Counts a completed image after the caller's task has sent the response."""
        asyncio.get_running_loop().call_soon(self._outcomes.record_success, result.timings)

    async def _detect(self, request: ImageRequest) -> DetectResult:
        with request.served.in_use():
            lease = self._admit(request)
            seconds = request.deadline - request.started
            with self._accepted:
                try:
                    async with asyncio.timeout(seconds):
                        finished = await self._stages.run(request, lease)
                except TimeoutError:
                    raise DeadlineExceeded(f"no result within {seconds * 1000:.0f} ms") from None
                finally:
                    lease.release()
        return finish_request(request, *finished)

    def _admit(self, request: ImageRequest) -> SlotLease:
        """Accepts a request: leases a slot for it.

        Raises:
            ShuttingDown, NotReady, DeadlineExceeded, Overloaded: if it is refused.
        """
        if self._refusing:
            raise ShuttingDown(
                "the service is shutting down", retry_after_seconds=_DRAINING_RETRY_SECONDS
            )
        if not self._loaded:
            raise NotReady("no model is loaded", retry_after_seconds=_NOT_READY_RETRY_SECONDS)
        left = request.deadline - request.started
        additional = 0.0 if request.explain is None else self._explanations.predicted_seconds
        return self._admission.admit(request.served, left, request.priority, additional)
