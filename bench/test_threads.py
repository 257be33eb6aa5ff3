"""What a second thread is worth on a CPU, in turns with one thread. With `-s` it is said in words."""

import statistics

import pytest
import torch

from bench.machine import available_cores, stopwatch
from bench.workloads import Workload

ROUNDS = 7


@pytest.mark.skipif(len(available_cores()) < 2, reason="needs two cores")
@pytest.mark.parametrize("side", [64, 256])
def test_second_thread(benchmark, side):
    work = Workload.baseline(2, side, side)
    model, ops, before = work.upscaler.model, work.upscaler.ops, torch.get_num_threads()
    seconds = {1: [], 2: []}

    @torch.inference_mode()
    def take(threads: int) -> None:
        torch.set_num_threads(threads)
        seconds[threads].append(stopwatch(lambda: model(work.image, ops), "cpu"))

    try:
        take(1)
        take(2)  # warms up
        benchmark.group = f"threads {side}x{side}"
        benchmark.pedantic(take, (2,), setup=lambda: take(1), rounds=ROUNDS)
    finally:
        torch.set_num_threads(before)
    scaling = statistics.median(one / two for one, two in zip(seconds[1][1:], seconds[2][1:], strict=True))
    benchmark.extra_info.update({"one_seconds": seconds[1][1:], "two_seconds": seconds[2][1:], "scaling": scaling})
    print(f"{work}: {scaling:.2f} times as fast with two threads as with one")
