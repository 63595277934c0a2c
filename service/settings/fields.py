"""The settings of a deployment: names, types, defaults, bounds and descriptions.

Each field is a flag of `lite-detr serve` and an environment variable (`LITE_DETR_` and the name in
capitals). A bad value stops the start, with the name of the field. A `section` is the heading of
its field and the following ones in --help and in docs/configuration.md.
"""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from model.config import MODEL_NAME_PATTERN
from service.settings.environment import ENV_PREFIX, Environment

_MIB = 1024 * 1024
# Larger numbers would not fit into what they are passed to: gRPC takes milliseconds as 31 bits.
_MAX_SECONDS = 1_000_000  # 11 days
_Seconds = Annotated[float, Field(le=_MAX_SECONDS)]
_Count = Annotated[int, Field(le=1_000_000)]
_Pixels = Annotated[int, Field(le=1 << 32)]
_Bytes = Annotated[int, Field(le=1 << 40)]
_DEVICE = r"(auto|cpu|cuda(:\d+)?)"
_DEVICES = rf"^{_DEVICE}(,{_DEVICE})*$"


class Settings(BaseSettings):
    """The settings of a deployment."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
        allow_inf_nan=False,
    )

    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address to listen on",
        json_schema_extra={"section": "Addresses and ports"},
    )
    http_port: int = Field(8000, ge=0, le=65535, description="HTTP port; 0 picks a free one")
    grpc_port: int = Field(
        8001, ge=-1, le=65535, description="gRPC port; 0 picks a free one, -1: no gRPC"
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="separate port for /metrics; unset: the HTTP port serves it",
    )

    cloud: Literal["auto", "none", "sagemaker", "vertex", "azure", "cloud-run"] = Field(
        "auto",
        description="container contract to follow (docs/clouds.md): auto recognizes SageMaker, "
        "Vertex AI, Cloud Run and PORT by their variables; none ignores these",
    )

    model: str = Field(
        "default",
        description="name of a model, or path of its weights file",
        json_schema_extra={"section": "Model and devices"},
    )
    name: str | None = Field(
        None,
        pattern=MODEL_NAME_PATTERN,
        description="name of the model for clients, such as KServe and Triton clients; letters, "
        "digits, dots, hyphens and underscores; unset: the name in the weights file",
    )
    model_cache_dir: Path | None = Field(
        None, description="folder of downloaded models; unset: ~/.cache/lite-detr"
    )
    device: str = Field(
        "auto",
        pattern=rf"^{_DEVICE}$",
        description="auto, cpu, cuda or cuda:N; auto uses a GPU if there is one",
    )
    devices: str | None = Field(
        None,
        pattern=_DEVICES,
        description="comma-separated devices (cuda:0,cuda:1) with one engine each; a device named "
        "twice gets two; unset: one engine on device",
    )
    engine_threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="CPU threads of each engine; 0: the available CPUs, divided among the engines",
    )

    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field(
        "auto",
        description="numbers the network computes in: auto is fp32; bf16 is less exact and, on "
        "CPUs with AVX512-BF16, faster for large models; fp16, only on GPUs, should be faster "
        "there (not measured yet) and shifts some detections; int8, only on CPUs, is for the "
        "backbone and needs lite-detr weights calibrate",
    )
    max_cuda_graphs: _Count = Field(
        512,
        ge=0,
        description="on a GPU: maximum number of CUDA graphs, one for each input shape and batch "
        "size that the warm-up reaches; 0: none, kernels are launched one by one",
    )
    warm_up_seconds: float | None = Field(
        None,
        ge=0,
        le=_MAX_SECONDS,
        description="maximum s of warm-up, which runs input shapes once; unset: 5, on a GPU 60",
    )

    max_batch_size: int = Field(
        8,
        ge=1,
        le=1024,
        description="maximum images in a batch",
        json_schema_extra={"section": "Batching"},
    )
    max_batch_pixels: _Pixels = Field(
        8_000_000, ge=1, description="maximum padded pixels in a batch of several images"
    )
    max_wait_ms: float = Field(
        2.0,
        ge=0,
        le=1000,
        description="ms an idle engine waits for images that are still being decoded",
    )
    slots: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="maximum images in flight; further requests get 429; unset: enough for three "
        "batches of each engine and the images being decoded, at least 64",
    )
    priority_slots: int = Field(
        8, ge=0, le=4096, description="additional slots, only for requests of high priority"
    )
    decode_threads: int = Field(
        0,
        ge=0,
        le=256,
        description="processes that decode images; 0: one per CPU, at most 8 or two per engine",
    )

    max_body_bytes: _Bytes = Field(
        64 * _MIB,
        ge=1,
        description="maximum size of a request body, bytes",
        json_schema_extra={"section": "Limits of a request"},
    )
    max_image_pixels: _Pixels = Field(
        100_000_000,
        ge=1,
        description="maximum size of an image, width x height; decode_memory_bytes may allow less",
    )
    max_jpeg_scans: _Count = Field(
        64, ge=1, description="maximum scans of a JPEG; each takes a pass over all pixels"
    )
    jpeg_decoding: Literal["exact", "scaled"] = Field(
        "exact",
        description="scaled decodes large JPEGs to a fraction of their size, in less time, which "
        "changes scores slightly; exact decodes every pixel",
    )
    decode_memory_bytes: _Bytes = Field(
        2048 * _MIB,
        ge=_MIB,
        description="memory for decoding, bytes; images wait until there is enough; by default at "
        "most 3/8 of the memory limit",
    )
    max_bodies_bytes: _Bytes = Field(
        1024 * _MIB,
        ge=1,
        description="maximum size of all request bodies, and of drawn images that are being sent, "
        "bytes; beyond it 429; by default at most 1/8 of the memory limit",
    )
    max_files: _Count = Field(32, ge=1, description="maximum images in a multipart request")
    max_tiles: int = Field(
        64,
        ge=0,
        le=1024,
        description="maximum tiles of an image with the option tile; 0: the option is turned off",
    )
    max_connections: _Count = Field(1024, ge=1, description="maximum open HTTP connections")
    explain: bool = Field(
        False,
        description="offer format=explain, which draws where the attention of a detection looks; "
        "it runs the network once more, for one request at a time",
    )
    request_timeout_ms: float = Field(
        30_000,
        gt=0,
        le=_MAX_SECONDS * 1000,
        description="maximum ms from the received body to the result",
    )
    header_timeout_seconds: _Seconds = Field(
        10, gt=0, description="maximum time for receiving a request head"
    )
    body_timeout_seconds: _Seconds = Field(
        30, gt=0, description="maximum pause while receiving a request body"
    )
    body_min_bytes_per_second: _Bytes = Field(
        1024,
        ge=1,
        description="minimum rate of a request body over any time of body_timeout_seconds",
    )
    body_max_seconds: _Seconds = Field(
        300,
        gt=0,
        description="maximum time for receiving a request body, or the request of a gRPC call",
    )
    send_timeout_seconds: _Seconds = Field(
        30, gt=0, description="maximum time in which a client reads nothing of its response"
    )
    send_max_seconds: _Seconds = Field(
        300, gt=0, description="maximum time in which a client reads a whole response"
    )
    keep_alive_timeout_seconds: int = Field(
        75, ge=1, le=_MAX_SECONDS, description="time after which an idle connection is closed"
    )

    grpc_keepalive_seconds: _Seconds = Field(
        60, gt=0, description="interval of keepalive pings on a silent gRPC connection"
    )
    grpc_max_idle_seconds: _Seconds = Field(
        10, gt=0, description="a gRPC connection without calls is closed after this time"
    )
    grpc_max_connection_age_seconds: _Seconds = Field(
        3600,
        ge=0,
        description="age at which a gRPC client must reconnect, for load balancers; 0: never",
    )

    api_keys_file: Path | None = Field(
        None,
        description="file of API keys (see `lite-detr key`); unset: no key is required",
        json_schema_extra={"section": "Access and encryption"},
    )
    tls_certificate_file: Path | None = Field(
        None, description="PEM certificate with its chain; if set, HTTP and gRPC accept only TLS"
    )
    tls_key_file: Path | None = Field(None, description="PEM key of that certificate")
    tls_client_ca_file: Path | None = Field(
        None,
        description="PEM certificate authority; if set, clients need a certificate signed by it",
    )
    trusted_proxies: str | None = Field(
        None,
        description="comma-separated addresses and networks (10.0.0.0/8) of reverse proxies, whose "
        "X-Forwarded-* and Forwarded headers are used; unset: none",
    )
    root_path: str | None = Field(
        None,
        pattern=r"^/*([A-Za-z0-9_~-][A-Za-z0-9._~-]*(/+|$))*$",
        description="path below which a reverse proxy serves the service (/vision), whether it "
        "removes it from requests or not; unset: none",
    )
    cors_origins: str | None = Field(
        None,
        pattern=r"^(\*|https?://[^,\s/]+(,https?://[^,\s/]+)*)$",
        description="comma-separated origins whose pages may call the HTTP API, or *; unset: none",
    )

    label_studio: bool = Field(
        False,
        description="offer the paths of Label Studio's ML backends (docs/labelling.md)",
        json_schema_extra={"section": "Label Studio"},
    )
    label_studio_url: str | None = Field(
        None,
        pattern=r"^https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?(/[A-Za-z0-9._~-]+)*/?$",
        description="address of the Label Studio whose files are read as images of tasks "
        "(http://localhost:8080); unset: only data: URIs are",
    )
    label_studio_token_file: Path | None = Field(
        None, description="file with an access token for it, personal or legacy"
    )

    model_control: Literal["none", "explicit"] = Field(
        "none",
        description="explicit: clients can load and unload the model (/v2/repository); none: they "
        "cannot",
        json_schema_extra={"section": "Model control"},
    )

    start_timeout_seconds: _Seconds = Field(
        300,
        gt=0,
        description="maximum time until an engine is loaded and warm",
        json_schema_extra={"section": "Supervision of engines"},
    )
    watchdog_seconds: _Seconds = Field(
        60, gt=0, description="maximum time of a batch; then its engine is replaced"
    )
    canary_interval_seconds: _Seconds = Field(
        10, gt=0, description="idle time after which an engine is tested with a small image"
    )
    canary_timeout_seconds: _Seconds = Field(
        10, gt=0, description="maximum time of that test; then the engine is replaced"
    )
    canary_max_age_seconds: _Seconds = Field(
        90,
        gt=0,
        description="maximum time since the last completed batch of any engine; then not ready",
    )
    storm_restarts: _Count = Field(
        10,
        ge=1,
        description="number of engine restarts within storm_window_seconds that fail liveness",
    )
    storm_window_seconds: _Seconds = Field(60, gt=0, description="window of storm_restarts")

    drain_delay_seconds: _Seconds = Field(
        0,
        ge=0,
        description="time from not ready to closing the ports; about 5 behind a load balancer",
        json_schema_extra={"section": "Shutdown"},
    )
    drain_timeout_seconds: _Seconds = Field(
        60, gt=0, description="maximum time for requests in flight to finish"
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="minimum level of log lines",
        json_schema_extra={"section": "Logs and traces"},
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="json or console; auto: console on a terminal, otherwise json"
    )
    log_requests: bool = Field(
        False, description="log one line per request: status, sizes, time by stage"
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s/]+",
        description="base URL of an OpenTelemetry collector for traces (OTLP/HTTP); unset: "
        "OTEL_EXPORTER_OTLP_ENDPOINT; needs the extra otel",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Reads values given in code, and those of the environment that are meant as settings."""
        return init_settings, Environment(settings_cls)

    @property
    def engine_devices(self) -> tuple[str, ...]:
        """The device of each engine."""
        return tuple((self.devices or self.device).split(","))

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: str | None) -> str | None:
        """Checks that every part is an address or a network.

        Raises:
            ValueError: if not; pydantic reports it as a ValidationError.
        """
        for part in filter(None, map(str.strip, (value or "").split(","))):
            try:
                ip_network(part, strict=False)
            except ValueError:
                raise ValueError(
                    f"{part!r} is not an IP address or network such as 10.0.0.0/8"
                ) from None
        return value

    @field_validator("label_studio_url")
    @classmethod
    def _has_valid_port(cls, value: str | None) -> str | None:
        """Checks the port of a URL.

        Raises:
            ValueError: if it is above 65535; pydantic reports it as a ValidationError.
        """
        if value is not None:
            _ = urlsplit(value).port
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Checks that ports differ and that settings which go together are complete.

        Raises:
            ValueError: if not; pydantic reports it as a ValidationError.
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
        if self.label_studio_url is not None and not self.label_studio:
            raise ValueError("label_studio_url needs label_studio")
        if self.label_studio_token_file is not None and self.label_studio_url is None:
            raise ValueError("label_studio_token_file needs label_studio_url")
        taken: dict[int, str] = {}
        for field, port in ports.items():
            if port is None or port <= 0:
                continue
            if port in taken:
                raise ValueError(f"{field} must differ from {taken[port]}")
            taken[port] = field
        return self
