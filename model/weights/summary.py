"""The output of `lite-detr weights list` and `inspect` (torch-free)."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model.config import VARIANTS, ModelConfig
from model.labels import NO_CLASS
from model.text import shown_text
from model.weights.header import INT8_KEY, CheckpointError, file_sha256, parse_json, read_header
from model.weights.info import (
    DEFAULT_MODEL_PATH,
    ModelInfo,
    config_name,
    default_cache_dir,
    read_model_info,
)
from model.weights.releases import RELEASES, release_url

_LABELS_SHOWN = 8
_CARD_LINES = 60
_CARD_LETTERS = 200  # of a value


@dataclass(frozen=True)
class KnownModel:
    """A model that `serve --model NAME` accepts, perhaps after `weights pull NAME`."""

    name: str
    state: Literal["embedded", "pulled", "to pull", "unusable"]  # a file of something else
    path: Path  # of the file, which may not exist yet
    url: str | None  # to pull it from


def known_models(cache_dir: Path | None = None) -> tuple[KnownModel, ...]:
    """Returns the embedded default, the pulled variants and those that can be pulled.

    Args:
        cache_dir: the folder of pulled models; None for `default_cache_dir()`.
    """
    folder = cache_dir or default_cache_dir()
    models = []
    if DEFAULT_MODEL_PATH.is_file():
        models.append(KnownModel("default", "embedded", DEFAULT_MODEL_PATH, None))
    for name in VARIANTS:
        path = folder / f"{name}.safetensors"
        url = release_url(name) if name in RELEASES else None
        if path.is_file():
            state: Literal["pulled", "unusable"] = "pulled" if _is_of(path, name) else "unusable"
            models.append(KnownModel(name, state, path, url))
        elif url:
            models.append(KnownModel(name, "to pull", path, url))
    return tuple(models)


def _is_of(path: Path, name: str) -> bool:
    """Whether a file is a model of that variant."""
    try:
        return config_name(path) == name
    except CheckpointError:
        return False


def describe(path: Path | str) -> str:
    """Describes a weights file in lines of `key  value`.

    Raises:
        CheckpointError: for a file that is not a weights file of this project.
    """
    path = Path(path)
    info = read_model_info(path)
    header = read_header(path)
    tensors = header.tensors.values()
    kinds = Counter(entry.dtype for entry in tensors)
    numbers = sum(math.prod(entry.shape) for entry in tensors)
    labels = [label for label in info.labels if label != NO_CLASS]
    shown = ", ".join(labels[:_LABELS_SHOWN])
    more = len(labels) - _LABELS_SHOWN
    lines = {
        "file": str(path),
        "name": info.name,
        "version": info.version,
        "description": info.description or "none",
        "network": _describe_network(info.config),
        "classes": f"{len(labels)}: {shown}" + (f" and {more} more" if more > 0 else ""),
        "category ids": _describe_category_ids(info),
        "input": f"shortest side {info.config.shortest_side}, "
        f"longest at most {info.config.longest_side} pixels",
        "int8": "calibrated" if INT8_KEY in header.metadata else "not calibrated",
        "score threshold": f"{info.score_threshold:g}",
        "numbers": f"{numbers / 1e6:.1f} million in {sum(kinds.values())} tensors "
        f"({', '.join(f'{count} {kind}' for kind, count in kinds.most_common())})",
        "size": f"{path.stat().st_size / 1e6:.1f} MB",
        "SHA-256": file_sha256(path),
    }
    lines |= _card_lines(path, header.metadata)
    width = max(map(len, lines))
    return "\n".join(
        f"{shown_text(key):<{width}}  {shown_text(value)}" for key, value in lines.items()
    )


def _card_lines(path: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    """The card of a model, which training writes: its values by their names, joined by dots."""
    lines: dict[str, str] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, each in value.items():
                add(f"{name}.{key}", each)
        elif len(lines) < _CARD_LINES:
            text = value if isinstance(value, str) else json.dumps(value)
            more = len(text) - _CARD_LETTERS
            lines[name] = text[:_CARD_LETTERS] + (
                f" and {more} characters more" if more > 0 else ""
            )

    if "card" in metadata:
        try:
            add("card", parse_json(path, "card", metadata["card"]))
        except CheckpointError as error:
            lines["card"] = error.problem
    return lines


def _describe_category_ids(info: ModelInfo) -> str:
    """Describes the COCO category ids of the classes."""
    if info.category_ids is None:
        return "not in the file: COCO output numbers the classes from 0"
    ids = [
        str(number)
        for number, label in zip(info.category_ids, info.labels, strict=True)
        if label != NO_CLASS
    ]
    more = len(ids) - _LABELS_SHOWN
    return ", ".join(ids[:_LABELS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _describe_network(config: ModelConfig) -> str:
    """Describes the architecture in a phrase."""
    attention = "key-aware" if config.key_aware else "plain"
    if config.key_aware and not config.key_aware_decoder:
        attention = "key-aware (encoder) and plain (decoder)"
    encoder = f"{config.encoder_layers} encoder layers"
    if config.interleaved:
        low = config.num_feature_levels - config.high_level_scales
        per_block = config.encoder_layers // config.encoder_blocks
        encoder = (
            f"encoder H{config.high_level_scales}L{low}-({per_block}+1)x{config.encoder_blocks}"
        )
    return (
        f"{config.backbone}, {encoder}, {config.decoder_layers} decoder layers, "
        f"d_model {config.d_model}, {config.num_queries} queries, {attention} attention"
    )
