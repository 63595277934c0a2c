"""The measurements of a heavy test, written as a JSON file and a page."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

from tests.support.repository import ROOT

RESULTS = ROOT / "benchmarks" / "results"


class Findings:
    """Measurements by name, in order."""

    def __init__(self, title: str, command: str) -> None:
        """Starts with a description of the machine."""
        self._title, self._command = title, command
        self._values: dict[str, str | int | float] = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "processor family": platform.machine(),
            "CPU cores": os.cpu_count() or 0,
            "load average of the machine, at first": round(os.getloadavg()[0], 1),
        }

    def note(self, name: str, value: str | int | float) -> None:
        """Records a measurement; replaces one of the same name."""
        self._values[name] = value

    def write(self, folder: Path) -> None:
        """Writes findings.json and findings.md."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "findings.json").write_text(json.dumps(self._values, indent=1) + "\n")
        rows = "".join(f"| {name} | {value} |\n" for name, value in self._values.items())
        page = f"# {self._title}\n\nWritten by `{self._command}`.\n\n| | |\n|---|---|\n{rows}"
        (folder / "findings.md").write_text(page)
