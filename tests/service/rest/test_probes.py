"""Health, readiness, models and metrics."""

from __future__ import annotations

from dataclasses import replace

import httpx

from model.labels import COCO_LABELS
from service.rest import create_app, schemas
from service.settings import load_settings
from tests.service.rest.standin import CONFIG, MODEL, StandIn


async def test_a_live_service_reports_it(client: httpx.AsyncClient) -> None:
    response = await client.get("/healthz")
    assert response.status_code == 200
    assert response.json() == {"status": "live"}
    assert response.headers["cache-control"] == "no-store"


async def test_a_service_that_is_not_live_gets_503(
    client: httpx.AsyncClient, standin: StandIn
) -> None:
    standin.live = False
    response = await client.get("/healthz")
    assert response.status_code == 503
    assert response.json()["code"] == "not_live"


async def test_a_ready_service_reports_it(client: httpx.AsyncClient) -> None:
    assert (await client.get("/readyz")).json() == {"status": "ready"}


async def test_a_service_that_is_not_ready_gives_the_reason(
    client: httpx.AsyncClient, standin: StandIn
) -> None:
    standin.ready = False
    response = await client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["detail"] == "the model is loading"
    assert int(response.headers["retry-after"]) >= 1


async def test_probes_serve_head(client: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/readyz", "/v1/models", "/"):
        assert (await client.head(path)).status_code == 200


async def test_the_model_entry_has_classes_rules_and_limits(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/models")
    (entry,) = schemas.Models.model_validate_json(response.content).models
    assert (entry.name, entry.version, entry.kernel) == (MODEL.name, MODEL.version, "reference")
    assert entry.variant == CONFIG.name
    assert [(engine.device, engine.kernel) for engine in entry.engines] == [
        ("cuda:0", "cuda"),
        ("cuda:1", "reference"),
    ]
    assert [(engine.precision, engine.cuda_graphs) for engine in entry.engines] == [
        ("fp16", 432),
        ("fp16", 0),
    ]
    assert [(kind.id, kind.name) for kind in entry.classes][:2] == [
        (0, "qr_code"),
        (1, "data_matrix"),
    ]
    assert entry.input.shortest_side == CONFIG.shortest_side
    assert entry.input.longest_side == CONFIG.longest_side
    assert entry.default_threshold == 0.5
    assert (entry.limits.max_files, entry.limits.max_detections) == (3, CONFIG.max_detections)
    assert (entry.limits.max_tiles, entry.input.jpeg_decoding) == (64, "exact")


async def test_the_model_entry_has_the_settings_of_decoding_and_tiles(standin: StandIn) -> None:
    settings = load_settings(jpeg_decoding="scaled", max_tiles=0)
    transport = httpx.ASGITransport(create_app(standin.as_detector(), settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        (entry,) = (await client.get("/v1/models")).json()["models"]
    assert entry["input"]["jpeg_decoding"] == "scaled"
    assert entry["limits"]["max_tiles"] == 0


async def test_gaps_between_class_ids_are_not_classes(standin: StandIn) -> None:
    standin.model = replace(MODEL, labels=COCO_LABELS)
    transport = httpx.ASGITransport(create_app(standin.as_detector(), load_settings()))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        (entry,) = (await client.get("/v1/models")).json()["models"]
    assert len(entry["classes"]) == 80


async def test_metrics_are_text(client: httpx.AsyncClient) -> None:
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert "lite_detr_stage_seconds" in response.text


async def test_metrics_on_a_separate_port_are_not_served_here(standin: StandIn) -> None:
    settings = load_settings(metrics_port=9090)
    transport = httpx.ASGITransport(create_app(standin.as_detector(), settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        assert (await client.get("/metrics")).status_code == 404
        assert "/metrics" not in (await client.get("/openapi.json")).json()["paths"]
