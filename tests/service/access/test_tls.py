"""TLS of both servers: real connections, and certificates renewed while the servers run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import uvloop

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
async def _https(context: ssl.SSLContext, **overrides: float) -> AsyncIterator[str]:
    settings = fake_settings(**overrides)
    app = create_app(StandIn().as_detector(), settings)
    server = HttpServer(app, settings, listen("127.0.0.1", 0), context)
    serving = asyncio.create_task(server.run_until_drained())
    try:
        yield f"https://127.0.0.1:{server.port}"
    finally:
        server.drain()
        await serving


async def test_a_connection_without_a_handshake_is_closed(authority: Authority) -> None:
    files = _files(authority.issue("server"))

    async def connect_and_say_nothing() -> bytes:
        async with _https(files.context, header_timeout_seconds=0.1) as url:
            port = int(url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            said = await reader.read()
            writer.close()
            return said

    for run in (asyncio.run, uvloop.run):
        assert await asyncio.to_thread(run, connect_and_say_nothing()) == b""


async def test_a_renewed_context_works_in_the_event_loop_of_the_service(
    authority: Authority,
) -> None:
    """uvloop handles TLS itself."""
    files = _files(authority.issue("server"))

    async def renew() -> bool:
        async with _https(files.context) as url:
            port = int(url.rpartition(":")[2])
            before = await _certificate_of(port)
            authority.issue("server")
            files.reload()
            return await _certificate_of(port) != before

    assert await asyncio.to_thread(uvloop.run, renew())


def _trusting(authority: Authority, client: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    return context


async def test_http_accepts_only_tls(authority: Authority) -> None:
    async with _https(_files(authority.issue("server")).context) as url:
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
    async with _https(_files(authority.issue("server")).context) as url:
        old = _trusting(authority)
        with pytest.warns(DeprecationWarning):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        port = int(url.rpartition(":")[2])
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", port, ssl=old)


async def test_mutual_tls_requires_a_certificate_of_http_clients(authority: Authority) -> None:
    files = _files(authority.issue("server"), authority)
    async with _https(files.context) as url:
        known = _trusting(authority, authority.issue("client"))
        async with AsyncHttpClient(url, tls=known) as client:
            assert (await client.detect(solid_png((1, 2, 3)))).detections
        async with AsyncHttpClient(url, tls=_trusting(authority), retries=ONCE) as stranger:
            with pytest.raises(ServiceError):
                await stranger.detect(solid_png((1, 2, 3)))


async def test_new_connections_get_a_renewed_certificate(authority: Authority) -> None:
    files = _files(authority.issue("server"))
    async with _https(files.context) as url:
        port = int(url.rpartition(":")[2])
        before = await _certificate_of(port)
        authority.issue("server")
        assert files.reload() == []
        assert await _certificate_of(port) != before


async def test_an_open_connection_continues_after_a_renewal(authority: Authority) -> None:
    files = _files(authority.issue("server"))
    async with (
        _https(files.context) as url,
        AsyncHttpClient(url, tls=_trusting(authority), retries=ONCE) as client,
    ):
        assert await client.ready()
        connections = _open_sockets()
        authority.issue("server")
        assert files.reload() == []
        assert await client.ready()
        assert _open_sockets() == connections


def _open_sockets() -> set[str]:
    """The sockets of this process: a new connection would add some."""
    links = (os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
    return {link for link in links if link.startswith("socket:")}


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
    pair = authority.issue("server")
    files = _files(pair)
    async with serving(StandIn().as_detector(), tls=files) as server:
        credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
        target = f"127.0.0.1:{server.port}"
        async with AsyncGrpcClient(target, credentials=credentials) as client:
            assert (await client.detect(solid_png((1, 2, 3)))).detections
        async with AsyncGrpcClient(target, retries=ONCE) as plain_client:
            with pytest.raises(ServiceError):
                await plain_client.detect(solid_png((1, 2, 3)), timeout_s=5)
        before = await _certificate_of(server.port)
        pair.key.write_text("broken")  # as in the middle of a renewal
        assert len(files.reload()) == 1
        assert await _certificate_of(server.port) == before
        authority.issue("server")
        assert files.reload() == []
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
        no_key = grpc.ssl_channel_credentials(root)
        async with AsyncGrpcClient(target, credentials=no_key, retries=ONCE) as stranger:
            with pytest.raises(ServiceError):
                await stranger.detect(solid_png((1, 2, 3)), timeout_s=5)


def test_files_that_do_not_match_are_refused(authority: Authority, tmp_path: Path) -> None:
    one, other = authority.issue("one"), authority.issue("other")
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for files in (
        (one.certificate, other.key),
        (tmp_path / "missing.pem", one.key),
        (one.key, one.key),
        (one.certificate, one.key, tmp_path / "missing.pem"),
        (one.certificate, one.key, one.key),
        (one.certificate, one.key, empty),
    ):
        with pytest.raises(TlsFileError, match="cannot be used"):
            TlsFiles(*files)


async def _accepted(url: str, tls: ssl.SSLContext) -> bool:
    """Whether an HTTPS client gets a response on a new connection."""
    async with AsyncHttpClient(url, tls=tls, retries=ONCE) as client:
        try:
            return bool((await client.detect(solid_png((1, 2, 3)))).detections)
        except ServiceError:
            return False


async def test_new_http_connections_are_verified_by_a_renewed_client_authority(
    authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    new = Authority(tmp_path / "new")
    clients = tmp_path / "clients.pem"
    clients.write_bytes(authority.certificate.read_bytes())
    pair = authority.issue("server")
    files = TlsFiles(pair.certificate, pair.key, clients)
    async with _https(files.context) as url:
        old_client = _trusting(authority, authority.issue("client"))
        new_client = _trusting(authority, new.issue("client"))
        assert [await _accepted(url, old_client), await _accepted(url, new_client)] == [True, False]
        clients.write_bytes(new.certificate.read_bytes())
        assert files.reload() == []
        assert [await _accepted(url, old_client), await _accepted(url, new_client)] == [False, True]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_of_an_earlier_client_authority_is_not_resumed(
    authority: Authority, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    (tmp_path / "new").mkdir()
    clients = tmp_path / "clients.pem"
    clients.write_bytes(authority.certificate.read_bytes())
    pair = authority.issue("server")
    files = TlsFiles(pair.certificate, pair.key, clients)
    async with _https(files.context) as url:
        context = _trusting(authority, authority.issue("client"))
        context.maximum_version = version
        port = int(url.rpartition(":")[2])
        session, _ = await asyncio.to_thread(_exchange, port, context, None)
        _, resumed = await asyncio.to_thread(_exchange, port, context, session)
        assert resumed
        clients.write_bytes(Authority(tmp_path / "new").certificate.read_bytes())
        assert files.reload() == []
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(_exchange, port, context, session)


def _exchange(
    port: int, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[ssl.SSLSession | None, bool]:
    """One request on a new connection: its TLS session, and whether it was resumed."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as secured,
    ):
        secured.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        if not secured.recv(1000):  # TLS 1.3: the client does not see the refusal earlier
            raise ConnectionError
        return secured.session, bool(secured.session_reused)


