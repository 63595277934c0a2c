"""Sample images of a run: the same few images each time, with the current detections."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.data.annotations import DataError
from model.network.detector import LiteDETR
from model.postprocess import select_detections
from model.training.augment import fit
from model.training.batches import collate, normalise
from model.training.options import TrainOptions
from model.training.report import draw_boxes
from model.training.sources import ImageSource

_SHOWN_SCORE = 0.3
_CAPTION_LENGTH = 12  # of a class name, characters


class SampleImages:
    """Images chosen when a run starts, spread evenly over its data."""

    def __init__(self, source: ImageSource, options: TrainOptions, labels: Sequence[str]) -> None:
        """Reads the images."""
        size = max((*options.sizes, *options.final_sizes))
        count = min(options.sample_pictures, len(source))
        self._labels = labels
        self._images = []
        for index in np.linspace(0, len(source) - 1, count).astype(int).tolist():
            try:
                self._images.append(fit(source.load(index), (size, size)))
            except DataError:  # one sample fewer
                continue
        self._model: LiteDETR | None = None

    def draw(
        self, detector: LiteDETR, weights: Mapping[str, Tensor], device: torch.device
    ) -> list[Image.Image]:
        """Detects on the samples with the averaged weights.

        Args:
            detector: its architecture is used.
            weights: loaded into a copy of it.
            device: to run on.

        Returns:
            The samples with annotated and detected boxes.
        """
        if not self._images:
            return []
        if self._model is None:
            self._model = copy.deepcopy(detector).eval()
        self._model.load_state_dict(weights)
        batch = collate(self._images).to(device)
        with torch.inference_mode():
            output = self._model(normalise(batch.images, batch.padding_mask), batch.padding_mask)
        sizes = [(p.pixels.shape[0], p.pixels.shape[1]) for p in self._images]
        drawn = []
        detections = select_detections(output.pred_logits, output.pred_boxes, sizes, 20)
        for image, found in zip(self._images, detections, strict=True):
            shown = found.keep(found.scores >= _SHOWN_SCORE)
            captions = [
                f"{self._labels[label][:_CAPTION_LENGTH]} {score:.2f}"
                for label, score in zip(shown.labels.tolist(), shown.scores.tolist(), strict=True)
            ]
            drawn.append(draw_boxes(image.pixels, image.boxes, shown.boxes_xyxy, captions))
        return drawn
