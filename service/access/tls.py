"""TLS of both servers, from one set of files that may be renewed while the service runs."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc


class TlsFileError(ValueError):
    """Certificate files that cannot be used; the message names the files."""


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: the server's certificate and key and, for mutual TLS, the clients' CA."""

    certificate: Path  # followed by its chain
    key: Path
    client_authority: Path | None = None  # if set, clients need a certificate signed by it

    def context(self) -> ssl.SSLContext:
        """Creates a server context for HTTP.

        Raises:
            TlsFileError: if files are missing, invalid or do not match.
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
        """Loads the current certificate into a context; open connections keep theirs.

        Raises:
            TlsFileError: if files are missing, invalid or do not match.
        """
        try:
            # Into a new context first: an invalid pair must not change the one in use.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                self.certificate, self.key, password=_refuse_password
            )
            context.load_cert_chain(self.certificate, self.key, password=_refuse_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise TlsFileError(
                f"{self.certificate} and {self.key}: cannot be used: {error}"
            ) from error

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Creates gRPC credentials that reload changed files; invalid files are not used.

        Raises:
            TlsFileError: if the files cannot be used now.
        """
        self.context()  # gRPC would only log an invalid pair
        current = self._pem()

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal current
            try:
                latest = self._pem()
                if latest == current:
                    return None
                self.context()
            except (OSError, TlsFileError):
                return None
            current = latest
            return _configuration(latest)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(current),
            renewed,  # type: ignore[arg-type]  # None means no change
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
    """Replaces OpenSSL's prompt, which would wait for input on the terminal."""
    raise ValueError("the key is encrypted; use one without a pass phrase")
