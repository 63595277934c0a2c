"""What load and unload requests may and may not say."""

from __future__ import annotations

from typing import Any, cast

import pytest

from service.core.model_control import ModelControl
from service.oip.errors import MALFORMED, OipRefused
from service.oip.repository import Repository
from service.settings import load_settings


class _NoControl:
    """Fails the test if the model is changed."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was called")


@pytest.mark.parametrize(
    "parameters",
    [
        {"file:1/model.safetensors": "AAAA"},
        {"config": '{"name": "other"}'},
        {"path": "/tmp/other.safetensors"},
        {"": ""},
    ],
)
async def test_a_load_request_cannot_name_a_file(parameters: dict[str, str]) -> None:
    control = cast(ModelControl, _NoControl())
    repository = Repository(control, load_settings(model_control="explicit"))
    with pytest.raises(OipRefused, match="its own weights file") as refused:
        await repository.load("codes", parameters)
    assert refused.value.kind is MALFORMED
