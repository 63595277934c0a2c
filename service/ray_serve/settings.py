"""Which settings of `lite-detr serve` a replica has, and which Ray makes meaningless."""

from __future__ import annotations

import math
from collections.abc import Mapping

from service.core.sizing import default_decoders
from service.ray_serve.options import RayOptions
from service.settings import ENV_PREFIX, Settings, SettingsError

_BY_PROXY = "Ray's proxies hold the connections of clients"
_NO_TLS = "Ray's proxies serve without TLS; let a load balancer terminate it"
_ROUTED = "a request reaches one replica, which Ray chooses; the others would keep their state"

# Settings of `serve` that have no effect in a replica, with the reason.
REFUSED: Mapping[str, str] = {
    "metrics_port": "several replicas of a node cannot share a port; see docs/ray.md for metrics",
    "cloud": "the containers of these clouds run `lite-detr serve`",
    "devices": "a replica has one engine; set --max-replicas and --replica-gpus",
    "max_connections": _BY_PROXY,
    "header_timeout_seconds": _BY_PROXY,
    "send_timeout_seconds": _BY_PROXY,
    "send_max_seconds": _BY_PROXY,
    "grpc_keepalive_seconds": _BY_PROXY,
    "grpc_max_idle_seconds": _BY_PROXY,
    "grpc_max_connection_age_seconds": _BY_PROXY,
    "tls_certificate_file": _NO_TLS,
    "tls_key_file": _NO_TLS,
    "tls_client_ca_file": _NO_TLS,
    "model_control": f"clients cannot load and unload models: {_ROUTED}",
    "drain_delay_seconds": "Ray sends no requests to a replica that it stops",
}


def refuse_settings(settings: Settings) -> None:
    """Checks that no setting is given that has no effect under Ray.

    Raises:
        SettingsError: one line for each, with the field and its variable.
    """
    defaults = Settings.model_fields
    lines = [
        _problem(settings, name, reason)
        for name, reason in REFUSED.items()
        if name in settings.model_fields_set and getattr(settings, name) != defaults[name].default
    ]
    lines += [
        _problem(settings, name, "Ray's proxies need a port that is known")
        for name in ("http_port", "grpc_port")
        if getattr(settings, name) == 0
    ]
    if lines:
        raise SettingsError("\n".join(lines))


def replica_settings(settings: Settings, options: RayOptions) -> Settings:
    """Returns the settings of each replica.

    Threads follow from the CPUs that Ray reserves, and the device from the GPUs: Ray shows each
    replica only its own.

    Args:
        settings: of the deployment.
        options: of Ray.

    Raises:
        SettingsError: for settings that have no effect under Ray, and a device that Ray would not
            give to a replica.
    """
    refuse_settings(settings)
    cpus = max(1, math.floor(options.replica_cpus))
    return settings.model_copy(
        update={
            "device": _device(settings, options),
            "engine_threads": settings.engine_threads or cpus,
            "decode_threads": settings.decode_threads or default_decoders(1, cpus),
        }
    )


def _device(settings: Settings, options: RayOptions) -> str:
    if settings.device in ("auto", "cpu" if options.replica_gpus == 0 else "cuda"):
        return "cuda" if options.replica_gpus else "cpu"
    if options.replica_gpus == 0:
        reason = "Ray reserves no GPU for a replica; set --replica-gpus"
    elif settings.device == "cpu":
        reason = "the GPU that --replica-gpus reserves would not be used"
    else:
        reason = "Ray chooses the GPU of a replica; use cuda"
    raise SettingsError(_problem(settings, "device", reason))


def _problem(settings: Settings, name: str, reason: str) -> str:
    value = str(getattr(settings, name))
    return f"{name}={value!r} ({ENV_PREFIX}{name.upper()}): not with Ray: {reason}"
