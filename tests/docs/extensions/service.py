"""Example changes of the service: see `tests.docs.extensions`."""

from __future__ import annotations

import socket
from collections.abc import Callable

import httpx

from model.labels import CODE_LABELS
from tests.docs.extensions.checkout import ExtensionCheckout
from tests.support.images import solid_png

PNG = solid_png((40, 90, 200), 200, 100)


def setting(checkout: ExtensionCheckout) -> None:
    """A setting, with its flag, environment variable and row in the documentation."""
    checkout.insert(
        "service/settings/fields.py",
        r"^    http_port: int = Field\(.*\n",
        '    example: int = Field(7, ge=1, description="an example of a setting")\n',
    )
    checkout.write_output("docs/configuration.md", "-m", "service.cli.configuration")
    schema = "docker/helm/lite-detr/values.schema.json"
    checkout.write_output(schema, "-m", "service.cli.chart_settings", schema)
    assert "an example of a setting" in (checkout.folder / schema).read_text()
    page = (checkout.folder / "docs/configuration.md").read_text()
    assert (
        "| `--example`<br>`LITE_DETR_EXAMPLE` | INTEGER | `7` | an example of a setting |" in page
    )
    assert "--example" in checkout.run("-m", "service", "serve", "--help")
    checkout.run(
        "-c",
        """
import os
from service.cli.serve import settings_from_flags
os.environ["LITE_DETR_EXAMPLE"] = "8"
assert settings_from_flags({}).example == 8
assert settings_from_flags({"example": "9"}).example == 9
""",
    )


def output_format(checkout: ExtensionCheckout) -> None:
    """A format `csv`, over HTTP, in OpenAPI and in `lite-detr detect`."""
    checkout.add(
        "service/core/formats/example.py",
        '''
"""format=csv: one line per detection."""

from service.core.encoding import rounded_columns
from service.core.formats.output_format import Encoded, EncodeInput, OutputFormat


def encode_csv(job: EncodeInput) -> Encoded:
    """One line per detection: label, score and box."""
    lines = ["label,score,xmin,ymin,xmax,ymax"]
    for file in job.files:
        if file.result is not None:
            columns = zip(*rounded_columns(file.result.detections), strict=True)
            for score, class_id, box in columns:
                name = file.result.label_names[class_id]
                lines.append(",".join(map(str, (name, score, *box))))
    return Encoded("\\n".join(lines).encode(), "text/csv")


CSV = OutputFormat("csv", "one line per detection", ("text/csv",), encode_csv)
''',
    )
    registry = "service/core/formats/__init__.py"
    checkout.insert(
        registry,
        r"^from service.core.formats.drawn_image import DRAWN_IMAGE\n",
        "from service.core.formats.example import CSV\n",
    )
    registered = r"DRAWN_IMAGE, HUGGINGFACE, EXPLANATION\)"
    checkout.replace(registry, registered, "DRAWN_IMAGE, HUGGINGFACE, EXPLANATION, CSV)")
    checkout.insert(
        "docs/api.md",
        r"^\| `format` \|.*\n",
        "\n`format=csv` returns one line per detection.\n",
    )
    checkout.run(
        "-c",
        """
import contextlib, io
from service.cli import main
with contextlib.redirect_stderr(io.StringIO()) as errors:
    assert main(["detect", "--format", "no-such-format", "no-such-file.png"]) == 2
assert "csv" in errors.getvalue()
""",
    )
    with checkout.serving() as service:
        url = f"{service.url}/detect?format=csv&threshold=0"
        response = httpx.post(url, content=PNG)
        assert response.headers["content-type"].startswith("text/csv"), response.text
        assert response.text.startswith("label,score,xmin,ymin,xmax,ymax\n")
        paths = httpx.get(f"{service.url}/openapi.json").json()["paths"]
        assert "text/csv" in paths["/detect"]["post"]["responses"]["200"]["content"]


def prometheus_metric(checkout: ExtensionCheckout) -> None:
    """A counter of slow requests."""
    metrics = "service/observability/metrics.py"
    checkout.insert(
        metrics,
        r"^    def _build_counters\(self\) -> None:\n",
        '        self.slow = self._counter("slow_requests_total", "Over 1 s", ("protocol",))\n',
    )
    checkout.insert(
        metrics,
        r"^            histogram\.observe\(time\.monotonic\(\) - scope\.started.*\n",
        "            if time.monotonic() - scope.started > 1:\n"
        "                self.slow.labels(protocol).inc()\n",
    )
    checkout.insert(
        "docs/observability.md",
        r"^\| `lite_detr_expired_total` .*\n",
        "| `lite_detr_slow_requests_total` | `protocol` | requests that took more than 1 s |\n",
    )
    checkout.run(
        "-c",
        """
import time
from service.observability.metrics import Metrics
from service.observability.request_log import RequestLog

metrics = Metrics()
with RequestLog().track("http", "POST") as scope:
    object.__setattr__(scope, "started", time.monotonic() - 2)
    metrics.count_request("http", "ok")
assert b'lite_detr_slow_requests_total{protocol="http"} 1.0' in metrics.render()[0]
""",
    )


