"""Installs the built release into a new environment and serves with it: make test-release."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.heavy.findings import RESULTS, Findings
from tests.support.built_archives import build, copy_of_the_project
from tests.support.repository import ROOT

SAMPLES = ROOT / "docs" / "samples"
TIMEOUT_SECONDS = 180

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def findings() -> Iterator[Findings]:
    found = Findings("Release", "make test-release")
    yield found
    found.write(RESULTS / "release")


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def installed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, findings: Findings
) -> Path:
    """The folder of an environment with only the service and its dependencies."""
    folder = tmp_path_factory.mktemp("release")
    project = copy_of_the_project(folder / "project")
    (folder / "dist").mkdir()
    [archive] = build(project, folder / "dist", f"--{request.param}")
    findings.note(f"{request.param}, MB", round(archive.stat().st_size / 1e6, 1))
    environment = folder / "environment"
    venv.create(environment, with_pip=True)
    lock = str(ROOT / "requirements" / "lock.txt")
    python = str(environment / "bin" / "python")
    argv = [python, "-m", "pip", "install", "-q", "-c", lock, str(archive)]
    # Build dependencies of the archive come from the index, as on a user's machine.
    done = subprocess.run(argv, env=clean(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return environment


def clean() -> dict[str, str]:
    """The environment variables without those that could refer to this checkout."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("LITE_DETR_") and name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }


def command(environment: Path, *arguments: str) -> str:
    """Runs the installed command outside the checkout."""
    argv = [str(environment / "bin" / "lite-detr"), *arguments]
    done = subprocess.run(
        argv, cwd=environment, env=clean(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_installed_packages_are_compatible(installed: Path) -> None:
    argv = [str(installed / "bin" / "python"), "-m", "pip", "check"]
    done = subprocess.run(argv, env=clean(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_version_is_the_version_of_the_project(installed: Path) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    [number] = re.findall(r'^version = "([^"]+)"', text, re.MULTILINE)
    assert command(installed, "--version") == f"lite-detr {number}\n"


def test_no_tests_and_training_dependencies_are_installed(installed: Path) -> None:
    names = ("pytest", "cv2", "tests")
    script = f"from importlib.util import find_spec; print([n for n in {names} if find_spec(n)])"
    argv = [str(installed / "bin" / "python"), "-c", script]
    done = subprocess.run(
        argv, cwd=installed, env=clean(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_detect_works_without_a_service(installed: Path) -> None:
    [found] = json.loads(command(installed, "detect", "--json", str(SAMPLES / "codes.jpg")))
    expected = json.loads((SAMPLES / "codes.json").read_text())["codes"]
    assert {each["label"] for each in found["detections"]} == {each["label"] for each in expected}


def test_service_serves_page_and_detections_and_stops(installed: Path, findings: Findings) -> None:
    argv = [str(installed / "bin" / "lite-detr"), "serve", "--port", "0", "--grpc-port", "0"]
    process = subprocess.Popen(argv, cwd=installed, env=clean(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        output = ""
        for line in process.stderr:
            output += line
            if "Ready after" in line:
                break
        match = re.search(r"listens on (http://\S+)", output)
        assert match, output
        sample = (SAMPLES / "codes.jpg").read_bytes()
        response = httpx.post(f"{match[1]}/detect", content=sample, timeout=TIMEOUT_SECONDS)
        assert len(response.json()["detections"]) == 5
        assert "<html" in httpx.get(f"{match[1]}/").text
        assert httpx.get(f"{match[1]}/docs").status_code == httpx.codes.OK
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 0
    findings.note("installed in an empty environment", f"Python {sys.version.split()[0]}: serves")
