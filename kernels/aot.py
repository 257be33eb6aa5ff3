"""Compiles every kernel and every configuration for sm_80 and sm_90, without a GPU, and reports what they use.

    python -m kernels.aot [--arch 80 90] [--only SUBSTRING] [--quick] [--json FILE]

There is no second list of signatures: under `launch.compile_only` the launchers themselves are called, on
tensors of the device "meta". One line for each distinct kernel, with the least time that the op it belongs to
can take at 1080p on one GPU. What counts as a failure is in `failures`; where there is any, the exit code is 1.
"""

import argparse
import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from kernels import conv3x3, fused, hopper, launch, resblock
from kernels.reference import Result

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
KINDS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "tf32": torch.float32}  # of operands
FULL = (1080, 1920)  # rows and columns of the picture that is made larger
ODD = (1081, 1919)  # Triton compiles anew for sizes that are no multiples of 16
MEAN = (0.4488, 0.4371, 0.4040)


class Peaks(NamedTuple):
    """What one GPU does at best."""

    flops: dict[str, float]  # per second, by kind of operands
    bandwidth: float  # of device memory, bytes per second


PEAKS = {
    # A100 SXM 80 GB: NVIDIA's datasheet, without sparsity.
    80: Peaks({"fp16": 312e12, "bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12}, 2.04e12),
    # H200 SXM: a dense bf16 product and a copy as measured; tf32 and fp32 from NVIDIA's datasheet, without sparsity.
    90: Peaks({"fp16": 790e12, "bf16": 790e12, "tf32": 494.7e12, "fp32": 66.9e12}, 4.3e12),
}
SHARED = {80: 163 << 10, 90: 227 << 10}  # bytes of shared memory that one block may have (CUDA programming guide)
INSTRUCTION = {80: "HMMA", 90: "HGMMA"}  # the matrix instruction that reaches the peak
GPUS = {"a100": 80, "a800": 80, "h20": 90, "h100": 90, "h200": 90, "h800": 90, "gh200": 90}  # words in their names


@dataclass(frozen=True)
class Case:
    """One op as the network calls it."""

    name: str
    kind: str  # a key of KINDS
    call: Callable[[], object]  # launches it on meta tensors
    flops: int  # 2 for a multiply-add
    traffic: int  # bytes to and from device memory: each operand and the result once
    archs: tuple[int, ...] = (80, 90)

    @property
    def matrix(self) -> bool:
        """Whether its products belong on the matrix units."""
        return self.kind in ("fp16", "bf16")

    def bound(self, arch: int) -> tuple[float, str]:
        """(the least milliseconds it can take, which of its two costs that is)."""
        peaks = PEAKS[arch]
        return max(
            (1e3 * self.flops / peaks.flops[self.kind], "FLOPs"), (1e3 * self.traffic / peaks.bandwidth, "bytes")
        )


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel uses, as its machine code says."""

    registers: int  # per thread
    stack: int  # bytes per thread
    spills: int  # instructions that load from local memory or store to it
    shared: int  # bytes of shared memory per block
    matrix: dict[str, int]  # matrix instructions by name and shape, and how many there are
    multiplies: bool  # whether the program has a matrix product
    warnings: tuple[str, ...]  # of ptxas, that matrix products wait for each other


class Outcome(NamedTuple):
    """What became of a case."""

    kernels: list[Any]  # as Triton compiled them
    failures: list[str]  # of the case itself
    asked: set[tuple[str, str]]  # (op, key) of the configurations that its launchers asked for


# The ops as the network calls them: whole pictures, and bands that carry the rows around themselves.


def _map(channels: int, kind: str, height: int, width: int) -> Tensor:
    size = (1, channels, height, width)
    return torch.empty(size, dtype=KINDS[kind], device="meta", memory_format=torch.channels_last)


def _weight(co: int, ci: int, kind: str) -> tuple[Tensor, Tensor]:
    weight = torch.empty((co, ci, 3, 3), dtype=KINDS[kind], device="meta", memory_format=torch.channels_last)
    return weight, weight.new_empty(co)


def _conv3x3(
    label: str,
    kind: str,
    ci: int,
    co: int,
    *,
    relu: bool = False,
    scale: float = 1.0,
    skip: bool = False,
    shuffle: int = 1,
    padding: int = 1,
    size: tuple[int, int] = FULL,
    way: str = "conv3x3",
) -> Case:
    height, width = size
    pixels = height * width

    def call():
        x = _map(ci, kind, height + 2 - 2 * padding, width)
        y = _map(co, kind, height, width) if skip else None
        out = _map(co // shuffle**2, kind, height * shuffle, width * shuffle)
        operands = (x, *_weight(co, ci, kind), relu, scale, y)
        if way == "copies":
            hopper._conv64_of_copies(*operands, padding, out)
        else:
            (fused.conv3x3 if way == "conv3x3" else conv3x3.portable)(*operands, shuffle, padding, out)

    return Case(
        f"{way} {kind} {ci}-{co} {label}",
        kind,
        call,
        flops=2 * 9 * ci * co * pixels,
        traffic=KINDS[kind].itemsize * (pixels * (ci + co + skip * co) + 9 * ci * co),
        archs=(80, 90) if way == "conv3x3" else (90,),  # on sm_80 there is nothing else
    )


def _head(kind: str, co: int, picture: torch.dtype, padding: tuple[int, int] = (1, 1), size=FULL, label="") -> Case:
    height, width = size

    def call():
        rows = height + 2 - sum(padding)
        x = torch.empty((1, 3, rows, width), dtype=picture, device="meta", memory_format=torch.channels_last)
        fused.head(x, *_weight(co, 3, kind), MEAN, padding)

    return Case(
        f"head {kind} {_short(picture)}-{co}{label}",
        kind,
        call,
        flops=2 * 9 * 3 * co * height * width,
        traffic=height * width * (3 * picture.itemsize + co * KINDS[kind].itemsize),
    )


def _collapsed_tail(
    kind: str, ci: int, shuffle: int, picture: torch.dtype | None, padding=2, ends=(True, True), size=FULL, label=""
) -> Case:
    height, width = size
    outputs = 3 * shuffle**2

    def call():
        x = _map(ci, kind, height + 4 - 2 * padding, width)
        weight = x.new_empty((4, 4, outputs, 5, 5, ci)).permute(0, 1, 2, 5, 3, 4)
        overflow = x.new_zeros(1, dtype=torch.int32)
        fused.collapsed_tail(
            x, weight, x.new_empty((4, 4, outputs)), MEAN, shuffle, Result(picture, overflow), padding, ends
        )

    return Case(
        f"collapsed_tail {kind} {ci} x{shuffle} {_short(picture)}{label}",
        kind,
        call,
        flops=2 * 25 * ci * outputs * height * width,
        traffic=height * width * (ci * KINDS[kind].itemsize + outputs * (picture or torch.float32).itemsize),
    )


def _tail(kind: str, ci: int) -> Case:
    height, width = FULL
    return Case(
        f"tail {kind} {ci}",
        kind,
        lambda: fused.tail(_map(ci, kind, height, width), *_weight(3, ci, kind), MEAN),
        flops=2 * 9 * 3 * ci * height * width,
        traffic=height * width * (ci * KINDS[kind].itemsize + 3 * 4),
    )


def _resblock(kind: str, size=FULL, label="") -> Case:
    height, width = size
    c, pixels = 64, height * width

    def call():
        x = _map(c, kind, height, width)
        resblock.resblock(x, *_weight(c, c, kind), *_weight(c, c, kind), 0.1)

    return Case(
        f"resblock {kind} {c}{label}",
        kind,
        call,
        flops=2 * 2 * 9 * c * c * pixels,
        traffic=KINDS[kind].itemsize * (2 * pixels * c + 2 * 9 * c * c),
        archs=(90,),
    )


def _short(picture: torch.dtype | None) -> str:
    return str(picture or torch.float32).removeprefix("torch.")


def cases() -> list[Case]:
    """Every op, kind of operands, number of channels and shape that the network knows."""
    found = []
    for kind in KINDS:
        for c in (64, 256):
            ways = (
                ("conv3x3", "portable", *(["copies"] if c == 64 else [])) if kind in ("fp16", "bf16") else ("conv3x3",)
            )
            for way in ways:
                found += [
                    _conv3x3("relu", kind, c, c, relu=True, way=way),
                    _conv3x3("relu, band", kind, c, c, relu=True, padding=0, way=way),
                    _conv3x3("relu, odd", kind, c, c, relu=True, size=ODD, way=way),
                    _conv3x3("scale+skip", kind, c, c, scale=0.1, skip=True, way=way),
                    _conv3x3("skip, band", kind, c, c, skip=True, padding=0, way=way),
                    _conv3x3("plain", kind, c, c, way=way),
                ]
            found += [_conv3x3(f"shuffle {r}", kind, c, c * r * r, shuffle=r) for r in (2, 3)]
            found += [_head(kind, c, picture) for picture in (torch.uint8, torch.uint16, torch.float32)]
            found += [
                _head(kind, c, torch.uint8, padding=(0, 0), label=", band"),
                _head(kind, c, torch.uint8, size=ODD, label=", odd"),
            ]
            found += [
                _collapsed_tail(kind, c, r, picture) for r in (2, 3, 4) for picture in (torch.uint8, torch.uint16, None)
            ]
            found += [
                _collapsed_tail(kind, c, 2, torch.uint8, padding=0, ends=(False, False), label=", band"),
                _collapsed_tail(kind, c, 2, torch.uint8, size=ODD, label=", odd"),
            ]
            found.append(_tail(kind, c))
    for kind in ("fp16", "bf16"):
        found += [_resblock(kind), _resblock(kind, ODD, ", odd")]
    return found


QUICK = {  # the most telling cases
    "conv3x3 fp16 64-64 relu",
    "conv3x3 fp16 64-64 scale+skip",
    "conv3x3 fp16 256-256 scale+skip",
    "conv3x3 fp16 64-256 shuffle 2",
    "conv3x3 fp32 64-64 relu",
    "portable fp16 64-64 scale+skip",
    "head fp16 uint8-64",
    "collapsed_tail fp16 64 x2 uint8",
}


# Compiling and judging.


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


def configurations(gpu: str) -> dict[tuple[str, str], launch.Config]:
    """The entries of configs/<gpu>.json by op and key."""
    ops = json.loads((launch.FOLDER / f"{gpu}.json").read_text(encoding="utf-8"))["configs"]
    return {(op, key): config for op, keys in ops.items() for key, config in keys.items()}


@contextlib.contextmanager
def configured(gpu: str | None) -> Iterator[set[tuple[str, str]]]:
    """Inside, launchers get the configurations of `gpu`. Yields the set of those asked for, by op and key."""
    entries = configurations(gpu) if gpu else {}
    asked = set()

    def config(op: str, key: str, default: launch.Config, device: torch.device) -> launch.Config:
        asked.add((op, key))
        return entries.get((op, key), default)

    before, launch.config = launch.config, config
    try:
        yield asked
    finally:
        launch.config = before


def compile_case(case: Case, arch: int, gpu: str | None = None) -> Outcome:
    """Compiles all that `case` launches on compute capability `arch`, with the configurations measured on `gpu`."""
    driver.set_active(_NoGPU(arch))  # pyright: ignore[reportArgumentType]
    torch.backends.cuda.matmul.allow_tf32 = case.kind == "tf32"
    kernels, problems = {}, []

    def collect(name: str, kernel: Any) -> None:
        kernels[kernel.hash] = kernel

    # Triton prints the whole program where ptxas refuses it.
    with launch.compile_only(arch, collect), configured(gpu) as asked, contextlib.redirect_stdout(io.StringIO()):
        try:
            case.call()
        except Exception as error:
            problems.append(_reason(error))
    if not problems and case.matrix and not any(multiplies(kernel) for kernel in kernels.values()):
        problems.append("no kernel has a matrix product")
    return Outcome(list(kernels.values()), problems, asked)


def _reason(error: BaseException) -> str:
    """One line of the innermost error: those around it say where it arose, with the program."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {next((x for x in lines if re.match('ptxas.*(error|fatal)', x)), lines[-1])}"


def failures(resources: Resources, arch: int, matrix: bool) -> list[str]:
    """What is wrong with a kernel. matrix: whether its products, if any, belong on the matrix units."""
    found = []
    if resources.spills:
        found.append(f"{resources.spills} instructions spill registers")
    if matrix and resources.multiplies and not any(x.split(".")[0] == INSTRUCTION[arch] for x in resources.matrix):
        found.append(f"no {INSTRUCTION[arch]}")
    if resources.shared > SHARED[arch]:
        found.append(f"{resources.shared} B of shared memory, where a block may have {SHARED[arch]}")
    return found + list(resources.warnings)


def inspect(kernel: Any) -> Resources:
    """What a kernel that Triton compiled uses."""
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        cubin.write_bytes(kernel.asm["cubin"])
        ptx.write_text(kernel.asm["ptx"], encoding="utf-8")
        target = _find(r"^\.target (\w+)", kernel.asm["ptx"])
        code = _output("cuobjdump", "-sass", "-res-usage", cubin)
        log = _output("ptxas", "-v", f"--gpu-name={target}", ptx, "-o", "/dev/null")
    opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code)
    matrix = Counter(".".join(x.split(".")[:2]) for x in opcodes if re.match(r"[HIQ]G?MMA\.", x))
    return Resources(
        registers=int(_find(r"\bREG:(\d+)", code)),
        stack=int(_find(r"\bSTACK:(\d+)", code)),
        spills=sum(x.startswith(("LDL", "STL")) for x in opcodes),
        shared=kernel.metadata.shared,
        matrix=dict(matrix),
        multiplies=multiplies(kernel),
        warnings=tuple(line.strip() for line in log.splitlines() if "serialized" in line or "C7508" in line),
    )


def multiplies(kernel: Any) -> bool:
    """Whether the program, as Triton lowers it for a GPU, has a matrix product."""
    return re.search(r"\btt\.dot\b|\bttng\.warp_group_dot\b", kernel.asm["ttgir"]) is not None


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    assert found, f"no {pattern} in what the CUDA tools say"
    return found[1]


def _output(tool: str, *arguments: str | Path) -> str:
    result = subprocess.run([BIN / tool, *arguments], capture_output=True, text=True, check=True)
    return result.stdout + result.stderr


# The command.

COLUMNS = "{:4} {:5} {:38} {:14} {:>4} {:>5} {:>6} {:>6}  {:24} {:>8} {}\n"
TITLES = ("", "arch", "case", "kernel", "regs", "stack", "spills", "shared", "matrix instructions", "least ms", "by")


class Report:
    """Prints a line for each distinct kernel and keeps all that is to be said at the end."""

    def __init__(self, write: Callable[[str], object]):
        self.write = write
        self.kernels: dict[str, dict[str, Any]] = {}  # by hash
        self.failures: list[str] = []
        write(COLUMNS.format(*TITLES))

    def case(self, case: Case, arch: int, gpu: str | None, outcome: Outcome) -> None:
        label = case.name + (f" on {gpu}" if gpu else "")
        for kernel in outcome.kernels:
            if kernel.hash not in self.kernels:
                self._kernel(case, arch, label, kernel)
        for reason in outcome.failures:
            self.failure(f"sm_{arch} {label}: {reason}")

    def _kernel(self, case: Case, arch: int, label: str, kernel: Any) -> None:
        uses, (least, by) = inspect(kernel), case.bound(arch)
        wrong = failures(uses, arch, case.matrix)
        self.kernels[kernel.hash] = {
            "arch": arch,
            "case": label,
            "kernel": kernel.name,
            **asdict(uses),
            "case_flops": case.flops,
            "case_bytes": case.traffic,
            "case_least_ms": least,
            "case_bound_by": by,
            "failures": wrong,
        }
        self.write(
            COLUMNS.format(
                "FAIL" if wrong else "ok",
                f"sm_{arch}",
                label,
                kernel.name,
                uses.registers,
                uses.stack,
                uses.spills,
                uses.shared,
                ", ".join(f"{count}x {name}" for name, count in uses.matrix.items()) or "-",
                f"{least:.3f}",
                by,
            )
        )
        for reason in wrong:
            self.failure(f"sm_{arch} {label}, {kernel.name}: {reason}")

    def failure(self, line: str) -> None:
        self.failures.append(line)
        self.write(f"FAIL {line}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m kernels.aot", description="Compile every kernel without a GPU.")
    parser.add_argument("--arch", type=int, nargs="+", choices=PEAKS, default=list(PEAKS), help="compute capability")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="the cases with this in their name")
    parser.add_argument("--quick", action="store_true", help="the most telling cases, default configurations")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that is known of each kernel there")
    options = parser.parse_args(arguments)
    if launch.interpreted():
        sys.stderr.write("kernels.aot: Triton interprets kernels here; unset TRITON_INTERPRET\n")
        return 2
    chosen = [c for c in cases() if options.only in c.name and (c.name in QUICK or not options.quick)]
    report = Report(lambda text: (sys.stdout.write(text), sys.stdout.flush()))
    for arch in options.arch:
        for gpu in (None, *(() if options.quick else measured(arch))):
            asked = set()
            for case in chosen:
                if arch in case.archs:
                    outcome = compile_case(case, arch, gpu)
                    report.case(case, arch, gpu, outcome)
                    asked |= outcome.asked
            if gpu and not options.only:
                for op, key in configurations(gpu).keys() - asked:
                    report.failure(f"sm_{arch} configs/{gpu}.json: no case asks for {op} {key}")
    sys.stdout.write(f"triton {triton.__version__}: {len(report.kernels)} kernels, {len(report.failures)} failures\n")
    sys.stdout.writelines(f"FAIL {line}\n" for line in report.failures)
    if options.json:
        content = {"triton": triton.__version__, "kernels": list(report.kernels.values()), "failures": report.failures}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 1 if report.failures else 0


def measured(arch: int) -> list[str]:
    """The GPUs of this architecture that configurations were measured on."""
    names = sorted(path.stem for path in launch.FOLDER.glob("*.json"))
    return [name for name in names if any(GPUS.get(word) == arch for word in name.split("-"))]


if __name__ == "__main__":
    sys.exit(main())
