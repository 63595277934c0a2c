"""The service with the fake device as a process of its own: `python -m tests.support.fake_serve`.

Settings come from the environment, like those of `lite-detr serve`; `LITE_DETR_FAKE_*` are the
options of the fake device. Used by tests and benchmarks.
"""

from __future__ import annotations

import sys
from dataclasses import fields

import service.cli.serve  # noqa: F401 - unused, but counts in the memory of `lite-detr serve`
from service.app import run
from service.build import Backend
from service.settings import Settings
from tests.support.fake_device import FAKE_MODEL, FakeDeviceSpec


class FakeSettings(Settings):
    """Settings of a service with the fake device; see `FakeDeviceSpec`."""

    fake_base_ms: float = 1.0
    fake_per_image_ms: float = 1.0
    fake_start_ms: float = 0.0
    fake_explain_ms: float = 0.0
    fake_crash_colour: str | None = None
    fake_error_colour: str | None = None
    fake_hang_colour: str | None = None
    fake_sticky_colour: str | None = None
    fake_memory_colour: str | None = None
    fake_start_gate: str | None = None
    fake_batch_gate: str | None = None
    fake_graphs: int = 0
    fake_lost_at_graph: int | None = None


def fake_backend(settings: FakeSettings) -> Backend:
    """The backend that opens a `FakeDevice` in the engine process."""
    options = {
        field.name: getattr(settings, f"fake_{field.name}") for field in fields(FakeDeviceSpec)
    }
    return Backend(
        "tests.support.fake_device:open_fake_device",
        options,
        FAKE_MODEL,
        "tests.support.faulty_decode:decode_image",
    )


def main() -> int:
    """Serves until a signal ends it.

    Returns:
        The exit status of the service.
    """
    settings = FakeSettings()
    return run(settings, fake_backend(settings))


if __name__ == "__main__":
    sys.exit(main())
