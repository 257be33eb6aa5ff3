"""Single operations of the network at 1080p: ours, cuDNN's and torch.compile's; on a GPU only."""

from dataclasses import replace

import pytest

from bench.conftest import DEVICES, long
from bench.ops import operations
from bench.rounds import in_rows, measured_work, row_of

pytestmark = in_rows
WORKS = {str(op): op for op in (operations() if "cuda" in DEVICES else [])}


def rows() -> list:
    """For the longer run what takes minutes to compile, and all of the large network's."""
    return [
        row_of(title, name, case, long if case.slow or op.features > 64 else ())
        for title, op in WORKS.items()
        for name, case in op.cases.items()
    ]


@pytest.mark.parametrize(("title", "name"), rows())
def test_kernel(row, title, name):
    row(lambda names, turns: measured_work(replace(WORKS[title]), names, turns))
