"""A copy of the checkout and a running service, for the commands of the documentation."""

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

from model.native.library import cache_directory
from tests.docs.pages import Block
from tests.support.ports import free_port
from tests.support.repository import ROOT

_TIMEOUT_SECONDS = 300
_NOT_LINKED = {".git", ".venv", "runs", "build", "dist"}
_IMAGES = {"photo.jpg": "codes", "one.jpg": "qr_close_up", "two.jpg": "shelf"}
# A response of 400 or more is a failure, with or without --fail.
_FAILING_CURL = 'curl() { command curl --fail --silent --show-error "$@"; }'
_FREE_PORT = "8080"  # of a service that a block starts itself
_PLACEHOLDERS = {"localhost:8000": "http", "localhost:8001": "grpc", "127.0.0.1:8000": "http"}


@dataclass(frozen=True)
class BlockRunner:
    """Runs the blocks of the documentation in a copy of the checkout."""

    folder: Path
    addresses: dict[str, str]

    def run(self, block: Block) -> subprocess.CompletedProcess[str]:
        """Runs a block."""
        return subprocess.run(
            self._command(block),
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )

    def run_until(self, block: Block, text: str) -> tuple[str, int]:
        """Runs a block until it prints a text, then sends SIGTERM.

        Returns:
            The output on stderr and the exit status.
        """
        process = subprocess.Popen(
            self._command(block),
            cwd=self.folder,
            env=self._environment() | {"LITE_DETR_HTTP_PORT": "0", "LITE_DETR_GRPC_PORT": "0"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        output = ""
        try:
            for line in process.stderr:
                output += line
                if text in line:
                    break
        finally:
            process.terminate()
            rest = process.communicate(timeout=_TIMEOUT_SECONDS)[1]
        return output + rest, process.returncode

    def _command(self, block: Block) -> list[str]:
        body = block.body.replace(_FREE_PORT, str(free_port()))
        for placeholder, protocol in _PLACEHOLDERS.items():
            body = body.replace(placeholder, self.addresses[protocol])
        if block.language == "python":
            return [sys.executable, "-c", body]
        if block.mode.startswith("run-until"):
            *before, server = body.strip().splitlines()
            on_free_ports = re.sub(r"--((?:grpc-)?port) \d+", r"--\1 0", server)
            body = "\n".join((*before, f"exec {on_free_ports}"))
        return ["bash", "-euo", "pipefail", "-c", f"{_FAILING_CURL}\n{body}"]

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("LITE_DETR_")}
        path = f"{self.folder / '.venv' / 'bin'}:{kept['PATH']}:{Path(sys.executable).parent}"
        own = {"PYTHONPATH": str(ROOT), "HOME": str(self.folder / "home"), "KEY": "not-required"}
        return kept | {"PATH": path} | own


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlockRunner]:
    folder = tmp_path_factory.mktemp("checkout")
    for entry in ROOT.iterdir():
        if entry.name not in _NOT_LINKED:
            (folder / entry.name).symlink_to(entry)
    for name, sample in _IMAGES.items():
        shutil.copy(ROOT / "docs" / "samples" / f"{sample}.jpg", folder / name)
    kernels = folder / "home" / ".cache" / "lite-detr" / "ops"
    kernels.parent.mkdir(parents=True)
    kernels.symlink_to(cache_directory())  # so that no command compiles them again
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    python = shlex.quote(sys.executable)
    for name, command in {"python": python, "lite-detr": f"{python} -m service"}.items():
        script = binaries / name
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(0o755)
    with _serving() as addresses:
        yield BlockRunner(folder, addresses)


@contextmanager
def _serving() -> Iterator[dict[str, str]]:
    """Starts the service with the default model on free ports."""
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
        output = ""
        for line in process.stderr:
            output += line
            if "Ready after" in line:
                break
        http = re.search(r"listens on http://(\S+)", output)
        grpc = re.search(r"gRPC: ([^ ,]+)", output)
        assert http, output
        assert grpc, output
        yield {"http": http[1], "grpc": grpc[1]}
    finally:
        process.terminate()
        process.communicate(timeout=_TIMEOUT_SECONDS)
