"""A folder like a checkout and a service with the default model, for the commands of the docs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs.pages import Block
from tests.support.repository import ROOT

_PATIENCE_SECONDS = 300
_NOT_LINKED = {".git", ".venv", "runs", "build", "dist"}
_PHOTOS = {"photo.jpg": "codes", "one.jpg": "qr_close_up", "two.jpg": "shelf"}
# An answer of 400 or more counts as a failure, whether the reader asked curl for that or not.
_STRICT_CURL = 'curl() { command curl --fail --silent --show-error "$@"; }'
_STAND_FOR = {"localhost:8000": "http", "localhost:8001": "grpc", "127.0.0.1:8000": "http"}


@dataclass(frozen=True)
class Reader:
    """Somebody who follows the docs, command by command."""

    folder: Path
    addresses: dict[str, str]

    def run(self, block: Block) -> subprocess.CompletedProcess[str]:
        """Runs a block as the reader would."""
        return subprocess.run(
            self._words(block),
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )

    def run_until(self, block: Block, awaited: str) -> tuple[str, int]:
        """Runs a block until it has said something, then ends it.

        Returns:
            What it said, and its exit status.
        """
        process = subprocess.Popen(
            self._words(block),
            cwd=self.folder,
            env=self._environment() | {"LITE_DETR_HTTP_PORT": "0", "LITE_DETR_GRPC_PORT": "0"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        said = ""
        try:
            for line in process.stderr:
                said += line
                if awaited in line:
                    break
        finally:
            process.terminate()
            rest = process.communicate(timeout=_PATIENCE_SECONDS)[1]
        return said + rest, process.returncode

    def _words(self, block: Block) -> list[str]:
        body = block.body
        for written, protocol in _STAND_FOR.items():
            body = body.replace(written, self.addresses[protocol])
        if block.language == "python":
            return [sys.executable, "-c", body]
        if block.mode.startswith("run-until"):
            *before, server = body.strip().splitlines()
            body = "\n".join((*before, "exec " + re.sub(r"--port \d+", "--port 0", server)))
        return ["bash", "-euo", "pipefail", "-c", f"{_STRICT_CURL}\n{body}"]

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("LITE_DETR_")}
        path = f"{self.folder / '.venv' / 'bin'}:{kept['PATH']}:{Path(sys.executable).parent}"
        own = {"PYTHONPATH": str(ROOT), "HOME": str(self.folder / "home"), "KEY": "not asked for"}
        return kept | {"PATH": path} | own


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("checkout")
    for entry in ROOT.iterdir():
        if entry.name not in _NOT_LINKED:
            (folder / entry.name).symlink_to(entry)
    for name, sample in _PHOTOS.items():
        shutil.copy(ROOT / "docs" / "samples" / f"{sample}.jpg", folder / name)
    (folder / "home").mkdir()
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    python = shlex.quote(sys.executable)
    for name, command in {"python": python, "lite-detr": f"{python} -m service"}.items():
        script = binaries / name
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(0o755)
    with _serving() as addresses:
        yield Reader(folder, addresses)


@contextmanager
def _serving() -> Iterator[dict[str, str]]:
    """The service with the default model, as `make serve` starts it, on ports that are free."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LITE_DETR_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--port", "0", "--grpc-port", "0"],
        cwd=ROOT,
        env=clean,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        said = ""
        for line in process.stderr:
            said += line
            if line.startswith("Ready"):
                break
        http = re.search(r"listens on http://(\S+)", said)
        grpc = re.search(r"gRPC: ([^ ,]+)", said)
        assert http, said
        assert grpc, said
        yield {"http": http[1], "grpc": grpc[1]}
    finally:
        process.terminate()
        process.communicate(timeout=_PATIENCE_SECONDS)
