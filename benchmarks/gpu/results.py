"""The result file of a part of `run.sh`: a line of JSON for every result, written at once.

The first line has the conditions. A part that is killed loses nothing that it has measured.
"""

from __future__ import annotations

import json
import os
import platform
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from benchmarks.report import conditions
from model.native.library import BuildError
from model.native.prebuilt import DIRECTORY
from model.ops import nvrtc

CONDITIONS, ROW, FAILURE, LEFT_OUT = "conditions", "row", "failure", "left out"


class Results:
    """Writes and prints results as they come.

    Args:
        path: of the file; None: results are only printed.
        device: that is measured.
    """

    def __init__(self, path: Path | None, device: torch.device) -> None:
        self._path = path
        if path is not None:
            path.write_bytes(b"")
        self.failures: list[str] = []
        self._on_gpu = device.type == "cuda"
        self._write(CONDITIONS, facts(device))

    def row(self, **figures: Any) -> None:
        """A result; its figures by name."""
        self._write(ROW, figures)

    def fail(self, text: str) -> None:
        """A result that must not be."""
        self.failures.append(text)
        self._write(FAILURE, {"text": text})

    def guarded(self, what: str) -> Guard:
        """Context of one measurement: its error becomes a failure, and the others follow."""
        return Guard(self, what, self._on_gpu)

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
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())


class Guard:
    """See `Results.guarded`.

    Args:
        results: gets the failure.
        what: is measured.
        on_gpu: whether a lost CUDA context is looked for, after which nothing could follow.
    """

    def __init__(self, results: Results, what: str, on_gpu: bool) -> None:
        self._results, self._what, self._on_gpu = results, what, on_gpu

    def __enter__(self) -> None:
        """Begins the measurement."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Writes what ended the measurement.

        Raises:
            RuntimeError: if the CUDA context is lost.
        """
        if not isinstance(error, Exception):
            return False
        if isinstance(error, torch.OutOfMemoryError):
            self._results.left_out(f"{self._what}: out of memory")
        else:
            line = (str(error).strip() or "no message").splitlines()[0][:500]
            self._results.fail(f"{self._what}: {type(error).__name__}: {line}")
            traceback.print_exception(kind, error, trace)
        if self._on_gpu:
            torch.cuda.synchronize()  # raises if the context is lost
            torch.cuda.empty_cache()
        return True


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
    """The conditions of the run, the device, and the versions of torch and NVIDIA's libraries."""
    return {
        **conditions(),
        "device": platform.machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        **(_facts_of_gpu(device) if device.type == "cuda" else {}),
    }


def _facts_of_gpu(device: torch.device) -> dict[str, Any]:
    try:
        compiler: list[int] | None = [int(n) for n in nvrtc._compiler().nvrtcVersion()[1:]]
    except BuildError:
        compiler = None
    return {
        "device": torch.cuda.get_device_name(device),
        "capability": torch.cuda.get_device_capability(device),
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "nvrtc": compiler,
        "kernels_compiled_before": len(list(DIRECTORY.glob("*.cubin"))),
    }
