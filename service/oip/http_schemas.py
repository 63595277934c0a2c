"""The protocol's JSON bodies, for the OpenAPI document.

Requests are read and responses written without these models; tests validate real responses
against them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _RequestSchema(BaseModel):
    """A part of a request: fields that the service does not know are ignored."""

    model_config = ConfigDict(extra="allow")


class OipError(_Schema):
    """An error."""

    error: str = Field(description="what was wrong")


class ServerMetadata(_Schema):
    """The server and its protocol extensions."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(_Schema):
    """The process is live."""

    live: bool


class ServerReady(_Schema):
    """The service is ready for requests."""

    ready: bool


class ModelReady(_Schema):
    """The model is ready for requests."""

    name: str
    ready: bool


class TensorMetadata(_Schema):
    """Name, type and shape of a tensor; -1 stands for any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(_Schema):
    """The model's tensors."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class TensorConfig(_Schema):
    """Name, type and shape of a tensor in Triton's configuration."""

    name: str
    data_type: str
    dims: list[int]


class ConfigParameter(_Schema):
    """The value of one parameter."""

    string_value: str


class ModelConfig(_Schema):
    """The model's configuration in Triton's terms."""

    name: str
    platform: str
    backend: str
    version_policy: dict[str, Any]
    max_batch_size: int
    input: list[TensorConfig]
    output: list[TensorConfig]
    dynamic_batching: dict[str, int | bool]
    parameters: dict[str, ConfigParameter]
    model_transaction_policy: dict[str, bool]


class Duration(_Schema):
    """How often something happened, and its total time in nanoseconds."""

    count: int
    ns: int


class InferStatistics(_Schema):
    """Images and their time by stage."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class BatchStatistics(_Schema):
    """Batches of one size and their time by stage."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatisticsEntry(_Schema):
    """The statistics of one model since the start."""

    name: str
    version: str
    last_inference: int = Field(description="milliseconds since the epoch")
    inference_count: int
    execution_count: int
    inference_stats: InferStatistics
    batch_stats: list[BatchStatistics]


class ModelStatistics(_Schema):
    """Statistics since the start."""

    model_stats: list[ModelStatisticsEntry]


class RepositoryEntry(_Schema):
    """A model of the repository."""

    name: str
    version: str
    state: str
    reason: str


class RepositoryIndex(RootModel[list[RepositoryEntry]]):
    """The models of the repository."""


class RepositoryIndexRequest(_Schema):
    """Which models to list."""

    ready: bool = Field(False, description="list only models that are ready")


class RepositoryRequest(_Schema):
    """Parameters of loading or unloading a model; none is required."""

    parameters: dict[str, Any] = Field(default_factory=dict)


class RepositoryResponse(_Schema):
    """An empty object: the model was loaded or unloaded."""


class InputTensor(_RequestSchema):
    """The image files."""

    name: Literal["IMAGE"]
    datatype: Literal["BYTES"]
    shape: list[int] = Field(description="[N] or [N, 1]: N images")
    data: list[Any] | None = Field(None, description="base64 text of N image files, or data: URLs")
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="binary_data_size: bytes after the JSON; content_type: base64",
    )


class RequestedOutput(_RequestSchema):
    """An output to return."""

    name: str
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="binary_data: after the JSON instead of in it"
    )


class InferenceRequest(_RequestSchema):
    """Images to detect in."""

    id: str | float | None = None
    parameters: dict[str, Any] | None = Field(
        None,
        description="threshold, max_detections, labels, tile, overlap, timeout, priority, "
        "binary_data_output; others are ignored",
    )
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] | None = Field(None, description="unset or empty: all outputs")


class OutputTensor(_Schema):
    """One output; its values are in `data` or after the JSON."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = Field(None, description="row-major")
    parameters: dict[str, Any] | None = Field(None, description="binary_data_size")


class InferenceResponse(_Schema):
    """Detections in all images of a request."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]
