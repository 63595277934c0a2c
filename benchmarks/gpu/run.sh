#!/usr/bin/env bash
# Runs the tests and measurements that need a GPU, within 600 seconds: see benchmarks/gpu/run.py.
#
#   bash benchmarks/gpu/run.sh [FOLDER]
#
# FOLDER (default: benchmarks/results/gpu) gets results.tar.gz and report.md, both rewritten after every
# part. Requires a Python with torch (CUDA), numpy, pillow and safetensors; wheels.txt names what the
# service and the tests need in addition, and parts without it are left out. PYTHON selects another
# interpreter; DEVICE=cpu tries the script itself, on small sizes.
# The kernels of random shapes take minutes to compile; before, on a machine without a GPU but with NVRTC:
#   python -m benchmarks.kernels.gpu prepare --architecture 90
# fills model/native/compiled, which has to be copied along.
set -eu
cd "$(dirname "$0")/../.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m benchmarks.gpu.run --device "${DEVICE:-cuda}" "${1:-benchmarks/results/gpu}"
