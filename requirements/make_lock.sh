#!/bin/sh
# Writes the lock file $2 with the pip-compile at $1: every package of every extra, exactly.
# The file says versions and nothing else: no index, no host, no path, no build tag (`+cpu`), so
# that the same pin installs whichever build of torch the user's own pip configuration offers.
set -eu
pip_compile=$1
lock=$2
draft=$(mktemp)
trap 'rm -f "$draft"' EXIT
cp "$lock" "$draft" 2>/dev/null || true # versions already chosen are kept
"$pip_compile" --quiet --all-extras --strip-extras --allow-unsafe --no-header --no-annotate \
    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options \
    --output-file "$draft" pyproject.toml
{
    echo "# Exact versions of everything that serving, training and testing install."
    echo "# Written by 'make lock' from pyproject.toml; delete a line before it to renew that package."
    grep -E '^[A-Za-z0-9]' "$draft" | sed 's/+[a-z0-9.]*\( *;.*\)\{0,1\}$/\1/' | LC_ALL=C sort
} >"$lock"
