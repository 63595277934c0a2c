"""Who may use the service and how it is protected on the way: keys and TLS of one deployment.

Made once from the settings for all servers. SIGHUP reads the files again; bad ones change nothing.
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
    """What guards the doors; None where a guard was not asked for."""

    keys: KeyRing | None = None
    tls: TlsFiles | None = None
    tls_context: ssl.SSLContext | None = None  # of HTTP; gRPC reads the files by itself

    @classmethod
    def from_settings(cls, settings: Settings) -> Access:
        """Reads the files that the settings name.

        Raises:
            KeyFileError: for a key file that cannot be used.
            TlsFileError: for certificate files that cannot be used.
        """
        keys = None if settings.api_keys_file is None else KeyRing(settings.api_keys_file)
        if settings.tls_certificate_file is None or settings.tls_key_file is None:
            return cls(keys)
        tls = TlsFiles(
            settings.tls_certificate_file, settings.tls_key_file, settings.tls_client_ca_file
        )
        return cls(keys, tls, tls.context())

    def reload(self) -> None:
        """Takes keys and certificate as their files are now; what cannot be used is logged."""
        try:
            if self.keys is not None:
                _log.info("API keys read again", keys=self.keys.reload())
            if self.tls is not None and self.tls_context is not None:
                self.tls.load_into(self.tls_context)
                _log.info("certificate read again")
        except (KeyFileError, TlsFileError) as error:
            _log.error("a renewal failed; what held before holds on", error=str(error))
