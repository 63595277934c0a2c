"""Reading of gRPC messages."""

from __future__ import annotations

from lite_detr_client import Engine
from lite_detr_client.grpc_wire import read_model
from lite_detr_client.pb import detection_pb2 as pb


def test_engines_are_read_if_present() -> None:
    engine = pb.Engine(device="cuda:0", kernel="cuda", precision="fp16", cuda_graphs=432)
    response = pb.GetModelResponse(engines=[engine, pb.Engine(device="cpu", kernel="cpu")])
    expected = (Engine("cuda:0", "cuda", "fp16", 432), Engine("cpu", "cpu", "", 0))
    assert read_model(response).engines == expected


def test_model_of_an_older_service_has_no_engines() -> None:
    assert read_model(pb.GetModelResponse(name="m")).engines == ()


def test_the_limit_of_tiles_is_read_and_missing_from_older_services() -> None:
    for wanted in (0, 64):
        response = pb.GetModelResponse(limits=pb.Limits(max_tiles=wanted))
        assert read_model(response).max_tiles == wanted
    assert read_model(pb.GetModelResponse(limits=pb.Limits())).max_tiles is None
