#!/usr/bin/env bash
# Everything that waits for a GPU, in one call; results go to the folder given (or $OUT).
#
#   bash benchmarks/gpu/run.sh [FOLDER] [TRAINING_MINUTES]
#
# Needs a Python with torch (CUDA), numpy, pillow and safetensors; training also scipy, zxing-cpp,
# opencv-python-headless, scikit-image, scikit-learn and rich. PYTHON names another interpreter.
# Parts that fail are told at the end and do not stop the others.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-${OUT:-benchmarks/results/gpu}}
minutes=${2:-0}
python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$out"
failed=()

part() { # NAME COMMAND...: runs one part, keeps what it prints
    local name=$1
    shift
    echo "==> $name"
    "$@" 2>&1 | tee "$out/$name.txt" || failed+=("$name")
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv | tee "$out/device.txt" || exit 1
"$python" -c 'import sys, torch; print(sys.version, torch.__version__, torch.version.cuda)' | tee -a "$out/device.txt"
date -u +%FT%TZ | tee -a "$out/device.txt"

part batch_invariance "$python" -m benchmarks.serving.batch_invariance --device cuda --output "$out"
part model_timings "$python" benchmarks/gpu/model_timings.py --json "$out/model_timings.json"

if [ "$minutes" -gt 0 ]; then
    part scenes "$python" -m model.training.codes.cache --out "$out.scenes" --count 60000 --seed 2 \
        --workers "$(nproc)" --max-side 512
    part training "$python" benchmarks/gpu/train_default.py --cache "$out.scenes" \
        --output "$out.run" --minutes "$minutes"
    cp -f "$out.run/model.safetensors" "$out.run/log.jsonl" "$out.run/loss.png" "$out/"
fi

if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
