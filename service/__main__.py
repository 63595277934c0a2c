"""The command `lite-detr`, also as `python -m service`."""

from __future__ import annotations

import sys

from service.signals import handle_while_starting


def main() -> int:
    """Runs the command; returns its exit status."""
    if sys.argv[1:2] == ["serve"]:
        handle_while_starting()  # before the imports, which take long enough to meet a signal
    from service.cli import main as run_command  # noqa: PLC0415

    return run_command()


if __name__ == "__main__":
    sys.exit(main())
