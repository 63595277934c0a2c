"""What stands on every result: the date, the versions, the machine and the command."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "results" / "serving"


def conditions(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """When, where and how a benchmark ran; nothing in it is a path."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": f"python -m {module} {' '.join(_without_paths(arguments))}".strip(),
        "machine": {
            "processor": _processor(),
            "cpus": len(os.sched_getaffinity(0)),
            "memory_gib": round(
                os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1
            ),
            "system": f"{platform.system()} {platform.release().split('-')[0]}",
            "load_average_before": [round(load, 1) for load in os.getloadavg()],
        },
        "python": platform.python_version(),
    }


def version_of(package: str, python: str = sys.executable) -> str:
    """The installed version of a package, asked of the interpreter that runs it."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def write(name: str, title: str, document: dict[str, Any], tables: Sequence[str]) -> None:
    """Writes NAME.json and NAME.md."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")
    machine = document["machine"]
    head = (
        f"# {title}\n\n"
        f"{document['date']}, Python {document['python']}, {machine['processor']}, "
        f"{machine['cpus']} CPUs, {machine['memory_gib']} GiB, {machine['system']}; load average "
        f"before: {machine['load_average_before'][0]}.\n\n    {document['command']}\n"
    )
    (RESULTS / f"{name}.md").write_text("\n".join([head, *tables]) + "\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    ruler = ["---", *("---:" for _ in columns[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, ruler, *rows)) + "\n"


def _without_paths(arguments: Sequence[str]) -> list[str]:
    return ["FOLDER" if "/" in each else each for each in arguments]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
