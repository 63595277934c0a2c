"""Lite DETR: the model, without serving.

`ModelConfig` and `VARIANTS` do not import torch; `build_detector` does on first use, so that the
serving edge can read the configuration of a model without loading torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model.config import VARIANTS, ModelConfig

if TYPE_CHECKING:
    from model.network.detector import build_detector

__all__ = ["VARIANTS", "ModelConfig", "build_detector"]


def __getattr__(name: str) -> Any:
    """Imports `build_detector` at its first use."""
    if name == "build_detector":
        from model.network.detector import build_detector  # noqa: PLC0415

        return build_detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
