from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from service.build import build_served_model
from service.core.served_model import ServedModel
from service.observability.metrics import Metrics
from service.supervision.plan import EngineStartError
from service.supervision.weights_file import OpenWeightsFile
from tests.support.fake_serve import fake_backend
from tests.support.fake_service import fake_settings, quiet_settings


def _fake(devices: str = "cpu") -> ServedModel:
    settings = fake_settings(devices=devices)
    return build_served_model(settings, Metrics(), fake_backend(settings))


async def test_it_is_ready_when_all_its_engines_are() -> None:
    served = _fake("cpu,cpu")
    assert served.engine_pids == (None, None)
    assert served.canary_age_seconds() == float("inf")
    await served.begin()
    assert [engine.ready for engine in served.engines] == [True, True]
    assert None not in served.engine_pids
    assert served.canary_age_seconds() < 60
    await served.close()
    assert served.engine_pids == (None, None)


async def test_it_is_unused_when_its_last_request_has_left() -> None:
    served = _fake()
    await served.wait_until_unused()
    waiting = asyncio.create_task(served.wait_until_unused())
    with served.in_use():
        with served.in_use():
            waiting.cancel()
            waiting = asyncio.create_task(served.wait_until_unused())
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting
    await served.close()


async def test_an_engine_that_cannot_start_is_told_once_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    path = tmp_path / "m.safetensors"
    from tests.support.small_weights import write_small

    write_small(path)
    settings = quiet_settings(model=str(path), devices="cuda:7,cuda:7")
    served = build_served_model(settings, Metrics())
    try:
        with pytest.raises(EngineStartError, match="cuda:7"):
            await served.begin()
    finally:
        await served.close()


def test_a_held_file_is_the_one_that_was_opened(tmp_path: Path) -> None:
    path, other = tmp_path / "weights", tmp_path / "other"
    path.write_text("old")
    other.write_text("new")
    held = OpenWeightsFile(path)
    other.rename(path)
    assert Path(held.engine_path).read_text() == "old"
    path.unlink()
    assert Path(held.engine_path).read_text() == "old"
    assert Path(held.engine_path).read_text() == "old"  # each reader begins at the beginning
    fd = held.fd
    held.close()
    held.close()
    assert fd is not None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_nothing_is_held_without_a_weights_file() -> None:
    held = OpenWeightsFile(None)
    assert (held.engine_path, held.fd) == ("", None)
    held.close()


def test_a_file_that_is_not_there_cannot_be_held(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        OpenWeightsFile(tmp_path / "none")
