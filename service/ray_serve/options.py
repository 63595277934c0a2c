"""The options of `lite-detr ray` in addition to those of `lite-detr serve`.

Each field is a flag and an environment variable (`LITE_DETR_RAY_` and the name in capitals).
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

RAY_ENV_PREFIX = "LITE_DETR_RAY_"

_MAX_SECONDS = 1_000_000


class RayOptions(BaseModel):
    """How Ray runs the replicas of a deployment."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    address: str | None = Field(
        None,
        min_length=1,
        description="address of a running Ray cluster (auto, HOST:6379 or ray://HOST:10001); "
        "unset: a cluster of this machine, which ends with the command",
        json_schema_extra={"section": "Ray"},
    )
    app_name: str = Field(
        "lite-detr",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        description="name of the application in Ray; one that runs under it is replaced",
    )
    min_replicas: int = Field(
        1, ge=1, le=10_000, description="minimum number of replicas, each with one engine"
    )
    max_replicas: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="maximum number of replicas; unset: min_replicas, without autoscaling",
    )
    max_ongoing_requests: int = Field(
        256,
        ge=1,
        le=1_000_000,
        description="maximum requests that Ray sends to a replica at once; more wait in Ray's "
        "proxy. Above --slots, so that the service refuses what is too much",
    )
    target_ongoing_requests: float = Field(
        16,
        gt=0,
        description="requests in flight per replica that autoscaling aims at; two batches keep an "
        "engine busy",
    )
    upscale_delay_seconds: float = Field(
        10, ge=0, le=_MAX_SECONDS, description="time above the target until replicas are added"
    )
    downscale_delay_seconds: float = Field(
        300, ge=0, le=_MAX_SECONDS, description="time below the target until replicas are removed"
    )
    replica_cpus: float = Field(
        1,
        gt=0,
        le=1024,
        description="CPUs that Ray reserves for a replica; also the default of --engine-threads "
        "and --decode-threads",
    )
    replica_gpus: float = Field(
        0, ge=0, le=1, description="GPUs that Ray reserves for a replica; a part (0.5) shares one"
    )
    health_check_seconds: float = Field(
        10,
        gt=0,
        le=_MAX_SECONDS,
        description="interval of Ray's health checks; a replica that fails three is replaced",
    )

    @field_validator("max_replicas")
    @classmethod
    def _is_not_below_the_minimum(cls, value: int | None, info: ValidationInfo) -> int | None:
        """Checks the order of both numbers.

        Raises:
            ValueError: if it is wrong; pydantic reports it as a ValidationError.
        """
        if value is not None and value < info.data.get("min_replicas", 1):
            raise ValueError("it must not be less than min_replicas")
        return value

    @field_validator("target_ongoing_requests")
    @classmethod
    def _is_not_above_the_maximum(cls, value: float, info: ValidationInfo) -> float:
        """Checks the order of both numbers.

        Raises:
            ValueError: if it is wrong; pydantic reports it as a ValidationError.
        """
        if value > info.data.get("max_ongoing_requests", value):
            raise ValueError("it must not exceed max_ongoing_requests")
        return value
