"""The machine a figure belongs to: what it is, and what it reaches at best in the same run.

`python -m bench.machine [--device cuda]` prints both.
"""

import argparse
import os
import platform
import re
import sys
import time
from datetime import date
from pathlib import Path

import torch

MATRIX = {"cpu": 2048, "cuda": 8192}  # side of the square matrices
COPIED = {"cpu": 1 << 28, "cuda": 1 << 31}  # bytes read, and as many written: many times any cache
SAMPLE = 0.01  # seconds on a GPU that one figure is taken over, at least


def describe(device: str) -> dict:
    """The machine line as a record: name of the CPU or GPU, cores, threads, versions, date."""
    gpu = {}
    if device == "cuda":
        from triton import __version__ as triton_version  # there is none for every CPU

        properties = torch.cuda.get_device_properties(device)
        gpu = {
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "triton": triton_version,
        }
    return {
        "name": torch.cuda.get_device_name(device) if device == "cuda" else cpu_name(),
        **gpu,
        "device": device,
        "cores": len(available_cores()),
        "threads": torch.get_num_threads(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "date": date.today().isoformat(),
    }


def machine_line(machine: dict) -> str:
    """One line for a person from a record of `describe`."""
    if machine["device"] == "cuda":
        return (
            f"{machine['name']}, {machine['multiprocessors']} multiprocessors, {machine['memory_gib']} GiB, "
            f"CUDA {machine['cuda']}, cuDNN {machine['cudnn']}, Triton {machine['triton']}, "
            f"torch {machine['torch']}, Python {machine['python']}, {machine['system']}, {machine['date']}"
        )
    return (
        f"{machine['name']}, {machine['cores']} cores, {machine['threads']} threads, {machine['vectors']}, "
        f"{machine['system']}, Python {machine['python']}, torch {machine['torch']}, {machine['date']}"
    )


def cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def available_cores() -> range | set[int]:
    """The cores this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def slug(name: str) -> str:
    """A name as part of a file name: "AMD EPYC 7B13" -> "amd-epyc-7b13"."""
    name = re.sub(r"\((R|TM)\)|\bCPU\b|@.*", "", name)
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


class Ceiling:
    """The best this machine was seen to do, over all calls of `measure`.

    gflops: a large matrix product in `dtype`, 2·n³ operations. gbs: a large copy, bytes read plus bytes
    written, in 10⁹ bytes a second.
    """

    def __init__(self, device: str, dtype: torch.dtype):
        n = MATRIX[device]
        self.a = torch.rand(n, n, device=device).to(dtype)
        self.b = torch.rand(n, n, device=device).to(dtype)
        self.source = torch.rand(COPIED[device] // 4, device=device)
        self.target = torch.empty_like(self.source)
        self.device, self.gflops, self.gbs = device, 0.0, 0.0
        self.measure()  # the first is the warm-up of both
        self.gflops = self.gbs = 0.0

    def measure(self) -> None:
        product = clock(lambda: self.a @ self.b, self.device)
        copy = clock(lambda: self.target.copy_(self.source), self.device)
        self.gflops = max(self.gflops, 2 * self.a.shape[0] ** 3 / product / 1e9)
        self.gbs = max(self.gbs, 2 * COPIED[self.device] / copy / 1e9)


def clock(run, device: str, repeats: int = 1) -> float:
    """Seconds that one of `repeats` runs takes.

    On a GPU they are counted by it, between two events, one run queued behind the other: with enough repeats the
    time is the GPU's, or the host's where it cannot launch kernels as fast as they end.
    """
    if device != "cuda":
        return stopwatch(lambda: [run() for _ in range(repeats)], device) / repeats
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def repeats_for(run, device: str) -> int:
    """How many runs on a GPU make a sample long enough; 1 on a CPU. Runs it a few times, which warms it up."""
    if device != "cuda":
        return 1
    return max(1, round(SAMPLE / min(clock(run, device) for _ in range(3))))


def stopwatch(run, device: str) -> float:
    """Seconds that `run` takes as its caller sees them, until the device has done it."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.machine", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    device = parser.parse_args().device or ("cuda" if torch.cuda.is_available() else "cpu")
    if refused(device):
        return 2
    best = Ceiling(device, torch.float16 if device == "cuda" else torch.float32)
    for _ in range(10):
        best.measure()
    print(machine_line(describe(device)))
    print(f"ceiling: {best.gflops / 1e3:.1f} TFLOP/s matrix product, {best.gbs:.0f} GB/s copy")
    return 0


def refused(device: str) -> bool:
    """Whether a device cannot be had here; says so in one line."""
    missing = device == "cuda" and not torch.cuda.is_available()
    if missing:
        print("there is no CUDA device here", file=sys.stderr)
    return missing


if __name__ == "__main__":
    sys.exit(main())
