"""The command line of Docker or a compatible program (CONTAINER=podman)."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.repository import ROOT

IMAGE = "lite-detr:cpu"
_TIMEOUT_SECONDS = 180


def command_from(variable: str, default: str) -> list[str]:
    """The command from an environment variable or the default; skips if it is not installed."""
    argv = shlex.split(os.environ.get(variable) or default)
    if shutil.which(argv[0]) is None:
        pytest.skip(f"{argv[0]} is not installed; name another with {variable}=...")
    return argv


def run(
    argv: list[str], *, check: bool = True, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command in the repository root."""
    done = subprocess.run(
        argv, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def wait_until(holds: Callable[[], bool], what: str) -> float:
    """Polls a condition; returns the seconds until it held."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < _TIMEOUT_SECONDS, f"timed out: {what}"
        time.sleep(0.2)
    return time.monotonic() - started


class ContainerEngine:
    """The commands of a container engine that the tests use."""

    def __init__(self) -> None:
        """Uses the command in CONTAINER, by default docker."""
        self._argv = command_from("CONTAINER", "docker")

    def do(self, *arguments: str, check: bool = True) -> str:
        """Runs a command; returns its stdout and stderr."""
        done = run([*self._argv, *arguments], check=check)
        return done.stdout + done.stderr

    def build(self, target: str, tag: str) -> subprocess.CompletedProcess[str]:
        """Builds a target of the Dockerfile, with the build argument TORCH_INDEX_URL if set."""
        arguments = ["build", "-f", "docker/Dockerfile", "--target", target, "-t", tag]
        index = os.environ.get("TORCH_INDEX_URL")
        if index:
            arguments += ["--build-arg", f"TORCH_INDEX_URL={index}"]
        return run([*self._argv, *arguments, "."], check=False)

    def inspect(self, name: str) -> dict[str, Any]:
        """The engine's description of an image or container."""
        done = run([*self._argv, "inspect", name])
        [described] = json.loads(done.stdout)
        found: dict[str, Any] = described
        return found

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        """Runs a shell script in a new container of the image."""
        argv = [*self._argv, "run", "--rm", "--entrypoint", "sh", IMAGE, "-c", script]
        return run(argv, check=False)
