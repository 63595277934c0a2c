"""Flags of commands that run a model without a service, and their settings.

These flags share their environment variables with `lite-detr serve`. No other variable of a service
is read: on a machine that is set up for one, it may have nothing to do with the command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.options import describe_type, documented_option
from service.cli.serve import fields_as_flags
from service.settings import Settings, SettingsError, given_settings

ModelOption = Annotated[
    str | None,
    documented_option(
        "--model",
        env_var="LITE_DETR_MODEL",
        metavar="NAME|PATH",
        default="default",
        help="name of a model, or path of its weights file",
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
    ),
]
JpegDecodingOption = Annotated[
    str | None,
    documented_option(
        "--jpeg-decoding",
        env_var="LITE_DETR_JPEG_DECODING",
        metavar=describe_type(Settings.model_fields["jpeg_decoding"].annotation),
        default="exact",
        help=Settings.model_fields["jpeg_decoding"].description or "",
    ),
]
CacheDirOption = Annotated[
    Path | None,
    documented_option(
        "--model-cache-dir",
        env_var="LITE_DETR_MODEL_CACHE_DIR",
        metavar="PATH",
        help="folder of pulled models; unset: ~/.cache/lite-detr",
    ),
]


def offline_settings(
    model: str | None,
    device: str | None,
    precision: str | None,
    cache_dir: Path | None,
    jpeg_decoding: str | None = None,
) -> Settings:
    """Returns the settings of a command without a service: given values, otherwise defaults.

    Raises:
        typer.BadParameter: one line per invalid value, which names the flag and the variable.
    """
    try:
        return given_settings(
            model=model,
            device=device,
            precision=precision,
            model_cache_dir=cache_dir,
            jpeg_decoding=jpeg_decoding,
        )
    except SettingsError as error:
        raise typer.BadParameter(fields_as_flags(str(error))) from None
