"""Resized uint8 images -> normalised batch -> network -> detections: one batch of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.detections import Detections
from model.network.detector import LiteDETR
from model.network.int8 import Int8Backbone
from model.network.outputs import DetectorOutput
from model.network.precision import INT8, precision_name
from model.postprocess import best_pairs, select_detections

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Predictor:
    """Runs a detector on batches.

    On a GPU a batch runs as one. On a CPU its images run one after the other: that is faster there
    (`benchmarks/serving/batch_invariance.py` measures it), and an image has the same result to the
    bit alone and in any batch. Otherwise it would not: matrix products of another size round
    differently, and in a near tie the last bit decides which query is selected.

    Args:
        detector: is set to evaluation mode and moved to `device`.
        config: its architecture.
        device: a torch device.
    """

    def __init__(self, detector: nn.Module, config: ModelConfig, device: str = "cpu") -> None:
        self.config = config
        self.device = torch.device(device)
        self._detector = detector.to(self.device).eval()
        if self.device.type == "cpu":
            self._detector = self._detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(IMAGENET_MEAN, device=self.device).view(shape) * 255
        self._scale = 1 / (torch.tensor(IMAGENET_STD, device=self.device).view(shape) * 255)

    def predict(
        self,
        images: Sequence[npt.NDArray[np.uint8]],
        padded: tuple[int, int],
        original_sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """Runs one batch: `assemble`, `forward` and `postprocess` for each of its `portions`.

        Args:
            images: RGB [h, w, 3] each, resized (`model.geometry.resized_size`).
            padded: (H, W) of the shape bucket; no image is larger.
            original_sizes: (H, W) in pixels of each image before the resize, that boxes refer to.

        Returns:
            One `Detections` per image, in order.

        Raises:
            ValueError: for an image larger than its shape bucket.
        """
        found: list[Detections] = []
        for part in self.portions(len(images)):
            output = self.forward(*self.assemble(images[part], padded))
            found += self.postprocess(output, original_sizes[part])
        return found

    @property
    def network(self) -> LiteDETR:
        """The detector, for `model.explain`."""
        return cast(LiteDETR, self._detector)

    @property
    def dtype(self) -> torch.dtype:
        """The number type that the network computes in; boxes and scores are float32."""
        backbone = getattr(self._detector, "backbone", None)
        dtype: torch.dtype | None = None if backbone is None else backbone[0].dtype
        return dtype or torch.float32  # None: not an inference form

    @property
    def precision(self) -> str:
        """The name of what the network computes in: "fp32", "bf16", "fp16" or "int8"."""
        if isinstance(getattr(self._detector, "body", None), Int8Backbone):
            return INT8
        return precision_name(self.dtype)

    @property
    def runs_batches_whole(self) -> bool:
        """Whether the images of a batch run through the network together."""
        return self.device.type != "cpu"

    def portions(self, count: int) -> list[slice]:
        """The images of a batch that run together: all on a GPU, one at a time on a CPU."""
        step = count if self.runs_batches_whole else 1
        return [slice(start, start + step) for start in range(0, count, step)] if count else []

    def assemble(
        self, images: Sequence[npt.NDArray[np.uint8]], padded: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """The batch on the device: normalised [B, 3, H, W] and padding mask bool [B, H, W].

        Raises:
            ValueError: for an image larger than its shape bucket.
        """
        return self.normalise(*self.copy(*self.stack(images, padded)))

    def stack(
        self, images: Sequence[npt.NDArray[np.uint8]], padded: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """The batch on the host: pixels uint8 [B, 3, H, W] and padding mask bool [B, H, W].

        Raises:
            ValueError: for an image larger than its shape bucket.
        """
        batch = np.zeros((len(images), *padded, 3), dtype=np.uint8)
        mask = np.ones((len(images), *padded), dtype=np.bool_)
        for index, image in enumerate(images):
            height, width = image.shape[:2]
            if height > padded[0] or width > padded[1]:
                raise ValueError(f"an image of {height} x {width} does not fit bucket {padded}")
            batch[index, :height, :width] = image
            mask[index, :height, :width] = False
        return torch.from_numpy(batch).permute(0, 3, 1, 2), torch.from_numpy(mask)

    def copy(self, pixels: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The result of `stack` on the device; the same tensors if that is the host."""
        return pixels.to(self.device), padding_mask.to(self.device)

    def normalise(self, pixels: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The network's input: float [B, 3, H, W], 0 in the padding; and the padding mask."""
        normalised = (pixels.float() - self._mean) * self._scale
        return normalised.masked_fill(padding_mask[:, None], 0.0), padding_mask

    def forward(self, images: Tensor, padding_mask: Tensor) -> DetectorOutput:
        """Runs the network; on a GPU it may still be running when this returns."""
        with torch.inference_mode():
            output: DetectorOutput = self._detector(images, padding_mask)
        return output

    def detect(self, pixels: Tensor, sizes: Tensor) -> Tensor:
        """Everything that a GPU computes for a batch; never waits, so a CUDA graph can record it.

        Args:
            pixels: uint8 [B, H, W, 3] on the device; the padding may have any content.
            sizes: int32 [B, 2] on the device, (height, width) of each image without padding.

        Returns:
            float32 [B, K, 6] on the device; see `model.postprocess.best_pairs`.
        """
        with torch.inference_mode():
            mask = padding_of(sizes, (pixels.shape[1], pixels.shape[2]))
            output = self.forward(*self.normalise(pixels.permute(0, 3, 1, 2), mask))
            return best_pairs(output.pred_logits, output.pred_boxes, self.config.max_detections)

    def postprocess(
        self, output: DetectorOutput, original_sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """The best detections of each image, on the CPU, in pixels of the original images."""
        with torch.inference_mode():
            return select_detections(
                output.pred_logits,
                output.pred_boxes,
                original_sizes,
                self.config.max_detections,
                self.config.duplicate_iou,
            )


def padding_of(sizes: Tensor, padded: tuple[int, int]) -> Tensor:
    """The padding mask of images of these sizes, on the device of `sizes`.

    Args:
        sizes: integers [B, 2], (height, width).
        padded: (H, W) of the shape bucket.

    Returns:
        bool [B, H, W], True on padding.
    """
    below = torch.arange(padded[0], device=sizes.device) >= sizes[:, :1]
    right = torch.arange(padded[1], device=sizes.device) >= sizes[:, 1:]
    return below[:, :, None] | right[:, None, :]