def batching_policy(checkout: ExtensionCheckout) -> None:
    """Smaller images first, instead of the most urgent ones."""
    checkout.insert(
        "service/batching/scheduler.py",
        r'^    def urgency\(self, job: Job\) -> float:\n        """[^"]*"""\n',
        "        return job.bucket[0] * job.bucket[1]\n",
    )
    checkout.run(
        "-c",
        """
from service.batching.scheduler import BatchPolicy, EngineState, Scheduler
from tests.support.jobs import JobMaker

scheduler, make_job = Scheduler(BatchPolicy()), JobMaker()
scheduler.add(make_job(0.0, (128, 128)))
scheduler.add(make_job(1.0, (64, 64)))
batch = scheduler.plan(2.0, EngineState(0, 0.0, 0.0)).batch
assert batch is not None and batch.bucket == (64, 64), batch
""",
    )


def protocol(checkout: ExtensionCheckout) -> None:
    """A protocol over TCP: the client sends an image and closes its side, and gets labels."""
    checkout.add(
        "service/example/__init__.py",
        '''
"""A protocol over TCP: one image per connection, one label per line in return."""

import asyncio

from service.core.detector import Detector
from service.errors import DetectionError
from service.types import DetectOptions


class ExampleServer:
    """Serves the protocol on a free port."""

    def __init__(self, detector: Detector, host: str) -> None:
        self._detector, self._host = detector, host
        self._drained = asyncio.Event()
        self.open_requests = 0

    async def run_until_drained(self) -> None:
        """Serves until drained."""
        server = await asyncio.start_server(self._respond, self._host, 0)
        print("example port", server.sockets[0].getsockname()[1], flush=True)
        await self._drained.wait()
        server.close()
        await server.wait_closed()

    def drain(self) -> None:
        """Accepts no new connections."""
        self._drained.set()

    def give_up(self) -> None:
        """Ends at once."""
        self._drained.set()

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        options = DetectOptions(threshold=0.0)
        self.open_requests += 1
        try:
            result = await self._detector.detect(await reader.read(), options, request_id="example")
            found = result.detections.labels.tolist()
            text, outcome = "\\n".join(result.label_names[each] for each in found), "ok"
        except DetectionError as error:
            text, outcome = error.code, error.code
        self._detector.metrics.count_request("example", outcome)
        writer.write(text.encode())
        writer.close()
        self.open_requests -= 1
''',
    )
    checkout.insert(
        "service/app.py",
        r"^from service\.errors import.*\n|^from service\.build import.*\n",
        "from service.example import ExampleServer\n",
    )
    checkout.insert(
        "service/app.py",
        r"^        servers \+= http_servers\n",
        "        servers.append(ExampleServer(core.detector, settings.host))\n",
    )
    checkout.replace("pyproject.toml", r'"rest \| rpc \| oip"', '"rest | rpc | oip | example"')
    checkout.insert(
        "docs/architecture.md", r"^\| `service/oip/` .*\n", "| `service/example/` | an example |\n"
    )
    checkout.run_program("lint-imports")
    with checkout.serving() as service:
        port = service.number_after("example port")
        for data, expected in ((PNG, CODE_LABELS), (b"no image", ("unsupported_image",))):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                response = connection.makefile("rb").read().decode()
            assert set(response.splitlines()) <= set(expected), response
        metrics = httpx.get(f"{service.url}/metrics").text
    assert 'lite_detr_requests_total{outcome="ok",protocol="example"} 1.0' in metrics


def cloud(checkout: ExtensionCheckout) -> None:
    """A cloud that is recognized by a variable, with a health check of its own."""
    checkout.add(
        "service/clouds/example.py",
        '''
"""A cloud that names a port."""

from service.clouds.contract import Cloud, Deployment, http_port, reachable
from service.rest.probes import readiness_route


def _read(environment, given):
    settings = http_port(environment, "EXAMPLE_PORT", 7000, given) + reachable("Example")
    return Deployment(EXAMPLE, tuple(settings), "/alive")


def _routes(deployment, detector, _settings, _bodies):
    return [readiness_route(deployment.health_path, detector)]


EXAMPLE = Cloud("example", "Example", ("EXAMPLE_PORT",), _read, _routes)
''',
    )
    registry = "service/clouds/registry.py"
    checkout.insert(
        registry,
        r"^from service.clouds.contract import Cloud\n",
        "from service.clouds.example import EXAMPLE\n",
    )
    checkout.replace(registry, r"AZURE, CLOUD_RUN\)", "AZURE, EXAMPLE, CLOUD_RUN)")
    checkout.replace("service/settings/fields.py", r'"cloud-run"\]', '"cloud-run", "example"]')
    checkout.write_output("docs/configuration.md", "-m", "service.cli.configuration")
    checkout.insert(
        "docs/clouds.md",
        r"^\| `azure` .*\n",
        "| `example` | `EXAMPLE_PORT` | `EXAMPLE_PORT` | `GET /alive` | `POST /detect` |\n",
    )
    checkout.run(
        "-c",
        """
from service.clouds.deployment import settings_for_cloud
from service.settings import load_settings
found = settings_for_cloud(load_settings(), {}, {"EXAMPLE_PORT": "7001"})
assert (found.settings.http_port, found.deployment.health_path) == (7001, "/alive")
[route] = found.deployment.routes(None, found.settings, None)
assert route.path == "/alive"
""",
    )


EXAMPLES: dict[str, Callable[[ExtensionCheckout], None]] = {
    "setting": setting,
    "output format": output_format,
    "Prometheus metric": prometheus_metric,
    "batching policy": batching_policy,
    "protocol": protocol,
    "cloud": cloud,
}
