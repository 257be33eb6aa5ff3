"""One picture through the network, every way to run it; `bench.compare` takes the same figures in turns."""

import functools

import pytest

from bench.cases import CASES, Unavailable, Workload, workloads

ROUNDS = 3
SIZES = [(work.scale, work.height, work.width) for work in workloads("cpu")]


@functools.lru_cache(maxsize=1)  # tests of one workload follow each other
def prepared(scale: int, height: int, width: int, device: str) -> Workload:
    return Workload(scale, height, width, device)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("scale", "height", "width"), SIZES)
def test_model(benchmark, device, ceiling, scale, height, width, name):
    work, case = prepared(scale, height, width, device), CASES[name]
    try:
        run = case.run(work)
    except Unavailable as error:
        pytest.skip(str(error))
    error = work.check(run)
    benchmark.group = f"{work} {device}"
    benchmark.pedantic(run, rounds=ROUNDS)
    gflop = case.gflop(work)
    gflops = gflop / benchmark.stats.stats.median
    benchmark.extra_info.update(
        {
            "case": case.title,
            "error": error,
            "gflop": gflop,
            "gflops": gflops,
            "ceiling_percent": 100 * gflops / ceiling.gflops,
            "ceiling_gflops": ceiling.gflops,
            "ceiling_gbs": ceiling.gbs,
        }
    )
