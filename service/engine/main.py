"""The engine process: owns the device and the model, and runs the batches that the edge sends.

    doorbell --RunBatch--> main thread (`service.engine.loop`): slots -> Device -> slots
    doorbell <--BatchDone / BatchFailed-------------------------------------------/

Started by `service.supervision.process` as `python -m service.engine.main`. It exits when the edge
does (end of file on the doorbell, or the kernel's parent-death signal), also during a batch. It
ignores the signals of the terminal, which the edge handles.
"""

from __future__ import annotations

import argparse
import importlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence

import structlog

from service.engine.device import Device, DeviceLost
from service.engine.loop import create_engine
from service.engine.warm_up import WarmUpLimits, warm_up
from service.ipc.child_process import (
    end_with_parent,
    ignore_terminal_signals,
    raise_oom_score,
    write_warnings_as_lines,
)
from service.ipc.doorbell import EngineDoorbell
from service.ipc.messages import EXIT_DEVICE_LOST, Hello, RecordingLost, Start, StartFailed
from service.ipc.slots import SlotMemory
from service.observability.logs import configure_logs, log_uncaught_exceptions

_OOM_SCORE_ADDED = 300  # the kernel should end an engine, which can be replaced, before the edge

_log = structlog.get_logger(__name__)


def open_device(start: Start) -> Device:
    """Opens the device with the factory that the Start message names.

    The factory's module is imported here, so that only a torch device loads torch.

    Raises:
        Exception: any error that keeps the device from loading.
    """
    module, _, function = start.device_factory.partition(":")
    factory: Callable[[Start], Device] = getattr(importlib.import_module(module), function)
    return factory(start)


def main(arguments: Sequence[str]) -> int:
    """Runs an engine on inherited descriptors.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="service.engine.main", description=__doc__)
    parser.add_argument("--doorbell-fd", type=int, required=True)
    parser.add_argument("--slots-fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True, help="process id of the edge")
    options = parser.parse_args(arguments)
    write_warnings_as_lines()
    ignore_terminal_signals()
    end_with_parent(options.parent)
    raise_oom_score(_OOM_SCORE_ADDED)
    doorbell = EngineDoorbell(socket.socket(fileno=options.doorbell_fd))
    start = doorbell.receive()
    if not isinstance(start, Start):
        return 1
    configure_logs(start.log_level, start.log_format)
    log_uncaught_exceptions()
    threading.Thread(target=_exit_with_edge, args=(doorbell,), daemon=True).start()
    load_started = time.monotonic()
    try:
        device = open_device(start)
        load_seconds = time.monotonic() - load_started
        warmed = warm_up(
            device,
            WarmUpLimits(start.warm_up_seconds, start.max_batch_size, start.max_batch_pixels),
        )
    except DeviceLost as lost:
        shape = lost.shape
        _log.exception("recording a CUDA graph lost the device; exiting, to be replaced")
        doorbell.send(RecordingLost(str(lost), shape.padded, shape.images, lost.recorded))
        return EXIT_DEVICE_LOST
    except Exception as error:
        _log.exception("the engine cannot start")
        doorbell.send(StartFailed(f"{type(error).__name__}: {error}"))
        return 1
    doorbell.send(
        Hello(
            pid=os.getpid(),
            model_name=device.model.name,
            model_version=device.model.version,
            device=device.name,
            implementations=dict(device.implementations),
            load_seconds=load_seconds,
            warm_up_seconds=warmed.seconds,
            warm_up_shapes=warmed.shapes,
            warm_up_left_out=warmed.left_out,
        )
    )
    create_engine(device, SlotMemory(start.layout, options.slots_fd), doorbell).run()
    return 0


def _exit_with_edge(doorbell: EngineDoorbell) -> None:
    """Exits when the edge is gone, also during a batch."""
    doorbell.wait_for_edge_exit()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
