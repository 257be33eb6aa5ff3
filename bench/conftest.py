"""What all benchmarks under pytest share."""

import pytest
import torch

from bench.machine import Ceiling, describe, machine_line

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def pytest_report_header() -> str:
    return f"machine: {machine_line(describe(DEVICES[-1]))}"


@pytest.fixture(scope="session", params=DEVICES)
def device(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def ceiling(device) -> Ceiling:
    """The machine's ceiling in the precision used on `device`; see bench.cases.Workload."""
    best = Ceiling(device, torch.float16 if device == "cuda" else torch.float32)
    for _ in range(3):
        best.measure()
    return best
