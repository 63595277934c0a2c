"""A model is loaded again only if its file has changed and both models fit into memory."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.core.model_control import ModelLoadFailed
from tests.support.standin_models import (
    SETTING,
    SwitchHarness,
    engine_of,
    switching,
    until,
)

MIB = 1024 * 1024
Change = Callable[[Path], object]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_text("1")
    return path


async def _reload(harness: SwitchHarness) -> str:
    """Does what SIGHUP does; returns the event that is logged at the end."""

    def has_ended() -> bool:
        for engine in harness.models.engines:
            if engine.begun and not engine.ready and not engine.ended:
                engine.start()
        return len(lines) > 1

    with capture_logs() as lines:
        harness.control.reload()
        await until(has_ended)
    return str(lines[-1]["event"])


def _touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def _copy_over(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    copy.rename(path)


def _write_in_place(path: Path) -> None:
    path.write_text("2")
    os.utime(path, ns=(2, 2))  # also if the clock of the file system is coarse


def _rename_over(path: Path) -> None:
    path.with_name("new").write_text("2")
    path.with_name("new").rename(path)


def _relink(path: Path) -> None:
    """A volume of Kubernetes: a symbolic link to a folder that is swapped."""
    target = path.with_name("other")
    target.write_text("2")
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize("change", [Path.exists, _touch, _copy_over])
async def test_a_reload_leaves_an_unchanged_model_alone(weights: Path, change: Change) -> None:
    async with switching(path=weights) as harness:
        for _ in range(3):
            change(weights)
            assert await _reload(harness) == "the weights file has not changed"
        assert harness.models.events == ["1 begins"]
        assert (harness.version, harness.state) == ("1", "READY")


@pytest.mark.parametrize("change", [_write_in_place, _rename_over, _relink])
async def test_a_reload_loads_a_changed_file(weights: Path, change: Change) -> None:
    async with switching(path=weights) as harness:
        change(weights)
        assert await _reload(harness) == "model loaded"
        assert harness.version == "2"
        assert await _reload(harness) == "the weights file has not changed"


async def test_a_reload_does_not_load_a_model_that_was_unloaded(weights: Path) -> None:
    async with switching(path=weights) as harness:
        await harness.control.unload(SETTING)
        assert await _reload(harness) == "the weights file has not changed"
        assert harness.state == "UNAVAILABLE"


async def test_a_load_loads_an_unchanged_file_only_if_no_model_is_ready(weights: Path) -> None:
    async with switching(path=weights) as harness:
        await harness.control.load(SETTING)
        assert harness.models.events == ["1 begins"]
        await harness.control.unload(SETTING)
        load = asyncio.create_task(harness.control.load(SETTING))
        (await engine_of(harness.models, 2)).start()
        await load
        assert harness.state == "READY"


async def test_a_model_that_does_not_fit_next_to_the_other_is_refused(weights: Path) -> None:
    async with switching(path=weights) as harness:
        _rename_over(weights)
        harness.memory_left = 5 * MIB
        harness.models.engines[0].pid = os.getpid()
        with pytest.raises(ModelLoadFailed, match=r"not enough memory.*about \d+ MiB.* 5 MiB are"):
            await harness.control.load(SETTING)
        assert await _reload(harness) == "the model cannot be loaded"
        assert (harness.version, harness.state) == ("1", "READY")
        assert harness.models.events == ["1 begins"]
        assert all(served.pool.memory.fd < 0 for served in harness.models.served[1:])
        harness.memory_left = 100_000 * MIB
        assert await _reload(harness) == "model loaded"


async def test_a_model_is_loaded_after_an_unload_with_little_memory(weights: Path) -> None:
    """It needs no more than the one before."""
    async with switching(path=weights) as harness:
        await harness.control.unload(SETTING)
        harness.memory_left = MIB
        _rename_over(weights)
        assert await _reload(harness) == "model loaded"
