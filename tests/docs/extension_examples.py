"""One example change for each kind of extension in CONTRIBUTING.md, and a check that it works.

Each function changes a copy of the sources and then uses the extension there. The files that it
changes are compared with the table of CONTRIBUTING.md.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import httpx

from model.labels import CODE_LABELS
from tests.docs.extension_checkout import ExtensionCheckout
from tests.support.images import solid_png

PNG = solid_png((40, 90, 200), 200, 100)


def resize_rule(checkout: ExtensionCheckout) -> None:
    """Both sides become even; serving, evaluation and the buckets follow."""
    last_line = r"^    return \(size, other\) if height <= width else \(other, size\)$"
    checkout.replace(
        "model/geometry.py",
        last_line,
        "    size, other = size + size % 2, other + other % 2\n"
        "    return (size, other) if height <= width else (other, size)",
    )
    checkout.run(
        "-c",
        """
import io
from PIL import Image
from model.config import ModelConfig
from model.geometry import padded_size, reachable_buckets, resized_size
from model.images.decode import ImageLimits, decode_image

config = ModelConfig(shortest_side=333, longest_side=555, bucket_stride=32)
sides = config.shortest_side, config.longest_side
buckets = reachable_buckets(*sides, config.bucket_stride)
for width in range(1, 2000, 7):
    height, width = resized_size(500, width, *sides)
    assert height % 2 == width % 2 == 0, (height, width)
    assert padded_size(height, width, config.bucket_stride) in buckets
file = io.BytesIO()
Image.new("RGB", (1000, 700)).save(file, "PNG")
pixels = decode_image(file.getvalue(), config, ImageLimits(10**6, 10**6)).pixels
assert pixels.shape == (334, 476, 3), pixels.shape
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
    checkout.replace(registry, r"\(JSON, COCO, DRAWN_IMAGE\)", "(JSON, COCO, DRAWN_IMAGE, CSV)")
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


def loss_term(checkout: ExtensionCheckout) -> None:
    """A term `area`, which gets an option, a share of the total, and a place in the log."""
    checkout.insert(
        "model/training/loss_terms.py",
        r'^    "dense": LossTerm\(.*\n',
        '    "area": LossTerm("area_loss", "relative difference of box areas", weight=2.0),\n',
    )
    checkout.insert(
        "model/training/losses.py",
        r"(?s)^def decoder_loss.*?(?=^def )",
        '''def area_loss(inputs: LossInputs) -> Tensor:
    """Mean area of the boxes of the last decoder layer."""
    return inputs.output.pred_boxes[-1, ..., 2:].prod(-1).mean()


''',
    )
    checkout.write_output("docs/configuration.md", "-m", "service.cli.configuration")
    assert "`--area-weight`" in (checkout.folder / "docs/configuration.md").read_text()
    checkout.run(
        "-c",
        """
import tempfile
from pathlib import Path
from model.training.report import read_log
from model.training.sources import CacheSource
from tests.model.training.tiny import LABELS, tiny_options, tiny_trainer, write_cache

folder = Path(tempfile.mkdtemp(dir="."))
options = tiny_options(folder, max_iterations=2, area_weight=3.0)
tiny_trainer(options, CacheSource(write_cache(folder), LABELS)).run()
row = read_log(folder)[-1]
terms = [row[name] for name in ("decoder", "proposals", "denoising", "dense", "area")]
assert row["area"] > 0
assert abs(row["total"] - sum(terms)) < 1e-3 * row["total"]
""",
    )


def evaluation_metric(checkout: ExtensionCheckout) -> None:
    """AR of small objects, computed from COCO's tables and printed by `lite-detr eval`."""
    scores = "model/evaluation/scores.py"
    checkout.insert(
        scores, r"^    ar_100: float \| None\n(?=    per_class)", "    ar_small: float | None\n"
    )
    checkout.insert(
        scores, r"AR@100 \{cell\(scores\.ar_100\)\}", ", AR small {cell(scores.ar_small)}"
    )
    checkout.insert(
        "model/evaluation/evaluate.py",
        r"^        ar_100=_mean\(recall\[:, :, _ALL_AREAS, 2\]\),\n",
        "        ar_small=_mean(recall[:, :, 1, 2]),\n",
    )
    checkout.run(
        "-c",
        """
import json
import numpy as np
from model.data.annotations import GroundTruth
from model.detections import Detections
from model.evaluation.evaluate import PhotoDetections, evaluate_coco, format_scores

document = {
    "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}],
    "categories": [{"id": 7, "name": "code"}],
    "annotations": [
        {"id": n, "image_id": 1, "category_id": 7, "iscrowd": 0, "area": side * side,
         "bbox": [x, 0, side, side]}
        for n, x, side in ((1, 0, 10), (2, 50, 40))
    ],
}
truth = GroundTruth.from_coco(document)
boxes = np.array([[0, 0, 10, 10]], np.float32)
found = Detections(np.ones(1, np.float32), np.array([7]), boxes)
scores = evaluate_coco([PhotoDetections(1, found, 1.0)], truth)
assert (scores.ar_small, scores.ar_100) == (1.0, 0.5), scores
assert "AR small 1.000" in format_scores(scores)
assert json.loads(scores.to_json())["ar_small"] == 1.0
""",
    )


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


def setting(checkout: ExtensionCheckout) -> None:
    """A setting, with its flag, environment variable and row in the documentation."""
    checkout.insert(
        "service/settings.py",
        r"^    http_port: int = Field\(.*\n",
        '    example: int = Field(7, ge=1, description="an example of a setting")\n',
    )
    checkout.write_output("docs/configuration.md", "-m", "service.cli.configuration")
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
        try:
            result = await self._detector.detect(await reader.read(), options, request_id="example")
            found = result.detections.labels.tolist()
            text, outcome = "\\n".join(result.label_names[each] for each in found), "ok"
        except DetectionError as error:
            text, outcome = error.code, error.code
        self._detector.metrics.count_request("example", outcome)
        writer.write(text.encode())
        writer.close()
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


EXAMPLES: dict[str, Callable[[ExtensionCheckout], None]] = {
    "resize rule": resize_rule,
    "output format": output_format,
    "loss term": loss_term,
    "evaluation metric": evaluation_metric,
    "Prometheus metric": prometheus_metric,
    "batching policy": batching_policy,
    "setting": setting,
    "protocol": protocol,
}
