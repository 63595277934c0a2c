#!/bin/sh
# Writes the lock file $2 with the uv at $1: every package of every extra, one exact version each
# for all supported platforms and Python versions (Linux and macOS, 3.11 and later).
# It contains versions and nothing else: no index, no host, no path, no build tag (`+cpu`), so
# that the same pin installs whichever build of torch the user's own pip configuration offers.
# Packages that only the CUDA build of torch requires are left out: torch pins them itself.
set -eu
uv=$1
lock=$2
draft=$(mktemp)
trap 'rm -f "$draft"' EXIT
cp "$lock" "$draft" 2>/dev/null || true # versions already chosen are kept
"$uv" pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --all-extras \
    --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
    --output-file "$draft" pyproject.toml
{
    echo "# Exact versions of everything that serving, training and testing install."
    echo "# Written by 'make lock' from pyproject.toml; delete a line before it to update that package."
    # A marker is kept only where a package needs different versions; elsewhere the pin is enough.
    grep -E '^[A-Za-z0-9]' "$draft" |
        grep -vE "os_name == 'nt'( or sys_platform == 'win32')?\$" |
        grep -vE '^(cuda-toolkit|triton|nvidia-[a-z0-9-]*-cu13)==' |
        grep -vE '^nvidia-(cublas|cu(fft|file|rand|solver|sparse)|nvjitlink|nvtx|cuda-(cupti|runtime))==' |
        awk '{ split($0, pin, /==| ;/); count[pin[1]]++; name[NR] = pin[1]; line[NR] = $0 }
            END { for (i = 1; i <= NR; i++) {
                if (count[name[i]] == 1) sub(/ *;.*/, "", line[i])
                print line[i] } }' |
        sed 's/+[a-z0-9.]*//' | LC_ALL=C sort
} >"$lock"
