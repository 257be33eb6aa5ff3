#!/usr/bin/env bash
# Trains edsr-baseline on a GPU for a while, and goes on with it another time:
#
#   bench/gpu_train.sh DATA... [--resume CHECKPOINT]      DATA: folders of images, CHECKPOINT: of an earlier $OUT
#
# The run never ends by itself: its learning rate is constant after the warm-up (--schedule wsd). Of what is reached, a
# copy goes through a decay of the rate each time, and gives the weights to use: last.safetensors in results.tar.
# In $OUT at any moment: the newest checkpoint, best weights before the decay, metrics, results.tar with logs.
#
#   OUT=folder  TIME=570  PYTHON=python3  WHEELS=folder  KERNELS=kernels.tar  SLOW=1      as of bench/gpu.sh
#   SCALE=2  INIT=edsr-baseline  LR=4e-4  DECAY=75                                        of the run; seconds of the decay
#   RECOLOR=1                           patches in other colors, too: for few images
#   VAL=folder                          images to validate on; else a part of DATA, which INIT may have been trained on
#   TEST=Set5/HR:Set14/HR                                                                 folders to score the weights on
set -euo pipefail
usage() { echo "usage: bench/gpu_train.sh DATA... [--resume CHECKPOINT]${1:+: $1}" >&2; exit 2; }
here=$PWD
data=() checkpoint=
while (($#)); do
    case $1 in
        --resume)
            (($# > 1)) || usage
            checkpoint=$(realpath -m -- "$2")
            [[ -f $checkpoint/state.json ]] || usage "$2 is no checkpoint"
            shift
            ;;
        -*) usage ;;
        *)
            [[ -d $1 ]] || usage "$1 is no folder"
            data+=("$(realpath -- "$1")")
            ;;
    esac
    shift
done
((${#data[@]})) || usage
cd "$(dirname "$0")/.."
source bench/machine.sh
scale=${SCALE:-2}
run=$(mktemp -d)/run
released=$run-released
# In the plan, of which every line is split into words.
py=$(quoted "$python") from=$(quoted "$run") to=$(quoted "$released")
if [[ -n $checkpoint ]]; then
    step=$("$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["step"])' "$checkpoint/state.json")
    mkdir -p "$run"
    cp -r "$checkpoint" "$run/checkpoint-$(printf %08d "$step")"
    begin="--resume $from"
else
    begin="--out $from --init $(quoted "${INIT:-edsr-baseline}") --scale $scale --schedule wsd --steps 1000000000"
    begin+=" --lr ${LR:-4e-4}${RECOLOR:+ --recolor}"
fi
images="$(quoted "${data[@]}") --cache $(quoted "$(dirname "$run")/images")"
if [[ -n ${VAL:-} ]]; then
    val=$(from_here "$VAL")
    [[ -d $val ]] || usage "$VAL is no folder"
    images+=" --val $(quoted "$val")"
fi
decay=${DECAY:-75} score=20 left=$((${TIME:-570} - 25 - 2 * 5))
scores=
IFS=: read -ra tests <<<"${TEST:-}"
for folder in "${tests[@]}"; do
    folder=$(from_here "$folder")
    [[ -d $folder ]] || { echo "$folder: no such folder; not scored" >&2; continue; }
    name=$(basename "$(dirname "$folder")" | tr -c '[:alnum:]\n' _)
    scores+="score-$name $score $py cli.py evaluate --hr $(quoted "$folder") --scale $scale"
    scores+=" --model $(quoted "$released/last.safetensors")"$'\n'
    left=$((left - score - 5))
done
((left - decay >= 20)) || usage "TIME=${TIME:-570} leaves no time to train beside a decay of $decay s and the scores"

exec "$python" -m bench.parts --seconds "${TIME:-570}" --elapsed "$SECONDS" --out "$out" --run "$run" \
    --slow "${SLOW:-1}" \
    --keep "$released/metrics.jsonl" "$released/last.safetensors" "$run/plot.png" \
    --end "$py -m bench.findings --logs {logs} --run $to" <<PLAN
train    $((left - decay)) $py cli.py train $begin --data $images --minutes {minutes-15}
decay    $decay $py cli.py train --resume $from --decay auto --minutes {minutes-15} --out $to --data $images
$scores
PLAN
