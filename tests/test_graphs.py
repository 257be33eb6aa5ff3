"""Which pictures become CUDA graphs, and that nothing leaks from one to the next; on a CPU, with a stand-in."""

from types import SimpleNamespace

import pytest
import torch

from edsr.graphs import KEPT, Graphs
from kernels.reference import Result
from tests.test_stream import Repeated


@pytest.fixture
def graphs(monkeypatch):
    """Graphs of a function that doubles, and finds overflow where a value is above 100."""
    monkeypatch.setattr("edsr.graphs.Recorded", Repeated)
    monkeypatch.setattr(Repeated, "made", 0)
    nothing = SimpleNamespace(wait_event=lambda event: None, record=lambda stream: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: nothing)
    monkeypatch.setattr(torch.cuda, "Event", lambda: nothing)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))

    def forward(x, result):
        if result.overflow is not None:
            result.overflow.logical_or_((x > 100).any())
        return 2 * x

    return Graphs(forward)


def test_the_second_of_a_kind_is_recorded(graphs):
    for i, recorded in enumerate([0, 1, 1]):
        x = torch.full((1, 3, 4, 5), float(i))
        assert torch.equal(graphs(x, Result()), 2 * x)
        assert Repeated.made == recorded
    graphs(torch.zeros(1, 3, 4, 5), Result(torch.uint8))
    graphs(torch.zeros(1, 3, 5, 4), Result())
    assert Repeated.made == 1


def test_a_result_is_the_callers_own(graphs):
    results = [graphs(torch.full((1, 3, 2, 2), float(i)), Result()) for i in range(4)]
    assert [y[0, 0, 0, 0].item() for y in results] == [0, 2, 4, 6]


def test_overflow_belongs_to_its_picture(graphs):
    for value, seen in [(1, 0), (1, 0), (200, 1), (1, 0), (200, 1)]:
        overflow = torch.zeros(1, dtype=torch.int32)
        graphs(torch.full((1, 3, 2, 2), float(value)), Result(None, overflow))
        assert overflow.item() == seen


def test_the_latest_are_kept(graphs):
    sizes = [2, 2, 3, 3, 4, 4, 5, 5, 6, 6]  # five kinds: the first has to go
    for size in sizes:
        graphs(torch.zeros(1, 3, 2, size), Result())
    assert Repeated.made == KEPT + 1 and len(graphs._met) == KEPT
    graphs(torch.zeros(1, 3, 2, 2), Result())
    assert Repeated.made == KEPT + 1  # met again, as if for the first time


def test_without_memory_for_a_graph_there_is_none(graphs, monkeypatch):
    def no_memory(compute, pool=None):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr("edsr.graphs.Recorded", no_memory)
    for i in range(3):
        x = torch.full((1, 3, 2, 2), float(i))
        assert torch.equal(graphs(x, Result()), 2 * x)
