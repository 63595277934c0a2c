"""The API keys and TLS files of a deployment, shared by all servers.

Created once from the settings. The files are read again when they change and after SIGHUP; files
that cannot be used are logged, and their previous contents stay in use.
"""

from __future__ import annotations

import asyncio
import ssl
import threading

import structlog

from service.access.api_keys import KeyFileError, KeyRing
from service.access.tls import TlsFiles
from service.access.watched_files import WatchedFiles
from service.settings import Settings

_POLL_SECONDS = 2.0

_log = structlog.get_logger(__name__)


class Access:
    """API keys and TLS.

    Attributes:
        keys: None: no key is required.
        tls: None: the servers do not use TLS.
    """

    def __init__(self, settings: Settings) -> None:
        """Reads the files named by the settings.

        Raises:
            KeyFileError: if the key file cannot be used.
            TlsFileError: if the certificate files cannot be used.
        """
        self.keys: KeyRing | None = None
        self.tls: TlsFiles | None = None
        self._key_file = WatchedFiles(settings.api_keys_file)
        self._tls_files = WatchedFiles(
            settings.tls_certificate_file, settings.tls_key_file, settings.tls_client_ca_file
        )
        self._lock = threading.Lock()  # `watch` and `reload_in_thread` read files in threads
        if settings.api_keys_file is not None:
            self.keys = KeyRing(settings.api_keys_file)
        if settings.tls_certificate_file is not None and settings.tls_key_file is not None:
            self.tls = TlsFiles(
                settings.tls_certificate_file, settings.tls_key_file, settings.tls_client_ca_file
            )

    @property
    def tls_context(self) -> ssl.SSLContext | None:
        """For HTTP servers; None: no TLS."""
        return None if self.tls is None else self.tls.context

    def reload(self) -> None:
        """Reads all files again; errors are logged and change nothing."""
        with self._lock:
            self._reload_keys()
            self._reload_tls()

    def reload_in_thread(self) -> None:
        """Calls `reload` in a thread, as files on a network may take long; returns at once."""
        threading.Thread(target=self._reload_logged, name="reload-access", daemon=True).start()

    def _reload_logged(self) -> None:
        try:
            self.reload()
        except Exception:
            _log.exception("keys and certificates could not be read")

    def reload_changed(self) -> None:
        """Reads the files that have changed, once they were the same for two calls."""
        with self._lock:
            if self._key_file.changed():
                self._reload_keys()
            if self._tls_files.changed():
                self._reload_tls()

    async def watch(self, poll_seconds: float = _POLL_SECONDS) -> None:
        """Reads changed files again, until it is cancelled."""
        if self.keys is None and self.tls is None:
            return
        while True:
            await asyncio.sleep(poll_seconds)
            try:
                # In a thread, as files on a network may take long.
                await asyncio.to_thread(self.reload_changed)
            except Exception:  # it must go on: revoked keys depend on it
                _log.exception("changed keys and certificates could not be read")

    def _reload_keys(self) -> None:
        if self.keys is None:
            return
        self._key_file.note_read()
        try:
            _log.info("API keys reloaded", keys=self.keys.reload())
        except KeyFileError as error:
            _log.error("API keys not reloaded; the previous ones stay in use", error=str(error))

    def _reload_tls(self) -> None:
        if self.tls is None:
            return
        self._tls_files.note_read()
        errors = self.tls.reload()
        for error in errors:
            _log.error(
                "certificate files not reloaded; the previous ones stay in use", error=str(error)
            )
        if not errors:
            _log.info("certificates reloaded")
