"""Azure Machine Learning: POST /score with the schema of AutoML's object-detection endpoints.

    {"input_data": {"columns": ["image"], "data": ["base64", ...]}, "params": {"threshold": 0.5}}
    [{"filename": "image_0", "boxes": [{"box": {"topX": 0.1, ...}, "label": "a", "score": 0.9}]}]

Boxes are parts of the image's width and height, 0..1. The cloud has no variables of its own for
ports and paths: its deployment names them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.routing import BaseRoute

from service.clouds.contract import (
    Cloud,
    CloudSetting,
    Deployment,
    is_given,
    reachable,
    required_weights,
    unusable_access,
)
from service.clouds.json_images import (
    JsonForm,
    JsonRequest,
    image_of,
    list_of,
    predict_route,
)
from service.core.detector import Detector
from service.core.encoding import FileResult, ItemError, label_name, rounded_columns
from service.errors import short_repr
from service.settings import Settings
from service.transport.http_body import BodyMemory
from service.transport.http_request import malformed_json
from service.types import DetectResult

_TITLE = "Azure Machine Learning"
_MODEL_VARIABLE = "AZUREML_MODEL_DIR"
_PREDICT_PATH = "/score"
_COLUMNS = ["image"]
_DECIMALS = 6


def _read(environment: Mapping[str, str], given: Settings) -> Deployment:
    settings = reachable(_TITLE)
    folder = environment.get(_MODEL_VARIABLE, "").strip()
    if folder and not is_given(given, "model"):
        source = f"{_MODEL_VARIABLE}={folder!r}"
        weights = required_weights(Path(folder), source)
        settings.append(CloudSetting("model", str(weights), source))
    warnings = unusable_access(_TITLE, given, keys=True)
    return Deployment(AZURE, tuple(settings), None, _PREDICT_PATH, tuple(warnings))


def _routes(
    _deployment: Deployment, detector: Detector, settings: Settings, bodies: BodyMemory
) -> list[BaseRoute]:
    return [predict_route(_PREDICT_PATH, FORM, detector, settings, bodies)]


def read_input_data(document: Mapping[str, Any], max_images: int) -> JsonRequest:
    """Reads `{"input_data": {"columns": ["image"], "data": [...]}, "params": {...}}`.

    Raises:
        RequestRefused: for JSON of another form.
        InvalidOptions: for too many images.
    """
    table = document.get("input_data")
    if not isinstance(table, dict):
        raise malformed_json('the JSON has no object "input_data"')
    columns = table.get("columns")
    if columns != _COLUMNS:
        raise malformed_json(f'"columns" is {short_repr(columns)}; it takes ["image"]')
    rows = list_of(table, "data", max_images)
    images = [image_of(_only(each), f"data[{place}]") for place, each in enumerate(rows)]
    return JsonRequest(images, document.get("params"))


def _only(row: Any) -> Any:
    """The value of a row: a list of one value, or the value itself."""
    return row[0] if isinstance(row, list) and len(row) == 1 else row


def write_boxes(results: Sequence[FileResult]) -> list[dict[str, Any]]:
    """Returns the boxes or the error of each image, in their order."""
    return [{"filename": f"image_{place}", **_boxes(each)} for place, each in enumerate(results)]


def _boxes(file: FileResult) -> dict[str, Any]:
    if file.result is None:
        assert file.error is not None, "a file has a result or an error"
        return write_error(file.error)
    return {"boxes": list(_scaled(file.result))}


def _scaled(result: DetectResult) -> Sequence[dict[str, Any]]:
    sides = (result.width, result.height, result.width, result.height)
    names = ("topX", "topY", "bottomX", "bottomY")
    return [
        {
            "box": {
                name: min(1.0, max(0.0, round(value / side, _DECIMALS)))
                for name, value, side in zip(names, box, sides, strict=True)
            },
            "label": label_name(result.label_names, class_id),
            "score": score,
        }
        for score, class_id, box in zip(*rounded_columns(result.detections), strict=True)
    ]


def write_error(error: ItemError) -> dict[str, Any]:
    """Returns an error in the form of Microsoft's APIs."""
    return {"error": {"code": error.code, "message": error.detail}}


FORM = JsonForm("azure", ("input_data", "data"), read_input_data, write_boxes, write_error)
AZURE = Cloud("azure", _TITLE, (), _read, _routes)
