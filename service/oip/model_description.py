"""The served model in the protocol's terms: metadata, configuration, statistics.

These are objects in the protocol's JSON form; gRPC parses its messages from them.
"""

from __future__ import annotations

from typing import Any

from model.weights.info import ModelInfo
from service.core.detector import Detector
from service.errors import NotReady
from service.observability.statistics import Total
from service.oip.errors import UNKNOWN_MODEL, OipRefused
from service.oip.tensors import INPUT, OUTPUTS, TensorSpec
from service.settings import Settings
from service.types import Priority

_PLATFORM = "lite_detr"
_RETRY_SECONDS = 2
_US_PER_MS = 1000
_CONFIG_TYPES = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "INT32": "TYPE_INT32"}


class ModelDescription:
    """Describes the model that the detector currently serves."""

    def __init__(self, detector: Detector, settings: Settings) -> None:
        """Takes a detector, and settings that are part of the model's configuration."""
        self._detector = detector
        self._settings = settings

    @property
    def info(self) -> ModelInfo:
        """The model.

        Raises:
            NotReady: while no model is loaded.
        """
        if not self._detector.loaded:
            raise NotReady("no model is loaded", retry_after_seconds=_RETRY_SECONDS)
        return self._detector.model

    def check(self, name: str, version: str) -> ModelInfo:
        """The model, if it has the requested name and version.

        Args:
            name: of the model.
            version: empty for the served one.

        Raises:
            OipRefused: for another name or version.
            NotReady: while no model is loaded.
        """
        model = self.info
        if name != model.name:
            raise OipRefused(
                UNKNOWN_MODEL, f"unknown model {name[:100]!r}; this service has {model.name!r}"
            )
        if version not in ("", model.version):
            raise OipRefused(
                UNKNOWN_MODEL,
                f"unknown version {version[:100]!r} of model {name!r}; "
                f"version {model.version!r} serves",
            )
        return model

    def is_ready(self, name: str, version: str) -> bool:
        """Whether a model is ready; false for an unknown one."""
        try:
            self.check(name, version)
        except (OipRefused, NotReady):
            return False
        return self._detector.ready

    def metadata(self, name: str, version: str) -> dict[str, Any]:
        """Names, types and shapes of the tensors.

        Raises:
            OipRefused, NotReady: as `check` does.
        """
        model = self.check(name, version)
        return {
            "name": model.name,
            "versions": [model.version],
            "platform": _PLATFORM,
            "inputs": [_tensor_metadata(INPUT)],
            "outputs": [_tensor_metadata(spec) for spec in OUTPUTS],
        }

    def config(self, name: str, version: str) -> dict[str, Any]:
        """The configuration in Triton's terms.

        Raises:
            OipRefused, NotReady: as `check` does.
        """
        model = self.check(name, version)
        parameters = {
            "version": model.version,
            "variant": model.config.name,
            "threshold": f"{model.score_threshold:g}",
            "max_detections": str(model.config.max_detections),
            "labels": ",".join(model.labels),
            "max_images": str(self._settings.max_files),
            "max_image_pixels": str(self._settings.max_image_pixels),
            "jpeg_decoding": self._settings.jpeg_decoding,
        }
        return {
            "name": model.name,
            "platform": _PLATFORM,
            "backend": _PLATFORM,
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": 0,
            "input": [_tensor_config(INPUT)],
            "output": [_tensor_config(spec) for spec in OUTPUTS],
            "dynamic_batching": {
                "max_queue_delay_microseconds": round(self._settings.max_wait_ms * _US_PER_MS),
                "preserve_ordering": False,
                "priority_levels": len(Priority),
                "default_priority_level": int(Priority.NORMAL),
            },
            "parameters": {key: {"string_value": value} for key, value in parameters.items()},
            "model_transaction_policy": {"decoupled": False},
        }

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """Statistics since the start.

        Args:
            name: of the model; empty for all models.
            version: empty for the served one.

        Raises:
            OipRefused, NotReady: as `check` does.
        """
        model = self.check(name or self.info.name, version)
        counted = self._detector.metrics.statistics
        entry = {
            "name": model.name,
            "version": model.version,
            "last_inference": counted.last_inference_ms,
            "inference_count": counted.inference_count,
            "execution_count": counted.execution_count,
            "inference_stats": {
                "success": _total(counted.success),
                "fail": _total(counted.fail),
                "queue": _total(counted.queue),
                "compute_input": _total(counted.compute_input),
                "compute_infer": _total(counted.compute_infer),
                "compute_output": _total(counted.compute_output),
                "cache_hit": _total(Total()),  # the service has no cache
                "cache_miss": _total(Total()),
            },
            "batch_stats": [
                {
                    "batch_size": size,
                    "compute_input": _total(batch.compute_input),
                    "compute_infer": _total(batch.compute_infer),
                    "compute_output": _total(batch.compute_output),
                }
                for size, batch in sorted(counted.batches.items())
            ],
        }
        return {"model_stats": [entry]}


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _tensor_config(spec: TensorSpec) -> dict[str, Any]:
    data_type = _CONFIG_TYPES[spec.datatype]
    return {"name": spec.name, "data_type": data_type, "dims": list(spec.shape)}


def _total(total: Total) -> dict[str, int]:
    return {"count": total.count, "ns": total.ns}
