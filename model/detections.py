"""The detections of one image, as columns; without torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Detections:
    """N detections of one image, best score first.

    Attributes:
        scores: float32 [N], 0..1, descending.
        labels: int64 [N], class ids: indices into the model's label names.
        boxes_xyxy: float32 [N, 4], (xmin, ymin, xmax, ymax) in pixels of the original image, after
            EXIF rotation.
    """

    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    boxes_xyxy: npt.NDArray[np.float32]

    def __len__(self) -> int:
        """The number of detections."""
        return len(self.scores)

    def keep(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.int64] | slice) -> Detections:
        """The chosen rows, in order."""
        return Detections(self.scores[chosen], self.labels[chosen], self.boxes_xyxy[chosen])
