"""The dashboard against Grafana's own types (npm, pinned): no key that Grafana would not know."""

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
    """A folder with the types and the program that makes JSON schemas of them."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("types")
    subprocess.run([npm, "install", "--silent", *PACKAGES], cwd=folder, check=True)
    return folder


def schema(types: Path, module: str, name: str) -> dict[str, Any]:
    """The JSON schema of one of Grafana's types."""
    source = f"node_modules/@grafana/grafana-foundation-sdk/dist/{module}/types.gen.d.ts"
    words = ["npx", "ts-json-schema-generator", "--path", source, "--type", name, "--no-type-check"]
    done = subprocess.run(words, cwd=types, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_dashboard_has_the_shape_of_grafanas_dashboards(types: Path) -> None:
    bare = deepcopy(dashboard())
    for panel in bare["panels"]:
        panel.pop("targets", None)  # of a type that depends on the data source: see below
    jsonschema.validate(bare, schema(types, "dashboard", "Dashboard"))


def test_queries_have_the_shape_of_queries_to_prometheus(types: Path) -> None:
    of_prometheus = schema(types, "prometheus", "Dataquery")
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            jsonschema.validate(target, of_prometheus)


@pytest.mark.parametrize("kind", ["stat", "timeseries"])
def test_options_have_the_shape_of_the_panel_kind(types: Path, kind: str) -> None:
    options = schema(types, kind, "Options")
    panels = [panel for panel in dashboard()["panels"] if panel["type"] == kind]
    assert panels
    for panel in panels:
        jsonschema.validate(panel["options"], options)


def test_no_panel_is_of_another_kind() -> None:
    assert {panel["type"] for panel in dashboard()["panels"]} == {"row", "stat", "timeseries"}


def test_a_mistyped_key_would_have_been_seen(types: Path) -> None:
    wrong = {"panels": [], "editabel": False}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema(types, "dashboard", "Dashboard"))
