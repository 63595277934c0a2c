"""What every result file of a GPU run begins with: where, with what, when and how it came about."""

from __future__ import annotations

import json
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from model.ops import implementation_name


def facts(device: torch.device) -> dict[str, Any]:
    """Device, versions, date and command."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "capability": torch.cuda.get_device_capability(device) if on_gpu else None,
        "kernels": implementation_name(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def write(path: Path | None, device: torch.device, results: dict[str, Any]) -> None:
    """Prints the results and, where a path is given, writes them there."""
    text = json.dumps({**facts(device), **results}, indent=2)
    print(text)
    if path is not None:
        path.write_text(text + "\n")
