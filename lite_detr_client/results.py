"""Results of the service as frozen dataclasses, the same for HTTP and gRPC."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """Corners of a box in pixels, after EXIF rotation; the origin is the top left corner."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


@dataclass(frozen=True)
class Detection:
    """One detected object."""

    label: str
    class_id: int
    score: float  # 0..1
    box: Box


@dataclass(frozen=True)
class Timings:
    """Time spent in each stage inside the service, in milliseconds."""

    read: float  # receiving the image
    decode: float  # decoding and resizing
    queue: float  # all waiting
    assemble: float  # assembling the batch
    copy: float  # copying the batch to the device; 0 on a CPU
    forward: float  # the network, for the whole batch
    postprocess: float  # from the output of the network to detections
    total: float


@dataclass(frozen=True)
class DetectionResult:
    """Detections in one image."""

    model_name: str
    model_version: str
    width: int  # of the image after EXIF rotation, pixels
    height: int
    detections: tuple[Detection, ...]  # best score first
    timings_ms: Timings
    request_id: str


@dataclass(frozen=True)
class Engine:
    """Device, kernel and precision of one engine of the service."""

    device: str  # such as "cpu" or "cuda:0"
    kernel: str  # name of the attention implementation
    precision: str  # of the network: "fp32", "bf16", "fp16", "int8"
    cuda_graphs: int  # number of recorded CUDA graphs; 0 on a CPU


@dataclass(frozen=True)
class Model:
    """The served model and the limits of a request."""

    name: str
    version: str
    description: str
    variant: str  # the architecture
    kernel: str  # name of the attention implementation; empty until an engine is ready
    default_threshold: float
    classes: dict[int, str]  # names by class id
    max_request_bytes: int
    max_image_pixels: int
    max_images: int  # in one batch
    max_detections: int
    formats: tuple[str, ...]
    engines: tuple[Engine, ...] = ()  # empty while none is ready, and from older services
    max_tiles: int | None = None  # of one image; 0: no tiles; None: from older services
