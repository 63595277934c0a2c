"""Start weights from another model: what fits is copied, class heads are adapted to new classes.

The encoder, the decoder and the box heads know how to find objects of any class, so a run for other
classes keeps them. Only the rows of the class heads are per class: a class that both models have
keeps its row, any other starts with the mean of the old rows, which scores "an object". The first
row of a head that means "any object" (`ModelConfig.select_by_best_class`) stays where it is.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.data.input_files import one_spelling
from model.labels import NO_CLASS
from model.network.detector import LiteDETR
from model.weights.header import CheckpointError, read_header
from model.weights.names import check_finite

_CLASS_HEADS = ("class_embed", "enc_out_class_embed")
_LABEL_EMBEDDING = "label_enc.weight"
_QUERY_CONTENTS = ("transformer.tgt_embed.weight", "query_embed.weight")  # of DINO and H-DETR
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
        adapted = _adapted_rows(saved, own, old_labels, labels, _object_heads(detector))
    fitting = {name: t for name, t in saved.items() if name in own and t.shape == own[name].shape}
    fitting |= adapted | _more_queries(saved, own, detector.config.num_queries, metadata)
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


def _more_queries(
    saved: Mapping[str, Tensor], own: Mapping[str, Tensor], wanted: int, metadata: Mapping[str, str]
) -> dict[str, Tensor]:
    """Returns the content of the queries for a network that has more of them than the file.

    Their content is by rank; further ones get that of the file's second half again. The queries of
    the one-to-many branch, which follow in the same tensor, stay the last ones.

    Args:
        saved: the file's tensors.
        own: the network's.
        wanted: queries of the network, without those of the one-to-many branch.
        metadata: of the file.
    """
    for name in _QUERY_CONTENTS:
        old, new = saved.get(name), own.get(name)
        if old is None or new is None or old.shape[1:] != new.shape[1:]:
            continue
        here = _num_queries(metadata, default=len(old) - (len(new) - wanted))
        further = len(new) - wanted
        if not 2 <= here < wanted or len(old) != here + further:  # noqa: PLR2004 - two halves
            continue
        half = here // 2
        rows = torch.arange(wanted)
        rows = torch.where(rows < here, rows, half + (rows - here) % (here - half))
        return {name: torch.cat((old[rows], old[here:]))}
    return {}


def _num_queries(metadata: Mapping[str, str], default: int) -> int:
    """Returns how many queries the network of a weights file has; `default` if it does not say."""
    try:
        count = json.loads(metadata.get("config", "{}"))["num_queries"]
    except (ValueError, KeyError, TypeError):
        return default
    return count if type(count) is int else default


def _object_heads(detector: LiteDETR) -> frozenset[int]:
    """The addresses of the class head whose first row means "any object"; empty for DINO."""
    if detector.config.select_by_best_class:
        return frozenset()
    head = detector.transformer.token_class_head
    return frozenset(tensor.data_ptr() for tensor in head.state_dict().values())


def _labels_of(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """Returns the class names in the metadata of a weights file; None if it has none."""
    try:
        labels = json.loads(metadata.get("labels", "null"))
    except ValueError:
        return None
    return (
        tuple(one_spelling(str(each)) for each in labels)
        if isinstance(labels, list) and labels
        else None
    )


def _adapted_rows(
    saved: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    old_labels: Sequence[str],
    labels: Sequence[str],
    object_heads: Container[int],
) -> dict[str, Tensor]:
    """Returns class heads and label embeddings for `labels`, made from those of `old_labels`.

    Args:
        saved: the file's tensors.
        own: the network's.
        old_labels: class names of the file.
        labels: class names of the network.
        object_heads: addresses of tensors of `own` whose first row means "any object".
    """
    places = {name: row for row, name in enumerate(old_labels) if name != NO_CLASS}
    trained = list(places.values()) or list(range(len(old_labels)))
    sources = [places.get(label) for label in labels]
    adapted = {}
    for name, tensor in saved.items():
        if name not in own or tensor.shape[1:] != own[name].shape[1:]:
            continue
        if any(head in name.split(".") for head in _CLASS_HEADS):
            rows = tensor[: len(old_labels)].float()
            mean = rows[trained].mean(0)
            new = torch.stack([mean if s is None else rows[s] for s in sources])
            if own[name].data_ptr() in object_heads:
                new = torch.stack([rows[0], *(mean for _ in labels[1:])])
            adapted[name] = new
        elif name == _LABEL_EMBEDDING:
            rows = own[name].clone()
            for row, source in enumerate(sources):
                if source is not None:
                    rows[row] = tensor[source]
                elif row < len(old_labels):
                    rows[row] = tensor[row]
            adapted[name] = rows
    return adapted
