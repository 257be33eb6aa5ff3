"""CUDA: copies beside what is computed, and graphs.

A graph is a network's kernels, launched as one: what small images and small bands are short of is launches.
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

KEPT = 4  # graphs; each holds the feature maps of its image's size, all in one pool
PRIORITY = -1  # of the streams recorded on
Forward = Callable[[Tensor, OutputSpec], Tensor]
Kept = TypeVar("Kept")

_streams: dict[int, torch.cuda.Stream] = {}  # by the device's number
_turn = threading.RLock()


@contextlib.contextmanager
def capture_stream(device: torch.device | None = None) -> Iterator[torch.cuda.Stream]:
    """The one stream of `device` (default: the current one) that graphs are recorded on, current for as long as this is
    open, and no other thread's meanwhile: what that launched there would become part of a recording.

    One stream, because torch gives a block of memory again only to the stream that had it: graphs recorded on several
    would share their pool in name. Of a priority that nobody else asks for, because torch has 32 streams of each
    priority and hands them out in a circle: in time somebody else would hold this one.
    """
    with _turn:
        number = torch.cuda.current_device() if device is None or device.index is None else device.index
        if number not in _streams:
            _streams[number] = torch.cuda.Stream(number, priority=PRIORITY)
        with torch.cuda.stream(_streams[number]):
            yield _streams[number]


class CapturedGraph(Generic[Kept]):
    """What `compute` launches, to be launched again as one graph. It runs when replayed, not when recorded.

    Everything it reads and writes keeps its place in memory, its result included. Recordings take turns.
    """

    def __init__(self, compute: Callable[[], Kept], pool: Any = None):
        self._graph = torch.cuda.CUDAGraph()
        mode = "thread_local"  # other threads may go on allocating
        with capture_stream() as stream, torch.cuda.graph(self._graph, pool, stream, capture_error_mode=mode):
            self._result = compute()

    def replay(self) -> Kept:
        self._graph.replay()
        return self._result


class GraphCache:
    """`forward` as graphs, one for each kind of image met at least twice; the latest `KEPT` are kept.

    An image met once is computed as usual: that compiles the kernels it needs, which a recording could not, and a
    folder of photographs of many sizes needs no graphs. Where memory does not suffice for a graph, there is none.
    Safe to call from several threads and streams: the graphs take turns.
    """

    def __init__(self, forward: Forward):
        self._forward = forward
        self._met: OrderedDict[tuple, _Graph | None] = OrderedDict()
        self._pool = None
        self._done: torch.cuda.Event | None = None
        self._lock = threading.Lock()

    def __call__(self, x: Tensor, result: OutputSpec) -> Tensor:
        """forward(x, result), in memory of the caller's own. x: [N, C, H, W] on a CUDA device."""
        kind = (tuple(x.shape), x.dtype, result.dtype, result.overflow is not None)
        with self._lock:
            if kind not in self._met:
                self._met[kind] = None
                self._drop_oldest()
                return self._forward(x, result)
            self._met.move_to_end(kind)
            graph = self._met[kind]
            # They share memory, and the last image may have come on another stream.
            stream = torch.cuda.current_stream(x.device)
            if self._done is not None:
                stream.wait_event(self._done)
            if graph is None:
                try:
                    self._pool = self._pool or torch.cuda.graph_pool_handle()
                    graph = self._met[kind] = _Graph(self._forward, x, result, self._pool)
                except torch.OutOfMemoryError:
                    return self._forward(x, result)
            y = graph(x, result)
            self._done = self._done or torch.cuda.Event()
            self._done.record(stream)
            return y

    def _drop_oldest(self) -> None:
        while len(self._met) > KEPT:
            self._met.popitem(last=False)


