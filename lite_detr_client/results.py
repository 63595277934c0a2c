"""What the service answers, as frozen records; the same whatever protocol it came by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """Corners in pixels of the image as a person sees it; the origin is the top left corner."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


@dataclass(frozen=True)
class Detection:
    """One object that was found."""

    label: str
    class_id: int
    score: float  # 0..1
    box: Box


@dataclass(frozen=True)
class Timings:
    """Where the time went inside the service, in milliseconds."""

    read: float  # receiving the image
    decode: float  # from the file's bytes to resized pixels
    queue: float  # waiting, of every kind
    assemble: float  # putting the batch together
    copy: float  # the batch to the device; 0 where the host is the device
    forward: float  # the network, for the whole batch
    postprocess: float  # from the network's output to detections
    total: float


@dataclass(frozen=True)
class Answer:
    """What was found in one image."""

    model_name: str
    model_version: str
    width: int  # of the image as a person sees it (EXIF orientation applied), pixels
    height: int
    detections: tuple[Detection, ...]  # best score first
    timings_ms: Timings
    request_id: str


@dataclass(frozen=True)
class Engine:
    """What one engine of the service computes with."""

    device: str  # such as "cpu" or "cuda:0"
    kernel: str  # which attention implementation
    precision: str  # numbers of the network: "fp32", "bf16", "fp16"
    cuda_graphs: int  # batch shapes that run as recorded CUDA graphs; 0 on a CPU


@dataclass(frozen=True)
class Model:
    """Which model is served, and what a request may hold."""

    name: str
    version: str
    description: str
    variant: str  # the architecture
    kernel: str  # which attention implementation serves; empty until an engine is ready
    default_threshold: float
    classes: dict[int, str]  # names by class id
    max_request_bytes: int
    max_image_pixels: int
    max_images: int  # in one batch
    max_detections: int
    formats: tuple[str, ...]
    engines: tuple[Engine, ...] = ()  # one a device; of an older service, or unready ones: none
