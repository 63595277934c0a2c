"""The description of the served model that GET /v1/models and gRPC's GetModel return."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from model.labels import named_classes
from service.core.detector import Detector


def model_facts(detector: Detector) -> dict[str, Any]:
    """Name, engines, classes and input rule of the served model, by their names on the wire.

    Limits are not part of it: each protocol has its own.
    """
    model = detector.model
    return {
        "name": model.name,
        "version": model.version,
        "description": model.description,
        "variant": model.config.name,
        "kernel": detector.kernel,
        "engines": [asdict(facts) for facts in detector.served.engine_facts],
        "default_threshold": model.score_threshold,
        "classes": [
            {"id": class_id, "name": name} for class_id, name in named_classes(model.labels)
        ],
        "input": {
            "shortest_side": model.config.shortest_side,
            "longest_side": model.config.longest_side,
            "resampling": "bilinear",
            "bucket_stride": model.config.bucket_stride,
        },
    }
