#!/usr/bin/env bash
# The first minutes on a GPU, in the order of worth: which kernels are right, how fast they are, tests, tuning, peers that
# take long to compile, and training with what time is left. Ten minutes in all.
#
#   bench/gpu.sh [DATA...]   DATA: folders of images to train on; without them nothing is trained
#
#   OUT=folder               where results.tar goes, which is whole at any moment, whatever is cut off; default: a new one
#   TIME=570                 seconds in all; of a plan that takes longer the last parts are cut short or left out
#   PYTHON=python3           another interpreter
#   WHEELS=folder            packages for a machine without a network
#   KERNELS=kernels.tar      kernels compiled beforehand, see bench/README.md
#   TRAIN=rest               seconds of training
#   SLOW=1                   times as long for everything, where a dry run plays the GPU
#
# Records: bench/results/<gpu>-<date>{,-check,-training}.json, kernels/triton/configs/<gpu>.json. Exit code 1 if any part failed, 2
# without a GPU.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
source bench/machine.sh
data=()
for folder in "$@"; do
    folder=$(from_here "$folder")
    if [[ -d $folder ]]; then data+=("$folder"); else echo "$folder: no such folder; going on without" >&2; fi
done
run=$(mktemp -d)/run
py=$(quoted "$python") # in the plan, of which every line is split into words
train=
if ((${#data[@]})); then
    train="train ${TRAIN:-rest} $py cli.py train --data $(quoted "${data[@]}") --out $(quoted "$run") --init edsr-baseline"
    train+=" --steps auto --minutes {minutes-15}"
fi
x2=edsr-baseline-x2-1920x1080
slow=${SLOW:-1}

exec "$python" -m bench.parts --seconds "${TIME:-570}" --elapsed "$SECONDS" --out "$out" --slow "$slow" \
    --keep 'kernels/triton/configs/*.json' 'bench/results/*-????-??-??*.json' 'bench/results/*.svg' \
    "$run/metrics.jsonl" "$run/best.safetensors" \
    --end "$py -m bench.findings --logs {logs} --run $(quoted "$run")" <<PLAN
probe    45 $py -m bench.probe --seconds $((5 * slow)) --compiling $((25 * slow))
check    60 $py -m bench.verify --seconds {seconds}
frames   60 $py -m bench.compare --device cuda --only $x2 edsr-baseline-x2-64x64 edsr-x2-1920x1080 edsr-baseline-x4-1920x1080 --cases ours channels_last --rounds 5 --minutes {minutes} --save
steps    60 $py -m bench.training --device cuda --only triton torch plain eager --rounds 3 --minutes {minutes} --save --choose
tests    60 $py -m pytest -q -m gpu -p no:cacheprovider -n 8 --timeout 20 --timeout-method thread tests/kernels/test_hopper.py tests/kernels/test_triton.py tests/inference/test_upscaler_kernels.py tests/kernels/test_triton_backward.py
tune     50 $py -m bench.tune --op 64 hopper_conv256 --minutes {minutes}
again    30 $py -m bench.compare --device cuda --only $x2 relu-64 skip-64 resblock-64 --cases ours portable hopper one_kernel folded channels_last cudnn --rounds 5 --minutes {minutes} --save
peers    65 $py -m bench.compare --device cuda --only $x2 --cases ours channels_last compile tensorrt onnxruntime --rounds 5 --minutes {minutes} --save
compiled 45 $py -m bench.training --device cuda --only triton plain compile --rounds 3 --minutes {minutes} --save
chart    10 $py -m bench.report --chart bench/results/frames.svg
$train
PLAN
