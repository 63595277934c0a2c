"""What the engines of one served model run, and their time limits; fixed while the model serves."""

from __future__ import annotations

from dataclasses import dataclass

from model.weights.info import ModelInfo
from service.ipc.messages import BadMessage, Hello, Message, Start, StartFailed


class EngineStartError(RuntimeError):
    """An engine reported that it cannot start; a retry would fail in the same way."""


@dataclass(frozen=True)
class EnginePlan:
    """What to run and the time limits; see the settings of the same names."""

    start: Start
    model: ModelInfo  # the engine must report this version
    start_timeout_seconds: float
    watchdog_seconds: float
    canary_interval_seconds: float
    canary_timeout_seconds: float
    storm_restarts: int
    storm_window_seconds: float
    weights_name: str  # name of the weights file in error texts

    def check_hello(self, message: Message) -> Hello:
        """Checks an engine's first message.

        Returns:
            The message, from an engine that loaded the right model.

        Raises:
            EngineStartError: if the engine cannot start, or loaded another model.
            BadMessage: if it is any other message.
        """
        if isinstance(message, StartFailed):
            raise EngineStartError(self._with_weights_name(message.reason))
        if not isinstance(message, Hello):
            raise BadMessage(f"expected Hello, got {type(message).__name__}")
        if message.model_version != self.model.version:
            raise EngineStartError(
                f"the weights file changed: the engine loaded version {message.model_version}, "
                f"the service expects {self.model.version}"
            )
        return message

    def _with_weights_name(self, reason: str) -> str:
        """Replaces the path that was passed to the engine (/proc/self/fd/N) by the file's name."""
        path = self.start.model_path
        return reason.replace(path, self.weights_name) if path else reason
