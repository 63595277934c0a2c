#!/bin/sh
# Creates the virtual environment $1 with the first Python >= 3.11 that works (PYTHON=... to choose).
set -eu
venv=$1
[ -x "$venv/bin/python" ] && exit 0

# Runs each candidate, because the shim of a version manager may exist and fail.
for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3.14; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        if ! "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            echo "error: $candidate lacks the venv module (Debian, Ubuntu: apt install python3-venv)" >&2
            exit 1
        fi
        echo "==> Creating $venv with $("$candidate" --version)"
        exec "$candidate" -m venv "$venv"
    fi
done
echo "error: no Python >= 3.11 found; install one, or name it: make serve PYTHON=/path/to/python3.11" >&2
exit 1
