"""One picture through the network, every way to run it; `bench.compare` takes the same figures in turns."""

import functools
from dataclasses import replace

import pytest

from bench.cases import Workload, workloads
from bench.conftest import DEVICES
from bench.frames import frames

WORKS = {f"{work} {work.device}": work for work in workloads() + (frames() if "cuda" in DEVICES else [])}


@functools.lru_cache(maxsize=1)  # tests of one workload follow each other, and share the result in fp64
def prepared(title: str) -> Workload:
    return replace(WORKS[title])


@pytest.mark.parametrize(("title", "name"), [(title, name) for title, work in WORKS.items() for name in work.cases])
def test_model(measure, title, name):
    measure(prepared(title), name)
