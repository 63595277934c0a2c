"""Start weights from another model: what fits is copied, class heads are adapted to new classes.

The encoder, the decoder and the box heads know how to find objects of any class, so a run for other
classes keeps them. Only the rows of the class heads are per class: a class that both models have
keeps its row, any other starts with the mean of the old rows, which scores "an object".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.network.detector import LiteDETR
from model.weights.header import CheckpointError, read_header
from model.weights.names import check_finite

_CLASS_HEADS = ("class_embed", "enc_out_class_embed")
_LABEL_EMBEDDING = "label_enc.weight"
_QUERY_CONTENT = "transformer.tgt_embed.weight"
_NAMES_SHOWN = 6


def load_fitting(detector: LiteDETR, path: Path, labels: Sequence[str] | None = None) -> list[str]:
    """Loads the tensors of a safetensors file that fit by name and shape.

    Args:
        detector: gets the tensors.
        path: the file.
        labels: class names of the detector. The class heads are then adapted from the classes of
            the file; None: they are loaded if their shapes fit.

    Returns:
        Lines that report what was loaded and what was not.

    Raises:
        CheckpointError: if the file cannot be read, is of another kind, no tensor fits, or one
            that does holds NaN or infinity.
    """
    metadata = read_header(path).metadata
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(path, f"cannot be read as safetensors: {error}") from error
    own = detector.state_dict()
    old_labels = _labels_of(metadata)
    adapted: dict[str, Tensor] = {}
    if labels is not None and old_labels is not None and tuple(labels) != old_labels:
        adapted = _adapted_rows(saved, own, old_labels, labels)
    fitting = {name: t for name, t in saved.items() if name in own and t.shape == own[name].shape}
    fitting |= adapted | _more_queries(saved, own)
    check_finite(path, fitting)
    if not fitting:
        raise CheckpointError(path, "no tensor fits this model by name and shape")
    # A tensor that layers share has several names and is stored under one.
    loaded = {own[name].data_ptr() for name in fitting}
    missing = [name for name in own if own[name].data_ptr() not in loaded]
    with torch.no_grad():
        for name, tensor in fitting.items():
            own[name].copy_(tensor)
    lines = [f"{path}: loaded {len(fitting)} tensors"]
    if adapted and old_labels is not None and labels is not None:
        kept = sum(label in old_labels for label in labels)
        lines.append(
            f"  class heads: {kept} of {len(labels)} classes as in the file, "
            "the others start from the mean of its classes"
        )
    unused = sorted(saved.keys() - fitting)
    for title, names in (("keep their initial values", missing), ("do not fit", unused)):
        if names:
            lines.append(f"  {len(names)} {title}: {', '.join(names[:_NAMES_SHOWN])}")
    return lines


def _more_queries(saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the content of the queries for a network that has more of them than the file.

    Their content is by rank; further ones get that of the file's second half again.
    """
    old, new = saved.get(_QUERY_CONTENT), own.get(_QUERY_CONTENT)
    if old is None or new is None or old.shape[1:] != new.shape[1:] or len(new) <= len(old):
        return {}
    half = len(old) // 2
    rows = torch.arange(len(new))
    rows = torch.where(rows < len(old), rows, half + (rows - len(old)) % (len(old) - half))
    return {_QUERY_CONTENT: old[rows]}


def _labels_of(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """Returns the class names in the metadata of a weights file; None if it has none."""
    try:
        labels = json.loads(metadata.get("labels", "null"))
    except ValueError:
        return None
    return tuple(map(str, labels)) if isinstance(labels, list) and labels else None


def _adapted_rows(
    saved: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    old_labels: Sequence[str],
    labels: Sequence[str],
) -> dict[str, Tensor]:
    """Returns class heads and label embeddings for `labels`, made from those of `old_labels`."""
    places = {name: row for row, name in enumerate(old_labels)}
    sources = [places.get(label) for label in labels]
    adapted = {}
    for name, tensor in saved.items():
        if name not in own or tensor.shape[1:] != own[name].shape[1:]:
            continue
        if any(head in name.split(".") for head in _CLASS_HEADS):
            rows = tensor[: len(old_labels)].float()
            mean = rows.mean(0)
            adapted[name] = torch.stack([mean if s is None else rows[s] for s in sources])
        elif name == _LABEL_EMBEDDING:
            rows = own[name].clone()
            for row, source in enumerate(sources):
                if source is not None:
                    rows[row] = tensor[source]
                elif row < len(old_labels):
                    rows[row] = tensor[row]
            adapted[name] = rows
    return adapted
