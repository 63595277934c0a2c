"""`lite-detr serve`: reads the settings from flags and environment and runs `service.app`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from service.cli.options import (
    command_with_options,
    describe_type,
    documented_option,
    help_text,
    model_options,
)
from service.settings import ENV_PREFIX, Settings, SettingsError, load_settings

# For commands without a service: the settings of the same names; `Settings` reads the environment.
ModelOption = Annotated[
    str | None,
    documented_option(
        "--model",
        env_var="LITE_DETR_MODEL",
        metavar="NAME|PATH",
        default="default",
        help="name of a model, or path of its weights file",
        click_reads_env=False,
    ),
]
DeviceOption = Annotated[
    str | None,
    documented_option(
        "--device",
        env_var="LITE_DETR_DEVICE",
        metavar="DEVICE",
        default="auto",
        help="auto, cpu, cuda or cuda:N",
        click_reads_env=False,
    ),
]
PrecisionOption = Annotated[
    str | None,
    documented_option(
        "--precision",
        env_var="LITE_DETR_PRECISION",
        metavar=describe_type(Settings.model_fields["precision"].annotation),
        default="auto",
        help=Settings.model_fields["precision"].description or "",
        click_reads_env=False,
    ),
]
SERVE_OPTIONS = model_options(
    Settings, ENV_PREFIX, short_flags={"http_port": ("--port", "-p")}, click_reads_env=False
)

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
        fields_as_flags = re.sub(
            r"^(\w+)=", lambda match: f"--{match[1].replace('_', '-')}=", str(error), flags=re.M
        )
        raise typer.BadParameter(fields_as_flags) from None


def _serve(given: dict[str, Any]) -> None:
    """Serve a model over HTTP and gRPC until SIGTERM or Ctrl-C, then finish accepted requests.

    POST an image to /detect; / is a page to try it, /docs documents the API.
    """
    settings = settings_from_flags(given)
    from service.app import run  # noqa: PLC0415

    raise typer.Exit(run(settings))
