from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DetectRequest(_message.Message):
    __slots__ = ("image", "options", "request_id")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    options: DetectOptions
    request_id: str
    def __init__(self, image: _Optional[bytes] = ..., options: _Optional[_Union[DetectOptions, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class DetectOptions(_message.Message):
    __slots__ = ("threshold", "max_detections", "labels", "tile", "overlap")
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MAX_DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TILE_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_FIELD_NUMBER: _ClassVar[int]
    threshold: float
    max_detections: int
    labels: _containers.RepeatedScalarFieldContainer[str]
    tile: str
    overlap: float
    def __init__(self, threshold: _Optional[float] = ..., max_detections: _Optional[int] = ..., labels: _Optional[_Iterable[str]] = ..., tile: _Optional[str] = ..., overlap: _Optional[float] = ...) -> None: ...

class DetectResponse(_message.Message):
    __slots__ = ("model", "image", "detections", "timings_ms", "request_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_MS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    model: ModelName
    image: ImageSize
    detections: _containers.RepeatedCompositeFieldContainer[Detection]
    timings_ms: Timings
    request_id: str
    def __init__(self, model: _Optional[_Union[ModelName, _Mapping]] = ..., image: _Optional[_Union[ImageSize, _Mapping]] = ..., detections: _Optional[_Iterable[_Union[Detection, _Mapping]]] = ..., timings_ms: _Optional[_Union[Timings, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class ModelName(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class ImageSize(_message.Message):
    __slots__ = ("width", "height")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class Detection(_message.Message):
    __slots__ = ("label", "class_id", "score", "box")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    CLASS_ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    label: str
    class_id: int
    score: float
    box: Box
    def __init__(self, label: _Optional[str] = ..., class_id: _Optional[int] = ..., score: _Optional[float] = ..., box: _Optional[_Union[Box, _Mapping]] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("xmin", "ymin", "xmax", "ymax")
    XMIN_FIELD_NUMBER: _ClassVar[int]
    YMIN_FIELD_NUMBER: _ClassVar[int]
    XMAX_FIELD_NUMBER: _ClassVar[int]
    YMAX_FIELD_NUMBER: _ClassVar[int]
    xmin: float
    ymin: float
    xmax: float
    ymax: float
    def __init__(self, xmin: _Optional[float] = ..., ymin: _Optional[float] = ..., xmax: _Optional[float] = ..., ymax: _Optional[float] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("read", "decode", "queue", "assemble", "forward", "postprocess", "total", "copy")
    READ_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    ASSEMBLE_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    POSTPROCESS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    COPY_FIELD_NUMBER: _ClassVar[int]
    read: float
    decode: float
    queue: float
    assemble: float
    forward: float
    postprocess: float
    total: float
    copy: float
    def __init__(self, read: _Optional[float] = ..., decode: _Optional[float] = ..., queue: _Optional[float] = ..., assemble: _Optional[float] = ..., forward: _Optional[float] = ..., postprocess: _Optional[float] = ..., total: _Optional[float] = ..., copy: _Optional[float] = ...) -> None: ...

class DetectBatchRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[DetectRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[DetectRequest, _Mapping]]] = ...) -> None: ...

class DetectBatchResponse(_message.Message):
    __slots__ = ("outcomes", "request_id")
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[DetectOutcome]
    request_id: str
    def __init__(self, outcomes: _Optional[_Iterable[_Union[DetectOutcome, _Mapping]]] = ..., request_id: _Optional[str] = ...) -> None: ...

class DetectOutcome(_message.Message):
    __slots__ = ("index", "response", "error")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    index: int
    response: DetectResponse
    error: DetectError
    def __init__(self, index: _Optional[int] = ..., response: _Optional[_Union[DetectResponse, _Mapping]] = ..., error: _Optional[_Union[DetectError, _Mapping]] = ...) -> None: ...

class DetectError(_message.Message):
    __slots__ = ("code", "detail", "status", "retry_delay_ms", "request_id")
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_MS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    code: str
    detail: str
    status: int
    retry_delay_ms: int
    request_id: str
    def __init__(self, code: _Optional[str] = ..., detail: _Optional[str] = ..., status: _Optional[int] = ..., retry_delay_ms: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("name", "version", "description", "variant", "kernel", "default_threshold", "classes", "input", "limits", "engines")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    description: str
    variant: str
    kernel: str
    default_threshold: float
    classes: _containers.RepeatedCompositeFieldContainer[ClassName]
    input: InputRule
    limits: Limits
    engines: _containers.RepeatedCompositeFieldContainer[Engine]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., description: _Optional[str] = ..., variant: _Optional[str] = ..., kernel: _Optional[str] = ..., default_threshold: _Optional[float] = ..., classes: _Optional[_Iterable[_Union[ClassName, _Mapping]]] = ..., input: _Optional[_Union[InputRule, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., engines: _Optional[_Iterable[_Union[Engine, _Mapping]]] = ...) -> None: ...

class Engine(_message.Message):
    __slots__ = ("device", "kernel", "precision", "cuda_graphs")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    CUDA_GRAPHS_FIELD_NUMBER: _ClassVar[int]
    device: str
    kernel: str
    precision: str
    cuda_graphs: int
    def __init__(self, device: _Optional[str] = ..., kernel: _Optional[str] = ..., precision: _Optional[str] = ..., cuda_graphs: _Optional[int] = ...) -> None: ...

class ClassName(_message.Message):
    __slots__ = ("id", "name")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    id: int
    name: str
    def __init__(self, id: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

class InputRule(_message.Message):
    __slots__ = ("shortest_side", "longest_side", "resampling", "bucket_stride")
    SHORTEST_SIDE_FIELD_NUMBER: _ClassVar[int]
    LONGEST_SIDE_FIELD_NUMBER: _ClassVar[int]
    RESAMPLING_FIELD_NUMBER: _ClassVar[int]
    BUCKET_STRIDE_FIELD_NUMBER: _ClassVar[int]
    shortest_side: int
    longest_side: int
    resampling: str
    bucket_stride: int
    def __init__(self, shortest_side: _Optional[int] = ..., longest_side: _Optional[int] = ..., resampling: _Optional[str] = ..., bucket_stride: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_message_bytes", "max_image_pixels", "max_images", "max_detections", "formats", "max_tiles")
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    FORMATS_FIELD_NUMBER: _ClassVar[int]
    MAX_TILES_FIELD_NUMBER: _ClassVar[int]
    max_message_bytes: int
    max_image_pixels: int
    max_images: int
    max_detections: int
    formats: _containers.RepeatedScalarFieldContainer[str]
    max_tiles: int
    def __init__(self, max_message_bytes: _Optional[int] = ..., max_image_pixels: _Optional[int] = ..., max_images: _Optional[int] = ..., max_detections: _Optional[int] = ..., formats: _Optional[_Iterable[str]] = ..., max_tiles: _Optional[int] = ...) -> None: ...
