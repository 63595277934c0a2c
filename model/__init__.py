"""Lite DETR: the network and nothing of serving.

`ModelConfig` and `VARIANTS` need no torch; `build_detector` loads it on first use, so that a
serving edge can read a model's configuration without paying for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model.config import VARIANTS, ModelConfig

if TYPE_CHECKING:
    from model.network.detector import build_detector

__all__ = ["VARIANTS", "ModelConfig", "build_detector"]


def __getattr__(name: str) -> Any:
    """Imports the network's builder when it is first asked for."""
    if name == "build_detector":
        from model.network.detector import build_detector  # noqa: PLC0415

        return build_detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
