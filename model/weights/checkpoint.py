"""Loads networks from weights files and saves them: strict, atomic, deterministic.

`load_detector` is used by the engine and offline commands, `save_checkpoint` by training and
conversion. The file is safetensors, which contains numbers only: reading one runs no code.
`load_official` reads the published pickles.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as encode_tensors
from torch import Tensor

from model.config import ModelConfig
from model.data.output_files import is_stream, replacing
from model.network.detector import LiteDETR
from model.weights.facts import ArchitectureFacts
from model.weights.header import CheckpointError, WeightsHeader, read_header
from model.weights.info import FORMAT_TAG, ModelInfo, read_model_info
from model.weights.names import TensorLayout, build_network, check_finite, check_names, listed
from model.weights.official import OfficialCheckpoint, load_official

__all__ = [
    "CheckpointError",
    "OfficialCheckpoint",
    "load_detector",
    "load_official",
    "save_checkpoint",
]

_FLOATING_DTYPES = ("F16", "F32")  # what save_checkpoint writes; widened to float32 on loading
_ALIGNMENT_BYTES = 8  # the format requires this alignment of tensors


def load_detector(path: Path | str, device: str = "cpu") -> tuple[LiteDETR, ModelInfo]:
    """Loads a network from a weights file.

    Args:
        path: a safetensors file that `save_checkpoint` wrote.
        device: a torch device that the network is moved to.

    Returns:
        The network in float32 and in evaluation mode, and the metadata of its file.

    Raises:
        CheckpointError: for a file that is not exactly the weights of the architecture it
            declares: tensors missing, extra, of another shape or dtype, or not finite.
    """
    path = Path(path)
    info = read_model_info(path)
    header = read_header(path)
    shapes = {name: entry.shape for name, entry in header.tensors.items()}
    if differing := ArchitectureFacts.of(shapes, path).contradictions(info.config):
        raise CheckpointError(path, f"its config contradicts its tensors: {listed(differing)}")
    detector = build_network(info.config, path)
    layout = TensorLayout.of(detector)
    check_names(path, expected=layout.tensors, present=header.tensors)
    layout.check_shapes(path, shapes)
    _check_dtypes(path, layout, header)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            owned = {name: file.get_tensor(name) for name in header.tensors}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(path, f"cannot be read: {error}") from error
    check_finite(path, owned)
    try:
        detector.load_state_dict(layout.with_aliases(owned), strict=True)
    except RuntimeError as error:  # a constant has other values
        raise CheckpointError(path, f"does not fit its network: {error}") from error
    return detector.to(device).eval(), info


def save_checkpoint(  # noqa: PLR0913 - options, by keyword
    path: Path | str,
    state_dict: Mapping[str, Tensor],
    config: ModelConfig,
    labels: Sequence[str],
    *,
    score_threshold: float,
    name: str,
    description: str = "",
    category_ids: Sequence[int] | None = None,
    half: bool = False,
    card: Mapping[str, Any] | None = None,
) -> None:
    """Writes a weights file; equal inputs give equal bytes.

    Shared tensors are stored once. The file is written atomically, and read back before it
    replaces an older one.

    Args:
        path: the file to write; its folder must exist.
        state_dict: the network's tensors, on any device; shared ones under one name or all.
        config: the architecture that they belong to.
        labels: one class name per output; "N/A" for ids without a class.
        score_threshold: 0..1, the default of requests.
        name: the model's name.
        description: what the model detects and its origin, in a sentence.
        category_ids: COCO category id of each class in the training data; None: unknown.
        half: stores float16 instead of float32.
        card: origin and scores of the model as plain JSON values, for people; None: unknown.

    Raises:
        CheckpointError: if the tensors do not fit the architecture, are not finite (or not in
            float16), or the file cannot be written.
    """
    path = Path(path)
    layout = TensorLayout.of(build_network(config, path))
    owned = layout.owned(path, state_dict)
    layout.check_fit(path, owned)
    check_finite(path, owned)
    dtype = torch.float16 if half else torch.float32
    stored = {
        key: tensor.detach()
        .to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        .clone(memory_format=torch.contiguous_format)
        for key, tensor in sorted(owned.items())
    }
    check_finite(path, stored)
    metadata = {
        "format": FORMAT_TAG,
        "config": json.dumps(config.to_dict(), sort_keys=True),
        "labels": json.dumps(list(labels)),
        "score_threshold": repr(float(score_threshold)),
        "name": name,
        "description": description,
    }
    if category_ids is not None:
        metadata["category_ids"] = json.dumps(list(category_ids))
    if card is not None:
        metadata["card"] = json.dumps(card, sort_keys=True)
    _write_checked(path, _encode(stored, metadata))


def copy_with_metadata(source: Path, target: Path, changes: Mapping[str, str]) -> ModelInfo:
    """Writes a weights file again with other metadata; the tensors are the same to the bit.

    Args:
        source: a weights file.
        target: the file to write; it may be the source.
        changes: entries of the metadata that are set.

    Returns:
        The description in the new file.

    Raises:
        CheckpointError: if the source is refused, or the target cannot be written.
    """
    read_model_info(source)
    metadata = {**read_header(source).metadata, **changes}
    try:
        encoded = source.read_bytes()
    except OSError as error:
        raise CheckpointError(source, f"cannot be read: {error.strerror}") from error
    _write_checked(target, _with_metadata(encoded, metadata))
    return read_model_info(target)


def _encode(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Encodes the file; metadata is inserted here because the library orders it randomly."""
    return _with_metadata(encode_tensors(tensors), metadata)


def _with_metadata(encoded: bytes, metadata: Mapping[str, str]) -> bytes:
    length = int.from_bytes(encoded[:8], "little")
    header = json.loads(encoded[8 : 8 + length])
    header = {"__metadata__": metadata} | {
        name: entry for name, entry in header.items() if name != "__metadata__"
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text + encoded[8 + length :]


def _write_checked(path: Path, data: bytes) -> None:
    """Replaces a file after the metadata of the new one have been read back."""
    if is_stream(path):  # it would be replaced by a file
        raise CheckpointError(path, "is not a regular file")
    try:
        with replacing(path, check=read_model_info) as file:
            file.write(data)
    except OSError as error:
        raise CheckpointError(path, f"cannot be written: {error.strerror}") from error
    except CheckpointError as error:
        raise CheckpointError(path, f"would be unreadable: {error.problem}") from error


def _check_dtypes(path: Path, layout: TensorLayout, header: WeightsHeader) -> None:
    """Refuses dtypes that this project never writes."""
    wrong = []
    for key, tensor in layout.tensors.items():
        allowed = _FLOATING_DTYPES if tensor.is_floating_point() else ("I64",)
        if header.tensors[key].dtype not in allowed:
            wrong.append(f"{key} is {header.tensors[key].dtype}, not {' or '.join(allowed)}")
    if wrong:
        raise CheckpointError(path, f"tensors of another dtype: {listed(wrong)}")
