"""Loads and unloads with stand-in engines: their order, and what `stop` leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from structlog.testing import capture_logs

from model.weights.info import CheckpointError
from service.core.model_control import ModelLoadFailed, UnknownModel
from tests.support.standin_models import SETTING, SwitchHarness, engine_of, settle, switching, until

FAKE = "fake"  # the name of each of the models


def _begin(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.create_task(work)


async def _load(harness: SwitchHarness, version: int) -> None:
    """A load that succeeds."""
    load = _begin(harness.control.load(FAKE))
    (await engine_of(harness.models, version)).start()
    await load


async def test_a_load_swaps_the_model_in_when_its_engines_are_ready() -> None:
    async with switching() as harness:
        load = _begin(harness.control.load(FAKE))
        engine = await engine_of(harness.models, 2)
        await settle()
        assert (harness.version, harness.state, load.done()) == ("1", "READY", False)
        engine.start()
        await load
        assert (harness.version, harness.state) == ("2", "READY")
        await until(lambda: harness.models.served[0].pool.memory.fd < 0)
        assert harness.models.events == ["1 begins", "2 begins", "1 ended"]


async def test_the_old_engines_end_when_their_last_request_is_answered() -> None:
    async with switching() as harness:
        with harness.models.served[0].in_use():
            await _load(harness, 2)
            await settle()
            assert not harness.models.engines[0].ended
        await until(lambda: harness.models.engines[0].ended)
        assert not harness.models.engines[1].ended


async def test_loads_run_one_after_the_other() -> None:
    async with switching() as harness:
        loads = [_begin(harness.control.load(name)) for name in (FAKE, SETTING)]
        engine = await engine_of(harness.models, 2)
        await settle()
        assert harness.models.starting == 2  # the first model and the first load's
        engine.start()
        (await engine_of(harness.models, 3)).start()
        await asyncio.gather(*loads)
        assert harness.version == "3"


async def test_a_file_that_is_no_model_changes_nothing() -> None:
    failure = CheckpointError("latest.safetensors", "is no model")
    async with switching(failure=failure) as harness:
        with pytest.raises(ModelLoadFailed, match=r"latest\.safetensors.*is no model"):
            await harness.control.load(FAKE)
        assert (harness.version, harness.state) == ("1", "READY")
        harness.models.failure = None
        await _load(harness, 2)
        assert harness.version == "2"


async def test_an_engine_that_cannot_start_changes_nothing() -> None:
    async with switching() as harness:
        load = _begin(harness.control.load(FAKE))
        (await engine_of(harness.models, 2)).refuse("not finite")
        with pytest.raises(ModelLoadFailed, match="not finite"):
            await load
        assert (harness.version, harness.state) == ("1", "READY")
        assert harness.models.events == ["1 begins", "2 begins", "2 ended"]
        assert harness.models.served[1].pool.memory.fd < 0


async def test_an_engine_that_is_not_ready_in_time_changes_nothing() -> None:
    async with switching(start_timeout_seconds=0.002) as harness:
        with pytest.raises(ModelLoadFailed, match=r"not ready within 0\.002 s"):
            await harness.control.load(FAKE)
        assert (harness.version, harness.state) == ("1", "READY")
        assert harness.models.engines[1].ended


async def test_an_unload_waits_for_requests_and_ends_the_engines() -> None:
    async with switching() as harness:
        with harness.detector.served.in_use():
            unload = _begin(harness.control.unload(FAKE))
            await until(lambda: not harness.detector.loaded)
            await settle()
            assert (harness.state, unload.done()) == ("UNLOADING", False)
            assert harness.models.events == ["1 begins"]
        await unload
        [entry] = harness.control.index()
        assert (entry.state, entry.reason) == ("UNAVAILABLE", "no model is loaded")
        await harness.control.unload(SETTING)  # once more changes nothing
        assert harness.models.events == ["1 begins", "1 ended"]


async def test_a_load_after_an_unload_serves_again() -> None:
    async with switching() as harness:
        await harness.control.unload(FAKE)
        load = _begin(harness.control.load(FAKE))
        engine = await engine_of(harness.models, 2)
        assert harness.state == "LOADING"
        engine.start()
        await load
        assert (harness.version, harness.state) == ("2", "READY")


async def test_a_load_that_fails_after_an_unload_leaves_nothing_loaded() -> None:
    async with switching() as harness:
        await harness.control.unload(FAKE)
        load = _begin(harness.control.load(FAKE))
        (await engine_of(harness.models, 2)).refuse("no")
        with pytest.raises(ModelLoadFailed):
            await load
        assert (harness.version, harness.state) == ("1", "UNAVAILABLE")


async def test_nothing_is_changed_before_the_first_model_is_ready() -> None:
    async with switching(ready=False) as harness:
        unload = _begin(harness.control.unload(FAKE))
        await settle()
        assert harness.detector.loaded
        harness.models.engines[0].start()
        await unload
        assert not harness.detector.loaded


async def test_a_first_model_that_cannot_start_can_be_replaced() -> None:
    async with switching(ready=False) as harness:
        load = _begin(harness.control.load(FAKE))
        harness.models.engines[0].refuse("no")
        (await engine_of(harness.models, 2)).start()
        await load
        assert (harness.version, harness.state) == ("2", "READY")


async def test_an_unknown_name_is_refused_at_once() -> None:
    async with switching(ready=False) as harness:
        for change in (harness.control.load, harness.control.unload):
            with pytest.raises(UnknownModel, match="'large' here; 'fake' is served"):
                await change("large")


async def test_a_load_continues_when_its_caller_is_cancelled() -> None:
    async with switching() as harness:
        load = _begin(harness.control.load(FAKE))
        engine = await engine_of(harness.models, 2)
        load.cancel()
        with pytest.raises(asyncio.CancelledError):
            await load
        engine.start()
        await until(lambda: harness.version == "2")


async def test_an_unload_continues_when_its_caller_is_cancelled() -> None:
    async with switching() as harness:
        with harness.detector.served.in_use():
            unload = _begin(harness.control.unload(FAKE))
            await until(lambda: not harness.detector.loaded)
            unload.cancel()
            with pytest.raises(asyncio.CancelledError):
                await unload
        await until(lambda: harness.models.engines[0].ended)
        await until(lambda: harness.state == "UNAVAILABLE")


async def test_a_reload_runs_in_the_background() -> None:
    async with switching() as harness:
        harness.control.reload()
        (await engine_of(harness.models, 2)).start()
        await until(lambda: harness.version == "2")


@pytest.mark.parametrize("failure", [CheckpointError("f", "is no model"), ZeroDivisionError()])
async def test_a_reload_that_fails_is_logged_once(failure: Exception) -> None:
    with capture_logs() as logs:
        async with switching(failure=failure) as harness:
            harness.control.reload()
            await until(lambda: harness.models.starting == 2)
            await until(lambda: any(line["log_level"] == "error" for line in logs))
            await settle()
    [line] = [line for line in logs if line["log_level"] == "error"]
    assert line["event"] == "the model cannot be loaded"
    # A traceback only of what is not the file's fault.
    assert (line["exc_info"] is failure) == isinstance(failure, ZeroDivisionError)


async def _close_during(harness: SwitchHarness, change: asyncio.Task[None]) -> None:
    """Ends the service during a change: the change is cancelled and nothing is left."""
    await harness.close()
    with pytest.raises(asyncio.CancelledError):
        await change
    assert harness.models.everything_has_ended()


async def test_a_stop_during_a_build_frees_the_new_model() -> None:
    async with switching() as harness:
        harness.models.may_build.clear()
        load = _begin(harness.control.load(FAKE))
        await until(lambda: harness.models.starting == 2)
        ended = asyncio.create_task(_close_during(harness, load))
        await settle()
        assert not ended.done()
        harness.models.may_build.set()
        await ended
        assert len(harness.models.served) == 2
        assert harness.models.events == ["1 begins", "1 ended"]


async def test_a_stop_during_a_build_that_fails_raises_nothing() -> None:
    async with switching(failure=CheckpointError("f", "is no model")) as harness:
        harness.models.may_build.clear()
        load = _begin(harness.control.load(FAKE))
        await until(lambda: harness.models.starting == 2)
        ended = asyncio.create_task(_close_during(harness, load))
        await settle()
        harness.models.may_build.set()
        await ended


async def test_a_stop_while_engines_start_ends_them() -> None:
    async with switching() as harness:
        load = _begin(harness.control.load(FAKE))
        await engine_of(harness.models, 2)
        await _close_during(harness, load)
        assert [engine.ended for engine in harness.models.engines] == [True, True]


async def test_a_stop_while_a_change_waits_for_the_first_model_ends_it() -> None:
    async with switching(ready=False) as harness:
        unload = _begin(harness.control.unload(FAKE))
        await settle()
        await _close_during(harness, unload)
        assert harness.models.events == ["1 begins", "1 ended"]


async def test_a_stop_while_an_unload_waits_for_requests_ends_the_engines() -> None:
    async with switching() as harness:
        with harness.detector.served.in_use():
            unload = _begin(harness.control.unload(FAKE))
            await until(lambda: not harness.detector.loaded)
            await _close_during(harness, unload)


@pytest.mark.parametrize("swapped", [True, False], ids=["swapped out", "unloaded"])
async def test_a_stop_while_engines_end_waits_for_them(swapped: bool) -> None:
    async with switching() as harness:
        harness.models.engines[0].may_end.clear()
        if swapped:
            await _load(harness, 2)
        else:
            _begin(harness.control.unload(FAKE))
        await settle()
        stopped = asyncio.create_task(harness.control.stop())
        await settle()
        assert not stopped.done()
        harness.models.engines[0].may_end.set()
        await stopped
        assert all(engine.ended for engine in harness.models.engines)


@pytest.mark.parametrize("steps", range(12))
async def test_a_stop_at_any_step_of_a_swap_leaves_nothing(steps: int) -> None:
    async with switching() as harness:
        load = _begin(harness.control.load(FAKE))
        (await engine_of(harness.models, 2)).start()
        for _ in range(steps):
            await asyncio.sleep(0)
        await harness.close()
        await asyncio.gather(load, return_exceptions=True)
        assert harness.models.everything_has_ended()


async def test_slots_stay_until_no_thread_can_write_to_them() -> None:
    async with switching() as harness:
        with harness.models.served[0].in_use():
            await _load(harness, 2)
            await harness.control.stop()
            assert harness.models.engines[0].ended
            assert all(served.pool.memory.fd >= 0 for served in harness.models.served)


async def test_nothing_is_changed_after_a_stop() -> None:
    async with switching() as harness:
        await harness.control.stop()
        with pytest.raises(ModelLoadFailed, match="shutting down"):
            await harness.control.load(FAKE)
        await harness.control.unload(FAKE)
        harness.control.reload()
        await settle()
        assert harness.detector.loaded
        assert harness.models.starting == 1
