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
from tests.support.small_weights import write_small


def _fake(devices: str = "cpu") -> ServedModel:
    settings = fake_settings(devices=devices)
    return build_served_model(settings, Metrics(), fake_backend(settings))


async def test_a_model_is_ready_when_all_its_engines_are() -> None:
    served = _fake("cpu,cpu")
    assert served.engine_pids == (None, None)
    assert served.canary_age_seconds() == float("inf")
    await served.begin()
    assert [engine.ready for engine in served.engines] == [True, True]
    assert None not in served.engine_pids
    assert served.canary_age_seconds() < 60
    await served.close()
    assert served.engine_pids == (None, None)


async def test_a_model_is_unused_after_its_last_request() -> None:
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


@pytest.mark.slow
async def test_begin_fails_if_an_engine_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    path = tmp_path / "m.safetensors"
    write_small(path)
    settings = quiet_settings(model=str(path), devices="cuda:7,cuda:7")
    served = build_served_model(settings, Metrics())
    try:
        with pytest.raises(EngineStartError, match="cuda:7"):
            await served.begin()
    finally:
        await served.close()


def test_an_open_file_is_kept_when_its_path_is_replaced(tmp_path: Path) -> None:
    path, other = tmp_path / "weights", tmp_path / "other"
    path.write_text("old")
    other.write_text("new")
    file = OpenWeightsFile(path)
    other.rename(path)
    assert Path(file.engine_path).read_text() == "old"
    path.unlink()
    assert Path(file.engine_path).read_text() == "old"
    assert Path(file.engine_path).read_text() == "old"  # each reader begins at the beginning
    fd = file.fd
    file.close()
    file.close()
    assert fd is not None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_nothing_is_opened_without_a_weights_file() -> None:
    file = OpenWeightsFile(None)
    assert (file.engine_path, file.fd) == ("", None)
    file.close()


def test_a_file_that_does_not_exist_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        OpenWeightsFile(tmp_path / "none")
