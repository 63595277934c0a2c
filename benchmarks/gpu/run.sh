#!/usr/bin/env bash
# Everything that waits for a GPU, in one call; results go to the folder given (or $OUT).
#
#   bash benchmarks/gpu/run.sh [FOLDER] [TRAINING_MINUTES]
#
# Without training it ends within 10 minutes: each part has a limit of its own, writes its own file,
# and one that fails is told at the end and does not stop the others. Needs a Python with torch (CUDA),
# numpy, pillow and safetensors; the part over HTTP also what the service needs (fastapi, uvicorn,
# ...; without them it says so); training also scipy, zxing-cpp, opencv-python-headless,
# scikit-image, scikit-learn and rich. PYTHON names another interpreter; DEVICE=cpu tries the script
# itself out, on small sizes.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-${OUT:-benchmarks/results/gpu}}
minutes=${2:-0}
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$out"
failed=()

part() { # NAME SECONDS COMMAND...: runs one part within its limit, keeps what it prints
    local name=$1 limit=$2
    shift 2
    echo "==> $name"
    timeout --kill-after=5 "$limit" "$@" 2>&1 | tee "$out/$name.txt" || failed+=("$name")
}

if [ "$device" = cuda ]; then
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv | tee "$out/device.txt" || exit 1
    small=()
    trial=()
else
    small=(--small)
    trial=(--size 192 256 --batches 1 --repeats 1)
fi
"$python" -c 'import sys, torch; print(sys.version, torch.__version__, torch.version.cuda)' | tee -a "$out/device.txt"
date -u +%FT%TZ | tee -a "$out/device.txt"

kernels=("$python" -m benchmarks.kernels.gpu)
here=(--device "$device" "${small[@]}")
part kernels_check 80 "${kernels[@]}" check --seconds 40 "${here[@]}" --json "$out/kernels_check.json"
part kernels_promise 60 "${kernels[@]}" promise "${here[@]}" --json "$out/kernels_promise.json"
part kernels_time 90 "${kernels[@]}" time --repeats 20 "${here[@]}" --json "$out/kernels_time.json"
if command -v compute-sanitizer >/dev/null && [ "$device" = cuda ]; then
    for tool in memcheck racecheck; do
        part "sanitizer_$tool" 50 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "${kernels[@]}" check --seconds 10 "${here[@]}" --json "$out/sanitizer_$tool.json"
    done
fi
part model_speed 100 "$python" -m benchmarks.gpu.model_speed --device "$device" "${trial[@]}" \
    --json "$out/model_speed.json"
if [ "$device" = cuda ]; then
    part batch_invariance 50 "$python" -m benchmarks.serving.batch_invariance --device cuda \
        --batches 100 --output "$out"
    part model_timings 50 "$python" benchmarks/gpu/model_timings.py --batches 1 --repeats 5 \
        --json "$out/model_timings.json"
fi
part service 70 "$python" -m benchmarks.gpu.service_throughput --device "$device" --seconds 15 \
    --json "$out/service.json"

if [ "$minutes" -gt 0 ]; then
    part scenes 1800 "$python" -m model.training.codes.cache --out "$out.scenes" --count 60000 --seed 2 \
        --workers "$(nproc)" --max-side 512
    part training $((minutes * 60 + 300)) "$python" benchmarks/gpu/train_default.py --cache "$out.scenes" \
        --output "$out.run" --minutes "$minutes"
    cp -f "$out.run/model.safetensors" "$out.run/log.jsonl" "$out.run/loss.png" "$out/"
fi

if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
