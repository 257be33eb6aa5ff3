"""One image through the network, every way to run it, a row for each. Checked against fp64, timed in turns."""

from dataclasses import replace

import pytest

from bench.conftest import DEVICES, long
from bench.frames import frames
from bench.rounds import in_rows, measured_work, row_of
from bench.workloads import CpuNetwork, workloads

pytestmark = in_rows
FRAMES = frames() if "cuda" in DEVICES else []
QUICK = [CpuNetwork.baseline(scale, 128, 128) for scale in (2, 4)]  # what two cores do in a minute or two
AIMS, COMPARED = FRAMES[:4], FRAMES[:1]  # on a GPU; beside peers that take minutes to make ready, one
WORKS: dict[str, CpuNetwork] = {str(work): work for work in [*QUICK, *workloads(), *FRAMES]}


def rows() -> list:
    """Every case of every work; for the longer run what is large or, but for one work, slow to make ready."""
    usual = {str(work) for work in [*QUICK, *AIMS]}
    slow_too = {str(work) for work in COMPARED}
    return [
        row_of(title, name, case, () if title in usual and (title in slow_too or not case.slow) else long)
        for title, work in WORKS.items()
        for name, case in work.cases.items()
    ]


@pytest.mark.parametrize(("title", "name"), rows())
def test_network(row, title, name):
    row(lambda names, turns: measured_work(replace(WORKS[title]), names, turns))
