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
from typing import Any, cast

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
    "topk": "max_detections",
}
# The same of the detectors whose queries come from proposals.
_QUERIES_BY_ARGUMENT = {
    "num_queries": "num_queries",
    "num_queries_one2one": "num_queries",
    "num_queries_one2many": "one_to_many_queries",
}
_SWIN_BY_SIZE: dict[tuple[int, ...], str] = {  # blocks of the third stage, and its channels
    (6, 384): "swin_tiny",
    (18, 384): "swin_small",
    (18, 512): "swin_base",
    (18, 768): "swin_large",
}
_LEVELS = 4  # of feature maps
_MAX_ARGUMENT = 10_000
_WRAPPER = "module."  # the prefix of DistributedDataParallel
_LABEL_EMBEDDING = "label_enc.weight"  # of the denoising queries: a row for each class, one more


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
    backbone = _backbone_of(tensors)
    config = _config_of(path, facts, options, variant, high_level_scales, backbone)
    differing = facts.contradictions(config)
    if (config.backbone, config.backbone_in_body) != backbone:
        differing.insert(0, f"the backbone is {backbone[0]} in the weights, not {config.backbone}")
    if differing:
        what = f"the variant {variant}" if variant else "a published network"
        raise CheckpointError(path, f"is not {what}: {listed(differing)}")
    _drop_unused_labels(tensors, config.num_classes)
    _check_tensors(path, tensors, config)
    return OfficialCheckpoint(config=config, state_dict=tensors)


def _drop_unused_labels(tensors: dict[str, Tensor], num_classes: int) -> None:
    """Leaves out label embeddings beyond those of the classes, which no denoising query has.

    There are `dn_labelbook_size + 1` of them, and that number may exceed the number of classes.
    """
    rows = tensors.get(_LABEL_EMBEDDING)
    if rows is not None and rows.dim() > 0 and len(rows) > num_classes + 1:
        tensors[_LABEL_EMBEDDING] = rows[: num_classes + 1].clone()


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
    if "transformer.reference_points.weight" in tensors:
        raise CheckpointError(
            path,
            "is a one-stage Deformable DETR, which is not supported; the two-stage one with box "
            "refinement is",
        )
    embedded = tensors.get("transformer.level_embed")
    if embedded is not None and embedded.dim() == 2 and len(embedded) != _LEVELS:  # noqa: PLR2004
        raise CheckpointError(
            path,
            f"has {len(embedded)} feature levels, not {_LEVELS}: only those of 4 are supported",
        )
    backbone, _ = _backbone_of(tensors)
    if backbone not in ("resnet50", "swin_tiny"):
        name = options.get("backbone")
        named = f"; its arguments say {name}" if isinstance(name, str) else ""
        raise CheckpointError(
            path,
            f"has an unsupported backbone ({backbone}), not resnet50 or swin_tiny{named}",
        )


def _backbone_of(tensors: Mapping[str, Tensor]) -> tuple[str, bool]:
    """The backbone's name, by the blocks of its third stage, and whether it is named `body`."""
    stem = re.compile(r"backbone\.0\.body\.layer3\.(\d+)\.conv3\.weight")
    blocks = {match[1] for name in tensors if (match := stem.fullmatch(name))}
    if blocks:
        return _BACKBONE_BY_BLOCKS.get(len(blocks), "unknown"), True
    stem = re.compile(r"backbone\.0\.(?:body\.)?layers\.2\.blocks\.(\d+)\.norm1\.weight")
    found = {match[1]: name for name in tensors if (match := stem.fullmatch(name))}
    sizes = {len(tensors[name]) for name in found.values() if tensors[name].dim() == 1}
    backbone = _SWIN_BY_SIZE.get((len(found), *sizes), "another Swin") if found else "unknown"
    return backbone, any(name.startswith("backbone.0.body.") for name in tensors)


def _config_of(  # noqa: PLR0913, PLR0917 - the sources of a config
    path: Path,
    facts: ArchitectureFacts,
    options: Mapping[str, Any],
    variant: str | None,
    high_level_scales: int | None,
    backbone: tuple[str, bool],
) -> ModelConfig:
    """Returns the config that fits the facts, the arguments and the caller's values."""
    base = VARIANTS[variant or _similar_variant(facts)]
    given = _given_fields(facts, options)
    for field, value in given.items():
        if variant and getattr(base, field) != value:
            raise CheckpointError(path, f"its arguments say {field}={value}, unlike {variant}")
    scales = base.high_level_scales
    if facts.interleaved:
        scales = _agreed_scales(path, options, base if variant else None, high_level_scales)
    if variant:
        return base
    try:
        base = replace(base, **cast(dict[str, Any], given))
        config = replace(
            base,
            backbone=backbone[0],
            backbone_in_body=backbone[1],
            num_classes=facts.num_classes,
            d_model=facts.d_model,
            num_feature_levels=facts.num_feature_levels,
            interleaved=facts.interleaved,
            encoder_layers=facts.encoder_layers,
            encoder_blocks=facts.encoder_blocks or base.encoder_blocks,
            encoder_feedforward=facts.encoder_feedforward,
            high_level_scales=scales,
            key_aware=facts.key_aware,
            key_aware_decoder=facts.key_aware_decoder is not False,
            separate_keys=facts.separate_keys,
            same_loc=facts.encoder_offsets == base.num_heads * base.encoder_points * 2,
            decoder_layers=facts.decoder_layers,
            decoder_feedforward=facts.decoder_feedforward,
            num_queries=facts.num_queries or base.num_queries,
        )
    except ValueError as error:
        raise CheckpointError(path, str(error)) from error
    if facts.learned_queries not in (None, config.num_queries + config.one_to_many_queries):
        raise CheckpointError(
            path,
            f"has {facts.learned_queries} learned queries and does not say how many of them are "
            "H-DETR's one-to-many queries (num_queries_one2many in its arguments)",
        )
    return replace(config, name=_name_of(config))


def _similar_variant(facts: ArchitectureFacts) -> str:
    """The variant that gives the fields which neither weights nor arguments tell."""
    if facts.refined_positions:
        return "lite-dino-r50-h3l1-2p1x3"
    if facts.learned_content:
        return "lite-h-detr-r50-h3l1-2p1x3"
    return "lite-deformable-detr-r50-h3l1-2p1x3"


def _given_fields(facts: ArchitectureFacts, options: Mapping[str, Any]) -> dict[str, int]:
    """The fields of `ModelConfig` that the checkpoint's own arguments give."""
    arguments = dict(_FIELD_BY_ARGUMENT)
    if not facts.refined_positions:
        arguments |= _QUERIES_BY_ARGUMENT
    given = {
        field: options[argument]
        for argument, field in arguments.items()
        if type(options.get(argument)) is int and 0 <= options[argument] <= _MAX_ARGUMENT
    }
    return {
        field: value for field, value in given.items() if value or field == "one_to_many_queries"
    }


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
    detector = "dino" if config.refined_positions else "h-detr"
    detector = detector if config.learned_content else "deformable-detr"
    backbone = {"resnet50": "r50", "swin_tiny": "swint"}.get(config.backbone, config.backbone)
    if not config.interleaved:
        return f"{detector}-{backbone}-custom"
    low = config.num_feature_levels - config.high_level_scales
    high_updates = config.encoder_layers // config.encoder_blocks
    layout = f"h{config.high_level_scales}l{low}-{high_updates}p1x{config.encoder_blocks}"
    return f"lite-{detector}-{backbone}-{layout}-custom"
