"""An inference request -> its result: calls the Detector, for HTTP and gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from service.core.detector import Detector
from service.core.served_model import ServedModel
from service.errors import DetectionError
from service.observability.trace_context import valid_request_id
from service.oip.model_description import ModelDescription
from service.oip.request import InferRequest
from service.oip.tensors import INPUT, OutputTensor, output_tensors
from service.types import DetectResult, Priority

_Encoded = TypeVar("_Encoded")

_IMAGES_IN_FLIGHT = 8  # of one request: enough for a batch, few enough to leave slots to others


@dataclass(frozen=True)
class RequestInfo:
    """What the transport knows of a request."""

    request_id: str  # of the transport; used if the request has no id of its own
    started: float  # time.monotonic seconds; the request's own timeout starts here
    deadline: float | None = None  # time.monotonic seconds, of the transport
    priority: Priority = Priority.NORMAL  # of the transport
    read_ms: float = 0.0  # spent receiving the body


@dataclass(frozen=True)
class InferResult:
    """The result of a request; `tensors` are in the order of its outputs."""

    model_name: str
    model_version: str
    tensors: tuple[OutputTensor, ...]


class Inference:
    """Runs inference requests."""

    def __init__(self, detector: Detector, model: ModelDescription) -> None:
        """Takes a detector and the description of its model."""
        self._detector = detector
        self._model = model

    async def run(
        self,
        request: InferRequest,
        arrival: RequestInfo,
        encode: Callable[[InferRequest, InferResult], _Encoded],
    ) -> _Encoded:
        """Detects in all images of a request concurrently, with one model.

        Args:
            request: the parsed request.
            arrival: how it came.
            encode: converts the result to what is sent.

        Returns:
            What `encode` returned.

        Raises:
            DetectionError: of the first image that failed; all other images have ended by then.
        """
        requested = request.parameters.options.max_detections
        with self._detector.one_model() as served:
            maximum = self._model.info.config.max_detections
            results = await self._detect_all(request, arrival, served)
        encode_started = time.monotonic()
        specs = [output.spec for output in request.outputs]
        tensors = output_tensors(specs, results, maximum if requested is None else requested)
        first = results[0]
        encoded = encode(request, InferResult(first.model_name, first.model_version, tensors))
        self._detector.metrics.observe_stage("encode", time.monotonic() - encode_started)
        return encoded

    async def _detect_all(
        self, request: InferRequest, arrival: RequestInfo, served: ServedModel
    ) -> list[DetectResult]:
        base_id = valid_request_id(request.request_id) or arrival.request_id
        deadline = _deadline(request, arrival)
        in_flight = asyncio.Semaphore(_IMAGES_IN_FLIGHT)
        single = len(request.images) == 1

        async def one(index: int, image: bytes) -> DetectResult:
            async with in_flight:
                return await self._detector.detect(
                    image,
                    request.parameters.options,
                    request_id=base_id if single else f"{base_id}-{index + 1}",
                    deadline=deadline,
                    priority=request.parameters.priority or arrival.priority,
                    read_ms=arrival.read_ms,
                    served=served,
                )

        if single:
            return [await one(0, request.images[0])]
        outcomes = await asyncio.gather(
            *(one(index, image) for index, image in enumerate(request.images)),
            return_exceptions=True,
        )
        return [_result(index, outcome) for index, outcome in enumerate(outcomes)]


def _deadline(request: InferRequest, arrival: RequestInfo) -> float | None:
    """The earlier of the transport's deadline and the request's own."""
    if request.parameters.timeout_s is None:
        return arrival.deadline
    own = arrival.started + request.parameters.timeout_s
    return own if arrival.deadline is None else min(own, arrival.deadline)


def _result(index: int, outcome: DetectResult | BaseException) -> DetectResult:
    """The result of one image.

    Raises:
        DetectionError: names the image that failed.
    """
    if isinstance(outcome, DetectionError):
        raise type(outcome)(
            f"{INPUT.name}[{index}]: {outcome.detail}",
            retry_after_seconds=outcome.retry_after_seconds,
        ) from outcome
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome
