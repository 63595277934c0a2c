"""Messages of the service, as either gRPC client reads them."""

from __future__ import annotations

from lite_detr_client import Engine
from lite_detr_client.grpc_wire import read_model
from lite_detr_client.pb import detection_pb2 as pb


def test_engines_are_read_where_they_are_told() -> None:
    engine = pb.Engine(device="cuda:0", kernel="cuda", precision="fp16", cuda_graphs=432)
    told = pb.GetModelResponse(engines=[engine, pb.Engine(device="cpu", kernel="cpu")])
    expected = (Engine("cuda:0", "cuda", "fp16", 432), Engine("cpu", "cpu", "", 0))
    assert read_model(told).engines == expected


def test_an_older_service_tells_of_no_engines() -> None:
    assert read_model(pb.GetModelResponse(name="m")).engines == ()
