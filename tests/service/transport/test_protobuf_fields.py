from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from service.oip.pb import grpc_service_pb2 as pb
from service.oip.tensors import pack_elements
from service.transport.protobuf_fields import BrokenMessage, has_more_fields


def _count(message: Message) -> int:
    """Fields of a parsed message and of all messages in it, and the elements of packed lists.

    Entries of a map are messages.
    """
    count = 0
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            # Always written whole: key and value.
            count += sum(3 + _count(entry) for entry in value.values())
            continue
        items: list[Any] = list(value) if field.is_repeated else [value]
        count += len(items) + (1 if field.is_packed else 0)
        if field.message_type is not None:
            count += sum(map(_count, items))
    return count


def request() -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(
        model_name="fake",
        inputs=[pb.ModelInferRequest.InferInputTensor(name="IMAGE", shape=[3, 500])],
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="boxes")],
        raw_input_contents=[pack_elements([bytes(1000)])],
    )
    message.parameters["threshold"].double_param = 0.5
    message.parameters["timeout"].int64_param = -1
    message.inputs[0].contents.bytes_contents.extend([b"", b"a", b""])
    return message


def test_every_field_counts_also_in_nested_messages() -> None:
    message = request()
    data, count = message.SerializeToString(), _count(message)
    assert count > 15
    assert not has_more_fields(data, message.DESCRIPTOR, count)
    assert has_more_fields(data, message.DESCRIPTOR, count - 1)


NUMBERS = [0, 1, 127, 128, 2**31 - 1, 2**62, -1, -(2**63)]  # 1 to 10 bytes each


def _shape_of(num_elements: int) -> bytes:
    tensor = pb.ModelInferRequest.InferInputTensor(shape=(NUMBERS * num_elements)[:num_elements])
    return pb.ModelInferRequest(inputs=[tensor]).SerializeToString()


def test_every_number_of_a_packed_list_counts() -> None:
    data = _shape_of(1000)
    fields = 1 + 1 + 1000  # the input, its shape, and the numbers of that
    assert not has_more_fields(data, pb.ModelInferRequest.DESCRIPTOR, fields)
    assert has_more_fields(data, pb.ModelInferRequest.DESCRIPTOR, fields - 1)


def test_a_list_that_is_not_packed_counts_by_its_fields() -> None:
    shape = b"\x18\x01" * 5  # field 3, five times
    descriptor = pb.ModelInferRequest.InferInputTensor.DESCRIPTOR
    assert pb.ModelInferRequest.InferInputTensor.FromString(shape).shape == [1] * 5
    assert not has_more_fields(shape, descriptor, 5)
    assert has_more_fields(shape, descriptor, 4)


def test_a_list_of_many_bytes_is_not_counted_number_by_number() -> None:
    class NoSlices(bytes):
        def __getitem__(self, key: Any) -> Any:
            assert not isinstance(key, slice) or key.stop - key.start <= 10, "it reads the list"
            return super().__getitem__(key)

    data = NoSlices(_shape_of(100_000))
    assert has_more_fields(data, pb.ModelInferRequest.DESCRIPTOR, 10_000)


@pytest.mark.parametrize(
    ("kind", "element"),
    [
        ("fixed32", bytes(4)),
        ("sfixed32", bytes(4)),
        ("float", bytes(4)),
        ("fixed64", bytes(8)),
        ("sfixed64", bytes(8)),
        ("double", bytes(8)),
        ("bool", b"\x01"),
        ("int32", b"\xff" * 9 + b"\x01"),
        ("sint64", b"\x80\x01"),
        ("uint64", b"\x80\x01"),
    ],
)
@pytest.mark.parametrize("declared", ["packed", "not packed"])
def test_lists_of_every_kind_of_number_count(kind: str, element: bytes, declared: str) -> None:
    message = _list_message(kind, packed=declared == "packed")
    packed = element * 12
    data = b"\x0a" + bytes([len(packed)]) + packed
    assert len(message.FromString(data).numbers) == 12
    assert not has_more_fields(data, message.DESCRIPTOR, 13)
    assert has_more_fields(data, message.DESCRIPTOR, 12)


def _list_message(kind: str, *, packed: bool) -> Any:
    """A message type with one list of numbers."""
    file = FileDescriptorProto(name="list.proto", package="lists", syntax="proto3")
    field = file.message_type.add(name="List").field.add(name="numbers", number=1)
    field.label = FieldDescriptorProto.LABEL_REPEATED
    field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
    field.options.packed = packed
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName("lists.List"))


def test_an_empty_message_has_no_fields() -> None:
    assert not has_more_fields(b"", pb.ModelInferRequest.DESCRIPTOR, 0)


def test_unknown_fields_count_too() -> None:
    unknown = b"\x98\x06\x07" * 5  # field 99
    assert has_more_fields(unknown, pb.ModelInferRequest.DESCRIPTOR, 4)
    assert not has_more_fields(unknown, pb.ModelInferRequest.DESCRIPTOR, 5)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"\x0a",
        b"\x0a\x05ab",
        b"\x09\x00",
        b"\x0d\x00",
        b"\x0b\x0c",
        b"\x0e\x00",
        b"\x80" * 11 + b"\x00",
        b"\x2a\x02\x0a\x05",  # an input whose name goes beyond it
        b"\x0a" + b"\xff" * 9 + b"\x01",
    ],
)
def test_bytes_that_are_no_message_raise(data: bytes) -> None:
    with pytest.raises(BrokenMessage):
        has_more_fields(data, pb.ModelInferRequest.DESCRIPTOR, 100)


@given(st.binary(max_size=200))
def test_every_message_that_protobuf_parses_can_be_counted(data: bytes) -> None:
    message = pb.ModelInferRequest()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return
    try:
        has_more_fields(data, message.DESCRIPTOR, 10)
    except BrokenMessage as error:
        assert "wire type" in str(error)  # groups, which no message of ours has


@given(st.data())
def test_a_truncated_message_is_counted_or_raises(draw: st.DataObject) -> None:
    whole = request().SerializeToString()
    end = draw.draw(st.integers(0, len(whole)))
    try:
        has_more_fields(whole[:end], pb.ModelInferRequest.DESCRIPTOR, 1000)
    except BrokenMessage:
        assert end < len(whole)
