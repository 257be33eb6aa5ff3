"""What a second thread is worth on a CPU, in turns with one thread."""

import pytest
import torch

from bench.machine import Ceiling, available_cores, stopwatch
from bench.rounds import Group, Implementation, Turns, in_rows, measured
from bench.workloads import CpuNetwork

pytestmark = in_rows
THREADS = {"one": 1, "two": 2}


def figures(side: int, names: tuple[str, ...], turns: Turns) -> Group:
    work, before = CpuNetwork.baseline(2, side, side), torch.get_num_threads()
    model, ops = work.upscaler.model, work.upscaler.ops

    @torch.inference_mode()
    def take(threads: int) -> float:
        torch.set_num_threads(threads)
        try:
            return stopwatch(lambda: model(work.image, ops), work.device)
        finally:
            torch.set_num_threads(before)

    def make(name: str) -> Implementation:
        take(THREADS[name])  # warms up
        title = f"{THREADS[name]} thread" + ("s" if THREADS[name] > 1 else "")
        return Implementation(title, lambda: take(THREADS[name]), work.gflop(True))

    return measured(f"threads {side}x{side}", "one", names, make, turns, Ceiling(work.device, work.dtype))


@pytest.mark.skipif(len(available_cores()) < 2, reason="needs two cores")
@pytest.mark.parametrize("name", THREADS)
@pytest.mark.parametrize("side", [64, 256])
def test_second_thread(row, side, name):
    row(lambda names, turns: figures(side, names, turns))
