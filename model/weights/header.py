"""The safetensors header, read without torch and without trusting the file.

First step of `model.weights.info`: bytes -> names, shapes and metadata. A file is 8 bytes of header
length, a JSON header and raw tensors. Everything is checked before memory is allocated by it.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from model.data.input_files import open_regular_file
from model.images.formats import foreign_kind

_MAX_HEADER_BYTES = 8 * 1024 * 1024  # a real header is about 100 kB
_MAX_DIMENSIONS = 8
_MAX_ELEMENTS = 2**40
HEAD_BYTES = 4096  # enough to recognise a file of another kind
_PICKLE_STARTS = (b"PK", b"\x80\x02")  # of torch's files: a ZIP archive, formerly a pickle
_PICKLE_BYTES = 4096  # the format tag is the first entry of a training state
TRAINING_STATE_TAG = b"lite-detr-training/"
INT8_KEY = "int8"  # of the metadata; see `model.weights.int8_ranges`
_LENGTH_BYTES = 8  # the little-endian header length at the start
_OFFSETS = 2  # a tensor's bytes: begin, end
_DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I32": 4,
    "I64": 8,
    "F16": 2,
    "BF16": 2,
    "F32": 4,
    "F64": 8,
}


class CheckpointError(ValueError):
    """A weights file that cannot be used; the message names the file and the problem."""

    def __init__(self, path: Path | str, problem: str) -> None:
        """Joins the file's path and the problem into one line."""
        super().__init__(f"{path}: {problem}")
        self.subject, self.problem = str(path), problem

    def __reduce__(self) -> tuple[type[CheckpointError], tuple[str, str]]:
        """Makes the error picklable."""
        return type(self), (self.subject, self.problem)


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as the header declares it."""

    dtype: str  # safetensors' name: "F16", "F32", "I64", ...
    shape: tuple[int, ...]


@dataclass(frozen=True)
class WeightsHeader:
    """A whole safetensors header, checked against the file's size."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, 64 hex digits.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    try:
        with open_regular_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error


def read_header(path: Path) -> WeightsHeader:
    """Reads and checks a safetensors header; reads no tensor.

    The checks: the header fits the file, is one JSON object without repeated names, and its
    tensors cover the rest of the file exactly, without gaps or overlaps.

    Raises:
        CheckpointError: if a check fails.
    """
    try:
        with open_regular_file(path) as file:
            text, data_bytes = _read_header_text(path, file)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    document = parse_json(path, "header", text)
    if not isinstance(document, dict):
        raise CheckpointError(path, "its header is not a JSON object")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(path, "its header's __metadata__ is not an object of strings")
    tensors = {}
    spans = []
    for name, entry in document.items():
        tensors[name], span = _parse_entry(path, name, entry)
        spans.append((*span, name))
    _check_coverage(path, sorted(spans), data_bytes)
    return WeightsHeader(tensors=tensors, metadata=metadata)


def _read_header_text(path: Path, file: BinaryIO) -> tuple[bytes, int]:
    """Returns the header's JSON text and the number of bytes after it."""
    file_bytes = file.seek(0, 2)
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if (problem := other_kind(path, head)) is not None:
        raise CheckpointError(path, problem)
    if head[:2] in _PICKLE_STARTS:
        raise CheckpointError(
            path,
            "is a PyTorch checkpoint, not safetensors: convert it with `lite-detr weights convert`",
        )
    file.seek(0)
    prefix = file.read(_LENGTH_BYTES)
    if len(prefix) < _LENGTH_BYTES:
        raise CheckpointError(path, f"is truncated: {file_bytes} bytes are no weights file")
    length = int.from_bytes(prefix, "little")
    if length > _MAX_HEADER_BYTES:
        raise CheckpointError(
            path, f"declares a header of {length} bytes (at most {_MAX_HEADER_BYTES} are allowed)"
        )
    text = file.read(length)
    if len(text) < length:
        raise CheckpointError(path, f"is truncated: {len(text)} of {length} header bytes are there")
    return text, file_bytes - _LENGTH_BYTES - length


def other_kind(path: Path, head: bytes) -> str | None:
    """Returns what a file is that contains no weights at all, such as a web page.

    Args:
        path: the file.
        head: its first bytes.

    Returns:
        A phrase that continues the file's name; None for weights of any format, and for bytes of
        an unknown kind.
    """
    if is_training_state(path):
        return (
            "is the state of a training run, not a model: use the model.safetensors next to it, "
            "or continue the run with `lite-detr train --resume`"
        )
    # A safetensors file begins with the length of a short header, so with zeros in it.
    weights = head[:2] in _PICKLE_STARTS or b"\0" in head[:_LENGTH_BYTES]
    kind = None if weights else foreign_kind(head)
    if kind is None or kind == "text":
        return None
    return f"is {kind}, not a weights file"


def is_training_state(path: Path) -> bool:
    """Whether a file is a `last.pt` of training: a ZIP archive whose pickle has its format tag."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            with archive.open(pickles[0]) as file:
                return TRAINING_STATE_TAG in file.read(_PICKLE_BYTES)
    except (OSError, zipfile.BadZipFile, zlib.error, IndexError, RuntimeError, ValueError):
        return False


def parse_json(path: Path, what: str, text: bytes | str) -> Any:
    """Parses strict JSON: no repeated names, no NaN, no deep nesting."""

    def refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            [(repeated, _)] = Counter(name for name, _ in pairs).most_common(1)
            raise ValueError(f"the name {repeated!r} occurs twice")
        return values

    def refuse_constant(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=refuse_repeats, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"its {what} is not valid JSON: {error}") from error


def _parse_entry(path: Path, name: str, entry: Any) -> tuple[TensorEntry, tuple[int, int]]:
    """Parses a tensor's declaration; returns it and the range of its bytes."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(path, f"tensor {name!r} is not declared as dtype, shape, offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BYTES:
        raise CheckpointError(path, f"tensor {name!r} has an unsupported dtype {dtype!r}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS or math.prod(shape) > _MAX_ELEMENTS:
        raise CheckpointError(path, f"tensor {name!r} has an impossible shape")
    if not _are_sizes(offsets) or len(offsets) != _OFFSETS:
        raise CheckpointError(path, f"tensor {name!r} has impossible offsets")
    begin, end = offsets
    expected = math.prod(shape) * _DTYPE_BYTES[dtype]
    if end - begin != expected:
        raise CheckpointError(
            path, f"tensor {name!r} claims {end - begin} bytes where its shape needs {expected}"
        )
    return TensorEntry(dtype=dtype, shape=tuple(shape)), (begin, end)


def _are_sizes(values: Any) -> bool:
    """Whether this is a list of integers >= 0 that are possible in a file."""
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value <= _MAX_ELEMENTS for value in values
    )


def _check_coverage(path: Path, spans: list[tuple[int, int, str]], data_bytes: int) -> None:
    """Refuses gaps, overlaps, missing bytes and bytes after the last tensor."""
    position = 0
    for begin, end, name in spans:
        if begin != position:
            raise CheckpointError(path, f"tensor {name!r} does not follow the one before it")
        position = end
    if position > data_bytes:
        raise CheckpointError(
            path, f"is truncated: {data_bytes} of {position} bytes of tensors are there"
        )
    if position < data_bytes:
        raise CheckpointError(path, f"has {data_bytes - position} bytes after its last tensor")
