from __future__ import annotations

import pytest

from service.ipc.messages import (
    LENGTH,
    BadMessage,
    BatchDone,
    BatchFailed,
    Hello,
    Message,
    RecordingLost,
    RunBatch,
    Start,
    StartFailed,
    Stop,
    check_length,
    decode_message,
    encode_message,
)
from service.ipc.slots import SlotLayout

MESSAGES: list[Message] = [
    Start(
        device_factory="some.module:open_device",
        model_path="",
        device="cpu",
        threads=2,
        layout=SlotLayout(2, 300, 5),
        log_level="info",
        log_format="json",
        device_options={"base_ms": 2.5, "colours": ["ff0000", None]},
    ),
    RunBatch(7, (64, 128), ((0, 11), (3, 12))),
    Stop(),
    Hello(1, "name", "0123456789ab", "cpu", {"kernel": "cpu"}, 1.5, 0.5),
    StartFailed("no such file"),
    RecordingLost("an illegal memory access", (832, 1344), 8, 5),
    BatchDone(7, 0.1, 12.5, 0.2),
    BatchFailed(7, "ValueError: no", "out_of_memory"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_is_decoded_as_it_was_encoded(message: Message) -> None:
    wire = encode_message(message)
    assert check_length(wire[: LENGTH.size]) == len(wire) - LENGTH.size
    assert decode_message(wire[LENGTH.size :]) == message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00\xff",
        b"[]",
        b"{}",
        b'{"kind":"Unknown","body":{}}',
        b'{"kind":"BatchDone","body":{"batch_id":1}}',
        b'{"kind":"RunBatch","body":{"batch_id":1,"padded":[64,64],"slots":[1]}}',
        b'{"kind":"Stop","body":{"surplus":1}}',
    ],
)
def test_a_bad_message_is_refused(body: bytes) -> None:
    with pytest.raises(BadMessage):
        decode_message(body)


def test_a_length_beyond_the_limit_is_refused() -> None:
    with pytest.raises(BadMessage, match="announced"):
        check_length(b"\xff\xff\xff\xff")
