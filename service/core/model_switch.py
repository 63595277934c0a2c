r"""Loads, reloads and unloads the model of a running service, one change at a time.

    load: changed and fits -> start engines -> warm and proven: swap -> the old ones finish and stop
                                     \-> cannot start: the new engines stop, the old ones continue

During a load both models are in memory. A file that has not changed is not loaded again, and a
model that does not fit next to the one that serves is refused. Each change runs in its own task,
which only the end of the service cancels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from pathlib import Path
from typing import Any

import structlog

from model.weights.info import CheckpointError
from service.core.detector import Detector
from service.core.model_control import ModelEntry, ModelLoadFailed, ModelState, UnknownModel
from service.core.reload_checks import check_memory, is_same_file
from service.core.served_model import ServedModel
from service.memory import memory_left_bytes
from service.supervision.plan import EngineStartError

_log = structlog.get_logger(__name__)


class ModelSwitch:
    """Changes the model of a detector; see `service.core.model_control.ModelControl`."""

    def __init__(  # noqa: PLR0913 - its collaborators
        self,
        detector: Detector,
        setting: str,
        build: Callable[[], ServedModel],
        *,
        first_ready: asyncio.Future[None],
        start_timeout_seconds: float,
        find_weights: Callable[[], Path | None] = lambda: None,
        memory_left: Callable[[], int | None] = memory_left_bytes,
    ) -> None:
        """Takes over the detector's models, including stopping them.

        Args:
            detector: serves a model already.
            setting: the value of the setting `model`; a load may use it as the name.
            build: builds the model from the file that the setting names.
            first_ready: of the model that is served already; no change starts before.
            start_timeout_seconds: for the engines of a load.
            find_weights: returns the file that the setting names now; None if the devices need
                none, so that every load is a new one. Raises CheckpointError as `build` does.
            memory_left: returns the bytes that are left for another model; None if unknown.
        """
        self._detector = detector
        self._setting = setting
        self._build = build
        self._first_ready = first_ready
        self._start_timeout_seconds = start_timeout_seconds
        self._find_weights = find_weights
        self._memory_left = memory_left
        self._lock = asyncio.Lock()
        self._changing: ModelState | None = None
        self._old: set[ServedModel] = set()  # no longer served, and not stopped yet
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()

    def index(self) -> tuple[ModelEntry, ...]:
        """See `ModelControl.index`."""
        detector = self._detector
        state: ModelState = "READY" if detector.ready else "UNAVAILABLE"
        if self._changing is not None and not detector.ready:
            state = self._changing
        reason = "" if state == "READY" else detector.not_ready_reason
        return (ModelEntry(detector.model.name, detector.model.version, state, reason),)

    async def load(self, name: str) -> None:
        """Loads the weights file, if it has changed or no model is ready; see `ModelControl.load`.

        Raises:
            UnknownModel: for another name.
            ModelLoadFailed: for a file or device that cannot be used.
        """
        self._check_name(name)
        await asyncio.shield(self._in_background(self._load(unless_ready=True)))

    def reload(self) -> None:
        """Starts to load the file that the setting names now, if it has changed; logs the outcome.

        API keys and certificates are reloaded for the same reasons: this must not cost the memory
        of a second model if only they have changed.
        """
        _log.info("reload requested", model=self._setting)
        self._in_background(self._load())

    async def unload(self, name: str) -> None:
        """Stops the engines after the requests in flight; see `ModelControl.unload`.

        Raises:
            UnknownModel: for another name.
        """
        self._check_name(name)
        await asyncio.shield(self._in_background(self._unload()))

    async def stop(self) -> None:
        """Stops every engine; requests in flight fail with `ShuttingDown`.

        Changes in progress are cancelled, and so are the calls that wait for them.
        """
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(served.stop() for served in (*self._old, self._detector.served)))

    def free(self) -> None:
        """Frees slots and files after `stop`, once no thread decodes into a slot."""
        for served in (*self._old, self._detector.served):
            served.free()

    async def _load(self, *, unless_ready: bool = False) -> None:
        """Loads and swaps, if the file has changed.

        Args:
            unless_ready: an unchanged file is left alone only while the model is ready.

        Raises:
            ModelLoadFailed: with the reason, if that fails.
        """
        await asyncio.wait([self._first_ready])
        async with self._lock:
            self._changing = "LOADING"
            try:
                if self._stopping:
                    raise ModelLoadFailed("the service is shutting down")
                served = await self._start(always=unless_ready and not self._detector.ready)
            except ModelLoadFailed as error:
                cause = error.__cause__
                expected = cause is None or isinstance(cause, CheckpointError | EngineStartError)
                exc_info = None if expected else cause
                _log.error("the model cannot be loaded", error=str(error), exc_info=exc_info)
                raise
            finally:
                self._changing = None
            if served is None:
                _log.info("the weights file has not changed", model=self._detector.model.name)
                return
            was_loaded = self._detector.loaded
            previous = self._detector.swap(served)
            if was_loaded:
                self._old.add(previous)
                # In an empty context: it may end long after the request that loaded the model.
                self._in_background(self._retire(previous), Context())
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

    async def _start(self, *, always: bool) -> ServedModel | None:
        """Builds a model and waits until its engines are ready.

        Args:
            always: whether to load an unchanged file, too.

        Returns:
            The model; None if the file has not changed.

        Raises:
            ModelLoadFailed: if that fails or takes too long.
        """
        try:
            served = await self._build_in_thread(always)
        except CheckpointError as error:
            raise ModelLoadFailed(str(error)) from error
        except ModelLoadFailed:
            raise
        except Exception as error:
            raise ModelLoadFailed(f"unexpected error: {error!r}") from error
        if served is None:
            return None
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

    async def _build_in_thread(self, always: bool) -> ServedModel | None:
        """Builds a model in a thread; frees it again if the task is cancelled.

        Raises:
            As `_build_changed`.
        """
        work = asyncio.to_thread(self._build_changed, self._detector.served, always)
        building = asyncio.ensure_future(work)
        try:
            return await asyncio.shield(building)
        except asyncio.CancelledError:
            await asyncio.wait([building])
            if building.exception() is None and (built := building.result()) is not None:
                built.free()
            raise

    def _build_changed(self, current: ServedModel, always: bool) -> ServedModel | None:
        """Builds the model of the file that the setting names now, unless it is the current one.

        Raises:
            CheckpointError: for a model that does not exist or cannot be used.
            ModelLoadFailed: if it does not fit into memory next to the current one.
        """
        path = self._find_weights()
        if not always and is_same_file(current, path):
            return None
        served = self._build()
        try:
            # The same content in another file, or written again.
            if not always and path is not None and served.info == current.info:
                current.file.identity = served.file.identity
                served.free()
                return None
            if self._detector.loaded:
                check_memory(current, served, self._memory_left)
        except BaseException:
            served.free()
            raise
        return served

    async def _retire(self, served: ServedModel) -> None:
        """Closes a model after its last request, unless `stop` comes before."""
        await served.wait_until_unused()
        await _close(served)
        self._old.discard(served)

    def _in_background(
        self, work: Coroutine[Any, Any, None], context: Context | None = None
    ) -> asyncio.Task[None]:
        """Starts a task that only `stop` cancels; `context` is by default that of the caller."""
        task = asyncio.create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._forget, context=context)
        return task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ModelLoadFailed):  # logged already
            _log.error("unexpected error", exc_info=error)

    def _check_name(self, name: str) -> None:
        known = self._detector.model.name
        if name not in {known, self._setting}:
            raise UnknownModel(f"there is no model {name!r} here; {known!r} is served")


async def _close(served: ServedModel) -> None:
    """Closes a model completely, even if the task is cancelled: no engine may be left running."""
    closing = asyncio.ensure_future(served.close())
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await asyncio.wait([closing])
        raise
