"""Compiles the kernels for every generation of NVIDIA GPUs, without one, and reports what they use.

    python -m kernels.aot [--arch 80 86 89 90 100 120] [--only SUBSTRING] [--quick | --all] [--jobs N] [--json FILE]

Every case is compiled for the architectures in `WHOLE`. For the others, whose kernels have the same configurations and
(86, 89) the same code up to ptxas, one of each kernel is, and all with --all. Everywhere one case of each kernel is
also compiled with the smallest configuration, which serves where a GPU lacks room for the others.

There is no second list of signatures: under `launch.compile_only` the launchers themselves are called, on
tensors of the device "meta". One line for each distinct kernel, with the least time that the op it belongs to
can take at 1080p on one GPU, by the roofline model: that of its arithmetic or its memory traffic, whichever is longer.
What counts as a failure is in `failures`; where there is any, the exit code is 1.
"""

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from .aot_cases import PEAKS, QUICK, Case, cases
from .triton import launch

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHARED = launch.SHARED_MEMORY
WHOLE = (80, 90, 120)  # architectures for which every case is compiled; the others differ from one of these in little
INSTRUCTION = {80: "HMMA", 86: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}  # reaches the peak
TENSOR_MEMORY = 512  # columns that one block may have, on sm_100
GPUS = {"a100": 80, "a800": 80, "h20": 90, "h100": 90, "h200": 90, "h800": 90, "gh200": 90}  # words in their names


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel uses, as its machine code says."""

    registers: int  # per thread
    stack: int  # bytes per thread
    spills: int  # instructions that load from local memory or store to it
    shared: int  # bytes of shared memory per block
    matrix: dict[str, int]  # matrix instructions by name and shape, and how many there are
    has_matrix_product: bool  # whether the program has a matrix product
    warnings: tuple[str, ...]  # of ptxas, that matrix products wait for each other
    rings: tuple[int, ...] = ()  # slots of each ring that a plain kernel keeps for operands of asynchronous products
    tensor_memory: int = 0  # columns per block, on sm_100


class Variant(NamedTuple):
    """What a case is compiled for, and how."""

    case: str  # its name
    arch: int
    gpu: str | None = None  # with the configurations measured on it
    least: bool = False  # with the smallest configurations

    @property
    def label(self) -> str:
        return self.case + (f" on {self.gpu}" if self.gpu else "") + ", least" * self.least


class Examined(NamedTuple):
    """What examining a variant gave."""

    kernels: list[tuple[str, str, Resources]]  # (hash, name, what it uses)
    failures: list[str]  # of the case itself
    requested: set[tuple[str, str]]  # as of `CompiledCase`


class CompiledCase(NamedTuple):
    """What compiling a case gave."""

    kernels: list[Any]  # as Triton compiled them
    failures: list[str]  # of the case itself
    requested: set[tuple[str, str]]  # (op, key) of the configurations that its launchers requested


# --- compiling and checking


class _NoGPU:
    """A driver for Triton that knows an architecture and cannot launch anything."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # so that Triton keeps the kernels of different architectures apart

    def get_current_stream(self, device: int) -> int:
        return 0


def load_configurations(gpu: str) -> dict[tuple[str, str], launch.Config]:
    """The entries of configs/<gpu>.json by op and key."""
    ops = json.loads((launch.FOLDER / f"{gpu}.json").read_text(encoding="utf-8"))["configs"]
    return {(op, key): config for op, keys in ops.items() for key, config in keys.items()}


def compile_case(case: Case, arch: int, gpu: str | None = None, least: bool = False) -> CompiledCase:
    """Compiles all that `case` launches on compute capability `arch`, with the configurations measured on `gpu`, or
    with the smallest."""
    driver.set_active(_NoGPU(arch))  # pyright: ignore[reportArgumentType]
    torch.backends.cuda.matmul.allow_tf32 = case.kind == "tf32"
    kernels, problems = {}, []
    entries = load_configurations(gpu) if gpu else {}

    def collect(name: str, kernel: Any) -> None:
        kernels[kernel.hash] = kernel

    override = launch.override_configs(lambda op, key, default: entries.get((op, key), default))
    # Triton prints the whole program where ptxas refuses it.
    with launch.compile_only(arch, collect, least), override as requested, contextlib.redirect_stdout(io.StringIO()):
        try:
            case.call()
        except Exception as error:
            problems.append(_reason(error))
    # Where Triton keeps binaries alone there is nothing to be read.
    readable = [kernel for kernel in kernels.values() if "ttgir" in kernel.asm]
    if not problems and case.matrix and len(readable) == len(kernels) and not any(map(has_matrix_product, readable)):
        problems.append("no kernel has a matrix product")
    return CompiledCase(list(kernels.values()), problems, requested)


_inspected: dict[str, Resources] = {}
"""By hash; several cases may launch one kernel."""


