"""The deployment for Ray Serve: replicas, autoscaling, health checks and graceful stops."""

from __future__ import annotations

from typing import Any

from ray import serve

from service.build import TORCH, Backend
from service.ray_serve.grpc_methods import CallOutcome, ForwardedCall
from service.ray_serve.grpc_proxy import unary_methods
from service.ray_serve.options import RayOptions
from service.ray_serve.replica import Replica, open_replica
from service.ray_serve.settings import replica_settings
from service.settings import Settings

DEPLOYMENT = "LiteDetr"
_STOP_SECONDS = 10.0  # in addition to the drain, to stop the engine


def build_application(
    settings: Settings, options: RayOptions, backend: Backend = TORCH
) -> serve.Application:
    """Returns the application for `serve.run`.

    Args:
        settings: of the deployment.
        options: of Ray.
        backend: which device the engines open.

    Raises:
        SettingsError: for settings that do not suit Ray.
    """
    of_replica = replica_settings(settings, options)

    def open_app() -> Replica:
        name = str(serve.get_replica_context().replica_id.unique_id)
        return open_replica(of_replica, backend, name)

    ingress = serve.ingress(open_app)(_with_grpc_methods())
    return serve.deployment(ingress).options(**_deployment_options(of_replica, options)).bind()


def _deployment_options(settings: Settings, options: RayOptions) -> dict[str, Any]:
    """The options of the deployment, for Ray."""
    chosen: dict[str, Any] = {
        "name": DEPLOYMENT,
        "max_ongoing_requests": options.max_ongoing_requests,
        "ray_actor_options": {"num_cpus": options.replica_cpus, "num_gpus": options.replica_gpus},
        "health_check_period_s": options.health_check_seconds,
        "graceful_shutdown_timeout_s": settings.drain_timeout_seconds + _STOP_SECONDS,
        "graceful_shutdown_wait_loop_s": 0.5,
        "logging_config": {"enable_access_log": False},
    }
    if options.max_replicas is None or options.max_replicas == options.min_replicas:
        return chosen | {"num_replicas": options.min_replicas}
    return chosen | {
        "autoscaling_config": {
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": options.target_ongoing_requests,
            "upscale_delay_s": options.upscale_delay_seconds,
            "downscale_delay_s": options.downscale_delay_seconds,
        }
    }


def _with_grpc_methods() -> type:
    """The class of a replica, with one method for each of gRPC; `serve.ingress` adds HTTP."""

    async def check_health(self: Any) -> None:
        self.app.check_health()

    async def forwarded(self: Any, call: ForwardedCall) -> CallOutcome:
        outcome: CallOutcome = await self.app.methods.run(call)
        return outcome

    methods: dict[str, Any] = dict.fromkeys(unary_methods(), forwarded)
    return type(DEPLOYMENT, (), {"check_health": check_health, **methods})
