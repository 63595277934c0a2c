"""Sample pictures of a run: the same few pictures each time, with what the model finds now."""

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
_CAPTION = 12  # characters


class SampleImages:
    """Chosen when a run starts, spread over its pictures."""

    def __init__(self, source: ImageSource, options: TrainOptions, labels: Sequence[str]) -> None:
        """Reads the pictures."""
        size = max((*options.sizes, *options.final_sizes))
        count = min(options.sample_pictures, len(source))
        self._labels = labels
        self._pictures = []
        for index in np.linspace(0, len(source) - 1, count).astype(int).tolist():
            try:
                self._pictures.append(fit(source.load(index), (size, size)))
            except DataError:  # a sample less
                continue
        self._model: LiteDETR | None = None

    def draw(
        self, detector: LiteDETR, weights: Mapping[str, Tensor], device: torch.device
    ) -> list[Image.Image]:
        """Runs the averaged weights on the samples.

        Args:
            detector: gives the architecture.
            weights: loaded into a copy of it.
            device: where to run.
        """
        if not self._pictures:
            return []
        if self._model is None:
            self._model = copy.deepcopy(detector).eval()
        self._model.load_state_dict(weights)
        batch = collate(self._pictures).to(device)
        with torch.inference_mode():
            output = self._model(normalise(batch.images, batch.padding_mask), batch.padding_mask)
        sizes = [(p.pixels.shape[0], p.pixels.shape[1]) for p in self._pictures]
        drawn = []
        answers = select_detections(output.pred_logits, output.pred_boxes, sizes, 20)
        for picture, answer in zip(self._pictures, answers, strict=True):
            found = answer.keep(answer.scores >= _SHOWN_SCORE)
            captions = [
                f"{self._labels[label][:_CAPTION]} {score:.2f}"
                for label, score in zip(found.labels.tolist(), found.scores.tolist(), strict=True)
            ]
            drawn.append(draw_boxes(picture.pixels, picture.boxes, found.boxes_xyxy, captions))
        return drawn
