"""What engines run, and how long things may take: decided once for a model, kept for its life.

The weights file is held open meanwhile. An engine that is replaced hours later loads the very same
file, also where another one has been put in its place (by rename) for the next load.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.weights.info import ModelInfo
from service.ipc.messages import BadMessage, Hello, Message, Start, StartFailed


class EngineStartError(RuntimeError):
    """The engine said why it cannot start; trying again would not help."""


@dataclass(frozen=True)
class EnginePlan:
    """What to run, and how long it may take; see the settings of the same names."""

    start: Start
    model: ModelInfo  # what the engine must say that it runs
    start_timeout_seconds: float
    watchdog_seconds: float
    canary_interval_seconds: float
    canary_timeout_seconds: float
    storm_restarts: int
    storm_window_seconds: float
    weights_name: str  # the file as people know it

    def accept(self, message: Message) -> Hello:
        """Takes an engine's first word.

        Returns:
            The greeting of an engine that runs the right model.

        Raises:
            EngineStartError: where it cannot start, or runs something else.
            BadMessage: where it says neither.
        """
        if isinstance(message, StartFailed):
            raise EngineStartError(self._in_words(message.reason))
        if not isinstance(message, Hello):
            raise BadMessage(f"expected Hello, got {type(message).__name__}")
        if message.model_version != self.model.version:
            raise EngineStartError(
                f"the weights file changed: the engine loaded version {message.model_version}, "
                f"the service knows {self.model.version}"
            )
        return message

    def _in_words(self, reason: str) -> str:
        """What an engine said, with the file's own name in it."""
        path = self.start.model_path
        return reason.replace(path, self.weights_name) if path else reason
