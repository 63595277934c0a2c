#!/usr/bin/env bash
# Runs the tests and measurements that need a GPU, within 600 seconds: see benchmarks/gpu/run.py.
#
#   bash benchmarks/gpu/run.sh [FOLDER [--parts NAME ...] [--seconds 600]]
#
# With less time than 600 seconds, for instance because packages are installed before: --seconds 560.
# FOLDER (default: benchmarks/results/gpu) gets results.tar.gz and report.md, both rewritten after every
# part. Requires a Python with torch (CUDA), numpy, pillow and safetensors; wheels.txt names what the
# service and the tests need in addition, and parts without it are left out. PYTHON selects another
# interpreter; DEVICE=cpu tries the script itself, on small sizes.
# Its kernels (161, 4 MB) take half a minute of CPU time to compile, which the GPU would wait for. Before,
# on a machine without a GPU but with the same version of NVRTC (its major and minor number):
#   python -m benchmarks.kernels.gpu prepare --architecture 90
# fills model/native/compiled, which has to be copied along; the first line of each result file says how
# many kernels are there, and which NVRTC is. The checkout takes 20 MB, the wheels 20 MB.
set -eu
cd "$(dirname "$0")/../.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
folder=${1:-benchmarks/results/gpu}
exec "${PYTHON:-python3}" -m benchmarks.gpu.run --device "${DEVICE:-cuda}" "$folder" "${@:2}"
