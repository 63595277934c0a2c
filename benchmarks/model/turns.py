"""A side of a comparison in a process of its own, which runs one image for each line on stdin.

Sides share neither memory nor allocator settings nor, if they like, packages: this module needs the
standard library only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]


class Side:
    """The process of a side.

    Attributes:
        name: of the side.
        ready: what it reported when it was ready.
        times: wall and CPU seconds of each image.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        """Starts it and waits until it is ready."""
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT
        )
        self.ready: Any = self._read()
        self.times: list[tuple[float, float]] = []

    def run(self) -> None:
        """Runs one image."""
        assert self._process.stdin is not None
        print("run", file=self._process.stdin, flush=True)
        wall, cpu = self._read()
        self.times.append((wall, cpu))

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()  # closes both pipes

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self._process.wait()}")
        return json.loads(line)


def environment_of(folder: Path, *packages: str) -> str:
    """The interpreter of an environment with these packages and numpy, made if it is missing.

    Raises:
        subprocess.CalledProcessError: if a package cannot be installed.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"installing {', '.join(packages)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if not (folder / "complete").exists():
        install = [str(python), "-m", "pip", "install", "--quiet", "numpy", *packages]
        subprocess.run(install, check=True)
        (folder / "complete").touch()
    return str(python)


def take_turns(ready: object, run: Callable[[], object]) -> None:
    """In the process of a side: reports `ready`, then runs and times an image for each line."""
    print(json.dumps(ready), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        print(json.dumps((time.perf_counter() - wall, time.process_time() - cpu)), flush=True)


def peak_mib() -> float:
    """The largest memory of this process so far, or since its peak was reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
