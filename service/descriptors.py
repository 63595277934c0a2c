"""The limit of open files, sized for all connections that the service accepts at once.

Without room for connections, also probes and new engines fail: the process can open nothing more.
"""

from __future__ import annotations

import resource

import structlog

from service.settings import Settings

# Sockets, memory files and /proc entries.
_PER_ENGINE = 8
_PER_DECODER = 8
_OTHER = 256  # event loop, listeners, log, modules, probes, and a reserve for all of these

_log = structlog.get_logger(__name__)


def allow_descriptors(settings: Settings, decoders: int) -> int:
    """Raises the soft limit of open files as far as the settings need, or the hard limit allows.

    Args:
        settings: `max_connections` counts once for HTTP requests, once for TLS handshakes and
            once for gRPC.
        decoders: number of decoder processes.

    Returns:
        The soft limit that is in force; -1 for no limit.
    """
    listeners = (
        2 + (settings.tls_certificate_file is not None) + (settings.metrics_port is not None)
    )
    needed = listeners * settings.max_connections + _OTHER
    needed += _PER_ENGINE * len(settings.engine_devices) + _PER_DECODER * decoders
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < needed:
        soft = needed if hard == unlimited else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft != unlimited and soft < needed:
        _log.warning(
            "open files are limited; raise the hard limit or lower max_connections",
            limit=soft,
            needed=needed,
        )
    else:
        _log.debug("open files", limit=soft, needed=needed)
    return soft
