"""What a loaded engine reports about itself, for the log and for `GET /v1/models`."""

from __future__ import annotations

import structlog

from service.ipc.messages import Hello
from service.types import EngineFacts

_log = structlog.get_logger("service.supervision.supervisor")


def describe_engine(hello: Hello) -> EngineFacts:
    """Returns device, kernel and precision of an engine."""
    implementations = hello.implementations
    return EngineFacts(
        hello.device,
        implementations.get("kernel", ""),
        implementations.get("precision", ""),
        int(implementations.get("cuda_graphs", "0")),
    )


def log_ready(hello: Hello) -> None:
    """Logs that an engine has loaded its model."""
    _log.info(
        "engine ready",
        pid=hello.pid,
        device=hello.device,
        load_seconds=round(hello.load_seconds, 3),
        warm_up_seconds=round(hello.warm_up_seconds, 3),
        warm_up_shapes=hello.warm_up_shapes,
        warm_up_left_out=hello.warm_up_left_out,
        **hello.implementations,
    )
