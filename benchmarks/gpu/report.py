"""The JSON result files of GPU measurements."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import conditions
from model.ops import implementation_name


def facts(device: torch.device) -> dict[str, Any]:
    """The conditions of the run, the device, and the versions of torch and CUDA."""
    on_gpu = device.type == "cuda"
    return {
        **conditions(),
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "capability": torch.cuda.get_device_capability(device) if on_gpu else None,
        "kernels": implementation_name(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def write(path: Path | None, device: torch.device, results: dict[str, Any]) -> None:
    """Prints the results as JSON and, if a path is given, writes them there."""
    text = json.dumps({**facts(device), **results}, indent=2)
    print(text)
    if path is not None:
        path.write_text(text + "\n")
