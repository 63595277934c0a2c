"""The model's tensors: one input of image files, and outputs padded to the same number of rows.

    IMAGE BYTES [N] ---> N results of different lengths ---> [N, M, ...], padded to M rows

M is the request's `max_detections`, or the model's own. Row i of an image is a detection while
i < num_detections; the rest is padding: 0 in boxes and scores, -1 in class_ids, "" in class_names.
Numbers are rounded by `service.core.encoding`, as in the JSON of POST /detect.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.core.encoding import label_name, rounded_columns
from service.oip.errors import malformed
from service.types import DetectResult

_LENGTH = struct.Struct("<I")  # before each element of a BYTES tensor
_NO_CLASS = -1
_WIRE_TYPES = {"FP32": "<f4", "INT32": "<i4"}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as the model's metadata describes it."""

    name: str
    datatype: str  # of the protocol
    shape: tuple[int, ...]  # -1: any size


INPUT = TensorSpec("IMAGE", "BYTES", (-1,))
OUTPUTS = (
    TensorSpec("num_detections", "INT32", (-1, 1)),
    TensorSpec("boxes", "FP32", (-1, -1, 4)),  # xmin, ymin, xmax, ymax in pixels
    TensorSpec("scores", "FP32", (-1, -1)),
    TensorSpec("class_ids", "INT32", (-1, -1)),
    TensorSpec("class_names", "BYTES", (-1, -1)),
)
OUTPUT_BY_NAME = {spec.name: spec for spec in OUTPUTS}


@dataclass(frozen=True)
class OutputTensor:
    """One output of a response: `values` has its shape, and holds `str` for BYTES."""

    spec: TensorSpec
    values: npt.NDArray[Any]

    @property
    def shape(self) -> list[int]:
        """The shape as a list."""
        return list(self.values.shape)

    def to_list(self) -> list[Any]:
        """Row-major, for JSON."""
        flat: list[Any] = self.values.ravel().tolist()
        return flat

    def to_bytes(self) -> bytes:
        """Row-major, little-endian; each BYTES element after its length."""
        if self.spec.datatype == "BYTES":
            return pack_elements(name.encode() for name in self.to_list())
        return self.values.astype(_WIRE_TYPES[self.spec.datatype]).tobytes()


def output_tensors(
    specs: Sequence[TensorSpec], results: Sequence[DetectResult], rows: int
) -> tuple[OutputTensor, ...]:
    """The requested outputs.

    Args:
        specs: of `OUTPUTS`, in the order of the response.
        results: one per image.
        rows: of each image (M); more if a result has more.
    """
    rows = max(rows, *(len(result.detections) for result in results))
    return tuple(OutputTensor(spec, _BUILDERS[spec.name](results, rows)) for spec in specs)


def pack_elements(elements: Iterable[bytes]) -> bytes:
    """Encodes a BYTES tensor."""
    return b"".join(part for each in elements for part in (_LENGTH.pack(len(each)), each))


def unpack_elements(data: bytes | memoryview, count: int) -> tuple[bytes, ...]:
    """Decodes a BYTES tensor.

    Args:
        data: of the whole tensor.
        count: number of elements according to the shape.

    Raises:
        OipRefused: if data and count do not match.
    """
    view, elements, start = memoryview(data), [], 0
    for index in range(count):
        if start + _LENGTH.size > len(view):
            raise malformed(
                f"input {INPUT.name} ends after {index} of the {count} elements of its shape"
            )
        (length,) = _LENGTH.unpack_from(view, start)
        start += _LENGTH.size
        if start + length > len(view):
            raise malformed(
                f"element {index} of input {INPUT.name} is said to have {length} bytes, "
                f"but only {len(view) - start} follow"
            )
        elements.append(bytes(view[start : start + length]))
        start += length
    if start != len(view):
        raise malformed(
            f"input {INPUT.name} has {len(view) - start} bytes beyond the {count} elements "
            f"of its shape"
        )
    return tuple(elements)


def _counts(results: Sequence[DetectResult], _rows: int) -> npt.NDArray[np.int64]:
    return np.array([[len(result.detections)] for result in results], dtype=np.int64)


def _boxes(results: Sequence[DetectResult], rows: int) -> npt.NDArray[np.float64]:
    boxes = np.zeros((len(results), rows, 4))
    for image, result in zip(boxes, results, strict=True):
        image[: len(result.detections)] = np.reshape(rounded_columns(result.detections)[2], (-1, 4))
    return boxes


def _scores(results: Sequence[DetectResult], rows: int) -> npt.NDArray[np.float64]:
    scores = np.zeros((len(results), rows))
    for image, result in zip(scores, results, strict=True):
        image[: len(result.detections)] = rounded_columns(result.detections)[0]
    return scores


def _class_ids(results: Sequence[DetectResult], rows: int) -> npt.NDArray[np.int64]:
    class_ids = np.full((len(results), rows), _NO_CLASS, dtype=np.int64)
    for image, result in zip(class_ids, results, strict=True):
        image[: len(result.detections)] = result.detections.labels
    return class_ids


def _class_names(results: Sequence[DetectResult], rows: int) -> npt.NDArray[np.object_]:
    names = np.full((len(results), rows), "", dtype=np.object_)
    for image, result in zip(names, results, strict=True):
        labels = result.detections.labels.tolist()
        image[: len(labels)] = [label_name(result.label_names, class_id) for class_id in labels]
    return names


_BUILDERS: dict[str, Callable[[Sequence[DetectResult], int], npt.NDArray[Any]]] = {
    "num_detections": _counts,
    "boxes": _boxes,
    "scores": _scores,
    "class_ids": _class_ids,
    "class_names": _class_names,
}
