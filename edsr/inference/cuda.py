"""CUDA: copies that overlap with computing, and graphs.

A graph launches all kernels of a network at once: launching one by one is what limits small images and small bands.
"""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from edsr.kernels import OutputSpec

MAX_GRAPHS = 4  # each holds the feature maps of its image's size, all in one pool
CAPTURE_PRIORITY = -1  # of the streams that graphs are captured on
Forward = Callable[[Tensor, OutputSpec], Tensor]
Result = TypeVar("Result")

_capture_streams: dict[int, torch.cuda.Stream] = {}  # by the device's number
_capture_lock = threading.RLock()


@contextlib.contextmanager
def capture_stream(device: torch.device | None = None) -> Iterator[torch.cuda.Stream]:
    """Makes the one stream of `device` on which graphs are captured the current stream.

    One thread at a time: what another launched there would become part of the capture. It is a single stream, because
    torch reuses a block of memory only on the stream that had it: graphs captured on several would not share their
    pool. It has a priority that nobody else asks for, because torch has 32 streams of each priority and hands them out
    in turn: in time somebody else would have this one.

    Args:
        device: A CUDA device; the current one by default.
    """
    with _capture_lock:
        number = torch.cuda.current_device() if device is None or device.index is None else device.index
        if number not in _capture_streams:
            _capture_streams[number] = torch.cuda.Stream(number, priority=CAPTURE_PRIORITY)
        with torch.cuda.stream(_capture_streams[number]):
            yield _capture_streams[number]


class CapturedGraph(Generic[Result]):
    """What `compute` launches, to be launched again as one graph. It runs when replayed, not when captured.

    Everything it reads and writes keeps its place in memory, its result included. One graph is captured at a time.
    """

    def __init__(self, compute: Callable[[], Result], pool: Any = None):
        self._graph = torch.cuda.CUDAGraph()
        mode = "thread_local"  # other threads may go on allocating
        with capture_stream() as stream, torch.cuda.graph(self._graph, pool, stream, capture_error_mode=mode):
            self._result = compute()

    def replay(self) -> Result:
        self._graph.replay()
        return self._result


class GraphCache:
    """`forward` as graphs, one for each kind of image seen at least twice; the latest MAX_GRAPHS are kept.

    A kind is a shape, a dtype and a dtype of the result. The first image of a kind is computed as usual: that compiles
    the kernels it needs, which a capture could not, and a folder of photographs of many sizes needs no graphs. Where
    memory does not suffice for a graph, there is none. Safe to call from several threads and streams: the graphs take
    turns.
    """

    def __init__(self, forward: Forward):
        self._forward = forward
        self._graphs: OrderedDict[tuple, _ImageGraph | None] = OrderedDict()  # None: seen once
        self._pool = None
        self._done: torch.cuda.Event | None = None
        self._lock = threading.Lock()

    def __call__(self, x: Tensor, result: OutputSpec) -> Tensor:
        """forward(x, result), in memory that is the caller's. x: [N, C, H, W] on a CUDA device."""
        kind = (tuple(x.shape), x.dtype, result.dtype, result.overflow is not None)
        with self._lock:
            if kind not in self._graphs:
                self._graphs[kind] = None
                self._drop_oldest()
                return self._forward(x, result)
            self._graphs.move_to_end(kind)
            graph = self._graphs[kind]
            # They share memory, and the last image may have come on another stream.
            stream = torch.cuda.current_stream(x.device)
            if self._done is not None:
                stream.wait_event(self._done)
            if graph is None:
                try:
                    self._pool = self._pool or torch.cuda.graph_pool_handle()
                    graph = self._graphs[kind] = _ImageGraph(self._forward, x, result, self._pool)
                except torch.OutOfMemoryError:
                    return self._forward(x, result)
            y = graph(x, result)
            self._done = self._done or torch.cuda.Event()
            self._done.record(stream)
            return y

    def __len__(self) -> int:
        """How many kinds of images are remembered."""
        return len(self._graphs)

    def _drop_oldest(self) -> None:
        while len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)


class _ImageGraph:
    """`forward` captured for one kind of image. What it reads and writes has a fixed place."""

    def __init__(self, forward: Forward, x: Tensor, result: OutputSpec, pool):
        with torch.inference_mode(False):  # what is made in that mode could not be written to outside of it
            self._x = torch.empty_like(x)
            overflow = None if result.overflow is None else torch.zeros_like(result.overflow)
        self._x.copy_(x)
        self._overflow = overflow
        own = OutputSpec(result.dtype, overflow)
        self._captured = CapturedGraph(lambda: forward(self._x, own), pool)

    def __call__(self, x: Tensor, result: OutputSpec) -> Tensor:
        self._x.copy_(x)
        if self._overflow is not None:
            self._overflow.zero_()
        y = self._captured.replay().clone()
        if self._overflow is not None and result.overflow is not None:
            result.overflow.logical_or_(self._overflow)
        return y


