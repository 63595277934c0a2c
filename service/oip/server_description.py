"""The server as the protocol describes it."""

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
    """Name, version and the extensions of the protocol that are spoken here."""
    return {"name": _NAME, "version": _version(), "extensions": list(_EXTENSIONS)}


def _version() -> str:
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:  # run from a folder that nobody installed
        return "unknown"
