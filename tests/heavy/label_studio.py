"""Label Studio with the service as its ML backend: make test-label-studio.

Label Studio is installed in an environment of its own; `make test-label-studio` runs both in a
network without other machines.
"""

from __future__ import annotations

import base64
import io
import os
import secrets
import shutil
import subprocess
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service.access.api_keys import Scope, key_line, new_key
from service.cli import main
from tests.heavy.findings import RESULTS, Findings
from tests.support.ports import free_port
from tests.support.repository import ROOT
from tests.support.running import Service

PROGRAM = os.environ.get("LABEL_STUDIO", str(ROOT / ".venv-label-studio/bin/label-studio"))
START_SECONDS = 900  # the first start creates the tables of the database
SAMPLE = ROOT / "docs" / "samples" / "codes.jpg"
EMBEDDED = ROOT / "docs" / "samples" / "qr_close_up.jpg"
CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <RectangleLabels name="label" toName="image">
    <Label value="QR code"/>
    <Label value="Bar code" predicted_values="linear, pdf417"/>
    <Label value="other"/>
  </RectangleLabels>
</View>
"""
LABELS = {"qr_code": "QR code", "linear": "Bar code", "pdf417": "Bar code"}

pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which(PROGRAM) is None, reason="Label Studio is not installed"),
]


class LabelStudio:
    """A running Label Studio with one account, in a new folder."""

    def __init__(self, folder: Path) -> None:
        port, self.legacy_token = free_port(), secrets.token_hex(20)
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "log"
        # Nothing is sent to its developers; it may connect to a backend with a local address.
        variables = {
            "HOME": str(folder),
            "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
            "COLLECT_ANALYTICS": "false",
            "SENTRY_DSN": "",
            "FRONTEND_SENTRY_DSN": "",
            "LATEST_VERSION_CHECK": "false",
            "USE_DEFAULT_BANNED_SUBNETS": "false",
        }
        arguments = f"start --no-browser --internal-host 127.0.0.1 --port {port}"
        arguments += f" --enable-legacy-api-token --user-token {self.legacy_token}"
        arguments += f" --username test@localhost.test --password {secrets.token_hex(8)}"
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(
                [PROGRAM, *arguments.split()],
                env=os.environ | variables,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        authorization = {"Authorization": f"Token {self.legacy_token}"}
        self.api = httpx.Client(base_url=self.url, headers=authorization, timeout=300)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            try:
                if self.api.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(1)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def do(self, method: str, path: str, **given: Any) -> Any:
        """Sends a request that must succeed; returns the document."""
        response = self.api.request(method, path, **given)
        assert response.is_success, f"{method} {path}: {response.text}\n{self.log[-4000:]}"
        return response.json()

    def predictions(self, task: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.do("GET", f"/api/tasks/{task}/")["predictions"]
        return found

    def request_predictions(self, project: int) -> None:
        """The action of the Data Manager for all tasks, which skips those with a prediction."""
        self.do(
            "POST",
            f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}",
            json={"selectedItems": {"all": True, "excluded": []}},
        )

    def end(self) -> None:
        self.api.close()
        self.process.terminate()
        self.process.wait(60)


@pytest.fixture(scope="module")
def findings() -> Iterator[Findings]:
    found = Findings("Label Studio with the service as its ML backend", "make test-label-studio")
    yield found
    found.write(RESULTS / "label-studio")


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudio]:
    started = LabelStudio(tmp_path_factory.mktemp("label-studio"))
    try:
        started.wait_until_ready()
        yield started
    finally:
        started.end()


@dataclass(frozen=True)
class Backend:
    """The service with the default model."""

    service: Service
    key: str

    def detect(self, image: bytes) -> dict[str, Any]:
        """The response of POST /detect."""
        response = self.service.http.post(
            f"{self.service.url}/detect", content=image, headers={"X-API-Key": self.key}
        )
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found


@pytest.fixture(scope="module")
def backend(studio: LabelStudio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """With a personal access token of the account, and an API key that it requires."""
    folder, key = tmp_path_factory.mktemp("backend"), new_key()
    (folder / "token").write_text(studio.do("POST", "/api/token/")["token"])
    (folder / "keys").write_text(key_line("label-studio", [Scope.DETECT], key) + "\n")
    service = Service(
        backend="torch",
        label_studio="true",
        label_studio_url=studio.url,
        label_studio_token_file=str(folder / "token"),
        api_keys_file=str(folder / "keys"),
    )
    try:
        service.wait_until_ready()
        yield Backend(service, key)
    finally:
        service.kill()


@dataclass(frozen=True)
class Project:
    """A project that is connected to the service."""

    number: int
    backend: int
    uploaded: int  # a task whose image is a file of Label Studio
    embedded: int  # one whose image is in the task
    elsewhere: int  # one whose image the service does not read


@pytest.fixture(scope="module")
def project(studio: LabelStudio, backend: Backend) -> Project:
    number = studio.do("POST", "/api/projects/", json={"title": "codes", "label_config": CONFIG})
    number = number["id"]
    studio.do(
        "POST",
        f"/api/projects/{number}/import",
        files={"file": (SAMPLE.name, SAMPLE.read_bytes(), "image/jpeg")},
    )
    uri = "data:image/jpeg;base64," + base64.b64encode(EMBEDDED.read_bytes()).decode()
    for image in (uri, "http://images.invalid/1.jpg"):
        studio.do("POST", f"/api/projects/{number}/import", json=[{"image": image}])
    connected = studio.do(
        "POST",
        "/api/ml/",
        json={
            "project": number,
            "url": backend.service.url,
            "title": "lite-detr",
            "auth_method": "BASIC_AUTH",
            "basic_auth_user": "label-studio",
            "basic_auth_pass": backend.key,
            "is_interactive": True,
        },
    )
    assert connected["state"] == "CO", connected
    tasks = studio.do("GET", "/api/tasks/", params={"project": number, "fields": "all"})["tasks"]
    uploaded, embedded, elsewhere = sorted(task["id"] for task in tasks)
    return Project(number, connected["id"], uploaded, embedded, elsewhere)


def check_rectangles(results: list[dict[str, Any]], detected: dict[str, Any]) -> None:
    """Compares rectangles in percent with the detections of POST /detect in pixels.

    Classes that have no label in the project are left out.
    """
    width, height = detected["image"]["width"], detected["image"]["height"]
    detections = [each for each in detected["detections"] if each["label"] in LABELS]
    assert detections
    for result, detection in zip(results, detections, strict=True):
        box, value = detection["box"], result["value"]
        assert (result["original_width"], result["original_height"]) == (width, height)
        assert value["rectanglelabels"] == [LABELS[detection["label"]]]
        assert value["x"] == pytest.approx(100 * box["xmin"] / width, abs=0.01)
        assert value["y"] == pytest.approx(100 * box["ymin"] / height, abs=0.01)
        assert value["width"] == pytest.approx(100 * (box["xmax"] - box["xmin"]) / width, abs=0.02)
        assert value["height"] == pytest.approx(
            100 * (box["ymax"] - box["ymin"]) / height, abs=0.02
        )
        assert result["score"] == pytest.approx(detection["score"], abs=1e-3)


def test_predictions_of_tasks_are_the_detections_in_percent(
    studio: LabelStudio, backend: Backend, project: Project, findings: Findings
) -> None:
    studio.request_predictions(project.number)
    boxes = 0
    for task, path in ((project.uploaded, SAMPLE), (project.embedded, EMBEDDED)):
        [prediction] = studio.predictions(task)
        detected = backend.detect(path.read_bytes())
        check_rectangles(prediction["result"], detected)
        model = detected["model"]
        assert prediction["model_version"] == f"{model['name']}-{model['version']}"
        boxes += len(prediction["result"])
    findings.note("Label Studio", studio.do("GET", "/api/version")["release"])
    findings.note("boxes of two tasks, all equal to those of POST /detect", boxes)


def test_a_task_whose_image_is_not_read_stays_without_prediction(
    studio: LabelStudio, project: Project
) -> None:
    studio.request_predictions(project.number)
    assert studio.predictions(project.elsewhere) == []  # so that it is predicted when it can be
    assert len(studio.predictions(project.uploaded)) == 1


def test_an_image_that_is_opened_is_predicted_interactively(
    studio: LabelStudio, backend: Backend, project: Project
) -> None:
    path = f"/api/ml/{project.backend}/interactive-annotating"
    document = studio.do("POST", path, json={"task": project.uploaded})
    check_rectangles(document["data"]["result"], backend.detect(SAMPLE.read_bytes()))
    refused = studio.do("POST", path, json={"task": project.elsewhere})
    assert refused["errors"], refused


@pytest.mark.parametrize("kind", ["COCO_WITH_IMAGES", "YOLO_WITH_IMAGES"])
def test_exports_are_data_sets(
    kind: str, studio: LabelStudio, project: Project, tmp_path: Path, findings: Findings
) -> None:
    task = f"/api/tasks/{project.uploaded}/"
    [prediction] = studio.predictions(project.uploaded)
    if not studio.do("GET", task)["annotations"]:
        studio.do("POST", f"{task}annotations/", json={"result": prediction["result"]})
    exported = studio.api.get(f"/api/projects/{project.number}/export", params={"exportType": kind})
    assert exported.status_code == 200, exported.text
    zipfile.ZipFile(io.BytesIO(exported.content)).extractall(tmp_path)
    if kind.startswith("COCO"):
        arguments = [str(tmp_path / "result.json"), "--images", str(tmp_path)]
    else:
        names = (tmp_path / "classes.txt").read_text().split("\n")
        document = {"train": "images", "names": [name for name in names if name]}
        (tmp_path / "data.yaml").write_text(yaml.safe_dump(document))
        arguments = [str(tmp_path)]
    assert main(["data", "check", *arguments]) == 0
    findings.note(f"export {kind}", "accepted by lite-detr data check")
