"""The metadata of a weights file, read without torch and without trusting the file.

First step of loading a model: name -> path (`resolve_model`) -> `ModelInfo` (`read_model_info`);
`model.weights.checkpoint` then reads the tensors. The serving edge needs the metadata only. A file
is safetensors with this metadata, all strings: `format`, `config` (JSON), `labels` (JSON),
`score_threshold`, `name`, `description` and, in newer files, `category_ids` (JSON).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from model.config import VARIANTS, ModelConfig
from model.data.input_files import one_spelling
from model.network.backbone import BACKBONES
from model.text import shown_text, valid_text
from model.weights.header import CheckpointError, file_sha256, parse_json, read_header
from model.weights.releases import RELEASES

__all__ = [
    "DEFAULT_MODEL_PATH",
    "FORMAT_TAG",
    "CheckpointError",
    "ModelInfo",
    "default_cache_dir",
    "read_model_info",
    "resolve_model",
]

FORMAT_TAG = "lite-detr/1"
DEFAULT_MODEL_PATH = Path(__file__).parent / "default.safetensors"

_MAX_CONFIG_NUMBER = 2**16
_MAY_BE_ZERO = ("one_to_many_queries",)
_MAX_CATEGORY_ID = 2**63 - 1  # COCO's tools store ids as int64


@dataclass(frozen=True)
class ModelInfo:
    """The description of a model, as the service publishes and uses it."""

    name: str
    version: str  # the first 12 hex digits of the file's SHA-256
    config: ModelConfig
    labels: tuple[str, ...]  # config.num_classes of them; "N/A" for ids without a class
    score_threshold: float  # 0..1; the default of requests
    description: str
    # COCO category id of each class in the training data; None: an older file, without them.
    category_ids: tuple[int, ...] | None = None


def default_cache_dir() -> Path:
    """Returns the default folder of pulled models: ~/.cache/lite-detr.

    Raises:
        CheckpointError: if the user has no home folder.
    """
    try:
        return Path.home() / ".cache" / "lite-detr"
    except RuntimeError as error:
        raise CheckpointError(
            "~/.cache/lite-detr", "this user has no home folder: name a cache folder"
        ) from error


def resolve_model(name_or_path: str, cache_dir: Path | None = None) -> Path:
    """Returns the weights file of a model name or path.

    Args:
        name_or_path: "default" or "" for the embedded model, the name of a pulled variant, or
            the path of a safetensors file.
        cache_dir: the folder of pulled models; None for `default_cache_dir()`.

    Returns:
        The path of an existing file.

    Raises:
        CheckpointError: if there is no such file; the message says how to get it.
    """
    if name_or_path in ("", "default"):
        if not DEFAULT_MODEL_PATH.is_file():
            raise CheckpointError(
                DEFAULT_MODEL_PATH, "the embedded default model is missing: reinstall the package"
            )
        return DEFAULT_MODEL_PATH
    if name_or_path in VARIANTS:
        pulled = (cache_dir or default_cache_dir()) / f"{name_or_path}.safetensors"
        if not pulled.is_file():
            problem = f"not downloaded yet: run `lite-detr weights pull {name_or_path}` first"
            if name_or_path not in RELEASES:
                problem = (
                    "there is no such file, and no address to download it from: convert a "
                    "checkpoint (`lite-detr weights convert`) or train it (`lite-detr train "
                    f"--variant {name_or_path}`)"
                )
            raise CheckpointError(pulled, problem)
        if (other := config_name(pulled)) != name_or_path:
            raise CheckpointError(
                pulled,
                f"is a model of another architecture ({other}): give its path, or replace "
                f"it with `lite-detr weights pull {name_or_path} --overwrite`",
            )
        return pulled
    path = Path(name_or_path)
    try:
        path = path.expanduser()
        found = path.is_file()
        if path.is_dir() and (path / "model.safetensors").is_file():
            raise CheckpointError(
                name_or_path, f"is a folder; its model is {path / 'model.safetensors'}"
            )
    except (OSError, RuntimeError):  # a name too long for a file; a user who does not exist
        found = False
    if not found:
        names = ", ".join(("default", *VARIANTS))
        if _is_special(path):
            raise CheckpointError(name_or_path, "is not a regular file")
        raise CheckpointError(name_or_path, f"is neither a weights file nor a model name ({names})")
    return path


def config_name(path: Path) -> str:
    """Returns the name of the variant whose architecture the model of a weights file has.

    Raises:
        CheckpointError: for a file that is not a weights file of this project.
    """
    config = parse_json(path, "config", read_header(path).metadata.get("config", "null"))
    name = config.get("name") if isinstance(config, dict) else None
    if not isinstance(name, str):
        raise CheckpointError(path, "its metadata names no architecture")
    return valid_text(name)


def _is_special(path: Path) -> bool:
    """Whether a path leads to a pipe, a device or a socket."""
    try:
        return path.exists() and not path.is_dir()
    except OSError:
        return False


def read_model_info(path: Path | str) -> ModelInfo:
    """Reads the metadata of a weights file.

    Args:
        path: a safetensors file that this project wrote.

    Returns:
        The model's identity, architecture, class names and default threshold.

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
        name=shown_text(metadata["name"]),
        version=file_sha256(path)[:12],
        config=config,
        labels=_parse_labels(path, metadata["labels"], config.num_classes),
        score_threshold=_parse_threshold(path, metadata["score_threshold"]),
        description=valid_text(metadata.get("description", "")),
        category_ids=_parse_category_ids(path, metadata.get("category_ids"), config.num_classes),
    )


