"""Renders the Helm chart, and refuses what Kubernetes would refuse."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.repository import ROOT

CHART = ROOT / "docker" / "helm" / "lite-detr"


def helm(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs helm; skips the test where it is not installed."""
    beside = Path(sys.executable).with_name("helm")
    tool = beside if beside.exists() else shutil.which("helm")
    if tool is None:
        pytest.skip("helm is not installed (make helm)")
    return subprocess.run(
        [tool, *arguments], input=stdin, capture_output=True, text=True, check=False
    )


def template(
    values: dict[str, Any] | None = None, *flags: str, release: str = "r"
) -> subprocess.CompletedProcess[str]:
    text = yaml.safe_dump(values or {})
    return helm("template", release, str(CHART), "-n", "shop", "-f", "-", *flags, stdin=text)


def rendered(
    values: dict[str, Any] | None = None, *flags: str, release: str = "r"
) -> dict[str, dict[str, Any]]:
    """The objects of the chart by kind; `Service metrics` is the one of the metrics."""
    done = template(values, *flags, release=release)
    assert done.returncode == 0, done.stderr
    objects = [each for each in yaml.safe_load_all(done.stdout) if each]
    found = {}
    for each in objects:
        kind, name = each["kind"], each["metadata"]["name"]
        found[f"{kind} metrics" if name.endswith("-metrics") else kind] = each
    assert len(found) == len(objects)
    return found


def container(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The container of the Deployment."""
    [found] = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    result: dict[str, Any] = found
    return result


def variables(objects: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The environment of the container."""
    return {each["name"]: each["value"] for each in container(objects)["env"]}
