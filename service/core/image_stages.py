"""An admitted image in its stages: slot -> decode (processes) -> batcher (engine) -> detections."""

from __future__ import annotations

import time
from typing import NamedTuple

from model.images.decode import ImageLimits
from service.batching.batcher import EngineResult
from service.core.admission import Admission
from service.core.explanations import Explanations
from service.core.request import ImageRequest, job_of, turn_of
from service.core.tiled_images import TiledImages
from service.decoding.pool import DecoderPool
from service.decoding.tasks import ImageInSlot
from service.ipc.slot_pool import SlotLease


class FinishedImage(NamedTuple):
    """What the stages of an image returned."""

    decoded: ImageInSlot
    found: EngineResult
    decode_ms: float


class ImageStages:
    """Runs images."""

    def __init__(
        self,
        decoders: DecoderPool,
        images: ImageLimits,
        admission: Admission,
        explanations: Explanations,
        tiled: TiledImages,
    ) -> None:
        """Takes the parts that the detector shares.

        Args:
            decoders: started.
            images: limits of an image file.
            admission: learns how long decoding takes.
            explanations: learns how long explaining takes.
            tiled: runs the tiles of large images.
        """
        self._decoders = decoders
        self._images = images
        self._admission = admission
        self._explanations = explanations
        self._tiled = tiled

    async def run(self, request: ImageRequest, lease: SlotLease) -> FinishedImage:
        """Decodes an image into a slot and detects in it.

        Raises:
            DetectionError: one subclass per kind of failure.
        """
        batcher = request.served.batcher
        turn = turn_of(request.priority, request.started, request.deadline)
        with batcher.track_decoding(request.priority):
            decoded = await self._decoders.decode(
                request.data, request.served.info.config, self._images, lease, turn
            )
        self._admission.learn_decode(decoded.decode_ms / 1000)
        tiles = self._tiled.plan(request, decoded.image.original_size)
        whole = batcher.run(job_of(request, lease, decoded.image, time.monotonic()))
        if tiles:
            found, decode_ms = await self._tiled.run(request, lease, decoded, tiles, whole)
            return FinishedImage(decoded, found, decode_ms)
        found = await whole
        if found.explanation is not None:
            self._explanations.record_engine(found.explain_ms / 1000)
        return FinishedImage(decoded, found, decoded.decode_ms)
