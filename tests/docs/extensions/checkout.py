"""A copy of the sources in which a test makes an example change and runs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.repository import ROOT

# What a change may touch; everything else is linked.
_COPIED = ("model", "service", "docs", "docker", "pyproject.toml")
_TIMEOUT_SECONDS = 300
_TABLE_ROW = re.compile(r"^\| ([A-Za-z -]+) \| (`.+?) \| (`.+?) \|$", re.MULTILINE)


def documented_files() -> dict[str, tuple[frozenset[str], frozenset[str]]]:
    """The table of CONTRIBUTING.md: for each kind of extension its files and its tests."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return {kind: (_paths(files), _paths(tests)) for kind, files, tests in _TABLE_ROW.findall(text)}


def _paths(cell: str) -> frozenset[str]:
    return frozenset(re.findall(r"`([^`]+)`", cell))


class RunningService:
    """A service that was started in the copy."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.output = ""

    @property
    def url(self) -> str:
        """The URL of the HTTP server."""
        return self._wait_for(r"listens on (http://\S+)")

    def number_after(self, text: str) -> int:
        """The number that the service printed behind a text."""
        return int(self._wait_for(rf"{text} (\d+)"))

    def wait_until_ready(self) -> None:
        """Waits until the model is loaded."""
        self._wait_for("^(Ready)")

    def _wait_for(self, pattern: str) -> str:
        assert self._process.stdout is not None
        while not (found := re.search(pattern, self.output, re.MULTILINE)):
            line = self._process.stdout.readline()
            assert line, self.output
            self.output += line
        return found[1]


@dataclass
class ExtensionCheckout:
    """The copy, and the paths that were changed in it.

    New files are recorded with `NAME` in place of `new_name`, as CONTRIBUTING.md writes them.
    """

    folder: Path
    new_name: str = "example"
    changed: set[str] = field(default_factory=set)

    @classmethod
    def create(cls, folder: Path) -> ExtensionCheckout:
        """Copies the sources into an empty folder."""
        for name in _COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name)
            else:
                shutil.copy2(source, folder / name)
        for entry in ("tests", "proto", "benchmarks", "lite_detr_client"):
            (folder / entry).symlink_to(ROOT / entry)
        return cls(folder)

    def add(self, path: str, text: str) -> None:
        """Creates a file."""
        target = self.folder / path
        assert not target.exists(), f"{path} already exists"
        target.parent.mkdir(exist_ok=True)
        target.write_text(text, encoding="utf-8")
        self.changed.add(path.replace(self.new_name, "NAME"))

    def append(self, path: str, text: str) -> None:
        """Adds text to the end of a file."""
        with (self.folder / path).open("a", encoding="utf-8") as file:
            file.write(text)
        self.changed.add(path)

    def insert(self, path: str, after: str, text: str) -> None:
        """Inserts text into a file behind the only match of a regular expression."""
        self.replace(path, after, lambda match: match[0] + text)

    def replace(self, path: str, pattern: str, by: object) -> None:
        """Replaces the only match of a regular expression in a file."""
        target = self.folder / path
        source = target.read_text(encoding="utf-8")
        changed, count = re.subn(pattern, by, source, flags=re.MULTILINE)  # type: ignore[call-overload]
        assert count == 1, f"{path} has {count} matches of {pattern!r}"
        target.write_text(changed, encoding="utf-8")
        self.changed.add(path)

    def write_output(self, path: str, *arguments: str) -> None:
        """Replaces a file by the output of a Python command in the copy."""
        (self.folder / path).write_text(self.run(*arguments), encoding="utf-8")
        self.changed.add(path)

    def run(self, *arguments: str) -> str:
        """Runs Python in the copy and returns what it prints.

        Raises:
            AssertionError: if it fails.
        """
        return self._output([sys.executable, *arguments])

    def run_program(self, name: str, *arguments: str) -> str:
        """Runs a program that is installed next to Python, in the copy."""
        return self._output([str(Path(sys.executable).parent / name), *arguments])

    @contextmanager
    def serving(self) -> Iterator[RunningService]:
        """Runs the service of the copy with the fake device on a free port."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fake_serve"],
            cwd=self.folder,
            env=self._environment()
            | {
                "LITE_DETR_HTTP_PORT": "0",
                "LITE_DETR_GRPC_PORT": "-1",
                "LITE_DETR_LOG_FORMAT": "console",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            service = RunningService(process)
            service.wait_until_ready()
            yield service
        finally:
            process.terminate()
            process.communicate(timeout=_TIMEOUT_SECONDS)
        assert process.returncode == 0

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("LITE_DETR_")}
        return kept | {"PYTHONPATH": str(self.folder), "COLUMNS": "250", "NO_COLOR": "1"}

    def _output(self, command: Sequence[str]) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout
