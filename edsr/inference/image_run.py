"""One image's run through a network, top to bottom, whatever happens on the way.

If the device runs out of memory, or a reduced precision overflows, the run goes on: rows are computed again, from as
many above the row reached as the network looks back, in smaller bands or in fp32. The result is the same.
"""

import contextlib
import gc
import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from edsr.kernels import OutputSpec
from edsr.wording import option

from .cuda import DeviceCopier, NoCopier, PendingCopy
from .executor import Executor
from .pixels import flat_alpha, from_network, to_network
from .streaming import Stream

logger = logging.getLogger(__name__)
T = TypeVar("T")

GRAPH_PIXELS = 1 << 20  # of a band up to which it becomes a CUDA graph; larger ones hide their launches, and graphs
# hold feature maps of their own. 1 Mpx takes an H200 4 ms (half of 1080p), launching it takes the CPU 3 ms by a model.


class Overflow(Exception):
    """A value is NaN or infinite."""


class FaultyWeights(Exception):
    """A value is NaN or infinite even in fp32, though none of the image is."""


class OutOfMemory(Exception):
    """Not even the smallest bands fit into the device's memory."""


class InputRows(NamedTuple):
    """Rows of the image as they came. first: number of the first of them. last: whether the image ends with them."""

    first: int
    last: bool
    rows: np.ndarray | Tensor

    @property
    def stop(self) -> int:
        return self.first + len(self.rows)


