"""PORT: the port that Cloud Run, Knative and other platforms name; requests have no other form.

Cloud Run and Knative also set K_SERVICE, and require a container to listen on all addresses.
Without it, nothing but the port follows: PORT may be a variable of a shell, or of `make serve`.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.routing import BaseRoute

from service.clouds.contract import (
    Cloud,
    CloudSetting,
    Deployment,
    http_port,
    reachable,
    unusable_access,
)
from service.core.detector import Detector
from service.settings import Settings
from service.transport.http_body import BodyMemory

_TITLE = "Cloud Run"
_STOP_SECONDS = 9.0  # of the 10 s from SIGTERM to SIGKILL
_DEFAULT_PORT = 8080


def _read(environment: Mapping[str, str], given: Settings) -> Deployment:
    in_container = bool(environment.get("K_SERVICE")) or given.cloud == CLOUD_RUN.name
    settings = http_port(environment, "PORT", _DEFAULT_PORT if in_container else None, given)
    if in_container:
        settings += reachable(_TITLE)
        settings.append(
            CloudSetting("drain_timeout_seconds", _STOP_SECONDS, _TITLE, required=False)
        )
    elif any(each.value == given.grpc_port for each in settings):
        settings.append(CloudSetting("grpc_port", -1, "PORT", required=False))
    warnings = unusable_access(_TITLE, given, keys=True) if in_container else []
    return Deployment(CLOUD_RUN, tuple(settings), warnings=tuple(warnings))


def _routes(
    _deployment: Deployment, _detector: Detector, _settings: Settings, _bodies: BodyMemory
) -> list[BaseRoute]:
    return []


CLOUD_RUN = Cloud("cloud-run", _TITLE, ("PORT",), _read, _routes)