class StatefulOps(Protocol):
    """Operations that remember something between passes, such as `edsr.inference.streaming.StreamingOps`."""

    def state(self) -> list[Tensor]: ...

    def restore(self, state: list[Tensor]) -> None: ...


class BandGraph:
    """Passes over the bands of one image, captured once nothing changes from one to the next but the values.

    Args:
        forward: Computes one band with `ops`.
        ops: Operations that remember rows. Their state becomes part of the graph: it is read from a fixed place and, at
            the end of a pass, written back there.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], ops: StatefulOps):
        self._forward, self._ops = forward, ops
        self._captured: CapturedGraph[Tensor] | None = None
        self._steady: list | None = None  # shapes of a band and of the state, if it left those as they were

    def __call__(self, x: Tensor) -> Tensor:
        before = _shapes([x, *self._ops.state()])
        if before != self._steady:
            self._captured = None
            y = self._forward(x)
            after = _shapes([x, *self._ops.state()])
            self._steady = after if after == before else None
            return y
        if self._captured is None:
            self._x, fixed = torch.empty_like(x), [tensor.clone() for tensor in self._ops.state()]

            def compute() -> Tensor:
                self._ops.restore(fixed)
                y = self._forward(self._x)
                for place, value in zip(fixed, self._ops.state(), strict=True):
                    place.copy_(value)
                self._ops.restore(fixed)
                return y

            self._captured = CapturedGraph(compute)
        self._x.copy_(x)
        return self._captured.replay().clone()


def _shapes(tensors: list[Tensor]) -> list:
    return [(x.shape, x.dtype) for x in tensors]


class PendingCopy(NamedTuple):
    """Tensors on their way to the host, and the event that marks their arrival (None: they are there)."""

    tensors: tuple[Tensor, ...]
    done: torch.cuda.Event | None

    def wait(self) -> tuple[Tensor, ...]:
        """The tensors, once they have arrived."""
        if self.done is not None:
            self.done.synchronize()
        return self.tensors


class DeviceCopier:
    """Copies between the host and `device`.

    On CUDA each direction has a stream of its own and page-locked memory on the host, whose blocks torch keeps for the
    next copy of that size. What is computed on the current stream waits for its rows, and nothing else waits for
    anything. The streams have the usual priority, 0, which no stream that graphs are captured on has
    (`capture_stream`). On other devices copies are plain.
    """

    def __init__(self, device: torch.device):
        self.device = device
        on_cuda = device.type == "cuda"
        self._upload, self._download = (torch.cuda.Stream(device) if on_cuda else None for _ in range(2))

    def to_device(self, rows: np.ndarray | Tensor) -> Tensor:
        """[n, W, C] of any dtype, on the device."""
        assert isinstance(rows, np.ndarray)
        # Writable, because torch warns of what is not, and Pillow's pixels are read-only.
        source = torch.from_numpy(np.require(rows, requirements=["C", "W"]))
        if self._upload is None:
            return source.to(self.device)
        locked = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        locked.copy_(source)
        with torch.cuda.stream(self._upload):
            x = locked.to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._upload)
        x.record_stream(computing)
        return x

    def to_host(self, *tensors: Tensor) -> PendingCopy:
        """Copies of tensors that the current stream computes."""
        if self._download is None:
            return PendingCopy(tuple(x.cpu() for x in tensors), None)
        self._download.wait_stream(torch.cuda.current_stream(self.device))
        copies = []
        with torch.cuda.stream(self._download):
            for x in tensors:
                locked = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
                copies.append(locked.copy_(x, non_blocking=True))
                x.record_stream(self._download)
            done = torch.cuda.Event()
            done.record(self._download)
        return PendingCopy(tuple(copies), done)


class NoCopier(DeviceCopier):
    """For rows that are on the device already, and whose results stay there; only the rest is copied to the host."""

    def to_device(self, rows: np.ndarray | Tensor) -> Tensor:
        assert isinstance(rows, Tensor)
        return rows

    def to_host(self, *tensors: Tensor) -> PendingCopy:
        """The first of the tensors as it is, copies of the others."""
        others = super().to_host(*tensors[1:])
        return PendingCopy((tensors[0], *others.tensors), others.done)
