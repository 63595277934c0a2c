"""Loading and unloading models in a running service whose weights file is replaced."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from model.weights.checkpoint import load_detector, save_checkpoint
from model.weights.info import read_model_info, resolve_model
from service.access.api_keys import Scope, key_line, new_key
from service.build import ServiceCore, open_core
from service.core.detector import Detector
from service.core.model_control import ModelLoadFailed, UnknownModel
from service.errors import NotReady
from service.ipc.child_process import children_of
from tests.support.fake_service import detect, quiet_settings, value
from tests.support.images import solid_png
from tests.support.live_load import HttpClient
from tests.support.running import process_has_ended
from tests.support.small_weights import LABELS, SMALL, weights_of, write_small
from tests.support.watched_service import WatchedService

IMAGE = solid_png((90, 120, 150), 64, 48)


def _replace(path: Path, write: Callable[[Path], object]) -> str:
    """Replaces the file by rename; returns the version of the new one."""
    fresh = path.with_name("fresh.safetensors")
    write(fresh)
    version = read_model_info(fresh).version
    fresh.rename(path)
    return version


def _replace_by_bytes(path: Path, data: bytes) -> None:
    fresh = path.with_name("fresh.safetensors")
    fresh.write_bytes(data)
    fresh.rename(path)


def _with_seed(seed: int) -> Callable[[Path], object]:
    return lambda path: write_small(path, seed=seed)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    write_small(path, seed=0)
    return path


@asynccontextmanager
async def _serving(weights: Path, **overrides: object) -> AsyncIterator[ServiceCore]:
    settings = quiet_settings(model=str(weights), device="cpu", warm_up_seconds=0, **overrides)
    async with open_core(settings) as core:
        await core.first_ready
        yield core


async def _until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(150):
        while not holds():
            await asyncio.sleep(0.01)


class Load:
    """Sends requests in a loop and records the model version of each result."""

    def __init__(self, detector: Detector, clients: int = 4) -> None:
        self.versions: Counter[str] = Counter()
        self.order: list[str] = []
        self._detector = detector
        self._stop = False
        self._tasks = [asyncio.create_task(self._work()) for _ in range(clients)]

    async def _work(self) -> None:
        while not self._stop:
            result = await detect(self._detector, IMAGE)
            self.versions[result.model_version] += 1
            self.order.append(result.model_version)
            await asyncio.sleep(0.02)  # leaves CPU time to the loading engine

    async def stop(self) -> None:
        """Stops; raises the exception of any failed request."""
        self._stop = True
        await asyncio.gather(*self._tasks)


@pytest.mark.slow
async def test_new_weights_are_loaded_under_load_without_a_failed_request(
    weights: Path,
) -> None:
    """Two loads at the same time; the second model has another name, shape and labels."""
    old = read_model_info(weights).version
    async with _serving(weights) as core:
        load = Load(core.detector)
        await _until(lambda: load.versions[old])
        [before] = core.detector.served.engine_pids
        middle = _replace(weights, _with_seed(1))
        others = _children()
        first = asyncio.create_task(core.control.load("small"))
        await _until(lambda: _children() - others)  # by then its file is open
        new = _replace(weights, _write_another_model)
        await core.control.load(str(weights))
        await first
        await _until(lambda: load.versions[new] > 3)
        await load.stop()
        assert list(dict.fromkeys(load.order)) in ([old, middle, new], [old, new])
        first_new = load.order.index(new)
        # Requests in flight are completed by the previous model: at most one per client.
        assert sum(version != new for version in load.order[first_new:]) <= 4
        assert before is not None
        assert await asyncio.to_thread(process_has_ended, before)
        result = await detect(core.detector, solid_png((1, 2, 3), 400, 300))
        assert (result.model_name, result.model_version) == ("another", new)
        assert result.label_names == ("CAT", "DOG", "BIRD")
        info = {"name": "another", "version": new, "variant": "small"}
        assert value(core.detector, "model_info", **info) == 1


def _write_another_model(path: Path) -> None:
    sides = {"shortest_side": SMALL.shortest_side // 2, "longest_side": SMALL.longest_side // 2}
    config = replace(SMALL, **sides)  # type: ignore[arg-type]
    names = [label.upper() for label in LABELS]
    save_checkpoint(path, weights_of(config, 6), config, names, score_threshold=0.1, name="another")


def _children() -> set[int]:
    """The child processes: engines, and processes that other tests have left running."""
    return set(children_of(os.getpid()))


@pytest.mark.slow
async def test_after_a_failed_load_the_old_model_continues_to_serve(weights: Path) -> None:
    old, data = read_model_info(weights).version, weights.read_bytes()
    bad_files = {
        "truncated": data[: len(data) // 2],
        "no model": b"GIF89a" * 1000,
        "not finite": data[:-4]
        + b"\x00\x00\xc0\x7f",  # with a valid header: detected by the engine
        "missing": None,
    }
    async with _serving(weights) as core:
        pids = core.detector.served.engine_pids
        for bad in bad_files.values():
            if bad is None:
                weights.unlink()
            else:
                _replace_by_bytes(weights, bad)
            with pytest.raises(ModelLoadFailed) as failure:
                await core.control.load("small")
            assert weights.name in str(failure.value)
            assert "/proc/" not in str(failure.value)
            assert (await detect(core.detector, IMAGE)).model_version == old
            assert core.detector.served.engine_pids == pids
            assert core.detector.ready
            [entry] = core.control.index()
            assert (entry.version, entry.state) == (old, "READY")
        new = _replace(weights, _with_seed(2))
        await core.control.load("small")
        assert (await detect(core.detector, IMAGE)).model_version == new


@pytest.mark.slow
async def test_a_restarted_engine_has_the_served_weights_until_new_ones_are_loaded(
    weights: Path,
) -> None:
    old = read_model_info(weights).version
    async with _serving(weights) as core:
        [engine] = core.detector.served.engine_pids
        assert engine is not None
        new = _replace(weights, _with_seed(3))
        os.kill(engine, signal.SIGKILL)
        await _until(lambda: not core.detector.ready)
        await _until(lambda: core.detector.ready)
        in_flight = asyncio.create_task(detect(core.detector, IMAGE))
        await _until(lambda: core.detector.active)
        await core.control.unload("small")
        assert (await in_flight).model_version == old
        with pytest.raises(NotReady, match="no model is loaded"):
            await detect(core.detector, IMAGE)
        assert (core.detector.ready, core.detector.live) == (False, True)
        assert core.control.index()[0].state == "UNAVAILABLE"
        assert core.detector.served.engine_pids == (None,)
        await core.control.unload("small")  # has no effect
        await core.control.load("small")
        assert (await detect(core.detector, IMAGE)).model_version == new
        assert core.detector.ready
        with pytest.raises(UnknownModel, match="'small' is served"):
            await core.control.load("large")


@pytest.mark.slow
async def test_sighup_loads_the_weights_only_if_they_have_changed_and_fit_into_memory(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _serving(weights) as core:
        [engine] = core.detector.served.engine_pids

        async def reload() -> str:
            with capture_logs() as lines:
                core.control.reload()
                await _until(lambda: len(lines) > 1 and lines[-1]["event"] in ends)
            return str(lines[-1]["event"])

        ends = {"model loaded", "the model cannot be loaded", "the weights file has not changed"}
        old = core.detector.model.version
        others = _children()
        assert await reload() == "the weights file has not changed"
        shutil.copy(weights, weights.with_name("copy"))
        weights.with_name("copy").rename(weights)
        assert await reload() == "the weights file has not changed"
        new = _replace(weights, _with_seed(4))
        monkeypatch.setattr(core.control, "_memory_left", lambda: 50 * 1024 * 1024)
        assert await reload() == "the model cannot be loaded"
        with pytest.raises(ModelLoadFailed, match="not enough memory"):
            await core.control.load("small")
        assert core.detector.served.engine_pids == (engine,)
        assert _children() == others  # no other engine was started
        assert (await detect(core.detector, IMAGE)).model_version == old
        monkeypatch.undo()
        assert await reload() == "model loaded"
        assert (await detect(core.detector, IMAGE)).model_version == new


@pytest.mark.slow
async def test_closing_during_a_load_ends_all_engines(weights: Path) -> None:
    async with _serving(weights) as core:
        _replace(weights, _with_seed(7))
        others = _children()
        load = asyncio.create_task(core.control.load("small"))
        await _until(lambda: _children() - others)
        [loading] = _children() - others
        [serving] = core.detector.served.engine_pids
    assert serving is not None
    with pytest.raises(asyncio.CancelledError):
        await load
    assert all([await asyncio.to_thread(process_has_ended, pid) for pid in (serving, loading)])


@pytest.mark.slow
async def test_closing_during_an_unload_ends_all_engines(weights: Path) -> None:
    async with _serving(weights) as core:
        [serving] = core.detector.served.engine_pids
        with core.detector.served.in_use():
            unload = asyncio.create_task(core.control.unload("small"))
            await _until(lambda: not core.detector.loaded)
            await core.control.stop()
    assert serving is not None
    with pytest.raises(asyncio.CancelledError):
        await unload
    assert await asyncio.to_thread(process_has_ended, serving)


@pytest.fixture
def start() -> Iterator[type[WatchedService]]:
    services: list[WatchedService] = []

    def start_one(**settings: object) -> WatchedService:
        services.append(WatchedService(**settings))
        return services[-1]

    yield start_one  # type: ignore[misc]
    for service in services:
        service.kill()


@pytest.mark.slow
async def test_sighup_reloads_the_default_model_under_load(
    start: type[WatchedService], tmp_path: Path
) -> None:
    """Reloads the shipped model over HTTP, then an invalid file, then stops during a load."""
    path = tmp_path / "served.safetensors"
    shutil.copy(resolve_model("default"), path)
    old = read_model_info(path).version

    def write(target: Path) -> None:
        detector, info = load_detector(path)
        save_checkpoint(
            target, detector.state_dict(), info.config, info.labels, score_threshold=0.9, name="x"
        )

    service = start(backend="torch", model=path, device="cpu", engine_threads=1, warm_up_seconds=0)
    service.wait_until_ready()
    client = HttpClient(service.url)
    versions: list[str] = []

    async def send_until(version: str) -> None:
        while not versions or versions[-1] != version:
            reply = await client.detect((90, 120, 150))
            assert reply.version, reply  # no error in between
            versions.append(reply.version)

    await send_until(old)
    new = await asyncio.to_thread(_replace, path, write)
    service.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(150):
        await send_until(new)
    assert set(versions) == {old, new}
    _replace_by_bytes(path, path.read_bytes()[:5000])
    service.process.send_signal(signal.SIGHUP)
    line = await asyncio.to_thread(service.wait_for_line, "the model cannot be loaded")
    assert path.name in line.string
    await send_until(new)
    await asyncio.to_thread(
        _replace, path, lambda target: shutil.copy(resolve_model("default"), target)
    )
    service.process.send_signal(signal.SIGHUP)
    await asyncio.to_thread(service.wait_for_line, "reload requested", times=3)
    service.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(service.end) == 0, service.lines
    client.close()


@pytest.mark.slow
async def test_the_log_of_an_engine_does_not_name_the_request_that_loaded_it(
    start: type[WatchedService], tmp_path: Path
) -> None:
    admin, gate = new_key(), tmp_path / "start"
    keys = tmp_path / "keys"
    keys.write_text(key_line("operator", [Scope.ADMIN], admin) + "\n")
    service = start(api_keys_file=keys, model_control="explicit", fake_start_gate=gate)
    service.wait_until_ready()
    loaded = await asyncio.to_thread(
        httpx.post,
        f"{service.url}/v2/repository/models/fake/load",
        headers={"Authorization": f"Bearer {admin}", "X-Request-Id": "load-17"},
        timeout=60,
    )
    assert loaded.status_code == 200, loaded.text
    line = await asyncio.to_thread(service.wait_for_line, '"model loaded"')
    assert "load-17" in line.string  # the load itself belongs to the request
    count = len(service.lines)
    for ready in (3, 4):  # the second engine was started by the supervisor of the load
        engine = re.findall(r'"pid":(\d+).*engine ready', "".join(service.lines))[-1]
        os.kill(int(engine), signal.SIGKILL)
        await asyncio.to_thread(service.wait_for_line, "engine ready", times=ready)
    later = "".join(service.lines[count:])
    assert "engine exited" in later
    assert "load-17" not in later
    assert "operator" not in later


@pytest.mark.slow
async def test_sighup_during_the_first_load_is_harmless(
    start: type[WatchedService], tmp_path: Path
) -> None:
    gate = tmp_path / "start"
    gate.touch()
    service = start(fake_start_gate=gate)
    service.wait_for_line("listens on")
    service.process.send_signal(signal.SIGHUP)
    service.wait_for_line("reload requested")
    gate.unlink()
    await asyncio.to_thread(service.wait_for_line, "model loaded")
    assert service.health("/readyz") == 200
    service.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(service.end) == 0, service.lines
