"""A format of the registry is served, documented, and offered by the command line."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import typer
from pydantic import TypeAdapter

from service.cli.offline_run import OfflineRun, run_offline
from service.core.formats import OUTPUT_FORMATS, Encoded, EncodeInput, OutputFormat
from service.rest import create_app
from service.settings import load_settings
from tests.service.rest.standin import StandIn
from tests.support.images import solid_png


def _encode_csv(job: EncodeInput) -> Encoded:
    lines = [
        f"{file.name or ''},{len(file.result.detections)}"
        for file in job.files
        if file.result is not None
    ]
    return Encoded("\n".join(lines).encode(), "text/csv")


CSV = OutputFormat(
    name="csv",
    description="number of detections by file",
    media_types=("text/csv",),
    encode=_encode_csv,
    examples={"format=csv": "shelf.jpg,3"},
)


@pytest.fixture
def csv_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OUTPUT_FORMATS, CSV.name, CSV)


@pytest.mark.usefixtures("csv_format")
async def test_an_added_format_is_served_and_documented() -> None:
    app = create_app(StandIn().as_detector(), load_settings())
    image = solid_png((0, 128, 128), 200, 100)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        one = await client.post("/detect?format=csv", content=image)
        files = [("file", ("a.png", image)), ("file", ("b.png", image))]
        several = await client.post("/detect?format=csv", files=files)
        unknown = await client.post("/detect?format=xml", content=image)
        document = (await client.get("/openapi.json")).json()
    assert (one.text, one.headers["content-type"]) == (",2", "text/csv; charset=utf-8")
    assert several.text.splitlines() == ["a.png,2", "b.png,2"]
    assert "csv" in unknown.json()["detail"]
    operation = document["paths"]["/detect"]["post"]
    parameter = next(item for item in operation["parameters"] if item["name"] == "format")
    assert "csv" in parameter["schema"]["enum"]
    assert CSV.description in parameter["description"]
    assert operation["responses"]["200"]["content"]["text/csv"] == {
        "schema": {"type": "string"},
        "examples": {"format=csv": {"value": "shelf.jpg,3"}},
    }


@pytest.mark.usefixtures("csv_format")
def test_the_command_line_lists_the_formats_that_it_prints() -> None:
    run = OfflineRun(("a.jpg",), "xml", None, None, None, None)
    with pytest.raises(
        typer.BadParameter, match=r"'xml'; it takes one of json, coco, huggingface, csv$"
    ):
        run_offline(run, load_settings())


def test_every_example_follows_a_schema_of_its_format() -> None:
    for output_format in OUTPUT_FORMATS.values():
        for title, example in output_format.examples.items():
            adapters = [TypeAdapter(schema) for schema in output_format.schemas]
            assert any(_accepts(adapter, example) for adapter in adapters), title


def test_a_format_is_registered_under_its_own_name() -> None:
    assert all(name == each.name for name, each in OUTPUT_FORMATS.items())


def _accepts(adapter: TypeAdapter[Any], example: object) -> bool:
    try:
        adapter.validate_python(example)
    except ValueError:
        return False
    return True
