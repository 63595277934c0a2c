"""Validates the dashboard against Grafana's types (npm, pinned)."""

from __future__ import annotations

import json
import shutil
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.ops.queries import dashboard

PACKAGES = ("@grafana/grafana-foundation-sdk@0.0.21", "ts-json-schema-generator@2.4.0")


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the types and the program that converts them to JSON schemas."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("types")
    subprocess.run([npm, "install", "--silent", *PACKAGES], cwd=folder, check=True)
    return folder


def schema(types: Path, module: str, name: str) -> dict[str, Any]:
    """The JSON schema of one of Grafana's types."""
    source = f"node_modules/@grafana/grafana-foundation-sdk/dist/{module}/types.gen.d.ts"
    argv = ["npx", "ts-json-schema-generator", "--path", source, "--type", name, "--no-type-check"]
    done = subprocess.run(argv, cwd=types, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_dashboard_matches_grafanas_type(types: Path) -> None:
    bare = deepcopy(dashboard())
    for panel in bare["panels"]:
        panel.pop("targets", None)  # their type depends on the data source: see below
    jsonschema.validate(bare, schema(types, "dashboard", "Dashboard"))


def test_queries_match_the_type_of_prometheus_queries(types: Path) -> None:
    of_prometheus = schema(types, "prometheus", "Dataquery")
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            jsonschema.validate(target, of_prometheus)


@pytest.mark.parametrize("kind", ["stat", "timeseries"])
def test_options_match_the_type_of_the_panel_kind(types: Path, kind: str) -> None:
    options = schema(types, kind, "Options")
    panels = [panel for panel in dashboard()["panels"] if panel["type"] == kind]
    assert panels
    for panel in panels:
        jsonschema.validate(panel["options"], options)


def test_all_panels_are_of_tested_kinds() -> None:
    assert {panel["type"] for panel in dashboard()["panels"]} == {"row", "stat", "timeseries"}


def test_a_mistyped_key_is_detected(types: Path) -> None:
    wrong = {"panels": [], "editabel": False}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema(types, "dashboard", "Dashboard"))
