"""Prints the Helm chart's values.schema.json with the settings of the service: make docs.

Helm then refuses names and values in `settings:` that the service would refuse. Settings that the
chart sets from other values are left out, so that they are refused there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from service.settings import Settings

# Set by the templates.
OF_THE_CHART = frozenset(
    {
        "host",
        "http_port",
        "grpc_port",
        "metrics_port",
        "api_keys_file",
        "tls_certificate_file",
        "tls_key_file",
        "tls_client_ca_file",
        "drain_delay_seconds",
        "drain_timeout_seconds",
    }
)
_KEPT = (
    "type",
    "enum",
    "pattern",
    "minLength",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "description",
)


def settings_schema() -> dict[str, Any]:
    """Returns the JSON schema of the value `settings`."""
    fields = Settings.model_json_schema()["properties"]
    return {
        "description": "Settings of the service by name; docs/configuration.md documents them.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            name: _of_field(field) for name, field in fields.items() if name not in OF_THE_CHART
        },
    }


def _of_field(field: dict[str, Any]) -> dict[str, Any]:
    """Returns what Helm needs of a field. In values, null means the default of the service."""
    [given] = [each for each in field.get("anyOf", [field]) if each.get("type") != "null"]
    merged = field | given
    kept = {key: merged[key] for key in _KEPT if key in merged}
    kept["type"] = [merged["type"], "null"]
    if "enum" in kept:
        kept["enum"] = [*merged["enum"], None]
    return kept


def with_settings(text: str) -> str:
    """Returns the text of the schema with the present settings."""
    schema = json.loads(text)
    schema["properties"]["settings"] = settings_schema()
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(with_settings(Path(sys.argv[1]).read_text(encoding="utf-8")))
