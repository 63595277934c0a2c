"""The server in the protocol's terms."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_NAME = "lite-detr"
_PACKAGE = "lite-detr-service"
_EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)


@cache
def server_metadata() -> dict[str, Any]:
    """Name, version and the supported extensions of the protocol."""
    return {"name": _NAME, "version": _version(), "extensions": list(_EXTENSIONS)}


def _version() -> str:
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
