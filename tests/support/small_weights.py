"""Small networks and their weights files, in the official format and in ours."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import VARIANTS, ModelConfig, build_detector
from model.weights.checkpoint import save_checkpoint

LABELS = ("cat", "dog", "bird")

SMALL = replace(
    VARIANTS["lite-dino-efficientnet-lite0"],
    name="small",
    d_model=32,
    num_heads=2,
    num_classes=len(LABELS),
    encoder_layers=2,
    encoder_feedforward=48,
    decoder_feedforward=40,
    decoder_layers=2,
    num_queries=10,
    max_detections=10,
)

# An official architecture, but narrow; the backbone must be the real ResNet-50.
SMALL_R50 = replace(
    VARIANTS["lite-dino-r50-h2l2-2p1x3"],
    name="small-r50",
    d_model=32,
    encoder_layers=2,
    encoder_blocks=2,
    encoder_feedforward=48,
    decoder_feedforward=40,
    decoder_layers=2,
    num_queries=10,
)


def weights_of(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """The full state dict of a fresh network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(build_detector(config).state_dict())


def write_small(path: Path, *, half: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """Writes the small network's weights file and returns the weights."""
    weights = weights_of(SMALL, seed)
    save_checkpoint(path, weights, SMALL, LABELS, score_threshold=0.25, name="small", half=half)
    return weights


def write_official(path: Path, weights: dict[str, Any], **arguments: object) -> Path:
    """Writes a checkpoint as the official training code does."""
    torch.save({"model": weights, "args": argparse.Namespace(**arguments), "epoch": 11}, path)
    return path


def split_file(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the tensors' bytes of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_file(header: object, tensors: bytes) -> bytes:
    """A safetensors file with this header, which may be invalid."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors
