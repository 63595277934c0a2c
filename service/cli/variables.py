"""Environment variables that look like those of a command but are not: misspelled ones."""

from __future__ import annotations

import os
import re
from typing import Any

from service.cli.failure import DEBUG_VARIABLE
from service.settings import ENV_PREFIX, unknown_variables

# Of the program and of docker-compose.yml; and of all commands but `serve`, which has no prefix of
# its own.
_OTHERS = (DEBUG_VARIABLE, f"{ENV_PREFIX}PUBLISH_", f"{ENV_PREFIX}GPU_PUBLISH_")
PREFIXED_COMMANDS = (
    "bench",
    "data",
    "detect",
    "eval",
    "explain",
    "export",
    "flops",
    "key",
    "ray",
    "train",
    "weights",
)
_DOCUMENTED = re.compile(rf"env var: ({ENV_PREFIX}\w+)")


def prefix_of(command: str) -> str:
    """The prefix of a command's variables."""
    return f"{ENV_PREFIX}{command.upper()}_"


def unknown_to_serve(known: set[str]) -> list[str]:
    """One line for each variable that could be meant as a setting of the service."""
    others = (*_OTHERS, *map(prefix_of, PREFIXED_COMMANDS))
    return unknown_variables(os.environ, known, others=others)


def unknown_to_command(name: str, command: Any) -> list[str]:
    """One line for each variable with the prefix of a command that no option of it has.

    Args:
        name: of a command other than `serve`.
        command: as typer built it.
    """
    return unknown_variables(os.environ, _documented(command), prefix=prefix_of(name))


def _documented(command: Any) -> set[str]:
    """The variables in the help texts of a command's options, and of its subcommands'."""
    texts = (getattr(parameter, "help", None) or "" for parameter in command.params)
    found = {variable for text in texts for variable in _DOCUMENTED.findall(text)}
    return found.union(*map(_documented, getattr(command, "commands", {}).values()))
