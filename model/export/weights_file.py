"""Weights files as exports: the same weights, read back and compared."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from model.data.output_files import is_stream
from model.weights.checkpoint import copy_with_metadata, load_detector, save_checkpoint
from model.weights.header import INT8_KEY, CheckpointError, parse_json, read_header
from model.weights.info import ModelInfo


def copy_weights(source: Path, target: Path) -> ModelInfo:
    """Writes the weights file of a model again, in the precision of the source.

    Args:
        source: a weights file.
        target: the file to write; an existing one is replaced once the new one was compared.

    Returns:
        The description in the new file.

    Raises:
        CheckpointError: if the source is refused, or the target cannot be written or would have
            other weights.
    """
    detector, info = load_detector(source)
    header = read_header(source)
    card = header.metadata.get("card")
    parsed_card = None if card is None else parse_json(source, "card", card)
    weights = detector.state_dict()
    copy = target.with_name(f".{target.name}.{os.getpid()}.copy")
    if is_stream(target):  # it would be replaced by a file
        raise CheckpointError(target, "is not a regular file")
    try:
        save_checkpoint(
            copy,
            weights,
            info.config,
            info.labels,
            score_threshold=info.score_threshold,
            name=info.name,
            description=info.description,
            category_ids=info.category_ids,
            half="F32" not in {entry.dtype for entry in header.tensors.values()},
            card=parsed_card,
        )
        if INT8_KEY in header.metadata:
            copy_with_metadata(copy, copy, {INT8_KEY: header.metadata[INT8_KEY]})
        written, found = load_detector(copy)
        copies = written.state_dict()
        differing = [key for key, tensor in weights.items() if not torch.equal(tensor, copies[key])]
        if differing:
            raise CheckpointError(copy, f"{differing[0]} would not be written exactly")
        copy.replace(target)
    except CheckpointError as error:
        raise CheckpointError(target, error.problem) from error
    finally:
        copy.unlink(missing_ok=True)
    return found
