"""The command `lite-detr`, also as `python -m service`."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

from service.signals import handle_while_starting

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main() -> int:
    """Runs the command; returns its exit status."""
    _open_standard_streams()
    if sys.argv[1:2] == ["serve"]:
        handle_while_starting()  # before the imports, which take long enough to meet a signal
    try:
        from service.cli import main as run_command  # noqa: PLC0415

        return run_command()
    except KeyboardInterrupt:  # during the imports; the commands themselves handle it
        return _INTERRUPTED


def _open_standard_streams() -> None:
    """Opens the null device for closed standard streams; else other files get their numbers.

    Characters that stdout's encoding does not have are escaped instead of ending the command.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or open(1, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w")  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has by default


if __name__ == "__main__":
    sys.exit(main())
