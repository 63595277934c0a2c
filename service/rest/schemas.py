"""JSON bodies of the REST adapter besides detections (`service.core.formats`)."""

from __future__ import annotations

from pydantic import Field

from service.core.formats import Schema
from service.core.formats.result_json import Score


class Problem(Schema):
    """An error (RFC 9457); `code` is stable, `detail` names what was wrong."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str


class Health(Schema):
    """The state of the service."""

    status: str


class ClassName(Schema):
    """A class that the model detects."""

    id: int
    name: str


class InputRule(Schema):
    """How an image is resized before the network."""

    shortest_side: int = Field(description="pixels; the short side becomes this ...")
    longest_side: int = Field(description="pixels; ... unless the long side would exceed this")
    resampling: str
    bucket_stride: int = Field(description="pixels; padded sizes are multiples of this")
    jpeg_decoding: str = Field(
        description="exact, or scaled: large JPEGs are decoded to a fraction of their size"
    )


class Limits(Schema):
    """Limits of a request."""

    max_body_bytes: int
    max_image_pixels: int
    max_files: int
    max_detections: int
    max_tiles: int = Field(ge=0, description="with the option `tile`; 0: it is turned off")
    formats: list[str]


class Engine(Schema):
    """The device and the numbers that one engine computes with."""

    device: str
    kernel: str = Field(description="the deformable-attention implementation in use")
    precision: str = Field(description="number format of the network: fp32, bf16, fp16 or int8")
    cuda_graphs: int = Field(
        ge=0, description="batch shapes that run as recorded CUDA graphs; 0 on a CPU"
    )


class ModelEntry(Schema):
    """The served model."""

    name: str
    version: str
    description: str
    variant: str = Field(description="the architecture")
    kernel: str = Field(description="the deformable-attention implementation in use")
    engines: list[Engine] = Field(description="one per device; empty before they are ready")
    default_threshold: Score
    classes: list[ClassName]
    input: InputRule
    limits: Limits
    output_formats: list[str] = Field(description="values of the option `format` that are offered")


class Models(Schema):
    """The served models."""

    models: list[ModelEntry]


class Sample(Schema):
    """A sample photo."""

    name: str
    url: str
    classes: list[str] = Field(
        description="the sample is for models with any of these classes; empty: for every model"
    )


class Samples(Schema):
    """Sample photos."""

    samples: list[Sample]
