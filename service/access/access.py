"""The API keys and TLS files of a deployment, shared by all servers.

Created once from the settings. SIGHUP reloads the files; invalid files are logged and not used.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass

import structlog

from service.access.api_keys import KeyFileError, KeyRing
from service.access.tls import TlsFileError, TlsFiles
from service.settings import Settings

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Access:
    """API keys and TLS; None where not configured."""

    keys: KeyRing | None = None
    tls: TlsFiles | None = None
    tls_context: ssl.SSLContext | None = None  # for HTTP; gRPC reads the files itself

    @classmethod
    def from_settings(cls, settings: Settings) -> Access:
        """Reads the files named by the settings.

        Raises:
            KeyFileError: if the key file cannot be used.
            TlsFileError: if the certificate files cannot be used.
        """
        keys = None if settings.api_keys_file is None else KeyRing(settings.api_keys_file)
        if settings.tls_certificate_file is None or settings.tls_key_file is None:
            return cls(keys)
        tls = TlsFiles(
            settings.tls_certificate_file, settings.tls_key_file, settings.tls_client_ca_file
        )
        return cls(keys, tls, tls.context())

    def reload(self) -> None:
        """Reloads the key file and the certificate; errors are logged and change nothing."""
        try:
            if self.keys is not None:
                _log.info("API keys reloaded", keys=self.keys.reload())
            if self.tls is not None and self.tls_context is not None:
                self.tls.load_into(self.tls_context)
                _log.info("certificate reloaded")
        except (KeyFileError, TlsFileError) as error:
            _log.error(
                "reload failed; the previous keys and certificate stay in use", error=str(error)
            )
