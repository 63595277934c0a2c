"""The model repository: its index, and loading and unloading the model if allowed."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

from service.core.model_control import (
    ModelControl,
    ModelControlError,
    ModelEntry,
    ModelLoadFailed,
    UnknownModel,
)
from service.errors import short_repr
from service.oip.errors import (
    CONTROL_OFF,
    LOAD_FAILED,
    UNKNOWN_MODEL,
    OipRefused,
    malformed,
)
from service.settings import Settings

_UNLOAD_DEPENDENTS = "unload_dependents"  # accepted: no model has any


class Repository:
    """What clients may see and change of the served model."""

    def __init__(self, control: ModelControl, settings: Settings) -> None:
        """Changes are allowed if `settings.model_control` is "explicit"."""
        self._control = control
        self._allowed = settings.model_control == "explicit"

    def index(self, *, ready_only: bool) -> tuple[ModelEntry, ...]:
        """The models of the repository."""
        entries = self._control.index()
        return tuple(each for each in entries if not ready_only or each.state == "READY")

    def check_allowed(self) -> None:
        """Refuses changes where they are turned off; called before a request's body is read.

        Raises:
            OipRefused: if changes are not allowed.
        """
        if not self._allowed:
            raise OipRefused(
                CONTROL_OFF,
                "explicit model load / unload is not allowed: this service runs with "
                "model_control=none",
            )

    async def load(self, name: str, parameters: Mapping[str, object]) -> None:
        """Loads the weights file again; returns when it is served.

        Raises:
            OipRefused: if that is not allowed or failed.
        """
        self.check_allowed()
        if parameters:
            raise malformed(
                f"parameter {short_repr(next(iter(parameters)))} is not supported: a model is "
                f"loaded from its own weights file as it is"
            )
        await _translate_errors(self._control.load(name))

    async def unload(self, name: str, parameters: Mapping[str, object]) -> None:
        """Unloads the model after its accepted images are finished.

        Raises:
            OipRefused: if that is not allowed or failed.
        """
        self.check_allowed()
        unknown = [key for key in parameters if key != _UNLOAD_DEPENDENTS]
        if unknown:
            raise malformed(f"unknown parameter {short_repr(unknown[0])}")
        await _translate_errors(self._control.unload(name))


async def _translate_errors(change: Awaitable[None]) -> None:
    """Awaits a change and re-raises its errors as OipRefused.

    Raises:
        OipRefused: if the change failed.
    """
    try:
        await change
    except UnknownModel as error:
        raise OipRefused(UNKNOWN_MODEL, str(error)) from error
    except ModelLoadFailed as error:
        raise OipRefused(LOAD_FAILED, str(error)) from error
    except ModelControlError as error:
        raise OipRefused(CONTROL_OFF, str(error)) from error
