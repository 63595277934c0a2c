"""Reads the published checkpoints, which are pickles, without running code from them.

`load_official` returns the tensors of an official `.pth` file and their config. It uses torch's
restricted unpickler with a short allow-list: only tensors, plain containers and
`argparse.Namespace` are built.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import VARIANTS, ModelConfig
from model.data.input_files import open_regular_file
from model.weights.facts import ArchitectureFacts
from model.weights.header import HEAD_BYTES, CheckpointError, other_kind
from model.weights.names import TensorLayout, build_network, check_finite, check_names, listed

_BACKBONE_BY_BLOCKS = {6: "resnet50", 23: "resnet101", 36: "resnet152"}  # in layer3
# Official arguments that do not follow from the weights, and their names in ModelConfig.
_FIELD_BY_ARGUMENT = {
    "nheads": "num_heads",
    "enc_n_points": "encoder_points",
    "dec_n_points": "decoder_points",
    "num_select": "max_detections",
}
_MAX_ARGUMENT = 10_000
_WRAPPER = "module."  # the prefix of DistributedDataParallel


@dataclass(frozen=True)
class OfficialCheckpoint:
    """A published checkpoint and its architecture."""

    config: ModelConfig
    state_dict: dict[str, Tensor]  # under every official name, shared tensors repeated


class _Dropped:
    """Replaces numpy objects in training state; ignores its arguments."""

    def __init__(self, *_arguments: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        """Ignores the state."""


# The only classes that torch's unpickler may build. Optimizers and argument lists of old runs
# contain numpy numbers, which are not needed: numpy's own constructors are not called.
_ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    *(
        (_Dropped, name)
        for name in (
            "numpy.dtype",
            "numpy.ndarray",
            "numpy.core.multiarray.scalar",
            "numpy.core.multiarray._reconstruct",
            "numpy._core.multiarray.scalar",
            "numpy._core.multiarray._reconstruct",
        )
    ),
]


def load_official(
    path: Path | str,
    variant: str | None = None,
    *,
    high_level_scales: int | None = None,
    ema: bool = False,
) -> OfficialCheckpoint:
    """Reads an official `.pth` file.

    Args:
        path: a checkpoint of the official code: a dict with the weights under `model`.
        variant: the required variant, a name in `VARIANTS`; None to recognise it.
        high_level_scales: enc_scale, which does not follow from the weights; required if neither
            the checkpoint's own arguments nor `variant` give it.
        ema: uses the averaged weights (`ema_model`) instead.

    Raises:
        CheckpointError: for a file that is not such a checkpoint, contains anything but tensors
            and plain values, is of another network, or contradicts the arguments.
    """
    path = Path(path)
    if variant is not None and variant not in VARIANTS:
        raise CheckpointError(path, f"{variant!r} is no variant ({', '.join(VARIANTS)})")
    document = _unpickle(path)
    tensors = _take_weights(path, document, "ema_model" if ema else "model")
    arguments = document.get("args")
    options = vars(arguments) if isinstance(arguments, argparse.Namespace) else {}
    _refuse_other_networks(path, tensors, options)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    facts = ArchitectureFacts.of(shapes, path)
    config = _config_of(path, facts, options, variant, high_level_scales)
    if differing := facts.contradictions(config):
        what = f"the variant {variant}" if variant else "a published network"
        raise CheckpointError(path, f"is not {what}: {listed(differing)}")
    _check_tensors(path, tensors, config)
    return OfficialCheckpoint(config=config, state_dict=tensors)


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Checks every name, shape and value of the state dict, duplicates included."""
    layout = TensorLayout.of(build_network(config, path))
    check_names(path, expected=layout.names(), present=tensors)
    owned = layout.owned(path, tensors)
    layout.check_fit(path, owned)
    check_finite(path, owned)


def _unpickle(path: Path) -> dict[str, Any]:
    """Reads the pickled dict with the restricted unpickler."""
    try:
        with open_regular_file(path) as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError:
        raise CheckpointError(path, "no such file") from None
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    if (kind := other_kind(path, head)) is not None:
        raise CheckpointError(path, kind)
    if head[8:9] == b"{":
        raise CheckpointError(path, "is a safetensors file, not a checkpoint of the official code")
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file can raise any error
        if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
            problem = f"is refused: its pickle requires {match[1]}, which weights never need"
        elif str(error).startswith("Weights only load failed"):
            problem = "is refused: its pickle holds more than tensors and plain values"
        else:
            problem = f"is truncated or no PyTorch checkpoint ({type(error).__name__})"
        raise CheckpointError(path, problem) from error
    if not isinstance(document, dict):
        raise CheckpointError(path, f"holds a {type(document).__name__}, not a dict of weights")
    return document


