"""Steps of training a small network; `bench.training` takes the same figures of real ones in turns."""

import functools

import pytest
import torch

from bench.conftest import ceiling
from bench.training import ready
from bench.training_steps import WAYS, Training
from bench.workloads import Unavailable
from edsr.models.edsr import EDSRConfig

ROUNDS = 3
SMALL = EDSRConfig(blocks=2, features=32)


@functools.lru_cache(maxsize=1)  # tests of one device follow each other, and share the step in fp64
def prepared(device: str) -> Training:
    dtype, workers = (torch.bfloat16, 2) if device == "cuda" else (torch.float32, 0)
    return Training("small", SMALL, 4, 24, device, dtype, workers, (240, 320))


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if not way.slow])
def test_training(benchmark, device, name):
    work = prepared(device)
    best = ceiling(device, work.dtype)
    try:
        checked = ready(work, name, 0.0)
    except Unavailable as reason:
        pytest.skip(str(reason))
    benchmark.group = f"{work} {device}"
    benchmark.pedantic(checked.run, rounds=ROUNDS)
    seconds = benchmark.stats.stats.median / checked.steps
    loss, gradient = checked.errors
    benchmark.extra_info.update(
        {
            "case": WAYS[name].title,
            "ms": 1e3 * seconds,
            "patches_per_second": work.batch / seconds,
            "gflops": work.gflop / seconds,
            "ceiling_percent": 100 * work.gflop / seconds / best.gflops,
            "loss_error": loss,
            "gradient_error": gradient,
            "peak_mib": checked.peak_mib,
        }
    )
