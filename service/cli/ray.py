"""`lite-detr ray`: reads the settings from flags and environment and runs `service.ray_serve`."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import typer

from service.cli.options import command_with_options, help_text, model_options, parse_options
from service.cli.serve import SERVE_OPTIONS, fields_as_flags, settings_from_flags
from service.cli.variables import unknown_to_serve
from service.ray_serve.options import RAY_ENV_PREFIX, RayOptions
from service.ray_serve.settings import REFUSED, replica_settings
from service.settings import SettingsError, service_addresses

RAY_OPTIONS = model_options(RayOptions, RAY_ENV_PREFIX)
# Those that are refused are accepted by the parser, for a message that says why.
_SERVE_OPTIONS = tuple(
    dataclasses.replace(spec, hidden=spec.name in REFUSED) for spec in SERVE_OPTIONS
)
_RAY_FIELDS = frozenset(RayOptions.model_fields)
_EPILOG = """[bold]Examples[/]

  pip install 'lite-detr-service\\[ray]'
  lite-detr ray
  lite-detr ray --min-replicas 2 --max-replicas 8 --replica-cpus 4
  lite-detr ray --address auto --replica-gpus 1 --max-replicas 4

Then:  curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' localhost:8000/detect

Options that `lite-detr serve` has and Ray makes meaningless are refused; docs/ray.md lists them.
"""


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command("ray", help=help_text(_ray), epilog=_EPILOG)(
        command_with_options(_ray, (*RAY_OPTIONS, *_SERVE_OPTIONS))
    )


def _ray(given: dict[str, Any]) -> None:
    """Serve a model with Ray Serve: several replicas, on one machine or a cluster.

    Each replica is a whole service with its own engine. Ray's proxies spread HTTP and gRPC requests
    among them, and Ray adds replicas under load. It needs the extra `ray`. SIGTERM or Ctrl-C
    finishes accepted requests.
    """
    options = parse_options(
        RayOptions, RAY_OPTIONS, {name: given[name] for name in given.keys() & _RAY_FIELDS}
    )
    settings = settings_from_flags({name: given[name] for name in given.keys() - _RAY_FIELDS})
    try:
        replica_settings(settings, options)
    except SettingsError as error:
        raise typer.BadParameter(fields_as_flags(str(error))) from None
    from service.ray_serve.run import run  # noqa: PLC0415 - imports Ray

    known = {spec.env_var for spec in (*SERVE_OPTIONS, *RAY_OPTIONS)}
    raise typer.Exit(
        run(
            settings,
            options,
            notes=service_addresses(os.environ, known),
            warnings=unknown_to_serve(known),
        )
    )
