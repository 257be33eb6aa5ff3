#!/usr/bin/env bash
# Everything that needs a GPU, in less than ten minutes: tests, tuning, benchmarks.
#
#   bench/gpu.sh            PYTHON=... for another interpreter, OUT=folder for copies of all that is written
#
# Each part has its own time and log, and a failing one does not stop the next. Records are written after every step:
# bench/results/<gpu>-<date>.json, the same with -training, and kernels/configs/<gpu>.json. Exit code 1 if any part
# failed, 2 without a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
logs=${OUT:-$(mktemp -d)}
mkdir -p "$logs"
export PYTHONUNBUFFERED=1 COLUMNS=140
began=$SECONDS
summary=()
failures=0

"$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "there is no CUDA device here")' || exit 2

keep() {
    if [[ -n ${OUT:-} ]]; then
        cp kernels/configs/*.json bench/results/*-????-??-??{,-training}.json bench/results/*.svg "$OUT"/ \
            2>/dev/null || true
    fi
}
trap keep EXIT

part() { # name, seconds, command...
    local name=$1 limit=$2 code=0 start=$SECONDS
    shift 2
    echo "=== $name, at most $limit s: $*"
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$logs/$name.log" || code=$?
    [[ $code -eq 0 ]] || failures=$((failures + 1))
    summary+=("$(printf '%-10s exit code %3d, %3d s' "$name" "$code" $((SECONDS - start)))")
    keep
}

part check 45 "$python" -m bench.check
part tests 130 "$python" -m pytest -q -m gpu -p no:cacheprovider --maxfail=20 \
    tests/test_kernels.py tests/test_hopper.py tests/test_engine_kernels.py tests/test_gradients.py
part ceiling 20 "$python" -m bench.machine --device cuda
part tune 105 "$python" -m bench.tune --minutes 1.55
part compare 140 "$python" -m bench.compare --device cuda --minutes 2.2 --save
part training 140 "$python" -m bench.training --device cuda --model edsr-baseline edsr --rounds 5 --minutes 2.2 \
    --save --choose
part report 15 "$python" -m bench.report --chart bench/results/frames.svg

echo "=== $((SECONDS - began)) s in all, logs in $logs"
printf '%s\n' "${summary[@]}"
[[ $failures -eq 0 ]]
