"""Compiles all kernels for a GPU on a machine without one: `python -m bench.precompile kernels.tar [--arch 90]`.

`KERNELS=kernels.tar bench/gpu.sh` then finds them, if that machine has the same Triton, built for the same Python: with
another they are not looked at. Triton keeps absolute paths, so both machines use the same folder, $TRITON_CACHE_DIR or
/tmp/edsr-triton-kernels.
"""

import argparse
import os
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

FOLDER = "/tmp/edsr-triton-kernels"


def compile_one(name: str, arch: int) -> list[str]:
    """Compiles a case of `edsr.kernels.aot_cases` into Triton's cache; what went wrong."""
    from edsr.kernels import aot, aot_cases

    (case,) = (case for case in aot_cases.cases() if case.name == name)
    return [f"{name}: {reason}" for reason in aot.compile_case(case, arch).failures]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.precompile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, metavar="FILE.tar")
    parser.add_argument("--arch", type=int, default=90, help="compute capability times ten; default: %(default)s")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name has it")
    options = parser.parse_args()
    folder = Path(os.environ.setdefault("TRITON_CACHE_DIR", FOLDER))
    os.environ |= {"TRITON_STORE_BINARY_ONLY": "1", "TRITON_INTERPRET": "0"}  # 0.3 MB a kernel; more is for reading

    from edsr.kernels import aot_cases  # once Triton's settings are made

    chosen = [case for case in aot_cases.cases() if options.arch in case.archs and options.only in case.name]
    names = list(dict.fromkeys(case.name for case in chosen if case.kind in ("fp16", "bf16")))
    if not names:
        parser.error(f"no case has {options.only!r} in its name")
    failures = []
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for found in pool.map(compile_one, names, [options.arch] * len(names)):
            failures += found
    with tarfile.open(options.output, "w:gz", compresslevel=1) as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    print(f"{len(names)} cases for sm_{options.arch}, {options.output.stat().st_size / 2**20:.1f} MiB")
    for line in failures:
        print(line, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