class ImageRun:
    """An iterator over the rows of one upscaled image, on the host; see `Upscaler.bands`.

    Rows may also be tensors on the device, RGB in fp32; then the result stays there.

    The plan of a run begins as the executor's. Precision and memory budget change for this image alone.
    """

    def __init__(self, executor: Executor, rows: Iterable[np.ndarray | Tensor], width: int, self_ensemble: bool):
        self._executor, self._plan = executor, executor.plan
        self._width, self._self_ensemble = width, self_ensemble
        self._source = _mark_last(rows)
        self._buffered: deque[InputRows] = deque()  # input that may be needed again
        self._rows_taken = 0  # of input
        self._rows_done = 0  # of input whose output has been given away
        self._source_failed = False  # by an error of its own, which says nothing of the device

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            try:
                for y in self._attempt():
                    self._rows_done += len(y) // self._executor.scale
                    self._forget_rows()
                    yield y
                return
            except (RuntimeError, MemoryError) as error:
                if self._source_failed or not is_out_of_memory(error):
                    raise
                overflowed = False
            except Overflow:
                overflowed = True
            # Not in the handlers: there the traceback would keep the feature maps alive.
            if overflowed:
                if self._plan.precision == "fp32":
                    raise FaultyWeights
                logger.warning("the network overflows in %s: going on in fp32", self._plan.precision)
                self._plan = replace(self._plan, precision="fp32")
            else:
                self._halve_budget()

    def _forget_rows(self) -> None:
        """Drops input that nothing still to come can see."""
        needed = self._rows_done - self._plan.receptive_radius
        while self._buffered and self._buffered[0].stop <= needed:
            self._buffered.popleft()

    def _halve_budget(self) -> None:
        """Bands of half as many pixels for the rest of this image."""
        plan = self._plan
        gc.collect()
        if plan.device.type == "cuda":
            torch.cuda.empty_cache()
        tallest = max(len(part.rows) for part in self._buffered)
        tile = int(min(plan.tile, plan.map_scale * math.isqrt(self._width * tallest)) / math.sqrt(2))
        smallest = plan.smallest_tile
        if tile < smallest:
            raise OutOfMemory(f"{plan.device} has too little free memory even for bands of {smallest} x {smallest}")
        logger.warning("%s ran out of memory: going on with %s", plan.device, option("tile", tile))
        self._plan = replace(plan, tile=tile)

    def _input(self) -> Iterator[InputRows]:
        """From as far above the row reached as matters: what has been taken before, then more."""
        yield from list(self._buffered)
        while True:
            try:
                last, rows = next(self._source)
            except StopIteration:
                return
            except BaseException:
                self._source_failed = True
                raise
            self._buffered.append(InputRows(self._rows_taken, last, rows))
            self._rows_taken += len(rows)
            yield self._buffered[-1]

    def _attempt(self) -> Iterator[Tensor]:
        """Output from the row reached on; as long as all goes well, to the end.

        On CUDA each part is copied to the host while the next is computed.
        """
        on_cuda = self._plan.device.type == "cuda"
        pending: PendingCopy | None = None
        for copy in self._compute():
            if pending is not None:
                yield _finished(pending)
            pending = copy
            if not on_cuda:
                yield _finished(pending)
                pending = None
        if pending is not None:
            yield _finished(pending)

    def _compute(self) -> Iterator[PendingCopy]:
        """Copies to the host of successive parts of the output, each with the mark of overflow."""
        executor, plan, scale = self._executor, self._plan, self._executor.scale
        overflow = torch.zeros(1, dtype=torch.int32, device=plan.device)
        compute, copier, step = None, None, 0
        at = 0  # row of input that the next row of output belongs to
        for first, ending, rows in self._input():
            if compute is None or copier is None:
                at = first
                copier = (NoCopier if isinstance(rows, Tensor) else DeviceCopier)(plan.device)
                step, columns = plan.band_shape(self._width, len(rows) if ending and first == 0 else None)
                compute = _BandComputer(executor, plan.precision, self._self_ensemble, self._width, (step, columns))
            for i in range(0, len(rows), step):
                piece, last = rows[i : i + step], ending and i + step >= len(rows)
                x, quantized = to_network(copier.to_device(piece))
                # The tail quantizes colors by itself; averaging comes before that.
                quantized = quantized and not self._self_ensemble
                with executor.compute_lock, torch.no_grad(), executor.computing(plan.precision):
                    y = compute(x, last, OutputSpec(x.dtype if quantized else None, overflow))
                    done = y.shape[2] // scale
                    y = y[:, :, max(0, min(done, self._rows_done - at)) * scale :]
                    top, at = at + done - y.shape[2] // scale, at + done
                    if y.shape[2] == 0:
                        continue
                    y = y[0].permute(1, 2, 0) if quantized else self._to_samples(y, piece, top)
                yield copier.to_host(y.contiguous(), overflow)

    def _to_samples(self, y: Tensor, like: np.ndarray | Tensor, top: int) -> Tensor:
        """[rows, s·W, C] of the dtype and channels of `like`. top: the LR row with which y begins."""
        if isinstance(like, Tensor):
            return from_network(y, 3, np.dtype(np.float32))
        channels, scale = like.shape[2], self._executor.scale
        if channels in (1, 3):
            return from_network(y, channels, like.dtype)
        alpha = np.concatenate([np.asarray(part.rows[:, :, -1]) for part in self._buffered])
        clear, opaque = (
            mask.to(y.device).repeat_interleave(scale, 0).repeat_interleave(scale, 1)
            for mask in flat_alpha(alpha, top - self._buffered[0].first, y.shape[2] // scale)
        )
        return from_network(y, channels, like.dtype, (clear, opaque))


class _BandComputer:
    """Computes the bands of one attempt: at once if the image is one band, else by a Stream for each network.

    band_shape: (rows, columns), see `ExecutionPlan.band_shape`.
    """

    def __init__(
        self, executor: Executor, precision: str, self_ensemble: bool, width: int, band_shape: tuple[int, int]
    ):
        self._executor, self._precision = executor, precision
        self._networks = executor.networks(precision, self_ensemble)
        self._width, (self._rows, self._columns) = width, band_shape
        self._streams: list[Stream] = []

    def __call__(self, x: Tensor, last: bool, result: OutputSpec) -> Tensor:
        """x: [N, 3, n, W], the next rows. Gives [N, 3, s·n', s·W], as `result` says, which is always the same."""
        single = len(self._networks) == 1
        if not self._streams and last and self._columns == self._width and single:
            return self._executor.compute_whole(x, result, self._precision)
        if not self._streams:
            graphs = self._executor.plan.uses_graphs and single and self._columns * self._rows <= GRAPH_PIXELS
            self._streams = [
                Stream(network, self._width, self._columns, self._executor.ops, result, graphs)
                for network in self._networks
            ]
        y = self._streams[0](x, last)
        for stream in self._streams[1:]:
            y = y + stream(x, last)
        return y if single else y / len(self._streams)


def is_out_of_memory(error: Exception) -> bool:
    """Whether that is what an error is about; on a CPU torch says so only in words."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def _finished(copy: PendingCopy) -> Tensor:
    y, overflow = copy.wait()
    if overflow.item():
        raise Overflow
    return y


def _mark_last(items: Iterable[T]) -> Iterator[tuple[bool, T]]:
    """(False, item), …, (True, last item): a stream must know where its image ends."""
    iterator = iter(items)
    with contextlib.suppress(StopIteration):
        current = next(iterator)
        for following in iterator:
            yield False, current
            current = following
        yield True, current
