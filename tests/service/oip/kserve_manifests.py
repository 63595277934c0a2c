"""Builds the objects of manifests with the classes of KServe's SDK; fails for unknown fields.

A program of its own, as `kserve_requests.py`. Arguments: YAML files. Prints the kinds and names.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml
from kserve import models  # type: ignore[import-not-found, unused-ignore]
from kubernetes import client  # type: ignore[import-not-found, unused-ignore]

CLASSES = {
    "ServingRuntime": "V1alpha1ServingRuntime",
    "InferenceService": "V1beta1InferenceService",
}
API = client.ApiClient()


def build(kind: str, data: Any) -> Any:
    """Builds the object of a class that the SDK names in its types."""
    if kind.startswith("list["):
        return [build(kind[5:-1], item) for item in data]
    if hasattr(models, kind):
        cls = getattr(models, kind)
        fields = {name: field for field, name in cls.attribute_map.items()}
        unknown = set(data) - set(fields)
        if unknown:
            sys.exit(f"{kind} has no {sorted(unknown)}")
        types = cls.openapi_types
        return cls(**{fields[k]: build(types[fields[k]], v) for k, v in data.items()})
    if hasattr(client, kind):
        built = getattr(client, kind).from_dict(data)
        written = API.sanitize_for_serialization(built)
        if written != data:
            sys.exit(f"{kind} changes {data} to {written}")
        return built
    return data


found = []
for path in sys.argv[1:]:
    for item in yaml.safe_load_all(Path(path).read_text(encoding="utf-8")):
        build(CLASSES[item["kind"]], item)
        found.append([item["kind"], item["metadata"]["name"]])
print(json.dumps(found))
