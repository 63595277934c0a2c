"""Admission: accepts or refuses an image before it is decoded.

An image is refused at once if no slot is free or if its result is predicted to miss its deadline:
running it would only take engine time from images that can still be in time.
"""

from __future__ import annotations

import math

from service.batching.estimates import RunningMean
from service.core.served_model import ServedModel
from service.errors import DeadlineExceeded, NotReady, Overloaded
from service.ipc.slot_pool import SlotLease
from service.types import Priority

_NOT_READY_RETRY_SECONDS = 2
# The prediction may take up to this share of the time that is left. Under overload every admitted
# image is just in time: without this margin half of them would miss their deadline.
MAX_PREDICTED_SHARE = 0.8


def late_detail(what: str, needed: float, left: float) -> str:
    """The detail of `Overloaded` for what is predicted to come too late.

    Args:
        what: is refused.
        needed: predicted seconds until it would come.
        left: seconds until the deadline.
    """
    return (
        f"{what} would come in about {needed * 1000:.0f} ms, which is more than "
        f"{MAX_PREDICTED_SHARE:.0%} of the {left * 1000:.0f} ms until the deadline; try again later"
    )


class Admission:
    """Accepts images, each with the lease of a slot."""

    def __init__(self, decode_threads: int) -> None:
        """Starts without measured decoding times.

        Args:
            decode_threads: number of images that are decoded at once.
        """
        self._decode_threads = decode_threads
        self._decode_seconds = RunningMean()

    def learn_decode(self, seconds: float) -> None:
        """Records how long decoding one image took."""
        self._decode_seconds.learn(seconds)

    def predicted_wait_seconds(self, served: ServedModel) -> float:
        """Predicted wait of an image that arrived now, for a thread and for its batch."""
        return self._decode_wait_seconds(served, Priority.NORMAL) + served.batcher.predict().wait

    def admit(
        self,
        served: ServedModel,
        seconds_left: float,
        priority: Priority,
        additional_seconds: float = 0.0,
    ) -> SlotLease:
        """Accepts an image.

        Args:
            served: the model that will run it.
            seconds_left: until its deadline.
            priority: of the request.
            additional_seconds: predicted for what follows the detection.

        Returns:
            The lease of a slot for it.

        Raises:
            NotReady: if no engine accepts batches.
            DeadlineExceeded: if no time is left.
            Overloaded: if no slot is free, or the time that is left is too short.
        """
        if not served.batcher.ready:
            raise NotReady(
                "the model is being loaded; try again in a moment",
                retry_after_seconds=_NOT_READY_RETRY_SECONDS,
            )
        if seconds_left <= 0:
            raise DeadlineExceeded("the deadline had passed when the image was received")
        prediction = served.batcher.predict(priority)
        wait = self._decode_wait_seconds(served, priority) + prediction.wait
        needed = wait + prediction.run + additional_seconds
        # An image that would not wait is always accepted: otherwise a prediction that was once too
        # high would refuse every image and never be corrected.
        if wait > 0 and needed > seconds_left * MAX_PREDICTED_SHARE:
            raise Overloaded(
                late_detail("the result", needed, seconds_left),
                retry_after_seconds=max(1, math.ceil(wait)),
            )
        return served.pool.acquire(priority, max(1, math.ceil(wait)))

    def _decode_wait_seconds(self, served: ServedModel, priority: Priority) -> float:
        before = served.batcher.num_decoding_before(priority)
        return self._decode_seconds.value * (before // self._decode_threads)
