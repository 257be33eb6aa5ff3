"""Single operations of the network at 1080p: ours, cuDNN's and torch.compile's; on a GPU only."""

import functools
from dataclasses import replace

import pytest

from bench.conftest import DEVICES
from bench.ops import Op, operations

WORKS = {str(op): op for op in (operations() if "cuda" in DEVICES else [])}


@functools.lru_cache(maxsize=1)  # tests of one operation follow each other, and share the result in fp64
def prepared(title: str) -> Op:
    return replace(WORKS[title])


@pytest.mark.parametrize(("title", "name"), [(title, name) for title, op in WORKS.items() for name in op.cases])
def test_kernel(measure, title, name):
    measure(prepared(title), name)
