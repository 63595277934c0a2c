"""`lite-detr serve`: reads the settings from flags and environment and runs `service.app`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import typer

from service.cli.options import command_with_options, help_text, model_options
from service.cli.variables import unknown_to_serve
from service.settings import (
    ENV_PREFIX,
    Settings,
    SettingsError,
    load_settings,
    service_addresses,
)

SERVE_OPTIONS = model_options(
    Settings, ENV_PREFIX, short_flags={"http_port": ("--port", "-p")}, click_reads_env=False
)

# gRPC core, C++ code, writes a line for each TLS handshake that fails and each compressed message:
# any client could fill the log. Set variables take precedence.
_QUIET_GRPC_CORE = {"GRPC_VERBOSITY": "NONE"}
_EPILOG = """[bold]Examples[/]

  lite-detr serve
  lite-detr serve --port 9000 --model my.safetensors
  LITE_DETR_HTTP_PORT=9000 lite-detr serve

Then:  curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' localhost:8000/detect
"""


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command("serve", help=help_text(_serve), epilog=_EPILOG)(
        command_with_options(_serve, SERVE_OPTIONS)
    )


def settings_from_flags(given: Mapping[str, Any]) -> Settings:
    """Returns the settings: given values override the environment, which overrides the defaults.

    Args:
        given: text (or a bool) by field name.

    Raises:
        typer.BadParameter: one line per invalid value, which names the flag and the variable.
    """
    try:
        return load_settings(**given)
    except SettingsError as error:
        raise typer.BadParameter(fields_as_flags(str(error))) from None


def fields_as_flags(problems: str) -> str:
    """Replaces the names of fields at the start of each line by those of their flags."""
    return re.sub(
        r"^([a-z]\w*)=", lambda match: f"--{match[1].replace('_', '-')}=", problems, flags=re.M
    )


def _serve(given: dict[str, Any]) -> None:
    """Serve a model over HTTP and gRPC until SIGTERM or Ctrl-C, then finish accepted requests.

    POST an image to /detect; / is a page to try it, /docs documents the API.
    """
    own = settings_from_flags(given)
    for variable, value in _QUIET_GRPC_CORE.items():  # before grpc is imported
        os.environ.setdefault(variable, value)
    from service.app import run  # noqa: PLC0415
    from service.clouds.deployment import settings_for_cloud  # noqa: PLC0415

    try:
        cloud = settings_for_cloud(own, given, os.environ)
    except SettingsError as error:
        raise typer.BadParameter(fields_as_flags(str(error))) from None
    known = {spec.env_var for spec in SERVE_OPTIONS}
    raise typer.Exit(
        run(
            cloud.settings,
            deployment=cloud.deployment,
            notes=[*service_addresses(os.environ, known), *cloud.notes],
            warnings=[*unknown_to_serve(known), *cloud.warnings],
        )
    )
