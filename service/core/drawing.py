"""Encoding results in formats that need the image again, in the processes that decode."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from model.images.decode import Cost
from service.core.explanations import Explanations
from service.core.formats import Encoded, EncodeInput, OutputFormat
from service.core.formats.output_format import encode_with_image
from service.core.request import turn_of
from service.decoding.pool import DecoderPool
from service.errors import DeadlineExceeded
from service.types import Priority

_BYTES_PER_PIXEL = 16  # the decoded image, its copies, and the encoded one
_SECONDS_PER_PIXEL = 60e-9  # decoding and encoding, of one core


class Drawing:
    """Draws results in their images.

    Args:
        decoders: in which it is drawn.
        explanations: record how long theirs take to draw.
        timeout_seconds: of one image.
    """

    def __init__(
        self, decoders: DecoderPool, explanations: Explanations, timeout_seconds: float
    ) -> None:
        self._decoders = decoders
        self._explanations = explanations
        self._timeout_seconds = timeout_seconds

    async def draw(
        self,
        output_format: OutputFormat,
        job: EncodeInput,
        image: bytes,
        deadline: float | None,
        priority: Priority,
    ) -> Encoded:
        """Encodes one result; arguments and errors as of `Detector.encode_with_image`."""
        result = job.files[0].result
        assert result is not None, "files with an error are not drawn"
        seconds, now = self._timeout_seconds, time.monotonic()
        if deadline is not None:
            seconds = min(seconds, max(0.0, deadline - now))
        num_pixels, fixed = result.width * result.height, output_format.drawing_cost
        cost = Cost(
            fixed.memory_bytes + num_pixels * _BYTES_PER_PIXEL,
            fixed.seconds + num_pixels * _SECONDS_PER_PIXEL,
        )
        call = partial(encode_with_image, encode=output_format.encode, job=job)
        turn = turn_of(priority, now, now + seconds)
        try:
            async with asyncio.timeout(seconds):
                encoded = Encoded(*await self._decoders.call(call, image, cost, turn))
        except TimeoutError:
            raise DeadlineExceeded("no response before the deadline") from None
        if output_format.explains:
            self._explanations.record_drawing(time.monotonic() - now)
        return encoded
