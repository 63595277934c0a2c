"""Loading and unloading the model of a running service: what adapters and signals ask for.

    SIGHUP, POST /v2/repository/models/{m}/load ---> ModelControl ---> a new model, swapped in whole

One model serves at a time. A load starts engines on the weights file as it is now, waits until
they are warm, swaps them in and lets the old ones finish what they accepted; where the file is bad
the old model goes on as if nothing had been asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

ModelState = Literal["LOADING", "READY", "UNLOADING", "UNAVAILABLE"]  # Triton's words


class ModelControlError(Exception):
    """A load or unload that was refused; `str()` is a sentence for the operator who asked."""


class UnknownModel(ModelControlError):
    """There is no model of that name here."""


class ModelLoadFailed(ModelControlError):
    """The model could not be loaded; what served before still serves."""


@dataclass(frozen=True)
class ModelEntry:
    """One line of the repository's index."""

    name: str
    version: str  # of the weights that serve, or served last
    state: ModelState
    reason: str = ""  # why it is not READY


class ModelControl(Protocol):
    """Who can change what is served.

    Calls queue behind one another. A caller that goes away stops neither a load nor an unload.
    """

    def index(self) -> tuple[ModelEntry, ...]:
        """The models there are: one."""

    async def load(self, name: str) -> None:
        """Loads a model's weights file anew and swaps it in; returns when it serves.

        Loading what serves already is a reload.

        Args:
            name: of the model that serves, or as the setting `model` names it.

        Raises:
            UnknownModel: for another name.
            ModelLoadFailed: for a file or device that cannot be used.
        """

    async def unload(self, name: str) -> None:
        """Answers what was accepted, then ends the engines; requests get `NotReady` until a load.

        Raises:
            UnknownModel: for a name that does not serve.
        """
