"""Who may come in: the first arrow of a request's way, decided before a byte of it is decoded.

An image is refused at once where there is no place for it, and where its answer would come after
its deadline: waiting for an answer that is too late helps nobody, and somebody else could have had
the engine meanwhile.
"""

from __future__ import annotations

import math

from service.batching.estimates import RunningMean
from service.core.served_model import ServedModel
from service.errors import DeadlineExceeded, NotReady, Overloaded
from service.ipc.slots import SlotLease
from service.types import Priority

_NOT_READY_RETRY_SECONDS = 2
# Of the time that is left, as much may be spoken for by the prediction. What is admitted in a flood
# is all as late as can be: without this margin, half of it would miss its deadline and the device
# would work for nobody.
_SHARE_PREDICTED = 0.8


class Admission:
    """Lets images in, each with the lease of a slot as its permit."""

    def __init__(self, decode_threads: int) -> None:
        """Knows nothing of decoding times yet.

        Args:
            decode_threads: so many images are decoded at once.
        """
        self._decode_threads = decode_threads
        self._decode_seconds = RunningMean()

    def learn_decode(self, seconds: float) -> None:
        """Takes in how long the decoding of one image took."""
        self._decode_seconds.learn(seconds)

    def predicted_wait_seconds(self, served: ServedModel) -> float:
        """How long an image that came now would wait for a thread and for its batch."""
        return self._decode_wait_seconds(served) + served.batcher.predict().wait

    def admit(self, served: ServedModel, seconds_left: float, priority: Priority) -> SlotLease:
        """Lets an image in, or says why not.

        Args:
            served: the model that is to run it.
            seconds_left: until its deadline.
            priority: its own.

        Raises:
            NotReady: where no engine takes batches.
            DeadlineExceeded: where no time is left.
            Overloaded: where there is no slot, or the time that is left is too short.
        """
        if not served.batcher.ready:
            raise NotReady(
                "the model is being loaded; try again in a moment",
                retry_after_seconds=_NOT_READY_RETRY_SECONDS,
            )
        if seconds_left <= 0:
            raise DeadlineExceeded("the deadline had passed when the image was here")
        prediction = served.batcher.predict(priority)
        wait = self._decode_wait_seconds(served) + prediction.wait
        needed = wait + prediction.run
        # Where nothing is before it an image is always tried: a prediction that was too high once
        # would else keep everybody out and never be corrected.
        if wait > 0 and needed > seconds_left * _SHARE_PREDICTED:
            raise Overloaded(
                f"the answer would come in about {needed * 1000:.0f} ms, after the deadline in "
                f"{seconds_left * 1000:.0f} ms; try again later",
                retry_after_seconds=max(1, math.ceil(wait)),
            )
        return served.pool.acquire(priority, max(1, math.ceil(wait)))

    def _decode_wait_seconds(self, served: ServedModel) -> float:
        return self._decode_seconds.value * (served.batcher.num_decoding // self._decode_threads)
