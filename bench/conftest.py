"""What all benchmarks under pytest share."""

import statistics

import pytest
import torch

from bench.compare import gpu_peak, settled
from bench.machine import Ceiling, clock, describe, machine_line, repeats_for, synchronize
from bench.workloads import Unavailable, Work

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
ROUNDS = {"cpu": 3, "cuda": 5}
_ceilings: dict[str, Ceiling] = {}


def pytest_report_header() -> str:
    return f"machine: {machine_line(describe(DEVICES[-1]))}"


@pytest.fixture(scope="session", params=DEVICES)
def device(request) -> str:
    return request.param


def ceiling(device: str, dtype: torch.dtype) -> Ceiling:
    """The machine's ceiling on `device`, measured once."""
    if device not in _ceilings:
        _ceilings[device] = Ceiling(device, dtype)
        for _ in range(3):
            _ceilings[device].measure()
    return _ceilings[device]


@pytest.fixture
def measure(benchmark):
    """measure(work, name): checks one case of a piece of work, then times it.

    pytest-benchmark's own figures are of the host's clock, until the device is done. On a GPU `ms` in extra_info is
    what its events say, over runs queued one behind the other; on a CPU both are the same.
    """

    def measure(work: Work, name: str) -> None:
        case, device = work.cases[name], work.device
        best = ceiling(device, work.dtype)
        before = settled() if device == "cuda" else 0
        try:
            run = case.run(work)
            error = work.check(run, poison=case.ours)
        except Unavailable as reason:
            pytest.skip(str(reason))
        repeats = repeats_for(run, device)
        peak = {"peak_mib": (gpu_peak(run) - before) / 2**20} if device == "cuda" else {}

        def finished() -> None:
            run()
            synchronize(device)

        benchmark.group = f"{work} {device}"
        benchmark.pedantic(finished, rounds=ROUNDS[device])
        seconds = benchmark.stats.stats.median
        if device == "cuda":
            seconds = statistics.median(clock(run, device, repeats) for _ in range(ROUNDS[device]))
        gflop = work.gflop(case.collapsed)
        benchmark.extra_info.update(
            {
                "case": case.title,
                "ms": 1e3 * seconds,
                "frames_per_second": 1 / seconds,
                "error": error,
                "gflop": gflop,
                "gflops": gflop / seconds,
                "ceiling_percent": 100 * gflop / seconds / best.gflops,
                "ceiling_gflops": best.gflops,
                "ceiling_gbs": best.gbs,
                **peak,
            }
        )

    return measure
