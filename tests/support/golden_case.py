"""A small detector with weights made from names, and the numbers it gave once verified.

The numbers were written by `python -m tests.support.golden_case` from a commit whose network
reproduces every official reference case; the test guards them where that folder is absent.
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
    """Gives every parameter and buffer values that depend on its name alone."""
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
    """What the network gives now, in float64."""
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
    made = outputs()
    np.savez_compressed(
        FILE,
        memory=made["memory"].astype(np.float32),
        pred_logits=made["pred_logits"].astype(np.float32),
        pred_boxes=made["pred_boxes"].astype(np.float32),
    )
