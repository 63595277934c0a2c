"""The engine process: owns the device and the model, runs the batches that the edge rings for.

    doorbell --RunBatch--> main thread: slots -> Device.run -> slots
    doorbell <--BatchDone / BatchFailed------------------------------------------/

Started by `service.engine_process` as `python -m service.engine`. It has no life of its own: when
the edge is gone (end of file on the doorbell, or the kernel's parent-death signal) it ends, also
in the middle of a batch. Signals of the terminal are the edge's business and ignored here.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import structlog

from model.detections import Detections
from service.device import Device, OutOfDeviceMemory
from service.doorbell import EngineDoorbell
from service.fake_device import FakeDevice
from service.logs import configure_logs
from service.messages import (
    BadMessage,
    BatchDone,
    BatchFailed,
    Hello,
    Message,
    RunBatch,
    Start,
    StartFailed,
)
from service.slots import SlotMemory
from service.warm_up import WarmUpLimits, warm_up

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_EXIT_BROKEN_DEVICE = 70
_WORST_OOM_SCORE = 1000  # proc_pid_oom_score_adj(5)
_OOM_SCORE_ADDED = 300  # thousandths of the memory that there is

_log = structlog.get_logger(__name__)


class Engine:
    """Runs batches until it is told to stop."""

    def __init__(self, device: Device, memory: SlotMemory, doorbell: EngineDoorbell) -> None:
        """Takes what it works with."""
        self._device = device
        self._memory = memory
        self._doorbell = doorbell

    def run(self) -> None:
        """Answers messages in order; returns on `Stop`, on nonsense and when the edge is gone."""
        while isinstance(message := self._next_message(), RunBatch):
            self._doorbell.send(self._run_batch(message))

    def _next_message(self) -> Message | None:
        try:
            return self._doorbell.receive()
        except BadMessage:
            return None

    def _run_batch(self, batch: RunBatch) -> BatchDone | BatchFailed:
        """Runs one batch; what goes wrong is told, so that the edge can isolate the culprit."""
        try:
            return self._detect(batch)
        except (OutOfDeviceMemory, MemoryError) as error:
            return BatchFailed(batch.batch_id, str(error) or "no memory left", "out_of_memory")
        except Exception as error:
            _log.exception("batch failed", images=len(batch.slots), padded=batch.padded)
            if self._device.is_broken(error):
                _log.error("the device is lost; ending, to be replaced")
                os._exit(_EXIT_BROKEN_DEVICE)
            return BatchFailed(batch.batch_id, f"{type(error).__name__}: {error}")

    def _detect(self, batch: RunBatch) -> BatchDone:
        started = time.monotonic()
        heads = [self._memory.read_header(slot, generation) for slot, generation in batch.slots]
        views = [
            self._memory.pixels(slot, head.size)
            for (slot, _), head in zip(batch.slots, heads, strict=True)
        ]
        viewed = time.monotonic()
        answer = self._device.run(views, batch.padded, [head.original_size for head in heads])
        detected = time.monotonic()
        for (slot, generation), found in zip(batch.slots, answer.detections, strict=True):
            _check_finite(found)
            self._memory.write_result(slot, generation, found)
        written = time.monotonic()
        return BatchDone(
            batch.batch_id,
            assemble_ms=(viewed - started) * 1000 + answer.assemble_ms,
            forward_ms=answer.forward_ms,
            postprocess_ms=(written - detected) * 1000 + answer.postprocess_ms,
            copy_ms=answer.copy_ms,
            started=started,
        )


def _check_finite(found: Detections) -> None:
    """Refuses numbers that no client could use.

    Raises:
        ArithmeticError: for NaN or infinity; an error is better than a nonsense box.
    """
    if not (np.isfinite(found.scores).all() and np.isfinite(found.boxes_xyxy).all()):
        raise ArithmeticError("the network's output is not finite")


def open_device(start: Start) -> Device:
    """Makes the device that the edge asked for.

    Raises:
        Exception: whatever keeps it from loading; the edge is told.
    """
    if start.engine == "fake":
        return FakeDevice(start.fake)
    # torch is loaded here and not above: a fake engine starts without it.
    from service.torch_device import TorchDevice  # noqa: PLC0415

    return TorchDevice(start.model_path, start.device, start.threads, start.precision)


def main(arguments: Sequence[str]) -> int:
    """Runs an engine on descriptors that the edge handed down.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="service.engine", description=__doc__)
    parser.add_argument("--doorbell-fd", type=int, required=True)
    parser.add_argument("--slots-fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True, help="process id of the edge")
    options = parser.parse_args(arguments)
    _live_and_die_with(options.parent)
    _die_before_the_edge()
    doorbell = EngineDoorbell(socket.socket(fileno=options.doorbell_fd))
    start = doorbell.receive()
    if not isinstance(start, Start):
        return 1
    configure_logs(start.log_level, start.log_format)
    threading.Thread(target=_end_with_edge, args=(doorbell,), daemon=True).start()
    load_started = time.monotonic()
    try:
        device = open_device(start)
        load_seconds = time.monotonic() - load_started
        warmed = warm_up(
            device,
            WarmUpLimits(start.warm_up_seconds, start.max_batch_size, start.max_batch_pixels),
        )
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
    Engine(device, SlotMemory(start.layout, options.slots_fd), doorbell).run()
    return 0


def _end_with_edge(doorbell: EngineDoorbell) -> None:
    """Ends the process when the edge is gone, also in the middle of a batch."""
    doorbell.wait_until_edge_is_gone()
    os._exit(0)


def _live_and_die_with(parent: int) -> None:
    """Ends with the edge however the edge ends, and leaves the terminal's signals to it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(0)


def _die_before_the_edge() -> None:
    """Where memory runs out, the kernel shall end an engine, which is replaced, and not the edge.

    Without this it may take either: the slots that both map count for both.
    """
    score = Path("/proc/self/oom_score_adj")
    try:
        score.write_text(str(min(_WORST_OOM_SCORE, int(score.read_text()) + _OOM_SCORE_ADDED)))
    except (OSError, ValueError):  # not Linux, or a sandbox without it
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
