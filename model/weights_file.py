"""What a weights file says about itself, read without torch and without trusting the file.

First step of a model's way in: name -> path (`resolve_model`) -> `ModelInfo` (`read_model_info`);
`model.checkpoint` then reads the tensors. The serving edge stops here: it needs the classes and
the input rule, not the numbers. A file is safetensors (8 bytes of header length, a JSON header,
raw tensors) with our metadata: `format`, `config`, `labels`, `score_threshold`, `name`,
`description`. Everything in the header is checked before anything is allocated from it.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, get_args

from model.config import VARIANTS, BackboneName, ModelConfig

FORMAT_TAG = "lite-detr/1"
DEFAULT_MODEL_PATH = Path(__file__).parent / "weights" / "default.safetensors"

_MAX_HEADER_BYTES = 8 * 1024 * 1024  # a real header is about 100 kB
_MAX_DIMENSIONS = 8
_MAX_ELEMENTS = 2**40
_MAX_CONFIG_NUMBER = 2**16
_LENGTH_BYTES = 8  # the little-endian header length that opens the file
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
        """Joins the file's path and what is wrong with it into one line."""
        super().__init__(f"{path}: {problem}")
        self.path = Path(path)
        self.problem = problem


@dataclass(frozen=True)
class ModelInfo:
    """What the service tells about a model, and what it needs to run one."""

    name: str
    version: str  # the first 12 hex digits of the file's SHA-256
    config: ModelConfig
    labels: tuple[str, ...]  # one for each of config.num_classes; "N/A" where an id has no class
    score_threshold: float  # 0..1; the working threshold where a request names none
    description: str


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


def default_cache_dir() -> Path:
    """Where pulled models are kept when no other folder is given: ~/.cache/lite-detr."""
    return Path.home() / ".cache" / "lite-detr"


def resolve_model(name_or_path: str, cache_dir: Path | None = None) -> Path:
    """Finds the weights file that a name or a path stands for.

    Args:
        name_or_path: "default" or "" for the embedded model, the name of a pulled variant, or
            the path of a safetensors file.
        cache_dir: where pulled models are kept; `default_cache_dir()` where None.

    Returns:
        The path of an existing file.

    Raises:
        CheckpointError: where there is no such file; the message says how to get it.
    """
    if name_or_path in ("", "default"):
        if not DEFAULT_MODEL_PATH.is_file():
            raise CheckpointError(
                DEFAULT_MODEL_PATH, "the embedded default model is missing: reinstall the package"
            )
        return DEFAULT_MODEL_PATH
    pulled = (cache_dir or default_cache_dir()) / f"{name_or_path}.safetensors"
    if name_or_path in VARIANTS:
        if not pulled.is_file():
            raise CheckpointError(
                pulled, f"not downloaded yet: run `lite-detr weights pull {name_or_path}` first"
            )
        return pulled
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        names = ", ".join(("default", *VARIANTS))
        raise CheckpointError(name_or_path, f"is neither a weights file nor a model name ({names})")
    return path


def read_model_info(path: Path | str) -> ModelInfo:
    """Reads what a weights file says about itself.

    Args:
        path: a safetensors file that this project wrote.

    Returns:
        The model's identity, architecture, class names and working threshold.

    Raises:
        CheckpointError: for a file that is missing, truncated, of another format, or whose
            header contradicts itself.
    """
    path = Path(path)
    metadata = read_header(path).metadata
    tag = metadata.get("format")
    if tag != FORMAT_TAG:
        raise CheckpointError(
            path, f"its format tag is {tag!r}, not {FORMAT_TAG!r}: not a Lite DETR weights file"
        )
    missing = [
        key for key in ("config", "labels", "score_threshold", "name") if key not in metadata
    ]
    if missing:
        raise CheckpointError(path, f"its metadata lacks {', '.join(missing)}")
    config = _parse_config(path, metadata["config"])
    return ModelInfo(
        name=metadata["name"],
        version=file_sha256(path)[:12],
        config=config,
        labels=_parse_labels(path, metadata["labels"], config.num_classes),
        score_threshold=_parse_threshold(path, metadata["score_threshold"]),
        description=metadata.get("description", ""),
    )


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits, read in pieces.

    Raises:
        CheckpointError: where the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error


def read_header(path: Path) -> WeightsHeader:
    """Reads and checks a safetensors header; reads no tensor.

    The checks: the header fits the file, is one JSON object without repeated names, and its
    tensors cover the rest of the file exactly, without gaps or overlaps.

    Raises:
        CheckpointError: where any of that does not hold.
    """
    try:
        with path.open("rb") as file:
            text, data_bytes = _read_header_text(path, file)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    document = _parse_json(path, "header", text)
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
    """The header's JSON text and how many bytes of tensors follow it."""
    file_bytes = file.seek(0, 2)
    file.seek(0)
    prefix = file.read(_LENGTH_BYTES)
    if prefix[:2] in (b"PK", b"\x80\x02"):
        raise CheckpointError(
            path,
            "is a PyTorch checkpoint, not safetensors: convert it with `lite-detr weights convert`",
        )
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


def _parse_json(path: Path, what: str, text: bytes | str) -> Any:
    """JSON that must be strict: no repeated names, no NaN, no absurd nesting."""

    def refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            names = [name for name, _ in pairs]
            repeated = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the name {repeated!r} occurs twice")
        return values

    def refuse_constant(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=refuse_repeats, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"its {what} is not valid JSON: {error}") from error


def _parse_entry(path: Path, name: str, entry: Any) -> tuple[TensorEntry, tuple[int, int]]:
    """One tensor's declaration and the bytes that it claims."""
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
    """Whether this is a list of whole numbers >= 0 that a file could hold."""
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


def _parse_config(path: Path, text: str) -> ModelConfig:
    """The architecture, refused where a field is unknown, of another type or impossible."""
    values = _parse_json(path, "config", text)
    if not isinstance(values, dict):
        raise CheckpointError(path, "its config is not a JSON object")
    for field, value in values.items():
        if type(value) is int and not 1 <= value <= _MAX_CONFIG_NUMBER:
            raise CheckpointError(path, f"its config has an impossible {field} ({value})")
    backbone = values.get("backbone", ModelConfig.backbone)
    if backbone not in get_args(BackboneName):
        known = ", ".join(get_args(BackboneName))
        raise CheckpointError(path, f"its backbone {backbone!r} is not known here ({known})")
    try:
        return ModelConfig.from_dict(values)
    except ValueError as error:
        raise CheckpointError(path, str(error)) from error


def _parse_labels(path: Path, text: str, num_classes: int) -> tuple[str, ...]:
    """Class names: as many as the network has outputs."""
    labels = _parse_json(path, "labels", text)
    if not isinstance(labels, list) or not all(isinstance(v, str) and v for v in labels):
        raise CheckpointError(path, "its labels are not a list of names")
    if len(labels) != num_classes:
        raise CheckpointError(
            path, f"it has {len(labels)} labels for a network of {num_classes} classes"
        )
    return tuple(labels)


def _parse_threshold(path: Path, text: str) -> float:
    """A score in 0..1."""
    try:
        threshold = float(text)
    except ValueError:
        threshold = math.nan
    if not 0.0 <= threshold <= 1.0:  # also false for NaN
        raise CheckpointError(path, f"its score_threshold {text!r} is not a number in 0..1")
    return threshold
