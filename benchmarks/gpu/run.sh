#!/usr/bin/env bash
# Runs all tests and measurements that need a GPU; results go to FOLDER (default: $OUT).
#
#   bash benchmarks/gpu/run.sh [FOLDER] [TRAINING_MINUTES]
#
# Without training it takes at most 10 minutes: each part has its own time limit and result file; a
# failed part is named at the end and does not stop the others. Requires a Python with torch (CUDA),
# numpy, pillow and safetensors; parts over HTTP also require the service's packages (fastapi,
# uvicorn, ...) and report those that are missing; tests require pytest; training requires scipy,
# zxing-cpp, opencv-python-headless, scikit-image, scikit-learn and rich. PYTHON selects another
# interpreter; DEVICE=cpu tests the script itself, on small sizes.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-${OUT:-benchmarks/results/gpu}}
minutes=${2:-0}
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$out"
failed=()

part() { # NAME SECONDS COMMAND...: runs one part within its time limit, writes its output to a file
    local name=$1 limit=$2
    shift 2
    echo "==> $name"
    timeout --kill-after=5 "$limit" "$@" 2>&1 | tee "$out/$name.txt" || failed+=("$name")
}

if [ "$device" = cuda ]; then
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv | tee "$out/device.txt" || exit 1
    small=()
    trial=()
    engine_trial=()
else
    small=(--small)
    trial=(--size 192 256 --batches 1 --repeats 1)
    engine_trial=(--models default --precisions fp32 --size 192 256 --batches 1 2 --repeats 1)
fi
"$python" -c 'import sys, torch; print(sys.version, torch.__version__, torch.version.cuda)' | tee -a "$out/device.txt"
date -u +%FT%TZ | tee -a "$out/device.txt"

kernels=("$python" -m benchmarks.kernels.gpu)
here=(--device "$device" "${small[@]}")
# Correctness first; the limits add up to 575 seconds.
part kernels_check 50 "${kernels[@]}" check --seconds 30 "${here[@]}" --json "$out/kernels_check.json"
part kernels_repeat 45 "${kernels[@]}" repeat "${here[@]}" --json "$out/kernels_repeat.json"
if [ "$device" = cuda ] && "$python" -c 'import pytest, pytest_asyncio, structlog' 2>/dev/null; then
    part tests 35 "$python" -m pytest -q -m requires_cuda -p no:cacheprovider tests/service/engine/test_gpu_device.py
fi
part pipeline 100 "$python" -m benchmarks.gpu.pipeline --device "$device" --seconds 80 "${engine_trial[@]}" \
    --json "$out/pipeline.json"
part kernels_time 50 "${kernels[@]}" time --repeats 20 "${here[@]}" --json "$out/kernels_time.json"
if command -v compute-sanitizer >/dev/null && [ "$device" = cuda ]; then
    for tool in memcheck racecheck; do
        part "sanitizer_$tool" 35 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "${kernels[@]}" check --seconds 8 "${here[@]}" --json "$out/sanitizer_$tool.json"
    done
fi
part model_speed 75 "$python" -m benchmarks.gpu.model_speed --device "$device" "${trial[@]}" \
    --json "$out/model_speed.json"
if [ "$device" = cuda ]; then
    part batch_invariance 40 "$python" -m benchmarks.serving.batch_invariance --device cuda \
        --batches 100 --output "$out"
fi
# With and without CUDA graphs; a short warm-up leaves time to measure.
service=("$python" -m benchmarks.gpu.service_throughput --device "$device" --seconds 12)
part service 65 "${service[@]}" --json "$out/service.json" -- --warm-up-seconds 25
part service_launched 45 "${service[@]}" --json "$out/service_launched.json" -- --warm-up-seconds 8 --max-cuda-graphs 0

if [ "$minutes" -gt 0 ]; then
    part scenes 1800 "$python" -m model.training.codes.cache --out "$out.scenes" --count 60000 --seed 2 \
        --workers "$(nproc)" --max-side 512
    part training $((minutes * 60 + 300)) "$python" -m benchmarks.gpu.train_default --cache "$out.scenes" \
        --output "$out.run" --minutes "$minutes"
    cp -f "$out.run/model.safetensors" "$out.run/log.jsonl" "$out.run/loss.png" "$out/"
fi

if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
