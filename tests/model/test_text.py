"""Text that every encoder takes."""

from __future__ import annotations

import os

import orjson
import pytest

from model.text import valid_text


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("cat", "cat"),
        ("Grüße, 猫 👍", "Grüße, 猫 👍"),
        (os.fsdecode(b"caf\xe9.jpg"), "caf\ufffd.jpg"),
        ("\ud83d lone", "\ufffd lone"),
    ],
)
def test_surrogates_are_replaced(text: str, valid: str) -> None:
    assert valid_text(text) == valid
    assert orjson.loads(orjson.dumps(valid_text(text))) == valid
