"""TLS of both servers: real connections, and certificates renewed while the servers run."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from lite_detr_client import AsyncGrpcClient, AsyncHttpClient, RetryPolicy, ServiceError
from service.access.tls import TlsFileError, TlsFiles
from service.rest import create_app
from service.transport.http_server import HttpServer, listen
from tests.service.rest.standin import StandIn
from tests.service.rpc.caller import serving
from tests.support.certificates import Authority, Pair
from tests.support.fake_service import fake_settings
from tests.support.images import solid_png

ONCE = RetryPolicy(attempts=1)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def _files(pair: Pair, authority: Authority | None = None) -> TlsFiles:
    return TlsFiles(pair.certificate, pair.key, authority.certificate if authority else None)


@asynccontextmanager
async def _https(context: ssl.SSLContext) -> AsyncIterator[str]:
    settings = fake_settings()
    app = create_app(StandIn().as_detector(), settings)
    server = HttpServer(app, settings, listen("127.0.0.1", 0), context)
    serving = asyncio.create_task(server.run_until_drained())
    try:
        yield f"https://127.0.0.1:{server.port}"
    finally:
        server.drain()
        await serving


def _trusting(authority: Authority, client: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    return context


async def test_http_accepts_only_tls(authority: Authority) -> None:
    async with _https(_files(authority.issue("server")).context()) as url:
        async with AsyncHttpClient(url, tls=_trusting(authority)) as client:
            assert (await client.detect(solid_png((1, 2, 3)))).detections
        async with AsyncHttpClient(url, retries=ONCE) as stranger:  # does not trust the authority
            with pytest.raises(ServiceError, match="certificate"):
                await stranger.detect(solid_png((1, 2, 3)))
        plain = url.replace("https", "http")
        async with AsyncHttpClient(plain, retries=ONCE) as plain_client:
            with pytest.raises(ServiceError):
                await plain_client.detect(solid_png((1, 2, 3)))


async def test_old_versions_of_tls_are_refused(authority: Authority) -> None:
    async with _https(_files(authority.issue("server")).context()) as url:
        old = _trusting(authority)
        with pytest.warns(DeprecationWarning):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        port = int(url.rpartition(":")[2])
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", port, ssl=old)


async def test_mutual_tls_requires_a_certificate_of_http_clients(authority: Authority) -> None:
    files = _files(authority.issue("server"), authority)
    async with _https(files.context()) as url:
        known = _trusting(authority, authority.issue("client"))
        async with AsyncHttpClient(url, tls=known) as client:
            assert (await client.detect(solid_png((1, 2, 3)))).detections
        async with AsyncHttpClient(url, tls=_trusting(authority), retries=ONCE) as stranger:
            with pytest.raises(ServiceError):
                await stranger.detect(solid_png((1, 2, 3)))


async def test_new_connections_get_a_renewed_certificate(authority: Authority) -> None:
    files = _files(authority.issue("server"))
    context = files.context()
    async with _https(context) as url:
        port = int(url.rpartition(":")[2])
        before = await _certificate_of(port)
        authority.issue("server")
        files.load_into(context)
        assert await _certificate_of(port) != before


async def _certificate_of(port: int) -> bytes:
    """The certificate that a server sends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()
    assert isinstance(certificate, bytes)
    return certificate


async def test_grpc_accepts_only_tls_and_uses_a_renewed_certificate(
    authority: Authority,
) -> None:
    files = _files(authority.issue("server"))
    async with serving(StandIn().as_detector(), tls=files) as server:
        credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
        target = f"127.0.0.1:{server.port}"
        async with AsyncGrpcClient(target, credentials=credentials) as client:
            assert (await client.detect(solid_png((1, 2, 3)))).detections
        async with AsyncGrpcClient(target, retries=ONCE) as plain_client:
            with pytest.raises(ServiceError):
                await plain_client.detect(solid_png((1, 2, 3)), timeout_s=5)
        before = await _certificate_of(server.port)
        files.key.write_text("broken")  # as in the middle of a renewal
        assert await _certificate_of(server.port) == before
        authority.issue("server")
        assert await _certificate_of(server.port) != before


async def test_mutual_tls_requires_a_certificate_of_grpc_clients(authority: Authority) -> None:
    files = _files(authority.issue("server"), authority)
    async with serving(StandIn().as_detector(), tls=files) as server:
        root, client = authority.certificate.read_bytes(), authority.issue("client")
        known = grpc.ssl_channel_credentials(
            root, client.key.read_bytes(), client.certificate.read_bytes()
        )
        target = f"127.0.0.1:{server.port}"
        async with AsyncGrpcClient(target, credentials=known) as caller:
            assert (await caller.detect(solid_png((1, 2, 3)))).detections
        nobody = grpc.ssl_channel_credentials(root)
        async with AsyncGrpcClient(target, credentials=nobody, retries=ONCE) as stranger:
            with pytest.raises(ServiceError):
                await stranger.detect(solid_png((1, 2, 3)), timeout_s=5)


def test_files_that_do_not_match_are_refused(authority: Authority, tmp_path: Path) -> None:
    one, other = authority.issue("one"), authority.issue("other")
    for files in (
        TlsFiles(one.certificate, other.key),
        TlsFiles(tmp_path / "missing.pem", one.key),
        TlsFiles(one.key, one.key),
        TlsFiles(one.certificate, one.key, tmp_path / "missing.pem"),
        TlsFiles(one.certificate, one.key, one.key),
    ):
        with pytest.raises(TlsFileError, match="cannot be used"):
            files.context()


def test_an_invalid_renewal_does_not_change_the_context(authority: Authority) -> None:
    pair = authority.issue("server")
    files = _files(pair)
    context = files.context()
    pair.key.write_text("broken")
    with pytest.raises(TlsFileError):
        files.load_into(context)
    assert context.cert_store_stats() == _stats_of_new_files(authority)


def _stats_of_new_files(authority: Authority) -> dict[str, int]:
    return _files(authority.issue("another")).context().cert_store_stats()


def test_a_key_with_a_pass_phrase_is_refused_without_a_prompt(
    authority: Authority, tmp_path: Path
) -> None:
    from cryptography.hazmat.primitives import serialization

    pair = authority.issue("server")
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    pair.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(TlsFileError, match="encrypted"):
        _files(pair).context()
