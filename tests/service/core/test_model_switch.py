"""Loads and unloads with stand-ins: in which order, who waits for whom, and what an end leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from structlog.testing import capture_logs

from model.weights.info import CheckpointError
from service.core.model_control import ModelLoadFailed, UnknownModel
from tests.support.standin_models import SETTING, House, engine_of, settle, switching, until

FAKE = "fake"  # the name of each of the models


def _begin(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.create_task(work)


async def _load(house: House, version: int) -> None:
    """A load that goes well."""
    load = _begin(house.control.load(FAKE))
    (await engine_of(house.models, version)).start()
    await load


async def test_a_load_swaps_the_model_in_when_its_engines_are_ready() -> None:
    async with switching() as house:
        load = _begin(house.control.load(FAKE))
        engine = await engine_of(house.models, 2)
        await settle()
        assert (house.version, house.state, load.done()) == ("1", "READY", False)
        engine.start()
        await load
        assert (house.version, house.state) == ("2", "READY")
        await until(lambda: house.models.served[0].pool.memory.fd < 0)
        assert house.models.events == ["1 begins", "2 begins", "1 ended"]


async def test_the_old_engines_end_when_their_last_request_is_answered() -> None:
    async with switching() as house:
        with house.models.served[0].in_use():
            await _load(house, 2)
            await settle()
            assert not house.models.engines[0].ended
        await until(lambda: house.models.engines[0].ended)
        assert not house.models.engines[1].ended


async def test_loads_queue_behind_one_another() -> None:
    async with switching() as house:
        loads = [_begin(house.control.load(name)) for name in (FAKE, SETTING)]
        engine = await engine_of(house.models, 2)
        await settle()
        assert house.models.starting == 2  # the first model and the first load's
        engine.start()
        (await engine_of(house.models, 3)).start()
        await asyncio.gather(*loads)
        assert house.version == "3"


async def test_a_file_that_is_no_model_changes_nothing() -> None:
    failure = CheckpointError("latest.safetensors", "is no model")
    async with switching(failure=failure) as house:
        with pytest.raises(ModelLoadFailed, match=r"latest\.safetensors.*is no model"):
            await house.control.load(FAKE)
        assert (house.version, house.state) == ("1", "READY")
        house.models.failure = None
        await _load(house, 2)
        assert house.version == "2"


async def test_an_engine_that_cannot_start_changes_nothing() -> None:
    async with switching() as house:
        load = _begin(house.control.load(FAKE))
        (await engine_of(house.models, 2)).refuse("not finite")
        with pytest.raises(ModelLoadFailed, match="not finite"):
            await load
        assert (house.version, house.state) == ("1", "READY")
        assert house.models.events == ["1 begins", "2 begins", "2 ended"]
        assert house.models.served[1].pool.memory.fd < 0


async def test_an_engine_that_is_not_ready_in_time_changes_nothing() -> None:
    async with switching(start_timeout_seconds=0.002) as house:
        with pytest.raises(ModelLoadFailed, match=r"not ready within 0\.002 s"):
            await house.control.load(FAKE)
        assert (house.version, house.state) == ("1", "READY")
        assert house.models.engines[1].ended


async def test_an_unload_waits_for_requests_and_ends_the_engines() -> None:
    async with switching() as house:
        with house.detector.served.in_use():
            unload = _begin(house.control.unload(FAKE))
            await until(lambda: not house.detector.loaded)
            await settle()
            assert (house.state, unload.done()) == ("UNLOADING", False)
            assert house.models.events == ["1 begins"]
        await unload
        [entry] = house.control.index()
        assert (entry.state, entry.reason) == ("UNAVAILABLE", "no model is loaded")
        await house.control.unload(SETTING)  # once more changes nothing
        assert house.models.events == ["1 begins", "1 ended"]


async def test_a_load_after_an_unload_serves_again() -> None:
    async with switching() as house:
        await house.control.unload(FAKE)
        load = _begin(house.control.load(FAKE))
        engine = await engine_of(house.models, 2)
        assert house.state == "LOADING"
        engine.start()
        await load
        assert (house.version, house.state) == ("2", "READY")


async def test_a_load_that_fails_after_an_unload_leaves_nothing_loaded() -> None:
    async with switching() as house:
        await house.control.unload(FAKE)
        load = _begin(house.control.load(FAKE))
        (await engine_of(house.models, 2)).refuse("no")
        with pytest.raises(ModelLoadFailed):
            await load
        assert (house.version, house.state) == ("1", "UNAVAILABLE")


async def test_nothing_is_changed_before_the_first_model_is_ready() -> None:
    async with switching(ready=False) as house:
        unload = _begin(house.control.unload(FAKE))
        await settle()
        assert house.detector.loaded
        house.models.engines[0].start()
        await unload
        assert not house.detector.loaded


async def test_a_first_model_that_cannot_start_can_be_replaced() -> None:
    async with switching(ready=False) as house:
        load = _begin(house.control.load(FAKE))
        house.models.engines[0].refuse("no")
        (await engine_of(house.models, 2)).start()
        await load
        assert (house.version, house.state) == ("2", "READY")


async def test_an_unknown_name_is_refused_at_once() -> None:
    async with switching(ready=False) as house:
        for change in (house.control.load, house.control.unload):
            with pytest.raises(UnknownModel, match="'large' here; 'fake' is served"):
                await change("large")


async def test_a_load_goes_on_when_its_caller_leaves() -> None:
    async with switching() as house:
        load = _begin(house.control.load(FAKE))
        engine = await engine_of(house.models, 2)
        load.cancel()
        with pytest.raises(asyncio.CancelledError):
            await load
        engine.start()
        await until(lambda: house.version == "2")


async def test_an_unload_goes_on_when_its_caller_leaves() -> None:
    async with switching() as house:
        with house.detector.served.in_use():
            unload = _begin(house.control.unload(FAKE))
            await until(lambda: not house.detector.loaded)
            unload.cancel()
            with pytest.raises(asyncio.CancelledError):
                await unload
        await until(lambda: house.models.engines[0].ended)
        await until(lambda: house.state == "UNAVAILABLE")


async def test_a_reload_goes_on_by_itself() -> None:
    async with switching() as house:
        house.control.reload()
        (await engine_of(house.models, 2)).start()
        await until(lambda: house.version == "2")


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (CheckpointError("f", "is no model"), "the model cannot be loaded"),
        (ZeroDivisionError(), "unexpected error"),
    ],
)
async def test_a_reload_that_fails_is_logged_once(failure: Exception, told: str) -> None:
    with capture_logs() as logs:
        async with switching(failure=failure) as house:
            house.control.reload()
            await until(lambda: house.models.starting == 2)
            await until(lambda: any(line["log_level"] == "error" for line in logs))
            await settle()
    assert [line["event"] for line in logs if line["log_level"] == "error"] == [told]


async def _ends(house: House, change: asyncio.Task[None]) -> None:
    """The end of the service ends a change, and leaves nothing."""
    await house.close()
    with pytest.raises(asyncio.CancelledError):
        await change
    assert house.models.nothing_is_left()


async def test_a_stop_during_a_build_gives_back_what_was_built() -> None:
    async with switching() as house:
        house.models.may_build.clear()
        load = _begin(house.control.load(FAKE))
        await until(lambda: house.models.starting == 2)
        ended = asyncio.create_task(_ends(house, load))
        await settle()
        assert not ended.done()
        house.models.may_build.set()
        await ended
        assert len(house.models.served) == 2
        assert house.models.events == ["1 begins", "1 ended"]


async def test_a_stop_during_a_build_that_fails_is_quiet() -> None:
    async with switching(failure=CheckpointError("f", "is no model")) as house:
        house.models.may_build.clear()
        load = _begin(house.control.load(FAKE))
        await until(lambda: house.models.starting == 2)
        ended = asyncio.create_task(_ends(house, load))
        await settle()
        house.models.may_build.set()
        await ended


async def test_a_stop_while_engines_start_ends_them() -> None:
    async with switching() as house:
        load = _begin(house.control.load(FAKE))
        await engine_of(house.models, 2)
        await _ends(house, load)
        assert [engine.ended for engine in house.models.engines] == [True, True]


async def test_a_stop_while_a_change_waits_for_the_first_model_ends_it() -> None:
    async with switching(ready=False) as house:
        unload = _begin(house.control.unload(FAKE))
        await settle()
        await _ends(house, unload)
        assert house.models.events == ["1 begins", "1 ended"]


async def test_a_stop_while_an_unload_waits_for_requests_ends_the_engines() -> None:
    async with switching() as house:
        with house.detector.served.in_use():
            unload = _begin(house.control.unload(FAKE))
            await until(lambda: not house.detector.loaded)
            await _ends(house, unload)


@pytest.mark.parametrize("swapped", [True, False], ids=["swapped out", "unloaded"])
async def test_a_stop_while_engines_end_waits_for_them(swapped: bool) -> None:
    async with switching() as house:
        house.models.engines[0].may_end.clear()
        if swapped:
            await _load(house, 2)
        else:
            _begin(house.control.unload(FAKE))
        await settle()
        stopped = asyncio.create_task(house.control.stop())
        await settle()
        assert not stopped.done()
        house.models.engines[0].may_end.set()
        await stopped
        assert all(engine.ended for engine in house.models.engines)


@pytest.mark.parametrize("steps", range(12))
async def test_a_stop_at_any_step_of_a_swap_leaves_nothing(steps: int) -> None:
    async with switching() as house:
        load = _begin(house.control.load(FAKE))
        (await engine_of(house.models, 2)).start()
        for _ in range(steps):
            await asyncio.sleep(0)
        await house.close()
        await asyncio.gather(load, return_exceptions=True)
        assert house.models.nothing_is_left()


async def test_slots_stay_until_no_thread_can_write_to_them() -> None:
    async with switching() as house:
        with house.models.served[0].in_use():
            await _load(house, 2)
            await house.control.stop()
            assert house.models.engines[0].ended
            assert all(served.pool.memory.fd >= 0 for served in house.models.served)


async def test_after_a_stop_nothing_is_changed_any_more() -> None:
    async with switching() as house:
        await house.control.stop()
        with pytest.raises(ModelLoadFailed, match="shutting down"):
            await house.control.load(FAKE)
        await house.control.unload(FAKE)
        house.control.reload()
        await settle()
        assert house.detector.loaded
        assert house.models.starting == 1
