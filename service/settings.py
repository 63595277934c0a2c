"""How one deployment runs: the only reader of the environment.

Each field is a flag of `lite-detr serve` and an environment variable (`LITE_DETR_` and the field's
name in capitals). A bad value stops the start with the field's name. A `section` is the heading of
a field and of those after it in --help and in docs/configuration.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ENV_PREFIX = "LITE_DETR_"
_MIB = 1024 * 1024
_DEVICE = r"(auto|cpu|cuda(:\d+)?)"
_DEVICES = rf"^{_DEVICE}(,{_DEVICE})*$"


class SettingsError(ValueError):
    """A setting that cannot be used; the message names the field, its variable and why."""


class Settings(BaseSettings):
    """A deployment's settings, frozen."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, frozen=True, extra="forbid", env_ignore_empty=True
    )

    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address to listen on",
        json_schema_extra={"section": "Where the service listens"},
    )
    http_port: int = Field(8000, ge=0, le=65535, description="HTTP port; 0 picks a free one")
    grpc_port: int = Field(
        8001, ge=-1, le=65535, description="gRPC port; 0 picks a free one, -1: no gRPC"
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="own port for /metrics; unset: the HTTP port serves it"
    )

    model: str = Field(
        "default",
        description="name of a model, or path of its weights file",
        json_schema_extra={"section": "What runs"},
    )
    model_cache_dir: Path | None = Field(
        None, description="where pulled models are kept; unset: ~/.cache/lite-detr"
    )
    device: str = Field(
        "auto",
        pattern=rf"^{_DEVICE}$",
        description="auto, cpu, cuda or cuda:N; auto takes a GPU where there is one",
    )
    devices: str | None = Field(
        None,
        pattern=_DEVICES,
        description="several engines, one for each device of this comma list (cuda:0,cuda:1); "
        "a device named twice gets two; unset: one engine on device",
    )
    engine_threads: int = Field(
        0,
        ge=0,
        description="CPU threads of an engine; 0: the CPUs that this process may use, shared out "
        "among the engines",
    )

    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="numbers the network computes in: auto is fp32; bf16 is quicker on CPUs that"
        " have AVX512-BF16 and less exact; fp16 on GPUs alone",
    )
    max_cuda_graphs: int = Field(
        512,
        ge=0,
        description="on a GPU: most CUDA graphs, one for each input shape and batch size that the "
        "warm-up reaches; 0: none, every batch is launched kernel by kernel",
    )
    warm_up_seconds: float | None = Field(
        None,
        ge=0,
        description="s for first runs of every input shape before ready; unset: 5, on a GPU 60",
    )

    max_batch_size: int = Field(
        8,
        ge=1,
        le=1024,
        description="most images in a batch",
        json_schema_extra={"section": "How batches form"},
    )
    max_batch_pixels: int = Field(
        8_000_000, ge=1, description="most padded pixels in a batch of more than one image"
    )
    max_wait_ms: float = Field(
        2.0,
        ge=0,
        le=1000,
        description="ms an idle engine waits for images still being decoded to join a batch",
    )
    slots: int = Field(
        64, ge=1, le=4096, description="images on their way at once; more are told to come back"
    )
    priority_slots: int = Field(
        8, ge=0, le=4096, description="slots beside those, for requests of high priority alone"
    )
    decode_threads: int = Field(
        0, ge=0, le=256, description="threads that decode images; 0: one a CPU, at most 8"
    )

    max_body_bytes: int = Field(
        64 * _MIB,
        ge=1,
        description="largest request body, bytes",
        json_schema_extra={"section": "What a request may weigh and how long it may take"},
    )
    max_image_pixels: int = Field(
        100_000_000, ge=1, description="largest image, width x height by its header"
    )
    max_jpeg_scans: int = Field(
        64, ge=1, description="most scans of a JPEG; each costs a walk over all its pixels"
    )
    decode_memory_bytes: int = Field(
        2048 * _MIB, ge=_MIB, description="memory that decoding takes; large images wait for it"
    )
    max_bodies_bytes: int = Field(
        1024 * _MIB, ge=1, description="request bodies held at once; more are told to come back"
    )
    max_files: int = Field(32, ge=1, description="most images in one multipart request")
    max_connections: int = Field(1024, ge=1, description="most open HTTP connections")
    request_timeout_ms: float = Field(
        30_000, gt=0, description="ms until a request is given up, queueing included"
    )
    header_timeout_seconds: float = Field(
        10, gt=0, description="a connection must send its request head within this time"
    )
    body_timeout_seconds: float = Field(
        30, gt=0, description="a request body may pause for this long, not longer"
    )
    body_min_bytes_per_second: int = Field(
        1024, ge=1, description="a request body must come at this rate after body_timeout_seconds"
    )
    send_timeout_seconds: float = Field(
        30, gt=0, description="a client that takes nothing of its answer for so long is let go"
    )
    keep_alive_timeout_seconds: int = Field(
        75, ge=1, description="an idle connection is closed after this time"
    )

    grpc_keepalive_seconds: float = Field(
        60, gt=0, description="a silent gRPC connection is probed this often"
    )
    grpc_max_connection_age_seconds: float = Field(
        3600, ge=0, description="then a gRPC client connects anew, for balancers; 0: never"
    )

    api_keys_file: Path | None = Field(
        None,
        description="file of API keys (made by `lite-detr key`); unset: no key is asked for",
        json_schema_extra={"section": "Who may use it, and how it is protected on the way"},
    )
    tls_certificate_file: Path | None = Field(
        None, description="PEM certificate, with its chain; set: HTTP and gRPC speak TLS alone"
    )
    tls_key_file: Path | None = Field(None, description="PEM key of that certificate")
    tls_client_ca_file: Path | None = Field(
        None, description="PEM authority that must have signed the certificates of clients"
    )
    cors_origins: str | None = Field(
        None,
        pattern=r"^(\*|https?://[^,\s/]+(,https?://[^,\s/]+)*)$",
        description="origins whose pages may call the HTTP API, in a comma list, or *; unset: none",
    )

    model_control: Literal["none", "explicit"] = Field(
        "none",
        description="explicit: clients may load and unload the model (/v2/repository); none: not",
        json_schema_extra={"section": "What clients may change"},
    )

    start_timeout_seconds: float = Field(
        300,
        gt=0,
        description="an engine must be loaded and warm within this time",
        json_schema_extra={"section": "When engines fail"},
    )
    watchdog_seconds: float = Field(
        60, gt=0, description="a batch that runs longer has hung: its engine is replaced"
    )
    canary_interval_seconds: float = Field(
        10, gt=0, description="an engine that is silent for so long is tried with a small image"
    )
    canary_timeout_seconds: float = Field(
        10, gt=0, description="a canary that takes longer has hung: its engine is replaced"
    )
    canary_max_age_seconds: float = Field(
        90, gt=0, description="not ready once the last success of every engine is older than this"
    )
    storm_restarts: int = Field(
        10, ge=1, description="engine restarts within storm_window_seconds that fail liveness"
    )
    storm_window_seconds: float = Field(60, gt=0, description="window of storm_restarts")

    drain_delay_seconds: float = Field(
        0,
        ge=0,
        description="between not-ready and closing the port; 5 or so behind a balancer",
        json_schema_extra={"section": "How the service ends"},
    )
    drain_timeout_seconds: float = Field(
        60, gt=0, description="accepted requests are given this long to finish"
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="least severe level that is logged",
        json_schema_extra={"section": "What it says"},
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="json lines or console text; auto: console on a terminal"
    )
    log_requests: bool = Field(
        False, description="one log line for each request: status, sizes, time by stage"
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s/]+",
        description="OpenTelemetry collector that gets traces (OTLP/HTTP, base URL); unset: as "
        "OTEL_EXPORTER_OTLP_ENDPOINT says; needs the extra otel",
    )

    @property
    def engine_devices(self) -> tuple[str, ...]:
        """One device for each engine."""
        return tuple((self.devices or self.device).split(","))

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Refuses ports that collide and half a TLS.

        Raises:
            ValueError: which pydantic turns into its own error.
        """
        ports = {
            "http_port": self.http_port,
            "grpc_port": self.grpc_port,
            "metrics_port": self.metrics_port,
        }
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_certificate_file and tls_key_file go together")
        if self.tls_client_ca_file is not None and self.tls_certificate_file is None:
            raise ValueError("tls_client_ca_file needs tls_certificate_file")
        taken: dict[int, str] = {}
        for field, port in ports.items():
            if port is None or port <= 0:
                continue
            if port in taken:
                raise ValueError(f"{field} must differ from {taken[port]}")
            taken[port] = field
        return self


def load_settings(**overrides: Any) -> Settings:
    """Reads the settings: the environment, and over it what the command line gave.

    Args:
        **overrides: values by field name; None means "not given".

    Returns:
        The settings of this deployment.

    Raises:
        SettingsError: for the bad values, one line each, with the field and its variable.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(item) for item in error.errors())) from None


def _explain(item: Any) -> str:
    """One line for one bad value."""
    message = str(item["msg"]).removeprefix("Value error, ")
    if not item["loc"]:
        return message
    field = str(item["loc"][0])
    return f"{field}={item['input']!r} ({ENV_PREFIX}{field.upper()}): {message}"
