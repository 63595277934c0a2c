"""gRPC messages <-> requests and results; metadata messages are parsed from their JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from service.core.model_control import ModelEntry
from service.oip.errors import malformed
from service.oip.inference import InferResult
from service.oip.parameters import read_parameters
from service.oip.pb import grpc_service_pb2 as pb
from service.oip.request import (
    InferRequest,
    RequestedOutput,
    all_outputs,
    check_count,
    check_input,
    check_output_parameters,
    check_outputs,
    decode_image,
    find_output,
    is_base64,
)
from service.oip.tensors import INPUT, unpack_elements

_MAX_PARAMETERS = 100
_FINAL_RESPONSE = "triton_final_response"

_Message = TypeVar("_Message", bound=Message)


def described(message: _Message, description: dict[str, Any]) -> _Message:
    """Fills a message from its JSON form."""
    ParseDict(description, message)
    return message


def read_infer_request(message: pb.ModelInferRequest, max_images: int) -> InferRequest:
    """Reads a request.

    Raises:
        OipRefused: for a request that violates the protocol.
        InvalidOptions: for a parameter that is not valid.
    """
    return InferRequest(
        images=_images(message, max_images),
        parameters=read_parameters(parameter_values(message.parameters)),
        outputs=_outputs(message),
        request_id=message.id,
    )


def parameter_values(parameters: Mapping[str, Message]) -> dict[str, object]:
    """Parameters as plain values; None where a value is not set.

    Raises:
        OipRefused: for too many parameters.
    """
    if len(parameters) > _MAX_PARAMETERS:
        raise malformed(f"there are more than {_MAX_PARAMETERS} parameters")
    values: dict[str, object] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        values[name] = None if choice is None else getattr(parameter, choice)
    return values


def response_message(request: InferRequest, result: InferResult) -> pb.ModelInferResponse:
    """The response to one request; tensors are in raw_output_contents."""
    return pb.ModelInferResponse(
        model_name=result.model_name,
        model_version=result.model_version,
        id=request.request_id,
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(
                name=tensor.spec.name, datatype=tensor.spec.datatype, shape=tensor.shape
            )
            for tensor in result.tensors
        ],
        raw_output_contents=[tensor.to_bytes() for tensor in result.tensors],
    )


def stream_message(request: InferRequest, result: InferResult) -> pb.ModelStreamInferResponse:
    """The response on a stream; marked as final if the client requested that."""
    response = response_message(request, result)
    if request.parameters.mark_final:
        response.parameters[_FINAL_RESPONSE].bool_param = True
    return pb.ModelStreamInferResponse(infer_response=response)


def index_message(entries: tuple[ModelEntry, ...]) -> pb.RepositoryIndexResponse:
    """The repository's index."""
    return pb.RepositoryIndexResponse(
        models=[
            pb.RepositoryIndexResponse.ModelIndex(
                name=entry.name, version=entry.version, state=entry.state, reason=entry.reason
            )
            for entry in entries
        ]
    )


def _images(message: pb.ModelInferRequest, max_images: int) -> tuple[bytes, ...]:
    if len(message.inputs) != 1:
        raise malformed(
            f"the request has {len(message.inputs)} inputs; the model has one, {INPUT.name}"
        )
    tensor = message.inputs[0]
    count = check_input(tensor.name, tensor.datatype, list(tensor.shape), max_images)
    as_text = is_base64(parameter_values(tensor.parameters))
    elements = _elements(message, count)
    if not as_text:
        return elements
    return tuple(decode_image(index, each) for index, each in enumerate(elements))


def _elements(message: pb.ModelInferRequest, count: int) -> tuple[bytes, ...]:
    raw, contents = message.raw_input_contents, message.inputs[0].contents
    if not raw:
        elements = tuple(contents.bytes_contents)
        check_count(elements, count)
        return elements
    if contents.ByteSize():
        raise malformed(f"input {INPUT.name} has both contents and raw_input_contents")
    if len(raw) != 1:
        raise malformed(f"raw_input_contents has {len(raw)} entries; there is one input")
    return unpack_elements(raw[0], count)


def _outputs(message: pb.ModelInferRequest) -> tuple[RequestedOutput, ...]:
    if not message.outputs:
        return all_outputs(binary=True)
    chosen = []
    for requested in message.outputs:
        spec = find_output(requested.name)
        check_output_parameters(spec, parameter_values(requested.parameters))
        chosen.append(RequestedOutput(spec))
    return check_outputs(chosen)
