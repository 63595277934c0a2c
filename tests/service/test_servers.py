"""Errors of addresses that the service cannot listen on."""

from __future__ import annotations

import errno
import socket

import pytest

from service.servers import PortUnavailable
from service.settings import load_settings


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EADDRINUSE, "-"), "Address already in use. Choose another with --http-port"),
        (OSError(errno.EACCES, "-"), "Permission denied. Choose another with --http-port"),
        (OSError(errno.EADDRNOTAVAIL, "-"), "Choose another with --host (LITE_DETR_HOST)"),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), "unknown. Choose another with --host"),
    ],
)
def test_the_setting_that_must_change_is_named(error: OSError, words: str) -> None:
    assert words in str(PortUnavailable(load_settings(), "http_port", error))