def examine(variant: Variant) -> Examined:
    """Compiles a case and looks at its kernels. Self-contained, so that processes can share the work."""
    (case,) = (case for case in cases() if case.name == variant.case)
    outcome = compile_case(case, *variant[1:])
    for kernel in outcome.kernels:
        if kernel.hash not in _inspected:
            _inspected[kernel.hash] = inspect(kernel)
    kernels = [(kernel.hash, kernel.name, _inspected[kernel.hash]) for kernel in outcome.kernels]
    return Examined(kernels, outcome.failures, outcome.requested)


def _reason(error: BaseException) -> str:
    """One line of the innermost error; those around it quote the program."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {next((x for x in lines if re.match('ptxas.*(error|fatal)', x)), lines[-1])}"


def failures(resources: Resources, arch: int, matrix: bool, least: bool = False) -> list[str]:
    """What is wrong with a kernel. matrix: whether its products, if any, belong on the matrix units. least: whether its
    blocks are the smallest, too small for asynchronous products, so that HMMA will do."""
    found = []
    if resources.spills:
        found.append(f"{resources.spills} instructions spill registers")
    if (
        matrix
        and resources.has_matrix_product
        and not any(x.split(".")[0] in (INSTRUCTION[arch], "HMMA" if least else "") for x in resources.matrix)
    ):
        found.append(f"no {INSTRUCTION[arch]}")
    if resources.shared > SHARED[arch]:
        found.append(f"{resources.shared} B of shared memory, where a block may have {SHARED[arch]}")
    if resources.tensor_memory > TENSOR_MEMORY:
        found.append(f"{resources.tensor_memory} columns of tensor memory, where a block may have {TENSOR_MEMORY}")
    if len(set(resources.rings)) > 1:
        found.append(f"rings of {resources.rings} slots: one is written to while a product still reads it")
    return found + list(resources.warnings)


def inspect(kernel: Any) -> Resources:
    """The resources of a kernel that Triton compiled."""
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        cubin.write_bytes(kernel.asm["cubin"])
        ptx.write_text(kernel.asm["ptx"], encoding="utf-8")
        target = _search(r"^\.target (\w+)", kernel.asm["ptx"])
        code = _output("cuobjdump", "-sass", "-res-usage", cubin)
        arch, log = kernel.metadata.target.arch, ""
        if INSTRUCTION.get(arch) != "HMMA":  # asynchronous products alone have what it warns of
            ptxas = "ptxas-blackwell" if arch >= 100 else "ptxas"
            log = _output(ptxas, "-v", f"--gpu-name={target}", ptx, "-o", "/dev/null")
    opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code)
    matrix = Counter(".".join(x.split(".")[:2]) for x in opcodes if re.match(r"([HIQ]G?|UTC[HIQ])MMA\b", x))
    return Resources(
        registers=int(_search(r"\bREG:(\d+)", code)),
        stack=int(_search(r"\bSTACK:(\d+)", code)),
        spills=sum(x.startswith(("LDL", "STL")) for x in opcodes),
        shared=kernel.metadata.shared,
        matrix=dict(matrix),
        has_matrix_product=has_matrix_product(kernel),
        warnings=tuple(line.strip() for line in log.splitlines() if "serialized" in line or "C7508" in line),
        rings=rings(kernel.asm["ttgir"]),
        tensor_memory=getattr(kernel.metadata, "tmem_size", None) or 0,
    )


def rings(ttgir: str) -> tuple[int, ...]:
    """Slots of the rings that Triton makes of loads for products that run on while the next loads are under way.

    They must be as many for each. Triton (3.6, 3.7) keeps one slot too few where an operand has a use besides products.
    """
    if not re.search(r"\bttng\.(warp_group_dot|tc_gen5_mma)\b", ttgir) or "ttg.async_copy_global_to_local" not in ttgir:
        return ()
    return tuple(map(int, re.findall(r"ttg\.local_alloc : \(\) -> !ttg\.memdesc<(\d+)x\d+x\d+x", ttgir)))


def has_matrix_product(kernel: Any) -> bool:
    """Whether the program, as Triton lowers it for a GPU, has a matrix product."""
    return re.search(r"\btt\.dot\b|\bttng\.(warp_group_dot|tc_gen5_mma)\b", kernel.asm["ttgir"]) is not None


def _search(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    assert found, f"no {pattern} in the output of the CUDA tools"
    return found[1]


def _output(tool: str, *arguments: str | Path) -> str:
    result = subprocess.run([BIN / tool, *arguments], capture_output=True, text=True, check=True)
    return result.stdout + result.stderr


# --- the command

COLUMNS = "{:4} {:5} {:38} {:14} {:>4} {:>5} {:>6} {:>6}  {:24} {:>11} {}\n"
TITLES = ("", "arch", "case", "kernel", "regs", "stack", "spills", "shared", "matrix instructions", "roofline ms", "by")


class Report:
    """Prints a line for each distinct kernel, and keeps the failures for the end."""

    def __init__(self, write: Callable[[str], object]):
        self.write = write
        self.kernels: dict[str, dict[str, Any]] = {}  # by hash
        self.failures: list[str] = []
        write(COLUMNS.format(*TITLES))

    def variant(self, case: Case, variant: Variant, found: Examined) -> None:
        for hash, name, uses in found.kernels:
            if hash not in self.kernels:
                self._kernel(case, variant, hash, name, uses)
        for reason in found.failures:
            self.failure(f"sm_{variant.arch} {variant.label}: {reason}")

    def _kernel(self, case: Case, variant: Variant, hash: str, name: str, uses: Resources) -> None:
        arch, label, (milliseconds, by) = variant.arch, variant.label, case.roofline(variant.arch)
        failed = failures(uses, arch, case.matrix, variant.least)
        self.kernels[hash] = {
            "arch": arch,
            "case": label,
            "kernel": name,
            **asdict(uses),
            "case_flops": case.flops,
            "case_bytes": case.traffic,
            "case_roofline_ms": milliseconds,
            "case_bound_by": by,
            "failures": failed,
        }
        self.write(
            COLUMNS.format(
                "FAIL" if failed else "ok",
                f"sm_{arch}",
                label,
                name,
                uses.registers,
                uses.stack,
                uses.spills,
                uses.shared,
                ", ".join(f"{count}x {name}" for name, count in uses.matrix.items()) or "-",
                f"{milliseconds:.3f}",
                by,
            )
        )
        for reason in failed:
            self.failure(f"sm_{arch} {label}, {name}: {reason}")

    def failure(self, line: str) -> None:
        self.failures.append(line)
        self.write(f"FAIL {line}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m kernels.aot", description="Compile every kernel without a GPU.")
    parser.add_argument("--arch", type=int, nargs="+", choices=PEAKS, default=list(PEAKS), help="compute capability")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="the cases with this in their name")
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="one case of each kernel, default configurations")
    extent.add_argument("--all", action="store_true", help="every case for every architecture")
    parser.add_argument("--jobs", type=int, default=usable_cores(), metavar="N", help="processes; default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all facts about each kernel there")
    options = parser.parse_args(arguments)
    if launch.interpreted():
        sys.stderr.write("kernels.aot: Triton interprets kernels here; unset TRITON_INTERPRET\n")
        return 2
    by_name = {case.name: case for case in cases() if options.only in case.name}
    report = Report(lambda text: (sys.stdout.write(text), sys.stdout.flush()))
    planned = [
        variant
        for arch in options.arch
        for variant in plan(list(by_name.values()), arch, options.quick, options.all or bool(options.only))
    ]
    requested: dict[tuple[int, str], set[tuple[str, str]]] = {}
    for variant, found in _examine_all(planned, options.jobs):
        report.variant(by_name[variant.case], variant, found)
        if variant.gpu:
            requested.setdefault((variant.arch, variant.gpu), set()).update(found.requested)
    if not options.only:
        for (arch, gpu), keys in requested.items():
            for op, key in sorted(load_configurations(gpu).keys() - keys):
                report.failure(f"sm_{arch} configs/{gpu}.json: no case requests {op} {key}")
    sys.stdout.write(f"triton {triton.__version__}: {len(report.kernels)} kernels, {len(report.failures)} failures\n")
    sys.stdout.writelines(f"FAIL {line}\n" for line in report.failures)
    if options.json:
        content = {"triton": triton.__version__, "kernels": list(report.kernels.values()), "failures": report.failures}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 1 if report.failures else 0


def plan(chosen: list[Case], arch: int, quick: bool, everything: bool) -> list[Variant]:
    """What is compiled for an architecture, of the cases chosen."""
    existing = [case.name for case in chosen if arch in case.archs]
    sample = [name for name in existing if name in QUICK]
    if quick:
        return [Variant(name, arch) for name in sample]
    variants = [Variant(name, arch) for name in (existing if everything or arch in WHOLE else sample)]
    variants += [Variant(name, arch, gpu) for gpu in measured_gpus(arch) for name in existing]
    return variants + [Variant(name, arch, least=True) for name in sample]


def _examine_all(variants: list[Variant], jobs: int) -> Iterator[tuple[Variant, Examined]]:
    """`examine` of each, in order."""
    if jobs <= 1 or len(variants) < 2:
        yield from ((variant, examine(variant)) for variant in variants)
        return
    with ProcessPoolExecutor(min(jobs, len(variants)), mp_context=get_context("spawn")) as pool:
        yield from zip(variants, pool.map(examine, variants), strict=True)


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measured_gpus(arch: int) -> list[str]:
    """The GPUs of this architecture that configurations were measured on."""
    names = sorted(path.stem for path in launch.FOLDER.glob("*.json"))
    return [name for name in names if any(GPUS.get(word) == arch for word in name.split("-"))]


if __name__ == "__main__":
    sys.exit(main())
