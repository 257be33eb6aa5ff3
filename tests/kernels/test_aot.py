"""Every kernel compiles for every architecture within its resources, and the command that says so can say otherwise.

Compiling needs a process in which Triton does not interpret: run as a program, this file reports on its toys.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT

triton = pytest.importorskip("triton", reason="Triton is not installed")
import triton.language as tl  # noqa: E402

from edsr.kernels import aot  # noqa: E402
from edsr.kernels.triton import launch  # noqa: E402


def run(*arguments: str, interpret: str = "0") -> subprocess.CompletedProcess:
    environment = os.environ | {"TRITON_INTERPRET": interpret}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_kernel_of_each_architecture_fits():
    result = run("-m", "kernels.aot", "--quick", "--only", "conv3x3 fp16 64-64 relu")
    assert result.returncode == 0, result.stdout + result.stderr
    for arch, instruction in aot.INSTRUCTION.items():
        kernel = "conv3x3_c64" if arch == 90 else "_conv3x3"
        assert re.search(rf"^ok +sm_{arch} .* {kernel} .* {instruction}", result.stdout, re.M), arch


@pytest.mark.slow
def test_the_kernels_fit(tmp_path):
    result = run("-m", "edsr.kernels.aot", "--quick", "--json", str(tmp_path / "report.json"))
    assert result.returncode == 0, result.stdout + result.stderr
    names = ("_head", "_conv3x3", "_tail_partial", "_tail_sum", "_wgrad", "_add_splits", "conv3x3_c64", "conv3x3_wide")
    for name in names:
        assert f" {name} " in result.stdout
    kernels = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["kernels"]
    assert {kernel["arch"] for kernel in kernels} == set(launch.SHARED_MEMORY)
    assert {kernel["case"] for kernel in kernels} == aot.QUICK
    # Hopper's own kernels, and not the portable one, are what its convolutions of half precision launch.
    by_case = {(kernel["arch"], kernel["case"]): kernel["kernel"] for kernel in kernels}
    assert by_case[90, "conv3x3 fp16 64-64 relu"] == "conv3x3_c64"
    assert by_case[90, "conv3x3 fp16 256-256 scale+skip"] == "conv3x3_wide"
    assert by_case[90, "portable fp16 64-64 scale+skip"] == "_conv3x3"


def test_interpreting_is_refused():
    result = run("-m", "kernels.aot", "--quick", interpret="1")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and "TRITON_INTERPRET" in result.stderr


def test_cases_have_names_of_their_own():
    names = [case.name for case in aot.cases()]
    assert len(set(names)) == len(names)
    assert set(names) >= aot.QUICK


def test_waiting_matrix_products_fail():
    warning = "ptxas info : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized"
    uses = aot.Resources(128, 0, 0, 0, {"HGMMA.64x64x16": 4}, True, (warning,))
    assert aot.failures(uses, 90, matrix=True) == [warning]


def test_the_smallest_blocks_need_not_reach_the_peak():
    uses = aot.Resources(128, 0, 0, 0, {"HMMA.16816": 4}, True, ())
    assert aot.failures(uses, 100, matrix=True) == ["no UTCHMMA"] and not aot.failures(uses, 100, True, least=True)
    assert aot.failures(replace(uses, matrix={}), 90, True, True)


def test_too_much_tensor_memory_fails():
    uses = aot.Resources(128, 0, 0, 0, {"UTCHMMA": 4}, True, (), tensor_memory=640)
    (failure,) = aot.failures(uses, 100, matrix=True)
    assert "640 columns of tensor memory" in failure


def test_what_is_compiled():
    """Every case for three architectures, one of each kernel for the others, and the smallest blocks everywhere."""
    chosen = aot.cases()
    for arch in launch.SHARED_MEMORY:
        existing = {case.name for case in chosen if arch in case.archs}
        everything = {variant.label for variant in aot.plan(chosen, arch, quick=False, everything=True)}
        usual = {variant.label for variant in aot.plan(chosen, arch, quick=False, everything=False)}
        least = {f"{name}, least" for name in existing & aot.QUICK}
        assert existing | least <= everything and existing & aot.QUICK | least <= usual
        assert usual == everything if arch in aot.WHOLE else usual == existing & aot.QUICK | least
        assert any(label.endswith(" on nvidia-h200") for label in usual) == (arch == 90)
        assert {
            variant.label for variant in aot.plan(chosen, arch, quick=True, everything=False)
        } == existing & aot.QUICK
    assert set(launch.SHARED_MEMORY) == set(aot.INSTRUCTION) == set(aot.PEAKS)


def test_the_bound_is_the_larger_cost():
    case = aot.Case("", "fp16", lambda: None, flops=790 * 10**9, traffic=2 * 43 * 10**8)
    milliseconds, cost = case.roofline(90)
    assert cost == "bytes" and milliseconds == pytest.approx(2.0)  # its arithmetic takes 1 ms
    milliseconds, cost = case.roofline(80)
    assert cost == "bytes" and milliseconds == pytest.approx(8600 / 2040)


# What is wrong with each toy, by its case's name.
TOYS = {
    "spills": "instructions spill registers",
    "narrow": "no HGMMA",
    "no product": "no kernel has a matrix product",
    "greedy": "of shared memory",
    "two uses": "while a product still reads it",
    "broken": "this toy is broken",
}


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """(exit code, lines printed, what the JSON says) of the command on the toys."""
    folder = tmp_path_factory.mktemp("toys")
    (folder / "nvidia-h200.json").write_text('{"configs": {"toy": {"fp32": {"BLOCK": 256}, "bf16": {"BLOCK": 32}}}}')
    (folder / "nvidia-a100-sxm4-80gb.json").write_text('{"configs": {"toy": {"fp32": {"BLOCK": 512}}}}')
    result = run("-m", "tests.kernels.test_aot", str(folder))
    assert result.stdout, result.stderr
    report = json.loads((folder / "report").read_text(encoding="utf-8"))
    return result.returncode, result.stdout.splitlines(), report


@pytest.mark.slow
@pytest.mark.parametrize("name", TOYS)
def test_a_bad_kernel_fails(toys, name):
    code, lines, report = toys
    assert code == 1
    (failure,) = (x for x in report["failures"] if re.match(rf"sm_90 {name}[,:]", x))
    assert TOYS[name] in failure
    assert lines[-len(report["failures"]) :].count(f"FAIL {failure}") == 1  # said again at the end


@pytest.mark.slow
def test_measured_configurations_are_compiled(toys):
    _, lines, report = toys
    assert any(line.startswith("ok   sm_90 sum ") for line in lines)
    assert any(line.startswith("ok   sm_90 sum on nvidia-h200 ") for line in lines)
    assert not any("a100" in line for line in lines)  # it is no sm_90
    (failure,) = (x for x in report["failures"] if "configs/" in x)
    assert failure == "sm_90 configs/nvidia-h200.json: no case requests toy bf16"


@triton.jit
def _spills(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    tl.store(y_ptr + offsets, x * tl.sum(x, 0))  # all of x at once, in more registers than there are


@triton.jit
def _product(x_ptr, y_ptr, steps, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    offsets = i[:, None] * BLOCK + i[None, :]
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for step in range(steps):
        x = tl.load(x_ptr + step * BLOCK * BLOCK + offsets)
        y = tl.load(y_ptr + step * BLOCK * BLOCK + offsets)
        total = tl.dot(x, y, total)
    tl.store(y_ptr + offsets, total.to(y_ptr.dtype.element_ty))


@triton.jit
def _product_and_sum(x_ptr, y_ptr, steps, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    offsets = i[:, None] * BLOCK + i[None, :]
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    added = tl.zeros((BLOCK, BLOCK), tl.float32)
    for step in range(steps):
        x = tl.load(x_ptr + step * BLOCK * BLOCK + offsets)
        y = tl.load(y_ptr + step * BLOCK * BLOCK + offsets)
        total = tl.dot(x, y, total)
        added += x  # beside the product
    tl.store(y_ptr + offsets, (total + added).to(y_ptr.dtype.element_ty))


@triton.jit
def _sum(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets) + tl.load(y_ptr + offsets))


@triton.jit
def _break():
    tl.static_assert(False, "this toy is broken")


@triton.jit
def _broken(x_ptr):
    _break()


def _toy_cases() -> list[aot.Case]:
    x = torch.empty(1 << 20, dtype=torch.float16, device="meta")

    def add():
        launch.run(_sum, (1,), x, x, **launch.config("toy", "fp32", {"BLOCK": 128}, x.device))

    calls = (
        ("spills", "fp32", lambda: launch.run(_spills, (1,), x.float(), x.float(), BLOCK=8192, num_warps=1)),
        ("narrow", "fp16", lambda: launch.run(_product, (1,), x, x, 9, BLOCK=32, num_warps=1)),
        ("no product", "fp16", lambda: launch.run(_sum, (1,), x, x, BLOCK=64)),
        ("greedy", "fp16", lambda: launch.run(_product, (1,), x, x, 9, BLOCK=128, num_warps=8, num_stages=6)),
        ("two uses", "fp16", lambda: launch.run(_product_and_sum, (1,), x, x, 9, BLOCK=64, num_warps=4)),
        ("broken", "fp32", lambda: launch.run(_broken, (1,), x)),
        ("sum", "fp32", add),
    )
    return [aot.Case(name, kind, call, flops=1, traffic=1) for name, kind, call in calls]


if __name__ == "__main__":
    launch.FOLDER, aot.cases = Path(sys.argv[1]), _toy_cases
    sys.exit(aot.main(["--arch", "90", "--jobs", "1", "--json", str(launch.FOLDER / "report")]))


@pytest.mark.slow
def test_kernels_are_compiled_for_a_machine_that_is_not_here(tmp_path):
    """Into one file, of binaries alone, which Triton finds again under the same path."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "kernels")}
    command = [
        sys.executable,
        "-m",
        "bench.precompile",
        str(tmp_path / "kernels.tar"),
        "--only",
        "head fp16 uint8-64, band",
    ]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    with tarfile.open(tmp_path / "kernels.tar") as tar:
        endings = {Path(member.name).suffix for member in tar.getmembers() if member.isfile()}
    assert ".cubin" in endings and not endings & {".ptx", ".ttir", ".ttgir", ".llir"}
