# What bench/gpu.sh and bench/gpu_train.sh begin with: interpreter, folder for results, packages and kernels brought along.
# Sourced, in the repository's root. Sets $python and $out.
python=${PYTHON:-python}
export PYTHONUNBUFFERED=1 COLUMNS=140 TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-/tmp/edsr-triton-kernels}
"$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "there is no CUDA device here")' || exit 2
out=${OUT:-$(mktemp -d)}
if [[ -n ${WHEELS:-} ]]; then
    packages=$(mktemp -d)
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$packages" "$WHEELS"/*.whl
    export PYTHONPATH=$packages${PYTHONPATH:+:$PYTHONPATH}
fi
if [[ -n ${KERNELS:-} ]]; then
    # Triton finds them only under the path they were compiled for.
    mkdir -p "$TRITON_CACHE_DIR"
    tar --extract --file "$KERNELS" --directory "$TRITON_CACHE_DIR"
fi