def _parse_config(path: Path, text: str) -> ModelConfig:
    """Parses the architecture; refuses unknown fields, other types and impossible values."""
    values = parse_json(path, "config", text)
    if not isinstance(values, dict):
        raise CheckpointError(path, "its config is not a JSON object")
    for field, value in values.items():
        least = 0 if field in _MAY_BE_ZERO else 1
        if type(value) is int and not least <= value <= _MAX_CONFIG_NUMBER:
            raise CheckpointError(path, f"its config has an impossible {field} ({value})")
    backbone = values.get("backbone", ModelConfig.backbone)
    if backbone not in list(BACKBONES):
        known = ", ".join(BACKBONES)
        raise CheckpointError(path, f"its backbone {backbone!r} is not known here ({known})")
    try:
        return ModelConfig.from_dict(values)
    except ValueError as error:
        raise CheckpointError(path, str(error)) from error


def _parse_labels(path: Path, text: str, num_classes: int) -> tuple[str, ...]:
    """Parses the class names, as many as the network has outputs."""
    labels = parse_json(path, "labels", text)
    if not isinstance(labels, list) or not all(isinstance(v, str) and v for v in labels):
        raise CheckpointError(path, "its labels are not a list of names")
    if len(labels) != num_classes:
        raise CheckpointError(
            path, f"it has {len(labels)} labels for a network of {num_classes} classes"
        )
    return tuple(one_spelling(valid_text(label)) for label in labels)


def _parse_category_ids(path: Path, text: str | None, num_classes: int) -> tuple[int, ...] | None:
    """Parses the COCO category ids, one per class and all different."""
    if text is None:
        return None
    ids = parse_json(path, "category_ids", text)
    if not isinstance(ids, list) or not all(
        type(value) is int and -_MAX_CATEGORY_ID <= value <= _MAX_CATEGORY_ID for value in ids
    ):
        raise CheckpointError(path, "its category_ids are not a list of integers")
    if len(ids) != num_classes or len(set(ids)) != num_classes:
        raise CheckpointError(
            path, f"its category_ids are not {num_classes} different ids, one per class"
        )
    return tuple(ids)


def _parse_threshold(path: Path, text: str) -> float:
    """Parses a score in 0..1."""
    try:
        threshold = float(text)
    except ValueError:
        threshold = math.nan
    if not 0.0 <= threshold <= 1.0:  # also false for NaN
        raise CheckpointError(path, f"its score_threshold {text!r} is not a number in 0..1")
    return threshold
