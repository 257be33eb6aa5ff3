"""One image through the network, every way to run it. On a CPU in turns, in one run, as `bench.compare` does."""

import functools
from dataclasses import replace

import pytest
from rich.console import Console

from bench.compare import compare, cpu_items, table
from bench.conftest import DEVICES
from bench.frames import Frame, frames
from bench.workloads import workloads

ROUNDS = 7
FRAMES = {f"{work} {work.device}": work for work in frames()} if "cuda" in DEVICES else {}


@pytest.mark.parametrize("title", [str(work) for work in workloads()])
def test_ways_in_turns(benchmark, title):
    """The table is the result; pytest-benchmark's own figure is how long it took to make."""
    ((work, names, rounds),) = cpu_items(ROUNDS, [title])
    console = Console()
    entry = benchmark.pedantic(compare, (work, names, rounds, console))
    benchmark.extra_info.update(entry)
    console.print(table(entry))
    assert not entry["wrong"]


@functools.lru_cache(maxsize=1)  # tests of one frame follow each other, and share the result in fp64
def prepared(title: str) -> Frame:
    return replace(FRAMES[title])


@pytest.mark.parametrize(("title", "name"), [(title, name) for title, work in FRAMES.items() for name in work.cases])
def test_frame(measure, title, name):
    measure(prepared(title), name)