async def test_one_unusable_file_does_not_stop_the_renewal_of_the_others(
    authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    new = Authority(tmp_path / "new")
    clients = tmp_path / "clients.pem"
    clients.write_bytes(authority.certificate.read_bytes())
    pair = authority.issue("server")
    files = TlsFiles(pair.certificate, pair.key, clients)
    old_client = _trusting(authority, authority.issue("client"))
    new_client = _trusting(authority, new.issue("client"))
    async with _https(files.context) as url:
        port = int(url.rpartition(":")[2])
        before = await _certificate_of(port)
        clients.write_bytes(new.certificate.read_bytes())
        pair.key.write_text("broken")
        (error,) = files.reload()
        assert str(pair.key) in str(error)
        assert await _certificate_of(port) == before
        assert [await _accepted(url, old_client), await _accepted(url, new_client)] == [False, True]
        authority.issue("server")
        clients.write_text("broken")
        (error,) = files.reload()
        assert str(clients) in str(error)
        assert await _certificate_of(port) != before
        assert [await _accepted(url, old_client), await _accepted(url, new_client)] == [False, True]


async def test_grpc_verifies_new_connections_by_a_renewed_client_authority(
    authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    new = Authority(tmp_path / "new")
    clients = tmp_path / "clients.pem"
    clients.write_bytes(authority.certificate.read_bytes())
    pair = authority.issue("server")
    files = TlsFiles(pair.certificate, pair.key, clients)
    async with serving(StandIn().as_detector(), tls=files) as server:

        async def accepted(client: Pair) -> bool:
            credentials = grpc.ssl_channel_credentials(
                authority.certificate.read_bytes(),
                client.key.read_bytes(),
                client.certificate.read_bytes(),
            )
            target = f"127.0.0.1:{server.port}"
            async with AsyncGrpcClient(target, credentials=credentials, retries=ONCE) as caller:
                try:
                    return bool((await caller.detect(solid_png((1, 2, 3)), timeout_s=5)).detections)
                except ServiceError:
                    return False

        old_client, new_client = authority.issue("client"), new.issue("client")
        assert [await accepted(old_client), await accepted(new_client)] == [True, False]
        clients.write_bytes(new.certificate.read_bytes())
        assert files.reload() == []
        assert [await accepted(old_client), await accepted(new_client)] == [False, True]


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
        _files(pair)
