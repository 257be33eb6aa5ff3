# What bench/gpu.sh and bench/gpu_train.sh begin with: interpreter, folder for results, packages and kernels brought along.
# Sourced in the repository's root, with the folder it was called from in $here. Sets $python and $out.
python=${PYTHON:-$(command -v python3 || command -v python)}
from_here() { (cd "$here" && realpath -m -- "$1"); }
quoted() { "$python" -c 'import shlex, sys; print(shlex.join(sys.argv[1:]))' "$@"; }

export PYTHONUNBUFFERED=1 COLUMNS=140 EDSR_PROBE=0 TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-/tmp/edsr-triton-kernels}
"$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "there is no CUDA device here")' || exit 2
# A copy of a checkout may have lost the link by which the kernels are edsr.kernels.
[[ -d edsr/kernels ]] || { rm -f edsr/kernels && ln -s ../kernels edsr/kernels; }
out=$(if [[ -n ${OUT:-} ]]; then from_here "$OUT"; else mktemp -d; fi)
# Neither packages nor kernels are needed by most parts: what cannot be had of them is said, and all goes on.
if [[ -n ${WHEELS:-} ]]; then
    packages=$(mktemp -d)
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$packages" "$(from_here "$WHEELS")"/*.whl ||
        echo "not installed from $WHEELS; going on without" >&2
    export PYTHONPATH=$packages${PYTHONPATH:+:$PYTHONPATH}
fi
if [[ -n ${KERNELS:-} ]]; then
    # Triton finds them only under the path they were compiled for.
    { mkdir -p "$TRITON_CACHE_DIR" && tar --extract --file "$(from_here "$KERNELS")" --directory "$TRITON_CACHE_DIR"; } ||
        echo "no kernels from $KERNELS; they are compiled here" >&2
fi
