"""Which images become CUDA graphs, and that nothing leaks from one to the next; on a CPU, with a stand-in."""

import contextlib
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from edsr.data.patches import PatchLoader
from edsr.data.store import PairedImages
from edsr.inference import cuda as graphs_module
from edsr.inference.cuda import MAX_GRAPHS, CapturedGraph, DeviceCopier, GraphCache, capture_stream
from edsr.kernels import reference
from edsr.kernels.interface import OutputSpec
from edsr.models.edsr import EDSR, EDSRConfig
from edsr.training.step import TrainStep
from tests.conftest import make_image
from tests.inference.test_streaming import Repeated


@pytest.fixture
def graphs(monkeypatch):
    """Graphs of a function that doubles, and finds overflow where a value is above 100."""
    monkeypatch.setattr("edsr.inference.cuda.CapturedGraph", Repeated)
    monkeypatch.setattr(Repeated, "made", 0)
    nothing = SimpleNamespace(wait_event=lambda event: None, record=lambda stream: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: nothing)
    monkeypatch.setattr(torch.cuda, "Event", lambda: nothing)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))

    def forward(x, result):
        if result.overflow is not None:
            result.overflow.logical_or_((x > 100).any())
        return 2 * x

    return GraphCache(forward)


def test_the_second_of_a_kind_is_recorded(graphs):
    for i, recorded in enumerate([0, 1, 1]):
        x = torch.full((1, 3, 4, 5), float(i))
        assert torch.equal(graphs(x, OutputSpec()), 2 * x)
        assert Repeated.made == recorded
    graphs(torch.zeros(1, 3, 4, 5), OutputSpec(torch.uint8))
    graphs(torch.zeros(1, 3, 5, 4), OutputSpec())
    assert Repeated.made == 1


def test_a_result_is_the_callers_own(graphs):
    results = [graphs(torch.full((1, 3, 2, 2), float(i)), OutputSpec()) for i in range(4)]
    assert [y[0, 0, 0, 0].item() for y in results] == [0, 2, 4, 6]


def test_overflow_belongs_to_its_image(graphs):
    for value, seen in [(1, 0), (1, 0), (200, 1), (1, 0), (200, 1)]:
        overflow = torch.zeros(1, dtype=torch.int32)
        graphs(torch.full((1, 3, 2, 2), float(value)), OutputSpec(None, overflow))
        assert overflow.item() == seen


def test_what_is_recorded_in_inference_mode_serves_outside_of_it(graphs):
    x, overflow = torch.full((1, 3, 2, 2), 200.0), torch.zeros(1, dtype=torch.int32)
    with torch.inference_mode():
        for _ in range(2):
            graphs(x.clone(), OutputSpec(None, torch.zeros(1, dtype=torch.int32)))
    assert torch.equal(graphs(x, OutputSpec(None, overflow)), 2 * x) and overflow.item() and Repeated.made == 1


def test_the_latest_are_kept(graphs):
    sizes = [2, 2, 3, 3, 4, 4, 5, 5, 6, 6]  # five kinds: the first has to go
    for size in sizes:
        graphs(torch.zeros(1, 3, 2, size), OutputSpec())
    assert Repeated.made == MAX_GRAPHS + 1 and len(graphs) == MAX_GRAPHS
    graphs(torch.zeros(1, 3, 2, 2), OutputSpec())
    assert Repeated.made == MAX_GRAPHS + 1  # met again, as if for the first time


def test_without_memory_for_a_graph_there_is_none(graphs, monkeypatch):
    def no_memory(compute, pool=None):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr("edsr.inference.cuda.CapturedGraph", no_memory)
    for i in range(3):
        x = torch.full((1, 3, 2, 2), float(i))
        assert torch.equal(graphs(x, OutputSpec()), 2 * x)


class Stream:
    """A stream's stand-in, which knows what it was asked to be."""

    made: list["Stream"]

    def __init__(self, device=None, priority=0):
        self.device, self.priority = device, priority
        self.waited: list = []
        Stream.made.append(self)

    def wait_stream(self, other):
        self.waited.append(other)


class Face:
    """What of torch.cuda is used for recording, on a CPU: streams are made, made current, and recorded on."""

    def __init__(self, monkeypatch):
        Stream.made = []
        self.default, self.recorded, self.replays = Stream(), [], 0
        self.current = [self.default]
        monkeypatch.setattr(graphs_module, "_capture_streams", {})
        for name, value in {
            "Stream": Stream,
            "stream": self.stream,
            "current_stream": lambda device=None: self.current[-1],
            "current_device": lambda: self.current[-1].device or 0,
            "CUDAGraph": lambda: SimpleNamespace(replay=self.replay),
            "graph": self.graph,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    @contextlib.contextmanager
    def stream(self, stream):
        self.current.append(stream)
        yield
        self.current.pop()

    @contextlib.contextmanager
    def graph(self, graph, pool=None, stream=None, capture_error_mode="global"):
        self.recorded.append((stream, pool, capture_error_mode))
        with self.stream(stream):
            yield

    def replay(self):
        self.replays += 1


@pytest.fixture
def face(monkeypatch):
    return Face(monkeypatch)


def test_all_that_is_recorded_on_a_device_is_recorded_on_one_stream(face):
    """Of a priority that copies never ask for: torch hands out streams of a priority in a circle."""
    first, second = (CapturedGraph(lambda i=i: i, pool) for i, pool in enumerate(["pool", None]))
    (one, _, _), (other, _, _) = face.recorded
    assert one is other and one.priority == -1 and one.device == 0
    assert [(pool, mode) for _, pool, mode in face.recorded] == [("pool", "thread_local"), (None, "thread_local")]
    assert (first.replay(), second.replay(), face.replays) == (0, 1, 2)
    before = len(Stream.made)
    DeviceCopier(torch.device("cuda", 0))
    assert [stream.priority for stream in Stream.made[before:]] == [0, 0]
    with capture_stream(torch.device("cuda", 1)) as elsewhere:
        CapturedGraph(lambda: None)
    assert elsewhere is not one and elsewhere.device == 1 and face.recorded[-1][0] is elsewhere


def test_threads_record_in_turns(face):
    both = threading.Barrier(2)  # passed, were the second let in while the first is at it

    def compute():
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.3)

    threads = [threading.Thread(target=CapturedGraph, args=(compute,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert both.broken and len(face.recorded) == 2


class OnCpu(TorchFunctionMode):
    """Tensors asked for on CUDA are made on the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if getattr(kwargs.get("device"), "type", None) == "cuda":
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def test_a_training_step_is_launched_and_recorded_on_that_stream(face, monkeypatch):
    high = make_image(32, 32)
    images = PairedImages.from_pairs([(np.ascontiguousarray(high[::2, ::2]), high)], 2)
    loader = PatchLoader(images, 8, 2, 0, "cpu", 5)
    ranks = SimpleNamespace(device=torch.device("cuda", 0), world_size=1)
    launched = []
    honest = TrainStep._step
    monkeypatch.setattr(TrainStep, "_step", lambda self, k: (launched.append(face.current[-1]), honest(self, k))[1])
    with OnCpu():
        step = TrainStep(EDSR(EDSRConfig(2, 1, 8)), loader, ranks, "l1", 0.9, torch.float32, reference, True)
        assert step.warm_up_steps == 4
        step.run(0, [1e-3] * 5)
    with capture_stream(ranks.device) as stream:
        assert launched == [stream] * 4 and [at for at, *_ in face.recorded] == [stream]
    assert stream.waited == [face.default] and face.replays == 2 and step.warm_up_steps == 0
