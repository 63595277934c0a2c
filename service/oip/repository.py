"""The model repository: which model there is, and loading it anew or unloading it where allowed."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

from service.core.model_control import (
    ModelControl,
    ModelControlError,
    ModelEntry,
    ModelLoadFailed,
    UnknownModel,
)
from service.oip.errors import (
    CONTROL_OFF,
    LOAD_FAILED,
    UNKNOWN_MODEL,
    OipRefused,
    malformed,
    short_repr,
)
from service.settings import Settings

_UNLOAD_DEPENDENTS = "unload_dependents"  # no model here has any


class Repository:
    """What clients may see and change of what is served."""

    def __init__(self, control: ModelControl, settings: Settings) -> None:
        """Takes `settings.model_control` as the rule."""
        self._control = control
        self._allowed = settings.model_control == "explicit"

    def index(self, *, ready_only: bool) -> tuple[ModelEntry, ...]:
        """The models there are."""
        entries = self._control.index()
        return tuple(each for each in entries if not ready_only or each.state == "READY")

    async def load(self, name: str, parameters: Mapping[str, object]) -> None:
        """Loads a model's weights anew; returns when they serve.

        Raises:
            OipRefused: where that is not allowed or did not work.
        """
        self._check_allowed()
        if parameters:
            raise malformed(
                f"parameter {short_repr(next(iter(parameters)))} is not supported: a model is "
                f"loaded from its own weights file as it is"
            )
        await _told(self._control.load(name))

    async def unload(self, name: str, parameters: Mapping[str, object]) -> None:
        """Unloads a model; what it had accepted is answered first.

        Raises:
            OipRefused: where that is not allowed or did not work.
        """
        self._check_allowed()
        unknown = [key for key in parameters if key != _UNLOAD_DEPENDENTS]
        if unknown:
            raise malformed(f"unknown parameter {short_repr(unknown[0])}")
        await _told(self._control.unload(name))

    def _check_allowed(self) -> None:
        if not self._allowed:
            raise OipRefused(
                CONTROL_OFF,
                "explicit model load / unload is not allowed: this service runs with "
                "model_control=none",
            )


async def _told(change: Awaitable[None]) -> None:
    """Awaits a change and tells its failure as the protocol does.

    Raises:
        OipRefused: where it did not work.
    """
    try:
        await change
    except UnknownModel as error:
        raise OipRefused(UNKNOWN_MODEL, str(error)) from error
    except ModelLoadFailed as error:
        raise OipRefused(LOAD_FAILED, str(error)) from error
    except ModelControlError as error:
        raise OipRefused(CONTROL_OFF, str(error)) from error
