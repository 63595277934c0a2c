"""An inference request, independent of its encoding: JSON, binary extension, or gRPC.

Each encoding has a reader that returns an `InferRequest`; the checks that they share are here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from service.errors import InvalidOptions, short_repr
from service.oip.errors import malformed
from service.oip.parameters import InferParameters
from service.oip.tensors import INPUT, OUTPUT_BY_NAME, OUTPUTS, TensorSpec
from service.transport.base64_text import Base64Error, decode_base64
from service.transport.json_body import JsonText

_SHARED_MEMORY = "shared_memory_region"
_CONTENT_TYPE = "content_type"
_COLUMN_RANK = 2
_TOO_LARGE_NUMBER = 2.0**63  # JSON integers beyond 64 bits are read as floats


@dataclass(frozen=True)
class RequestedOutput:
    """A requested output."""

    spec: TensorSpec
    binary: bool = True  # HTTP: in the binary extension; False: in the JSON


@dataclass(frozen=True)
class InferRequest:
    """Images, parameters and requested outputs."""

    images: tuple[bytes, ...]
    parameters: InferParameters
    outputs: tuple[RequestedOutput, ...]  # in the order of the response
    request_id: str = ""  # the client's; empty: none


def all_outputs(*, binary: bool) -> tuple[RequestedOutput, ...]:
    """All outputs, for a request that names none."""
    return tuple(RequestedOutput(spec, binary) for spec in OUTPUTS)


def find_output(name: object) -> TensorSpec:
    """The output of that name.

    Raises:
        OipRefused: if the model has none.
    """
    spec = OUTPUT_BY_NAME.get(name) if isinstance(name, str) else None
    if spec is None:
        known = ", ".join(OUTPUT_BY_NAME)
        raise malformed(f"unknown output {short_repr(name)}; the model has {known}")
    return spec


def check_outputs(outputs: Iterable[RequestedOutput]) -> tuple[RequestedOutput, ...]:
    """Refuses outputs that are requested twice.

    Raises:
        OipRefused: names the output.
    """
    chosen: dict[str, RequestedOutput] = {}
    for output in outputs:
        if output.spec.name in chosen:
            raise malformed(f"output {output.spec.name} is requested twice")
        chosen[output.spec.name] = output
    return tuple(chosen.values())


def check_output_parameters(spec: TensorSpec, parameters: Mapping[str, object]) -> None:
    """Refuses unsupported parameters of an output.

    Raises:
        OipRefused: names the output.
    """
    if _SHARED_MEMORY in parameters:
        raise malformed(f"output {spec.name}: shared memory is not supported")
    if parameters.get("classification"):
        raise malformed(f"output {spec.name}: classification is not supported; see class_names")


def check_input(
    name: object, datatype: object, shape: Sequence[object] | None, max_images: int
) -> int:
    """Checks the name, type and shape of a request's input.

    Args:
        name: of the tensor.
        datatype: of the elements.
        shape: [N], or [N, 1].
        max_images: maximum number of images in one request.

    Returns:
        N, the number of images.

    Raises:
        OipRefused: if the model has no such input.
    """
    if name != INPUT.name:
        raise malformed(f"unknown input {short_repr(name)}; the model has {INPUT.name}")
    if datatype != INPUT.datatype:
        raise malformed(
            f"input {INPUT.name} has datatype {short_repr(datatype)}; it takes {INPUT.datatype}, "
            f"each element a whole image file"
        )
    sizes = [size for size in (shape or ())[:_COLUMN_RANK] if type(size) is int]
    rank_fits = len(sizes) == 1 or sizes[1:] == [1]
    if not rank_fits or shape is None or len(shape) != len(sizes):
        raise malformed(f"input {INPUT.name} has shape {short_repr(shape)}; it takes [N], N images")
    if not 1 <= sizes[0] <= max_images:
        raise malformed(
            f"input {INPUT.name} has shape {short_repr(shape)}; 1 to {max_images} images are "
            f"accepted in one request"
        )
    return sizes[0]


def check_count(elements: Sequence[object], count: int) -> None:
    """Compares the number of elements with the shape.

    Raises:
        OipRefused: if they differ.
    """
    if len(elements) != count:
        raise malformed(f"input {INPUT.name} has {len(elements)} elements; its shape says {count}")


def is_base64(parameters: Mapping[str, object]) -> bool:
    """Whether the elements of an input are base64 text, according to its parameters.

    Raises:
        OipRefused: for another content type, and for shared memory.
    """
    if _SHARED_MEMORY in parameters:
        raise malformed(f"input {INPUT.name}: shared memory is not supported")
    content_type = parameters.get(_CONTENT_TYPE)
    if content_type not in (None, "base64"):
        raise malformed(
            f"input {INPUT.name}: {_CONTENT_TYPE} is {short_repr(content_type)}; "
            f"it takes 'base64', or leave it out"
        )
    return content_type is not None


def decode_image(index: int, text: object) -> bytes:
    """Decodes an image file from base64 text.

    Raises:
        OipRefused: for anything that is not base64.
    """
    if isinstance(text, str | bytes | JsonText):
        try:
            return decode_base64(text)
        except Base64Error as error:
            reason = str(error)
    else:
        reason = f"it is {short_repr(text)}"
    raise malformed(
        f"element {index} of input {INPUT.name} is not base64: {reason}. JSON carries image files "
        f"as base64, the binary extension carries them as they are"
    )


def check_request_id(request_id: object) -> str:
    """The client's request id as text; empty for none.

    Raises:
        InvalidOptions: for anything but text or a number; and for a number of more than 64 bits,
            whose last digits the JSON parser has lost.
    """
    if request_id is None:
        return ""
    if isinstance(request_id, int | float) and not isinstance(request_id, bool):
        if abs(request_id) >= _TOO_LARGE_NUMBER and isinstance(request_id, float):
            raise InvalidOptions("id is a number of more than 64 bits; send it as text")
        return str(request_id)
    if not isinstance(request_id, str):
        raise InvalidOptions(f"id is {short_repr(request_id)}; it takes text or a number")
    return request_id
