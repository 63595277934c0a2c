"""The result file of a part of `run.sh`: a line of JSON for every result, written at once.

The first line has the conditions. A part that is killed loses nothing that it has measured.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks.report import conditions

CONDITIONS, ROW, FAILURE, LEFT_OUT = "conditions", "row", "failure", "left out"


class Results:
    """Writes and prints results as they come.

    Args:
        path: of the file; None: results are only printed.
        device: that is measured.
    """

    def __init__(self, path: Path | None, device: torch.device) -> None:
        self._file: TextIO | None = None if path is None else path.open("w", encoding="utf-8")
        self.failures: list[str] = []
        self._write(CONDITIONS, facts(device))

    def row(self, **figures: Any) -> None:
        """A result; its figures by name."""
        self._write(ROW, figures)

    def fail(self, text: str) -> None:
        """A result that must not be."""
        self.failures.append(text)
        self._write(FAILURE, {"text": text})

    def left_out(self, text: str) -> None:
        """A measurement that was not made, and why."""
        self._write(LEFT_OUT, {"text": text})

    @property
    def exit_status(self) -> int:
        """1 after a failure."""
        return 1 if self.failures else 0

    def _write(self, kind: str, content: dict[str, Any]) -> None:
        line = json.dumps({"kind": kind, **content})
        print(line, flush=True)
        if self._file is not None:
            self._file.write(line + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a result file; a last line that is cut off is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def facts(device: torch.device) -> dict[str, Any]:
    """The conditions of the run, the device, and the versions of torch, CUDA and cuDNN."""
    on_gpu = device.type == "cuda"
    return {
        **conditions(),
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "capability": torch.cuda.get_device_capability(device) if on_gpu else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,  # type: ignore[no-untyped-call]
    }
