"""Every number in the settings has bounds, and servers can use the largest and the smallest."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import BaseModel, ValidationError

from service.access.access import Access
from service.build import ServiceCore
from service.observability.request_log import RequestLog
from service.ray_serve.options import RayOptions
from service.rpc.pb import detection_pb2 as pb
from service.servers import start_rpc
from service.settings import Settings, SettingsError, given_settings
from tests.service.rest.standin import StandIn
from tests.service.rpc.caller import calling
from tests.service.transport.http_bench import GET, serving

UNUSABLE = ("inf", "-inf", "nan", 1e300, 10**30, -(10**30))
SMALLEST_FLOAT = 1e-9


def numbers(options: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """The fields that are numbers, with their JSON schemas."""
    found = {}
    for name, field in options.model_json_schema()["properties"].items():
        for schema in field.get("anyOf", [field]):
            if schema.get("type") in {"integer", "number"}:
                found[name] = schema
    return found


NUMBERS = numbers(Settings)
LARGEST = {name: schema["maximum"] for name, schema in NUMBERS.items() if "_port" not in name}
SMALLEST = {
    name: schema.get("minimum", SMALLEST_FLOAT)
    for name, schema in NUMBERS.items()
    if "_port" not in name
}


@pytest.mark.parametrize("value", UNUSABLE)
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_out_of_bounds_is_refused_by_its_name(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=rf"^{name}=.*\(LITE_DETR_{name.upper()}\)"):
        given_settings(**{name: value})


@pytest.mark.parametrize("value", UNUSABLE)
@pytest.mark.parametrize("name", numbers(RayOptions))
def test_an_option_of_ray_out_of_bounds_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        RayOptions.model_validate({name: value})


@pytest.mark.parametrize("values", [LARGEST, SMALLEST], ids=["largest", "smallest"])
async def test_servers_start_with_extreme_numbers(values: dict[str, Any]) -> None:
    settings = given_settings(grpc_port=0, **values)
    standin = StandIn()
    core = cast(ServiceCore, SimpleNamespace(detector=standin, control=None))
    rpc = await start_rpc(settings, Access(settings), core, RequestLog())
    await rpc.stop(0)
    async with serving(**values):
        pass


async def test_servers_serve_with_the_largest_numbers() -> None:
    settings = given_settings(grpc_port=0, **LARGEST)
    core = cast(ServiceCore, SimpleNamespace(detector=StandIn(), control=None))
    rpc = await start_rpc(settings, Access(settings), core, RequestLog())
    async with calling(rpc) as caller:
        assert (await caller.get_model(pb.GetModelRequest())).name
    await rpc.stop(0)
    async with serving(**LARGEST) as bench:
        client = await bench.connect()
        client.send(GET)
        assert (await client.read_response()).startswith(b"HTTP/1.1 200")
        await client.close()
