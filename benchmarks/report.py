"""Reports of benchmarks: the conditions of a run, and its results as JSON and as Markdown."""

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

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def conditions() -> dict[str, Any]:
    """The date, command, machine and Python version of this process; contains no paths."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command(),
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


def command() -> str:
    """The command that started this process, with FOLDER in place of paths."""
    spec = sys.modules["__main__"].__spec__
    module = f"-m {spec.name}" if spec is not None else Path(sys.argv[0]).name
    arguments = ("FOLDER" if "/" in each else each for each in sys.argv[1:])
    return " ".join(("python", module, *arguments))


def version_of(package: str, python: str = sys.executable) -> str:
    """The installed version of a package, according to the interpreter `python`."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def write_report(path: Path, title: str, document: dict[str, Any], sections: Sequence[str]) -> None:
    """Writes a report and prints its Markdown.

    Args:
        path: without a suffix: PATH.json and PATH.md are written.
        title: heading of the Markdown.
        document: `conditions()` and the results; becomes the JSON.
        sections: Markdown that follows the heading and the conditions.
    """
    machine = document["machine"]
    head = (
        f"# {title}\n\n"
        f"{document['date']}, Python {document['python']}, {machine['processor']}, "
        f"{machine['cpus']} CPUs, {machine['memory_gib']} GiB, {machine['system']}; load average "
        f"before: {machine['load_average_before'][0]}.\n\n    {document['command']}\n"
    )
    text = "\n".join([head, *sections])
    print(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")
    path.with_suffix(".md").write_text(text)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table; its first `texts` columns are text, the others are figures."""
    ruler = ["---:" if index >= texts else "---" for index in range(len(columns))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, ruler, *rows)) + "\n"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
