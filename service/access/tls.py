"""TLS for both servers from one set of files, which may be renewed while the service runs."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc


class TlsFileError(ValueError):
    """Certificate files that cannot be used; the message names them."""


@dataclass(frozen=True)
class TlsFiles:
    """PEM files of the server's certificate and, for mutual TLS, of its clients' authority."""

    certificate: Path  # with the chain behind it
    key: Path
    client_authority: Path | None = None  # set: clients must show a certificate it has signed

    def context(self) -> ssl.SSLContext:
        """A server's context.

        Raises:
            TlsFileError: for files that are missing, broken, or do not belong together.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        self.load_into(context)
        try:
            if self.client_authority is not None:
                context.load_verify_locations(self.client_authority)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError) as error:
            raise TlsFileError(f"{self.client_authority}: cannot be used: {error}") from error
        return context

    def load_into(self, context: ssl.SSLContext) -> None:
        """Gives a context the certificate as it is now; connections that are open keep theirs.

        Raises:
            TlsFileError: for files that are missing, broken, or do not belong together.
        """
        try:
            # A context of its own first: a bad pair must not spoil the one in use.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                self.certificate, self.key, password=_refuse_password
            )
            context.load_cert_chain(self.certificate, self.key, password=_refuse_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise TlsFileError(
                f"{self.certificate} and {self.key}: cannot be used: {error}"
            ) from error

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Credentials that read the files anew when they have changed; bad ones change nothing.

        Raises:
            TlsFileError: for files that cannot be used now.
        """
        self.context()  # gRPC itself would only log a bad pair
        seen = self._pem()

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal seen
            try:
                now = self._pem()
                if now == seen:
                    return None
                self.context()
            except (OSError, TlsFileError):
                return None
            seen = now
            return _configuration(now)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(seen),
            renewed,  # type: ignore[arg-type]  # None is allowed: no change
            require_client_authentication=self.client_authority is not None,
        )

    def _pem(self) -> tuple[bytes, bytes, bytes | None]:
        authority = self.client_authority
        return (
            self.key.read_bytes(),
            self.certificate.read_bytes(),
            None if authority is None else authority.read_bytes(),
        )


def _configuration(pem: tuple[bytes, bytes, bytes | None]) -> grpc.ServerCertificateConfiguration:
    key, certificate, authority = pem
    return grpc.ssl_server_certificate_configuration([(key, certificate)], authority)


def _refuse_password() -> str:
    """Instead of OpenSSL's prompt, which would wait for somebody at a terminal."""
    raise ValueError("the key is encrypted; give one without a pass phrase")
