"""A service with the fake device whose processes write to stderr in every way they can.

Run as a module; the settings come from the environment. SIGUSR1 makes the edge write.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings

from service.app import run
from service.build import Backend
from service.ipc.messages import Start
from tests.support.fake_device import FAKE_MODEL, FakeDevice, open_fake_device
from tests.support.fake_serve import FakeSettings, fake_backend


def make_noise(name: str) -> None:
    """Writes lines of all kinds; each has the name of the process."""
    print(f"{name} prints", file=sys.stderr, flush=True)
    os.write(2, f"{name} writes to the descriptor\n".encode())
    os.write(2, f"E0000 00:00:1.2 3 a.cc:4] {name} logs as gRPC core\n".encode())
    os.write(2, f'{name} is not UTF-8: \xff, "quoted"\n'.encode("latin-1"))
    os.write(2, f"\n{name} writes {'x' * 200_000}\n".encode())
    warnings.warn(f"{name} warns", UserWarning, stacklevel=1)
    thread = threading.Thread(target=_fail, args=(name,))
    thread.start()
    thread.join()


def open_noisy_device(start: Start) -> FakeDevice:
    """Opens a fake device."""
    make_noise("engine")
    return open_fake_device(start)


def main() -> int:
    """Serves until a signal ends it."""
    settings = FakeSettings()
    options = fake_backend(settings).device_options
    noise = threading.Thread(target=make_noise, args=("edge",), daemon=True)
    signal.signal(signal.SIGUSR1, lambda *_: noise.start())
    factory = "tests.service.observability.noisy_service:open_noisy_device"
    return run(settings, Backend(factory, options, FAKE_MODEL))


def _fail(name: str) -> None:
    raise RuntimeError(f"{name} fails in a thread")


if __name__ == "__main__":
    sys.exit(main())
