"""The machine a figure belongs to: what it is, and what it reaches at best in the same run."""

import os
import platform
import re
import time
from datetime import date
from pathlib import Path

import torch

MATRIX = {"cpu": 2048, "cuda": 8192}  # side of the square matrices
COPIED = 1 << 28  # bytes read, and as many written


def describe(device: str) -> dict:
    """The machine line as a record: name of the CPU or GPU, cores, threads, versions, date."""
    return {
        "name": torch.cuda.get_device_name(device) if device == "cuda" else cpu_name(),
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
        self.source = torch.rand(COPIED // 4, device=device)
        self.target = torch.empty_like(self.source)
        self.device, self.gflops, self.gbs = device, 0.0, 0.0
        self.measure()  # the first is the warm-up of both
        self.gflops = self.gbs = 0.0

    def measure(self) -> None:
        product = stopwatch(lambda: self.a @ self.b, self.device)
        copy = stopwatch(lambda: self.target.copy_(self.source), self.device)
        self.gflops = max(self.gflops, 2 * self.a.shape[0] ** 3 / product / 1e9)
        self.gbs = max(self.gbs, 2 * COPIED / copy / 1e9)


def stopwatch(run, device: str) -> float:
    """Seconds that `run` takes, until the device has done it."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
