"""What a cloud's contract consists of: settings that follow from its variables, and routes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.routing import BaseRoute

from service.core.detector import Detector
from service.settings import Settings, SettingsError
from service.transport.http_body import BodyMemory

_PORT = re.compile(r"[0-9]{1,5}")
_MAX_PORT = 65535
_WEIGHTS = "*.safetensors"
_USUAL_NAME = "model.safetensors"
_MOST_NAMES = 5  # in an error message


@dataclass(frozen=True)
class CloudSetting:
    """A setting that follows from a cloud; one that the deployment gives itself wins.

    Attributes:
        field: of `Settings`.
        value: of that field.
        source: the variable with its value, or the cloud, for log lines.
        required: whether another value breaks the contract, so that it is reported.
    """

    field: str
    value: object
    source: str
    required: bool = True


@dataclass(frozen=True)
class Deployment:
    """How a cloud runs this service.

    Attributes:
        cloud: that runs it.
        settings: that follow from it.
        health_path: of its health check; None if it has no path of its own.
        predict_path: of its requests; None if it has no form of its own.
        warnings: about the variables and the given settings, one line each.
    """

    cloud: Cloud
    settings: tuple[CloudSetting, ...]
    health_path: str | None = None
    predict_path: str | None = None
    warnings: tuple[str, ...] = ()

    def routes(self, detector: Detector, settings: Settings, bodies: BodyMemory) -> list[BaseRoute]:
        """The routes for the HTTP application; none for a cloud without a form of its own."""
        return self.cloud.routes(self, detector, settings, bodies)


@dataclass(frozen=True)
class Cloud:
    """One cloud.

    Attributes:
        name: value of the setting `cloud`.
        title: for log lines.
        variables: the cloud is recognized if one of them is set; none: only by the setting.
        read: reads the deployment from the environment and the settings that are given.
        routes: builds its routes.
    """

    name: str
    title: str
    variables: tuple[str, ...]
    read: Callable[[Mapping[str, str], Settings], Deployment]
    routes: Callable[[Deployment, Detector, Settings, BodyMemory], list[BaseRoute]]


def is_given(settings: Settings, field: str) -> bool:
    """Whether a flag or a `LITE_DETR_*` variable gives the setting."""
    return field in settings.model_fields_set


def http_port(
    environment: Mapping[str, str], variable: str, default: int | None, given: Settings
) -> list[CloudSetting]:
    """The HTTP port that a variable names.

    Args:
        environment: all variables.
        variable: with the port.
        default: the port where the variable is not set; None: none follows.
        given: the settings of the deployment itself.

    Raises:
        SettingsError: for a value that is no port, unless another port is given.
    """
    text = environment.get(variable, "").strip()
    if not text:
        return [] if default is None else [CloudSetting("http_port", default, f"port {default}")]
    source = f"{variable}={text!r}"
    port = int(text) if _PORT.fullmatch(text) else 0
    if 1 <= port <= _MAX_PORT:
        return [CloudSetting("http_port", port, source)]
    if not is_given(given, "http_port"):
        raise SettingsError(
            f"{source} is not a port from 1 to {_MAX_PORT}; set it, or http_port itself "
            f"(LITE_DETR_HTTP_PORT)"
        )
    return [CloudSetting("http_port", text, source)]


def reachable(title: str) -> list[CloudSetting]:
    """Settings of a container that is reached from outside, by HTTP on one port."""
    return [
        CloudSetting("host", "0.0.0.0", title),
        CloudSetting("grpc_port", -1, title, required=False),
    ]


def unusable_access(title: str, given: Settings, *, keys: bool) -> list[str]:
    """Warnings about TLS, and about API keys where clients of the cloud cannot send them.

    Args:
        title: of the cloud.
        given: the settings of the deployment itself.
        keys: whether clients can send API keys.
    """
    warnings = []
    if given.tls_certificate_file is not None:
        warnings.append(f"{title} sends plain HTTP, but --tls-certificate-file requires TLS")
    if given.api_keys_file is not None and not keys:
        warnings.append(
            f"clients of {title} cannot send API keys, but --api-keys-file requires them"
        )
    return warnings


def find_weights(folder: Path, source: str) -> Path | None:
    """The weights file in a cloud's folder of model files, or below it.

    Args:
        folder: may also be the file itself.
        source: where the folder is from, for error messages.

    Returns:
        The file; None if the folder does not exist or is empty.

    Raises:
        SettingsError: for a folder that cannot be read, has other files only, or several weights
            files.
    """
    if os.path.isfile(folder):  # Path.is_file raises for a name that is too long
        return folder
    if not os.path.isdir(folder):
        return None
    # rglob takes folders that may not be read for empty ones.
    for each in (folder, *folder.rglob("*")):
        if each.is_dir() and not os.access(each, os.R_OK | os.X_OK):
            raise SettingsError(f"{source}: {each} cannot be read: Permission denied")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    weights = [path for path in files if path.match(_WEIGHTS)]
    usual = [path for path in weights if path.name == _USUAL_NAME]
    for found in (weights, usual):
        if len(found) == 1:
            return found[0]
    if weights:
        raise SettingsError(
            f"{source} has several weights files: {_names(weights, folder)}; name one "
            f"{_USUAL_NAME}, or set model (LITE_DETR_MODEL)"
        )
    if files:
        raise SettingsError(
            f"{source} has no {_WEIGHTS} file, but {_names(files, folder)}; "
            "`lite-detr weights convert` converts checkpoints"
        )
    return None


def required_weights(folder: Path, source: str) -> Path:
    """As `find_weights`, for a folder that a variable names.

    Raises:
        SettingsError: also for a folder that does not exist or is empty.
    """
    weights = find_weights(folder, source)
    if weights is None:
        raise SettingsError(f"{source} does not exist, or is empty")
    return weights


def _names(paths: Sequence[Path], folder: Path) -> str:
    names = [str(path.relative_to(folder)) for path in paths[:_MOST_NAMES]]
    more = len(paths) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