class _Graph:
    """`forward` recorded for one kind of image. What it reads and writes has a fixed place."""

    def __init__(self, forward: Forward, x: Tensor, result: OutputSpec, pool):
        self._x = torch.empty_like(x)
        self._x.copy_(x)
        overflow = None if result.overflow is None else torch.zeros_like(result.overflow)
        self._overflow = overflow
        own = OutputSpec(result.dtype, overflow)
        self._recorded = CapturedGraph(lambda: forward(self._x, own), pool)

    def __call__(self, x: Tensor, result: OutputSpec) -> Tensor:
        self._x.copy_(x)
        if self._overflow is not None:
            self._overflow.zero_()
        y = self._recorded.replay().clone()
        if self._overflow is not None and result.overflow is not None:
            result.overflow.logical_or_(self._overflow)
        return y


class StatefulOps(Protocol):
    """Ops with a memory between passes, such as `edsr.inference.streaming.StreamingOps`."""

    def state(self) -> list[Tensor]: ...

    def restore(self, state: list[Tensor]) -> None: ...


class BandGraph:
    """Passes over the bands of one image, recorded when nothing changes from one to the next but the values.

    forward: one band through ops that remember rows, whose memory becomes part of the recording: it is read
    from a fixed place and, at the end of a pass, written back there.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], ops: StatefulOps):
        self._forward, self._ops = forward, ops
        self._recorded: CapturedGraph | None = None
        self._settled: list | None = None  # shapes of a band and of the memory that it left as they were

    def __call__(self, x: Tensor) -> Tensor:
        before = _shapes([x, *self._ops.state()])
        if before != self._settled:
            self._recorded = None
            y = self._forward(x)
            after = _shapes([x, *self._ops.state()])
            self._settled = after if after == before else None
            return y
        if self._recorded is None:
            self._x, memory = torch.empty_like(x), [tensor.clone() for tensor in self._ops.state()]

            def compute() -> Tensor:
                self._ops.restore(memory)
                y = self._forward(self._x)
                for place, now in zip(memory, self._ops.state(), strict=True):
                    place.copy_(now)
                self._ops.restore(memory)
                return y

            self._recorded = CapturedGraph(compute)
        self._x.copy_(x)
        return self._recorded.replay().clone()


def _shapes(tensors: list[Tensor]) -> list:
    return [(x.shape, x.dtype) for x in tensors]


class PendingCopy(NamedTuple):
    """Tensors on their way to the host, and the event that tells when they are there (None: they are)."""

    tensors: tuple[Tensor, ...]
    there: torch.cuda.Event | None

    def wait(self) -> tuple[Tensor, ...]:
        if self.there is not None:
            self.there.synchronize()
        return self.tensors


class DeviceCopier:
    """Copies between the host and `device`.

    On CUDA each direction has a stream of its own and page-locked memory on the host, whose blocks torch keeps
    for the next copy of that size; what is computed on the current stream waits for its rows, and nothing else
    waits for anything. The streams are of the usual priority, 0, which no stream that graphs are recorded on has
    (`capture_stream`). On other devices copies are plain.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._up, self._down = (torch.cuda.Stream(device) for _ in range(2)) if device.type == "cuda" else (None, None)

    def to_device(self, rows: np.ndarray) -> Tensor:
        """[n, W, C] of any dtype -> the same on the device."""
        # Writable, because torch warns of what is not, and Pillow lends its pixels for reading alone.
        source = torch.from_numpy(np.require(rows, requirements=["C", "W"]))
        if self._up is None:
            return source.to(self.device)
        locked = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        locked.copy_(source)
        with torch.cuda.stream(self._up):
            x = locked.to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._up)
        x.record_stream(computing)
        return x

    def to_host(self, *tensors: Tensor) -> PendingCopy:
        """Copies of tensors that the current stream computes."""
        if self._down is None:
            return PendingCopy(tuple(x.cpu() for x in tensors), None)
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        copies = []
        with torch.cuda.stream(self._down):
            for x in tensors:
                locked = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
                copies.append(locked.copy_(x, non_blocking=True))
                x.record_stream(self._down)
            there = torch.cuda.Event()
            there.record(self._down)
        return PendingCopy(tuple(copies), there)
