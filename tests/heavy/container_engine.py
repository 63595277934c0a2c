"""Docker's command line, or another program that understands it (CONTAINER=podman)."""

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
_PATIENCE_SECONDS = 180


def command_from(variable: str, default: str) -> list[str]:
    """The words of a command that the environment may replace; skips where it is missing."""
    words = shlex.split(os.environ.get(variable) or default)
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed; name another with {variable}=...")
    return words


def run(
    words: list[str], *, check: bool = True, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command in the repository; its output is text."""
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def wait_until(holds: Callable[[], bool], what: str) -> float:
    """Polls; gives the seconds that it took."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < _PATIENCE_SECONDS, f"not within patience: {what}"
        time.sleep(0.2)
    return time.monotonic() - started


class ContainerEngine:
    """The few commands that the checks need."""

    def __init__(self) -> None:
        """Takes the command from CONTAINER; docker where it is unset."""
        self._words = command_from("CONTAINER", "docker")

    def do(self, *arguments: str, check: bool = True) -> str:
        """Runs one command and gives what it printed on both streams."""
        done = run([*self._words, *arguments], check=check)
        return done.stdout + done.stderr

    def build(self, target: str, tag: str) -> subprocess.CompletedProcess[str]:
        """Builds a target of the Dockerfile; TORCH_INDEX_URL is handed on."""
        arguments = ["build", "-f", "docker/Dockerfile", "--target", target, "-t", tag]
        index = os.environ.get("TORCH_INDEX_URL")
        if index:
            arguments += ["--build-arg", f"TORCH_INDEX_URL={index}"]
        return run([*self._words, *arguments, "."], check=False)

    def inspect(self, name: str) -> dict[str, Any]:
        """What the engine knows of an image or container."""
        done = run([*self._words, "inspect", name])
        [described] = json.loads(done.stdout)
        found: dict[str, Any] = described
        return found

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        """Runs a shell script in a new container of the image."""
        words = [*self._words, "run", "--rm", "--entrypoint", "sh", IMAGE, "-c", script]
        return run(words, check=False)
