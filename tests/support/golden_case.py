"""A small detector whose weights are generated from names, and its verified outputs.

`python -m tests.support.golden_case` wrote the outputs at a commit whose network reproduces every
official reference case. The test compares with them also where shared/reference is absent.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model import VARIANTS, build_detector

FILE = Path(__file__).parent / "golden_case.npz"
CONFIG = replace(
    VARIANTS["lite-dino-r18-small"],
    name="golden",
    d_model=32,
    num_heads=2,
    num_classes=3,
    encoder_feedforward=48,
    decoder_feedforward=48,
    decoder_layers=2,
    num_queries=10,
    max_detections=10,
)


def fill_from_names(detector: nn.Module) -> None:
    """Fills every parameter and buffer with values that depend only on its name."""
    state = detector.state_dict()
    for name, tensor in state.items():
        owner = name.replace("transformer.decoder.bbox_embed", "bbox_embed")
        owner = owner.replace("transformer.decoder.class_embed", "class_embed")
        parts = owner.split(".")
        if parts[0] in ("bbox_embed", "class_embed"):
            parts[1] = "0"
        rng = np.random.default_rng(zlib.crc32(".".join(parts).encode()))
        fan_in = int(np.prod(tensor.shape[1:])) or 1
        values = rng.standard_normal(tuple(tensor.shape)) / np.sqrt(fan_in)
        if tensor.dim() == 1:
            values = 1 + 0.1 * values if name.endswith(("weight", "running_var")) else 0.1 * values
        state[name] = torch.from_numpy(values).to(tensor.dtype)
    detector.load_state_dict(state)


def batch() -> tuple[Tensor, Tensor]:
    """Two float64 images of different size, zero-padded, and their padding mask."""
    rng = np.random.default_rng(7)
    images, mask = np.zeros((2, 3, 96, 128)), np.ones((2, 96, 128), dtype=bool)
    for index, (height, width) in enumerate(((96, 128), (64, 80))):
        images[index, :, :height, :width] = rng.standard_normal((3, height, width))
        mask[index, :height, :width] = False
    return torch.from_numpy(images), torch.from_numpy(mask)


def outputs() -> dict[str, np.ndarray]:
    """The network's present outputs, in float64."""
    detector = build_detector(CONFIG).eval()
    fill_from_names(detector)
    detector.double()
    with torch.inference_mode():
        output = detector(*batch())
    return {
        "memory": output.memory.numpy()[:, ::7],
        "pred_logits": output.pred_logits.numpy(),
        "pred_boxes": output.pred_boxes.numpy(),
    }


if __name__ == "__main__":
    present = outputs()
    np.savez_compressed(
        FILE,
        memory=present["memory"].astype(np.float32),
        pred_logits=present["pred_logits"].astype(np.float32),
        pred_boxes=present["pred_boxes"].astype(np.float32),
    )
