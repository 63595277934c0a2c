"""TLS of both servers, from one set of files that may be renewed while the service runs.

files --reload--> TlsFiles --+-- context: new HTTP connections
                             +-- grpc_credentials: new gRPC connections
"""

from __future__ import annotations

import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc

from model.data.input_files import TEXT_BYTES, read_regular_file


class TlsFileError(ValueError):
    """Certificate files that cannot be used; the message names the files."""


@dataclass(frozen=True)
class _Pem:
    """The contents of the files."""

    certificate: bytes
    key: bytes
    authority: bytes | None


class TlsFiles:
    """PEM files: the server's certificate and key and, for mutual TLS, the clients' CA.

    Attributes:
        context: server context for HTTP; each new connection uses the files that were last loaded.
    """

    def __init__(self, certificate: Path, key: Path, client_authority: Path | None = None) -> None:
        """Loads the files.

        Args:
            certificate: followed by its chain.
            key: of the certificate, without a pass phrase.
            client_authority: if set, clients need a certificate signed by it.

        Raises:
            TlsFileError: if files are missing, invalid or do not match.
        """
        self._certificate, self._key, self._authority = certificate, key, client_authority
        self._pem = self._with_authority(self._with_pair(_Pem(b"", b"", None)))
        self.context = _RenewableContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.current = _server_context(self._pem)

    def reload(self) -> list[TlsFileError]:
        """Loads the files again for new connections; open ones continue.

        The certificate with its key, and the client authority, are renewed independently: one that
        cannot be used keeps its previous contents.

        Returns:
            An error for each of the two that cannot be used.
        """
        errors = []
        latest = self._pem
        for load in (self._with_pair, self._with_authority):
            try:
                latest = load(latest)
            except TlsFileError as error:
                errors.append(error)
        if latest != self._pem:
            # A context of its own: authorities cannot be removed from a context, and sessions of
            # clients that an earlier authority has verified must not be resumed.
            self.context.current = _server_context(latest)
            self._pem = latest
        return errors

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Creates gRPC credentials that use the files as loaded at each new connection."""
        current = self._pem

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal current
            if self._pem == current:
                return None
            current = self._pem
            return _configuration(current)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(current),
            renewed,  # type: ignore[arg-type]  # None means no change
            require_client_authentication=self._authority is not None,
        )

    def _with_pair(self, pem: _Pem) -> _Pem:
        """Returns `pem` with the certificate and key in the files, if they can be used."""
        try:
            latest = replace(
                pem,
                certificate=read_regular_file(self._certificate, TEXT_BYTES),
                key=read_regular_file(self._key, TEXT_BYTES),
            )
            _load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), latest)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise TlsFileError(
                f"{self._certificate} and {self._key}: cannot be used: {error}"
            ) from error
        return latest

    def _with_authority(self, pem: _Pem) -> _Pem:
        """Returns `pem` with the client authority in the file, if it can be used."""
        if self._authority is None:
            return pem
        try:
            authority = read_regular_file(self._authority, TEXT_BYTES)
            _load_authority(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), authority)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise TlsFileError(f"{self._authority}: cannot be used: {error}") from error
        return replace(pem, authority=authority)


class _RenewableContext(ssl.SSLContext):
    """A server context that can be exchanged: asyncio and uvloop wrap each connection with it."""

    current: ssl.SSLContext

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """Wraps a new connection with the current context."""
        return self.current.wrap_bio(*args, **options)


def _server_context(pem: _Pem) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load_pair(context, pem)
    if pem.authority is not None:
        _load_authority(context, pem.authority)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load_pair(context: ssl.SSLContext, pem: _Pem) -> None:
    """Loads certificate and key from memory, as files may have changed since they were checked."""
    with _as_file(pem.certificate) as certificate, _as_file(pem.key) as key:
        context.load_cert_chain(certificate, key, password=_refuse_password)


def _load_authority(context: ssl.SSLContext, authority: bytes) -> None:
    # latin-1 cannot fail: comments around the certificates may have any encoding.
    context.load_verify_locations(cadata=_only_certificates(authority.decode("latin-1")))


def _only_certificates(text: str) -> str:
    """Returns the PEM blocks of a file without the text between them, which may not be ASCII."""
    kept, inside = [], False
    for line in text.splitlines():
        inside = inside or line.startswith("-----BEGIN ")
        if inside:
            kept.append(line)
        inside = inside and not line.startswith("-----END ")
    return "\n".join(kept) + "\n"


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Yields the path of a file in memory: `ssl` loads certificates and keys only from paths."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("lite-detr-pem", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    with tempfile.NamedTemporaryFile() as file:  # readable by this user only
        file.write(content)
        file.flush()
        yield file.name


def _configuration(pem: _Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.certificate)], pem.authority)


def _refuse_password() -> str:
    """Replaces OpenSSL's prompt, which would wait for input on the terminal."""
    raise ValueError("the key is encrypted; use one without a pass phrase")
