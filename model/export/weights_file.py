"""Weights files as exports: the same weights, read back and compared."""

from __future__ import annotations

from pathlib import Path

import torch

from model.weights.checkpoint import load_detector, save_checkpoint
from model.weights.header import CheckpointError, read_header
from model.weights.info import ModelInfo


def copy_weights(source: Path, target: Path) -> ModelInfo:
    """Writes the weights file of a model again, in the precision of the source.

    Args:
        source: a weights file.
        target: the file to write; an existing one is replaced.

    Returns:
        The description in the new file.

    Raises:
        CheckpointError: if the source is refused, or the target cannot be written or has other
            weights; then it is removed.
    """
    detector, info = load_detector(source)
    kinds = {entry.dtype for entry in read_header(source).tensors.values()}
    weights = detector.state_dict()
    save_checkpoint(
        target,
        weights,
        info.config,
        info.labels,
        score_threshold=info.score_threshold,
        name=info.name,
        description=info.description,
        category_ids=info.category_ids,
        half="F32" not in kinds,
    )
    written, found = load_detector(target)
    copies = written.state_dict()
    differing = [name for name, tensor in weights.items() if not torch.equal(tensor, copies[name])]
    if differing:
        target.unlink()
        raise CheckpointError(target, f"was removed: {differing[0]} was not written exactly")
    return found
