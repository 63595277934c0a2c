"""The interface for loading and unloading the model of a running service.

    SIGHUP, POST /v2/repository/models/{m}/load ---> ModelControl ---> a new model

One model serves at a time. A load reads the weights file again if it has changed, starts new
engines, waits until they are warm, and sends them all new requests; the old engines finish theirs
and stop. If the file cannot be used, the old model continues to serve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

ModelState = Literal["LOADING", "READY", "UNLOADING", "UNAVAILABLE"]  # of the Triton server


class ModelControlError(Exception):
    """A load or unload failed or was refused; `str()` is a message for the operator."""


class UnknownModel(ModelControlError):
    """The name is not that of the model."""


class ModelLoadFailed(ModelControlError):
    """The model cannot be loaded; the previous one continues to serve."""


@dataclass(frozen=True)
class ModelEntry:
    """One entry of the repository index."""

    name: str
    version: str  # of the weights that serve or, after an unload, served last
    state: ModelState
    reason: str = ""  # why it is not READY


class ModelControl(Protocol):
    """Loads and unloads the model.

    Calls run one after the other. Cancelling a call does not stop its load or unload.
    """

    def index(self) -> tuple[ModelEntry, ...]:
        """Lists the models; there is only one."""

    async def load(self, name: str) -> None:
        """Loads the weights file again; returns when the new model serves.

        If the file has not changed and the model is ready, it continues to serve.

        Args:
            name: of the model that serves, or the value of the setting `model`.

        Raises:
            UnknownModel: for another name.
            ModelLoadFailed: for a file or device that cannot be used, or if the memory does not
                suffice for two models.
        """

    async def unload(self, name: str) -> None:
        """Finishes the requests in flight, then stops the engines.

        New requests get `NotReady` until the next load.

        Raises:
            UnknownModel: for another name.
        """
