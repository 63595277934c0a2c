"""All four clients against the real service with the fake device: the same results."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lite_detr_client import (
    AsyncGrpcClient,
    AsyncHttpClient,
    ConnectionFailed,
    DeadlineExceeded,
    DetectionResult,
    DetectOptions,
    Engine,
    GrpcClient,
    HttpClient,
    ImageTooLarge,
    InferenceFailed,
    InvalidImage,
    InvalidOptions,
    RetryPolicy,
    ServiceError,
    UnsupportedImage,
)
from tests.support.fake_device import FAKE_MODEL
from tests.support.images import encode_png, solid_png
from tests.support.repository import ROOT

EVERYTHING = DetectOptions(threshold=0.0)
ONCE = RetryPolicy(attempts=1)
POISON = solid_png((255, 0, 0))
# Noise, as large as the service accepts: takes milliseconds to decode on any machine.
SLOW = encode_png(np.random.default_rng(1).integers(0, 256, (1000, 1000, 3), dtype=np.uint8))


@dataclass(frozen=True)
class Service:
    url: str
    target: str


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    command = [sys.executable, "-m", "tests.client.served"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        http_port, grpc_port = process.stdout.readline().split()
        try:
            yield Service(f"http://127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}")
        finally:
            process.stdin.close()
            status = process.wait(60)
    assert status == 0


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, service: Service) -> Iterator[HttpClient | GrpcClient]:
    if request.param == "http":
        with HttpClient(service.url) as http:
            yield http
    else:
        with GrpcClient(service.target) as rpc:
            yield rpc


@pytest.fixture(params=["http", "grpc"])
async def async_client(
    request: pytest.FixtureRequest, service: Service
) -> AsyncIterator[AsyncHttpClient | AsyncGrpcClient]:
    if request.param == "http":
        async with AsyncHttpClient(service.url) as http:
            yield http
    else:
        async with AsyncGrpcClient(service.target) as rpc:
            yield rpc


def _same(first: DetectionResult, second: DetectionResult) -> bool:
    return (first.detections, first.width, first.model_version) == (
        second.detections,
        second.width,
        second.model_version,
    )


async def test_all_four_clients_return_the_same_result(service: Service) -> None:
    image = solid_png((40, 90, 200), 200, 100)
    async with AsyncHttpClient(service.url) as http, AsyncGrpcClient(service.target) as rpc:
        results = [await http.detect(image, EVERYTHING), await rpc.detect(image, EVERYTHING)]
    with HttpClient(service.url) as http_now, GrpcClient(service.target) as rpc_now:
        results += [http_now.detect(image, EVERYTHING), rpc_now.detect(image, EVERYTHING)]
    assert results[0].detections
    assert (results[0].width, results[0].height) == (200, 100)
    assert all(_same(results[0], result) for result in results)


def test_a_path_is_read(client: HttpClient | GrpcClient, tmp_path: Path) -> None:
    image = solid_png((1, 2, 3))
    path = tmp_path / "photo.png"
    path.write_bytes(image)
    by_path = client.detect(path, EVERYTHING, request_id="a-path")
    assert by_path.request_id == "a-path"
    assert _same(by_path, client.detect(str(path), EVERYTHING))
    assert _same(by_path, client.detect(memoryview(image), EVERYTHING))


def test_images_of_pillow_and_open_files_are_accepted(
    client: HttpClient | GrpcClient, tmp_path: Path
) -> None:
    image = solid_png((1, 2, 3))
    path = tmp_path / "photo.png"
    path.write_bytes(image)
    expected = client.detect(image, EVERYTHING)
    with path.open("rb") as stream:
        assert _same(expected, client.detect(stream, EVERYTHING))
    with Image.open(path) as pillow:
        assert _same(expected, client.detect(pillow, EVERYTHING))
    batch = client.detect_batch([image, io.BytesIO(image)], EVERYTHING)
    assert all(isinstance(each, DetectionResult) and _same(expected, each) for each in batch)


def test_options_may_be_given_by_keyword(client: HttpClient | GrpcClient) -> None:
    image = solid_png((100, 100, 103))  # four detections
    everything = client.detect(image, threshold=0.0)
    assert len(everything.detections) == 4
    best = client.detect(image, threshold=0.0, max_detections=1).detections
    assert best == everything.detections[:1]
    label = best[0].label
    (one,) = client.detect_batch([image], threshold=0.0, labels=[label])
    assert isinstance(one, DetectionResult)
    assert {found.label for found in one.detections} == {label}


async def test_addresses_with_and_without_a_scheme_are_accepted(service: Service) -> None:
    bare = service.url.removeprefix("http://")
    with HttpClient(bare) as http, GrpcClient(f"http://{service.target}") as rpc:
        assert http.ready()
        assert rpc.ready()
    async with (
        AsyncHttpClient(bare) as http_too,
        AsyncGrpcClient(f"http://{service.target}/") as rpc_too,
    ):
        assert await http_too.ready()
        assert await rpc_too.ready()


async def test_an_asynchronous_stream_takes_both_kinds_of_iterables(service: Service) -> None:
    images = [solid_png((number, 90, 200)) for number in range(4)]

    async def asynchronous() -> AsyncIterator[bytes]:
        for image in images:
            yield image

    async with AsyncGrpcClient(service.target) as rpc:
        for frames in (images, iter(images), (io.BytesIO(image) for image in images)):
            found = [each async for each in rpc.detect_stream(frames, threshold=0.0)]
            assert len(found) == 4
        expected = [each async for each in rpc.detect_stream(asynchronous(), threshold=0.0)]
    assert all(
        isinstance(one, DetectionResult)
        and isinstance(other, DetectionResult)
        and _same(one, other)
        for one, other in zip(found, expected, strict=True)
    )


async def test_a_single_image_is_no_stream(service: Service) -> None:
    async def frames() -> AsyncIterator[bytes]:
        yield b""

    with GrpcClient(service.target) as rpc:
        for wrong in ("image.jpg", b"image", frames()):
            with pytest.raises(TypeError, match="detect_stream takes"):
                rpc.detect_stream(wrong)  # type: ignore[arg-type]
    async with AsyncGrpcClient(service.target) as rpc_too:
        with pytest.raises(TypeError, match="detect_stream takes a list of images, not a str"):
            rpc_too.detect_stream("image.jpg")


def test_options_select(client: HttpClient | GrpcClient) -> None:
    image = solid_png((100, 100, 103))  # four detections
    everything = client.detect(image, EVERYTHING).detections
    assert len(everything) == 4
    assert client.detect(image, DetectOptions(max_detections=2)).detections == everything[:2]
    chosen = DetectOptions(threshold=0.0, labels=(everything[1].label,))
    assert {found.label for found in client.detect(image, chosen).detections} == {
        everything[1].label
    }


@pytest.mark.parametrize(
    ("image", "options", "error"),
    [
        (b"\x00\x01nothing", EVERYTHING, InvalidImage),
        (b"%PDF-1.7 and more", EVERYTHING, UnsupportedImage),
        (solid_png((0, 0, 0), 1001, 1000), EVERYTHING, ImageTooLarge),
        (solid_png((0, 0, 0)), DetectOptions(labels=("unicorn",)), InvalidOptions),
        (POISON, EVERYTHING, InferenceFailed),
    ],
    ids=["noise", "pdf", "pixels", "label", "poison"],
)
def test_errors_are_typed(
    client: HttpClient | GrpcClient,
    image: bytes,
    options: DetectOptions,
    error: type[ServiceError],
) -> None:
    with pytest.raises(error) as caught:
        client.detect(image, options, request_id="bad-1")
    assert caught.value.code == error.code_of_class
    assert caught.value.request_id == "bad-1"
    assert caught.value.detail


def test_message_above_the_limit_raises_image_too_large(service: Service) -> None:
    image = bytes(66 << 20)
    with GrpcClient(service.target) as rpc, pytest.raises(ImageTooLarge):
        rpc.detect(image)


def test_short_timeout_raises_deadline_exceeded(client: HttpClient | GrpcClient) -> None:
    with pytest.raises(DeadlineExceeded):
        client.detect(SLOW, timeout_s=0.001)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_batch_has_one_outcome_per_image(client: HttpClient | GrpcClient, count: int) -> None:
    images = [solid_png((number, 7, 7), 40 + number, 30) for number in range(count)]
    outcomes = client.detect_batch(images, EVERYTHING)
    assert len(outcomes) == count
    for image, outcome in zip(images, outcomes, strict=True):
        assert isinstance(outcome, DetectionResult)
        assert _same(outcome, client.detect(image, EVERYTHING))


@pytest.mark.parametrize("count", [1, 3])
def test_bad_image_in_a_batch_does_not_affect_the_others(
    client: HttpClient | GrpcClient, count: int
) -> None:
    images = [b"\x00\x01nothing", solid_png((1, 2, 3)), POISON][:count]
    outcomes = client.detect_batch(images, request_id="b")
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [InvalidImage, DetectionResult, InferenceFailed][:count]


def test_the_model_is_described(service: Service) -> None:
    with HttpClient(service.url) as http, GrpcClient(service.target) as rpc:
        model = http.model()
        assert model == rpc.model()
    assert (model.name, model.kernel) == ("fake", "fake")
    assert model.classes[0] == FAKE_MODEL.labels[0]
    assert model.engines == (Engine("fake", "fake", "", 0),)


def test_ready_service_is_reported_as_ready(client: HttpClient | GrpcClient) -> None:
    assert client.ready()


async def test_asynchronous_clients_have_all_methods(
    async_client: AsyncHttpClient | AsyncGrpcClient,
) -> None:
    images = [solid_png((number, 9, 9)) for number in range(12)]
    results = await asyncio.gather(*(async_client.detect(image, EVERYTHING) for image in images))
    outcomes = await async_client.detect_batch([*images[:3], b"\x00\x01nothing"], EVERYTHING)
    for result, outcome in zip(results[:3], outcomes[:3], strict=True):
        assert isinstance(outcome, DetectionResult)
        assert _same(result, outcome)
    assert isinstance(outcomes[3], InvalidImage)
    assert await async_client.detect_batch([]) == []
    model = await async_client.model()
    assert (model.name, [engine.kernel for engine in model.engines]) == ("fake", ["fake"])
    assert await async_client.ready()
    with pytest.raises(DeadlineExceeded):
        await async_client.detect(SLOW, timeout_s=0.001)


async def test_unreachable_service_raises_connection_failed() -> None:
    url, target = "http://127.0.0.1:9", "127.0.0.1:9"  # the discard port
    with HttpClient(url, retries=ONCE) as http, GrpcClient(target, retries=ONCE) as rpc:
        for client in (http, rpc):
            assert not client.ready()
            with pytest.raises(ConnectionFailed):
                client.detect(b"image")
    async with (
        AsyncHttpClient(url, retries=ONCE) as async_http,
        AsyncGrpcClient(target, retries=ONCE) as async_rpc,
    ):
        for async_client in (async_http, async_rpc):
            assert not await async_client.ready()
            with pytest.raises(ConnectionFailed):
                await async_client.detect(b"image")


@pytest.mark.parametrize("request_id", ["a\nb", "é"])
async def test_a_request_id_that_cannot_be_sent_is_refused_by_all_clients(request_id: str) -> None:
    url, target = "http://127.0.0.1:9", "127.0.0.1:9"  # the discard port; nothing is sent
    refuses = pytest.raises(ValueError, match="request_id takes printable ASCII")
    with HttpClient(url) as http, GrpcClient(target) as rpc:
        for client in (http, rpc):
            with refuses:
                client.detect(b"image", request_id=request_id)
            with refuses:
                client.detect_batch([b"image"], request_id=request_id)
        with refuses:
            rpc.detect_stream([b"image"], request_id=request_id)
    async with AsyncHttpClient(url) as async_http, AsyncGrpcClient(target) as async_rpc:
        for async_client in (async_http, async_rpc):
            with refuses:
                await async_client.detect(b"image", request_id=request_id)
            with refuses:
                await async_client.detect_batch([b"image"], request_id=request_id)
        with refuses:
            async_rpc.detect_stream([b"image"], request_id=request_id)


FRAMES = [solid_png((number, 255 - number, 3)) for number in range(30)]
FRAMES[7] = b"\x00\x01nothing"


def _check_stream(outcomes: list[DetectionResult | ServiceError], service: Service) -> None:
    with GrpcClient(service.target) as rpc:
        for number, (frame, outcome) in enumerate(zip(FRAMES, outcomes, strict=True)):
            if number == 7:
                assert isinstance(outcome, InvalidImage)
            else:
                assert isinstance(outcome, DetectionResult)
                assert _same(outcome, rpc.detect(frame, EVERYTHING))


def test_stream_results_come_in_order(service: Service) -> None:
    with GrpcClient(service.target) as rpc:
        outcomes = list(rpc.detect_stream(iter(FRAMES), EVERYTHING))
    _check_stream(outcomes, service)


async def test_asynchronous_stream_results_come_in_order(service: Service) -> None:
    async def frames() -> AsyncIterator[bytes]:
        for frame in FRAMES:
            yield frame

    async with AsyncGrpcClient(service.target) as rpc:
        outcomes = [outcome async for outcome in rpc.detect_stream(frames(), EVERYTHING)]
    _check_stream(outcomes, service)


async def test_errors_of_the_frame_source_are_raised_after_the_results(service: Service) -> None:
    def frames() -> Iterator[bytes]:
        yield FRAMES[0]
        raise LookupError("the camera failed")

    async def async_frames() -> AsyncIterator[bytes]:
        for frame in frames():
            yield frame

    results: list[DetectionResult | ServiceError] = []
    with GrpcClient(service.target) as rpc, pytest.raises(LookupError):
        results.extend(rpc.detect_stream(frames()))
    async with AsyncGrpcClient(service.target) as async_rpc:
        with pytest.raises(LookupError):
            async for result in async_rpc.detect_stream(async_frames()):
                results.append(result)
    assert [type(result) for result in results] == [DetectionResult, DetectionResult]


def test_stream_can_be_closed_early(service: Service) -> None:
    with GrpcClient(service.target) as rpc:
        stream = rpc.detect_stream(iter(FRAMES))
        assert isinstance(next(stream), DetectionResult)
        stream.close()  # type: ignore[attr-defined]
        assert rpc.ready()


def test_stream_to_an_unreachable_service_raises_connection_failed() -> None:
    with GrpcClient("127.0.0.1:9") as rpc, pytest.raises(ConnectionFailed):
        list(rpc.detect_stream(iter(FRAMES)))


def test_the_client_needs_neither_torch_nor_the_service() -> None:
    script = (
        "import sys, lite_detr_client\n"
        "heavy = {'torch', 'numpy', 'service', 'model', 'fastapi'} & set(sys.modules)\n"
        "sys.exit(str(sorted(heavy)) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == 0
