r"""The model control of a running service: loads, reloads and unloads, one at a time.

    load: build -> start engines -> warm and proven: swap -> the old ones finish, then end
                        \-> cannot start: the new ones end, the old ones serve on

For the time of a load both models are in memory. Each change is a task of its own, which the end
of the service alone cuts short: whoever asked for it may leave.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from model.weights.info import CheckpointError
from service.core.detector import Detector
from service.core.model_control import ModelEntry, ModelLoadFailed, ModelState, UnknownModel
from service.core.served_model import ServedModel
from service.supervision.plan import EngineStartError

_log = structlog.get_logger(__name__)


class ModelSwitch:
    """Changes what a detector serves; see `service.core.model_control.ModelControl`."""

    def __init__(
        self,
        detector: Detector,
        setting: str,
        build: Callable[[], ServedModel],
        *,
        first_ready: asyncio.Future[None],
        start_timeout_seconds: float,
    ) -> None:
        """Takes charge of what the detector serves, also of ending it.

        Args:
            detector: which serves a model already.
            setting: how the settings name the model; a load may name it so too.
            build: makes the model anew from the file that the setting stands for.
            first_ready: of what it serves already; nothing is changed before.
            start_timeout_seconds: for the engines of a load.
        """
        self._detector = detector
        self._setting = setting
        self._build = build
        self._first_ready = first_ready
        self._start_timeout_seconds = start_timeout_seconds
        self._lock = asyncio.Lock()
        self._changing: ModelState | None = None
        self._old: set[ServedModel] = set()  # swapped out, and not ended yet
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()

    def index(self) -> tuple[ModelEntry, ...]:
        """The one model there is."""
        detector = self._detector
        state: ModelState = "READY" if detector.ready else "UNAVAILABLE"
        if self._changing is not None and not detector.ready:
            state = self._changing
        reason = "" if state == "READY" else detector.not_ready_reason
        return (ModelEntry(detector.model.name, detector.model.version, state, reason),)

    async def load(self, name: str) -> None:
        """Loads the weights file anew and swaps the model in; see `ModelControl.load`.

        Raises:
            UnknownModel: for another name.
            ModelLoadFailed: for a file or device that cannot be used.
        """
        self._check_name(name)
        await asyncio.shield(self._in_background(self._load()))

    def reload(self) -> None:
        """Begins to load whatever the setting stands for now; how it ends is logged."""
        _log.info("reload asked for", model=self._setting)
        self._in_background(self._load())

    async def unload(self, name: str) -> None:
        """Ends the engines once accepted requests are answered; see `ModelControl.unload`.

        Raises:
            UnknownModel: for a name that does not serve.
        """
        self._check_name(name)
        await asyncio.shield(self._in_background(self._unload()))

    async def stop(self) -> None:
        """Ends every engine; whoever still waits is answered with `ShuttingDown`.

        Changes under way end with it, and who asked for them gets `asyncio.CancelledError`.
        """
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(served.stop() for served in (*self._old, self._detector.served)))

    def free(self) -> None:
        """Gives slots and files back after `stop`, when no thread decodes into a slot any more."""
        for served in (*self._old, self._detector.served):
            served.free()

    async def _load(self) -> None:
        """Raises `ModelLoadFailed` with the reason where it cannot."""
        await asyncio.wait([self._first_ready])
        async with self._lock:
            self._changing = "LOADING"
            try:
                if self._stopping:
                    raise ModelLoadFailed("the service is shutting down")
                served = await self._start()
            except ModelLoadFailed as error:
                _log.error("the model cannot be loaded", error=str(error))
                raise
            finally:
                self._changing = None
            was_loaded = self._detector.loaded
            before = self._detector.swap(served)
            if was_loaded:
                self._old.add(before)
                self._in_background(self._retire(before))
        _log.info("model loaded", model=served.info.name, version=served.info.version)

    async def _unload(self) -> None:
        await asyncio.wait([self._first_ready])
        async with self._lock:
            if self._stopping or not self._detector.loaded:
                return
            self._changing = "UNLOADING"
            try:
                await self._retire(self._detector.unload())
            finally:
                self._changing = None
        _log.info("model unloaded", model=self._detector.model.name)

    async def _start(self) -> ServedModel:
        """A new model whose engines are ready.

        Raises:
            ModelLoadFailed: where there is none to be had.
        """
        try:
            served = await self._built()
        except CheckpointError as error:
            raise ModelLoadFailed(str(error)) from error
        try:
            async with asyncio.timeout(self._start_timeout_seconds):
                await served.begin()
        except EngineStartError as error:
            await _close(served)
            raise ModelLoadFailed(str(error)) from error
        except TimeoutError:
            await _close(served)
            waited = f"{self._start_timeout_seconds:g} s"
            raise ModelLoadFailed(f"its engines were not ready within {waited}") from None
        except BaseException:
            await _close(served)
            raise
        return served

    async def _built(self) -> ServedModel:
        """A new model, made in a thread; given back where nobody waits for it any more.

        Raises:
            CheckpointError: for a model that is not there or cannot be used.
        """
        building = asyncio.ensure_future(asyncio.to_thread(self._build))
        try:
            return await asyncio.shield(building)
        except asyncio.CancelledError:
            await asyncio.wait([building])
            if building.exception() is None:
                building.result().free()
            raise

    async def _retire(self, served: ServedModel) -> None:
        """Ends a model when its last request is answered, unless `stop` comes before."""
        await served.wait_until_unused()
        await _close(served)
        self._old.discard(served)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that goes on whoever asked for it, until `stop`."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ModelLoadFailed):  # that one is logged
            _log.error("unexpected error", exc_info=error)

    def _check_name(self, name: str) -> None:
        known = self._detector.model.name
        if name not in {known, self._setting}:
            raise UnknownModel(f"there is no model {name!r} here; {known!r} is served")


async def _close(served: ServedModel) -> None:
    """Ends a model whole, also where its task is cancelled meanwhile: no engine may stay behind."""
    closing = asyncio.ensure_future(served.close())
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await asyncio.wait([closing])
        raise
