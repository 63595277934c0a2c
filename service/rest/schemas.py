"""The JSON that the REST adapter answers with, as models: for the API's description alone.

Answers are encoded by `service.core.encoding` without these; tests hold the two to one another.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Score = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(ge=0)]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Box(_Schema):
    """Corners in pixels of the image as a person sees it; the origin is the top left corner."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


class Detection(_Schema):
    """One object that was found."""

    label: str
    class_id: int
    score: Score
    box: Box


class ModelName(_Schema):
    """Which model answered."""

    name: str
    version: str = Field(description="first 12 hex digits of the weights file's SHA-256")


class ImageSize(_Schema):
    """Of the image as a person sees it: its EXIF orientation is applied."""

    width: int = Field(ge=1)
    height: int = Field(ge=1)


class Timings(_Schema):
    """Where the time went, in milliseconds."""

    read: Milliseconds = Field(description="receiving the body")
    decode: Milliseconds = Field(description="from the file's bytes to resized pixels")
    queue: Milliseconds = Field(description="waiting, of every kind")
    assemble: Milliseconds = Field(description="putting the batch together")
    device_copy: Milliseconds = Field(  # a model has a method `copy` already
        alias="copy", description="the batch to the device; 0 where the host is the device"
    )
    forward: Milliseconds = Field(description="the network, for the whole batch")
    postprocess: Milliseconds = Field(description="from the network's output to detections")
    total: Milliseconds


class Answer(_Schema):
    """What was found in one image, best score first."""

    model: ModelName
    image: ImageSize
    detections: list[Detection]
    timings_ms: Timings
    request_id: str


class FileAnswer(Answer):
    """What was found in one file of several."""

    file: str


class FileError(_Schema):
    """Why one file of several has no answer."""

    status: int = Field(description="the HTTP status that the file would have got alone")
    code: str
    title: str
    detail: str
    retry_after_s: int | None = None


class FailedFile(_Schema):
    """A file of several that has no answer."""

    file: str
    error: FileError


class Answers(_Schema):
    """Answers for several files, in their order."""

    results: list[FileAnswer | FailedFile]
    request_id: str


class CocoImage(_Schema):
    """An image of a COCO data set."""

    id: int
    file_name: str
    width: int
    height: int


class CocoCategory(_Schema):
    """A class of a COCO data set."""

    id: int
    name: str


class CocoAnnotation(_Schema):
    """A detection as COCO writes it; `bbox` is x, y, width, height."""

    id: int
    image_id: int
    category_id: int
    bbox: Annotated[list[float], Field(min_length=4, max_length=4)]
    area: float
    iscrowd: int
    score: Score


class CocoFailedFile(FailedFile):
    """A file of several that has no answer."""

    image_id: int


class CocoInfo(_Schema):
    """What made the data set."""

    description: str


class CocoAnswer(_Schema):
    """A COCO data set: pycocotools loads it, and `loadRes` takes its `annotations`."""

    info: CocoInfo
    images: list[CocoImage]
    categories: list[CocoCategory]
    annotations: list[CocoAnnotation]
    errors: list[CocoFailedFile] = []


class Problem(_Schema):
    """An error (RFC 9457); `code` is stable, `detail` names what was wrong."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str


class Health(_Schema):
    """How the service is."""

    status: str


class ClassName(_Schema):
    """A class that the model tells apart."""

    id: int
    name: str


class InputRule(_Schema):
    """What happens to an image before the network."""

    shortest_side: int = Field(description="pixels; the short side becomes this ...")
    longest_side: int = Field(description="pixels; ... unless the long side would pass this")
    resampling: str
    bucket_stride: int = Field(description="pixels; padded sizes are multiples of this")


class Limits(_Schema):
    """What a request may hold."""

    max_body_bytes: int
    max_image_pixels: int
    max_files: int
    max_detections: int
    formats: list[str]


class Engine(_Schema):
    """What one engine computes with."""

    device: str
    kernel: str = Field(description="which deformable-attention implementation serves")
    precision: str = Field(description="numbers of the network: fp32, bf16 or fp16")
    cuda_graphs: int = Field(
        ge=0, description="batch shapes that run as recorded CUDA graphs; 0: none, as on a CPU"
    )


class ModelEntry(_Schema):
    """A model that is served."""

    name: str
    version: str
    description: str
    variant: str = Field(description="the architecture")
    kernel: str = Field(description="which deformable-attention implementation serves")
    engines: list[Engine] = Field(description="one a device; none before they are ready")
    default_threshold: Score
    classes: list[ClassName]
    input: InputRule
    limits: Limits


class Models(_Schema):
    """The models that are served."""

    models: list[ModelEntry]


class Sample(_Schema):
    """A photo to try."""

    name: str
    url: str


class Samples(_Schema):
    """Photos to try."""

    samples: list[Sample]