def _take_weights(path: Path, document: Mapping[str, Any], key: str) -> dict[str, Tensor]:
    """Returns a state dict without wrapper prefixes and batch counters."""
    weights = document.get(key)
    if not isinstance(weights, dict) or not weights:
        present = listed([str(name) for name in document])
        raise CheckpointError(path, f"has no weights under {key!r}; it holds {present}")
    odd = [
        str(name)
        for name, value in weights.items()
        if not isinstance(name, str) or not _is_plain_tensor(value)
    ]
    if odd:
        raise CheckpointError(path, f"its {key!r} holds more than named tensors: {listed(odd)}")
    if all(name.startswith(_WRAPPER) for name in weights):
        weights = {name.removeprefix(_WRAPPER): value for name, value in weights.items()}
    return {k: v for k, v in weights.items() if not k.endswith(".num_batches_tracked")}


def _is_plain_tensor(value: object) -> bool:
    """Whether this is a dense tensor whose storage is as large as its shape requires."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _refuse_other_networks(
    path: Path, tensors: Mapping[str, Tensor], options: Mapping[str, Any]
) -> None:
    """Refuses checkpoints of related networks, which the message names."""
    if "backbone.0.patch_embed.proj.weight" in tensors:
        name = options.get("backbone")
        named = f" ({name})" if isinstance(name, str) else ""
        raise CheckpointError(path, f"has a Swin backbone{named}, which is not supported yet")
    if "transformer.pos_trans.weight" in tensors:
        raise CheckpointError(
            path, "is a Deformable DETR or H-DETR checkpoint, which is not supported yet"
        )
    stem = re.compile(r"backbone\.0\.body\.layer3\.(\d+)\.conv3\.weight")
    blocks = {match[1] for name in tensors if (match := stem.fullmatch(name))}
    backbone = _BACKBONE_BY_BLOCKS.get(len(blocks), "unknown")
    if backbone != "resnet50":
        raise CheckpointError(path, f"has an unsupported backbone ({backbone}), not resnet50")


def _config_of(
    path: Path,
    facts: ArchitectureFacts,
    options: Mapping[str, Any],
    variant: str | None,
    high_level_scales: int | None,
) -> ModelConfig:
    """Returns the config that fits the facts, the arguments and the caller's values."""
    base = VARIANTS[variant] if variant else VARIANTS["lite-dino-r50-h3l1-2p1x3"]
    given = {
        field: options[argument]
        for argument, field in _FIELD_BY_ARGUMENT.items()
        if type(options.get(argument)) is int and 1 <= options[argument] <= _MAX_ARGUMENT
    }
    for field, value in given.items():
        if variant and getattr(base, field) != value:
            raise CheckpointError(path, f"its arguments say {field}={value}, unlike {variant}")
    scales = base.high_level_scales
    if facts.interleaved:
        scales = _agreed_scales(path, options, base if variant else None, high_level_scales)
    if variant:
        return base
    try:
        base = replace(base, **given)
        config = replace(
            base,
            num_classes=facts.num_classes,
            d_model=facts.d_model,
            num_feature_levels=facts.num_feature_levels,
            interleaved=facts.interleaved,
            encoder_layers=facts.encoder_layers,
            encoder_blocks=facts.encoder_blocks or base.encoder_blocks,
            encoder_feedforward=facts.encoder_feedforward,
            high_level_scales=scales,
            key_aware=facts.key_aware,
            separate_keys=facts.separate_keys,
            same_loc=facts.encoder_offsets == base.num_heads * base.encoder_points * 2,
            decoder_layers=facts.decoder_layers,
            decoder_feedforward=facts.decoder_feedforward,
            num_queries=facts.num_queries,
        )
    except ValueError as error:
        raise CheckpointError(path, str(error)) from error
    return replace(config, name=_name_of(config))


def _agreed_scales(
    path: Path, options: Mapping[str, Any], variant: ModelConfig | None, given: int | None
) -> int:
    """Returns the number of high-level scales, which does not follow from the weights."""
    sources = {
        "high_level_scales": given,
        "the checkpoint's enc_scale": options.get("enc_scale"),
        "the variant": variant.high_level_scales if variant else None,
    }
    said = {source: value for source, value in sources.items() if type(value) is int}
    if not said:
        raise CheckpointError(
            path,
            "does not say how many feature scales are high-level (enc_scale): give the variant's "
            f"name (--variant {' | '.join(VARIANTS)}) or the number (--enc-scale 3 for H3L1, "
            "2 for H2L2)",
        )
    if len(set(said.values())) > 1:
        found = ", ".join(f"{source} says {value}" for source, value in said.items())
        raise CheckpointError(path, f"contradicts itself about the high-level scales: {found}")
    return next(iter(said.values()))


def _name_of(config: ModelConfig) -> str:
    """Returns the name of the variant, or a name that describes the layout."""
    for name, known in VARIANTS.items():
        if replace(config, name=name) == known:
            return name
    if not config.interleaved:
        return "dino-r50-custom"
    low = config.num_feature_levels - config.high_level_scales
    high_updates = config.encoder_layers // config.encoder_blocks
    layout = f"h{config.high_level_scales}l{low}-{high_updates}p1x{config.encoder_blocks}"
    return f"lite-dino-r50-{layout}-custom"
