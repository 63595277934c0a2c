"""The ranges of a model's maps, in the metadata of its weights file, for `precision=int8`.

`lite-detr weights calibrate` writes a copy of a weights file with them. The entry `int8` is JSON:
the number of images, and for each map its three rows of float32 numbers in base64.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.weights.header import INT8_KEY, CheckpointError, parse_json, read_header

_ROWS = 3  # the least, the largest and the mean number of each channel
_ROW_BYTES = 4 * _ROWS


def encode_ranges(ranges: Mapping[str, Tensor], num_images: int) -> str:
    """The metadata entry.

    Args:
        ranges: from `model.network.calibration.find_ranges`.
        num_images: of how many images they are.
    """
    encoded = {
        name: base64.b64encode(each.float().contiguous().numpy().tobytes()).decode()
        for name, each in ranges.items()
    }
    return json.dumps({"images": num_images, "ranges": encoded})


def read_ranges(path: Path | str) -> dict[str, Tensor]:
    """Reads the ranges in a weights file.

    Returns:
        As from `model.network.calibration.find_ranges`.

    Raises:
        CheckpointError: for a file that has none, or whose ranges are damaged.
    """
    path = Path(path)
    text = read_header(path).metadata.get(INT8_KEY)
    if text is None:
        raise CheckpointError(
            path,
            "has no ranges for precision=int8: write a copy with `lite-detr weights calibrate`",
        )
    content = parse_json(path, "int8 entry", text)
    encoded = content.get("ranges") if isinstance(content, dict) else None
    if not isinstance(encoded, dict):
        raise CheckpointError(path, "its int8 entry has no ranges")
    return {name: _parse_range(path, name, each) for name, each in encoded.items()}


def _parse_range(path: Path, name: str, encoded: Any) -> Tensor:
    try:
        data = base64.b64decode(encoded, validate=True)
    except (TypeError, ValueError, binascii.Error):
        data = b""
    if data and len(data) % _ROW_BYTES == 0:
        values = torch.frombuffer(bytearray(data), dtype=torch.float32).view(_ROWS, -1)
        low, high, _mean = values
        if values.isfinite().all() and (low <= high).all():
            return values
    raise CheckpointError(path, f"the range {name!r} of its int8 entry is damaged")
