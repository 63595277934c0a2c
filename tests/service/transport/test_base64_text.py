from __future__ import annotations

import base64
import json
import os
import random
import textwrap
from typing import Any

import pytest

from service.transport.base64_text import Base64Error, decode_base64
from service.transport.json_body import JsonError, JsonText, read_json

SIZES = (0, 1, 2, 3, 4, 100, 12_287, 12_288, 300_001, 1_000_000)


def _variants(data: bytes) -> dict[str, str]:
    standard = base64.b64encode(data).decode()
    return {
        "standard": standard,
        "unpadded": standard.rstrip("="),
        "too much padding": standard.rstrip("=") + "====",
        "URL-safe": base64.urlsafe_b64encode(data).decode(),
        "URL-safe, unpadded": base64.urlsafe_b64encode(data).decode().rstrip("="),
        "lines of MIME": base64.encodebytes(data).decode(),
        "lines of Windows": "\r\n".join(textwrap.wrap(standard, 64)) + "\r\n",
        "spaces around": f" \t{standard}\n ",
        "data URL": f"data:image/jpeg;base64,{standard}",
        "data URL in capitals": f"\nDATA:image/png;charset=utf-8;BASE64,{standard}",
    }


@pytest.mark.parametrize("size", SIZES)
def test_every_form_of_base64_is_decoded(size: int) -> None:
    data = os.urandom(size)
    for name, text in _variants(data).items():
        assert decode_base64(text) == data, name
        assert decode_base64(text.encode()) == data, name


@pytest.mark.parametrize(
    "size", [100, 30_001, *(pytest.param(n, marks=pytest.mark.slow) for n in (300_001, 1_000_000))]
)
def test_every_form_of_base64_is_decoded_from_json(size: int) -> None:
    data = os.urandom(size)
    for name, text in _variants(data).items():
        encodings = {
            "plain": json.dumps(text),
            "escaped slashes": json.dumps(text).replace("/", r"\/"),  # PHP
            "escaped plus": json.dumps(text).replace("+", r"\u002B"),  # .NET
            "all escaped": '"' + "".join(f"\\u{ord(each):04x}" for each in text) + '"',
            "raw line ends": f'"{text}"' if "\t" not in text else json.dumps(text),
        }
        for encoding, value in encodings.items():
            body = read_json(f'{{"a": [1, {value}], "b":\n"c"}}'.encode(), ("a",))
            (number, decoded) = body["a"]
            assert (number, body["b"]) == (1, "c")
            assert isinstance(decoded, JsonText if len(value) > 20_000 else str)
            assert decode_base64(decoded) == data, (name, encoding)


def test_escapes_at_the_border_of_a_chunk_are_decoded() -> None:
    for shift in range(8):
        text = "A" * (262_144 - shift) + r"\u002B\/\n" * 20_000 + "A" * (100 + shift)
        digits = json.loads(f'"{text}"').replace("\n", "")
        expected = base64.b64decode(digits + "=" * (-len(digits) % 4))
        value = read_json(f'{{"a": "{text}"}}'.encode(), ("a",))["a"]
        assert isinstance(value, JsonText)
        assert decode_base64(value) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("not base64!", "'!'"),
        ("QUJD%3D", "'%'"),
        ("QUé", "'é'"),
        ("QUJDR", "cut off"),
        ("QQ==QUJD", "contains '='"),
        ("=QUJ", "contains '='"),
        ("data:image/png,QUJD", "without ;base64"),
        ("data:image/png;base64", "without a comma"),
        ("https://example.com/a.jpg", "never downloads"),
        ("b'QUJD'", '"\'"'),
    ],
)
def test_other_text_is_refused_with_the_reason(text: str, reason: str) -> None:
    for value in (text, text.encode()):
        with pytest.raises(Base64Error) as caught:
            decode_base64(value)
        assert reason in str(caught.value)


@pytest.mark.parametrize("bad", ["!", "é", r"\u00e9", r"\q", r"\\", r"\"", "=A"])
def test_a_wrong_character_in_a_large_text_is_refused(bad: str) -> None:
    value = read_json(f'{{"a": "{"A" * 300_000}{bad}{"A" * 300_000}"}}'.encode(), ("a",))["a"]
    assert isinstance(value, JsonText)
    with pytest.raises(Base64Error):
        decode_base64(value)


def test_json_is_read_as_by_the_standard_library() -> None:
    rng = random.Random(7)
    pieces = ["a", "\\", '"', "\n", "é", "A" * 20_000, '\\"', "{", "x" * 16_384, "", "\u2028"]
    for _ in range(200):
        values = ["".join(rng.choices(pieces, k=rng.randrange(6))) for _ in range(5)]
        document = {f"k{index}": value for index, value in enumerate(values)}
        data = json.dumps(document, ensure_ascii=rng.random() < 0.5).encode()
        assert read_json(data) == document
        image = read_json(data, ("k0",))["k0"]
        if isinstance(image, JsonText):
            image = b"".join(image.chunks()).decode()
        assert image == document["k0"]


def test_only_the_texts_of_images_are_left_in_pieces() -> None:
    long = "x" * 20_000
    document = {"a": [{"b": [long, "short"], long: [[long]]}], "b": long, long: {"a": {"b": long}}}
    body = read_json(json.dumps(document).encode(), ("a", "b"))
    image = body["a"][0]["b"][0]
    assert isinstance(image, JsonText)
    body["a"][0]["b"][0] = long
    assert body == document
    assert list(body) == list(document)
    assert long not in repr(image)


def test_a_deeply_nested_document_keeps_its_texts() -> None:
    depth, long = 1000, "x" * 20_000
    body: Any = read_json(('{"a":' + "[" * depth + f'"{long}"' + "]" * depth + "}").encode())["a"]
    for _ in range(depth):
        (body,) = body
    assert body == long


def test_a_text_that_is_no_image_has_a_maximum_length() -> None:
    data = json.dumps({"a": "x" * (1 << 20), "b": 1}).encode()
    assert read_json(data)["b"] == 1
    data = json.dumps({"a": "x" * ((1 << 20) + 1)}).encode()
    with pytest.raises(JsonError, match="is not an image; at most 1048576 are accepted"):
        read_json(data)
    assert isinstance(read_json(data, ("a",))["a"], JsonText)


@pytest.mark.parametrize("bad", [r"\q", r"\ud800", "\x01"])
def test_a_long_text_that_is_not_json_is_refused(bad: str) -> None:
    with pytest.raises(JsonError, match="not JSON"):
        read_json(f'{{"a": "{"A" * 20_000}{bad}"}}'.encode())


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"7",
        b'"a"',
        b"{",
        b'{"a": "' + b"A" * 50_000,
        b'{"a": "' + b"A" * 50_000 + b'\\"}',
        b'{"a": "\xff"}',
        b'{"a": b}' + b" " * 50_000,
    ],
)
def test_other_bodies_are_refused(data: bytes) -> None:
    with pytest.raises(JsonError):
        read_json(data)


@pytest.mark.parametrize("unit", [b'"",', b'\\"', b"[", b"{", b",", b'""', b'"a":'])
def test_a_body_of_too_many_values_is_refused(unit: bytes) -> None:
    with pytest.raises(JsonError):
        read_json(b'{"a": "' + unit * 1_000_000)


def test_an_empty_body_is_an_empty_object() -> None:
    assert read_json(b"") == {}
