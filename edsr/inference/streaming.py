"""Exact execution band by band: operations that remember rows.

Every convolution keeps the last rows of its input from the band before, so a band of T rows gives T rows, late by the
convolution's radius. Every skip connection is a delay line that hands out as many rows as the convolution produced.
Nothing is computed twice, nothing is approximated at a seam, and memory does not depend on the image's height. Where an
image is too wide for the budget, columns are split as well, with the network's receptive radius as overlap.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor

from edsr.kernels import (
    BICUBIC_RADIUS,
    NO_MEAN,
    RAW_OUTPUT,
    Layers,
    OutputSpec,
    TensorLayers,
    TensorOps,
    as_layers,
    empty_feature_map,
    load_ops,
)
from edsr.models import Network, NetworkConfig

from .cuda import BandGraph
from .plan import FOOTROOM, HEADROOM, ColumnSlice, split_columns


class Band(NamedTuple):
    """Rows of a feature map with room around them, so that the next convolution finds all its rows in one piece.

    Attributes:
        buffer: [N, C, HEADROOM + rows + FOOTROOM, W]. Only the convolution that reads a band writes to its rooms.
        rows: How many.
    """

    buffer: Tensor
    rows: int

    @classmethod
    def empty(cls, like: Tensor, channels: int, rows: int, columns: int, dtype: torch.dtype) -> "Band":
        size = (like.shape[0], channels, HEADROOM + rows + FOOTROOM, columns)
        return cls(empty_feature_map(size, dtype, like.device), rows)

    @classmethod
    def holding(cls, rows: Tensor) -> "Band":
        """A band of rows, [N, C, rows, W], copied."""
        band = cls.empty(rows, rows.shape[1], rows.shape[2], rows.shape[3], rows.dtype)
        band.content.copy_(rows)
        return band

    @property
    def content(self) -> Tensor:
        return self.buffer[:, :, HEADROOM : HEADROOM + self.rows]


class StreamingOps(Layers[Band]):
    """The operations for one image (or one batch, or some columns of it), with a LineBuffer for each call.

    A feature map is the band of rows that are there so far. Calls are told apart by their order, so `begin` must
    precede every forward pass.

    Args:
        ops: The operations that compute; PyTorch by default.
    """

    def __init__(self, ops: TensorOps | None = None):
        self._ops = load_ops("torch") if ops is None else ops
        self._layers = cast(TensorLayers, as_layers(self._ops))
        self._buffers: list[LineBuffer] = []
        self._calls = 0
        self._flushing = range(0)

    def begin(self, flushing: range = range(0)) -> None:
        """Announces a forward pass. flushing: the calls, by their order, whose input ends with it."""
        self._calls, self._flushing = 0, flushing

    def state(self) -> list[Tensor]:
        """All that is remembered, in a fixed order."""
        buffers = self._buffers
        return [x for b in buffers for x in (*([] if b.carried is None else [b.carried]), *b.delayed)]

    def restore(self, state: list[Tensor]) -> None:
        """Puts tensors of the same shapes in the place of those that `state` gives."""
        tensors = iter(state)
        for buffer in self._buffers:
            if buffer.carried is not None:
                buffer.carried = next(tensors)
            buffer.delayed = deque([next(tensors) for _ in buffer.delayed])

    def __len__(self) -> int:
        """How many calls a pass has, known after the first."""
        return len(self._buffers)

    def head(self, x: Tensor, weight: Tensor, bias: Tensor, mean: Sequence[float]) -> Band:
        buffer = self._next_buffer()
        band = Band.holding(x)
        # The padding is zero once the mean is subtracted, so it cannot be among the pixels.
        top, bottom = int(not buffer.started), int(buffer.flushing)
        window = buffer.extend(band, 1, padded=False)
        rows = max(0, window.shape[2] - 2 + top + bottom)
        out = Band.empty(x, weight.shape[0], rows, x.shape[3], weight.dtype)
        if rows:
            buffer.started = True
            self._ops.head(window, weight, bias, mean, padding=(top, bottom), out=out.content)
        return out

    def conv3x3(
        self,
        x: Band,
        weight: Tensor,
        bias: Tensor,
        relu: bool = False,
        scale: float = 1.0,
        skip: Band | None = None,
        shuffle: int = 1,
    ) -> Band:
        compute = partial(self._ops.conv3x3, weight=weight, bias=bias, relu=relu, scale=scale, shuffle=shuffle)
        return self._convolve(x, weight, skip, shuffle, compute)

    def resblock(
        self,
        x: Band,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        scale: float = 1.0,
        *,
        reuse: bool = False,
    ) -> Band:
        y = self.conv3x3(x, weight1, bias1, relu=True)
        return self.conv3x3(y, weight2, bias2, scale=scale, skip=x)

    def conv(
        self,
        x: Band,
        weight: Tensor,
        bias: Tensor,
        relu: bool = False,
        slope: Tensor | None = None,
        skip: Band | None = None,
        shuffle: int = 1,
    ) -> Band:
        compute = partial(self._layers.conv, weight=weight, bias=bias, relu=relu, slope=slope, shuffle=shuffle)
        return self._convolve(x, weight, skip, shuffle, compute)

    def _convolve(self, x: Band, weight: Tensor, skip: Band | None, r: int, compute: Callable[..., Tensor]) -> Band:
        """The rows that there are by now of a convolution; `compute` makes some of them, r times larger."""
        buffer, radius = self._next_buffer(), weight.shape[2] // 2
        window = buffer.extend(x, radius)
        rows, columns = max(0, window.shape[2] - 2 * radius), window.shape[3]
        out = Band.empty(window, weight.shape[0] // (r * r), rows * r, columns * r, weight.dtype)
        # Straight into the next convolution's buffer, and from wherever the skip's rows are: no copy of either.
        pieces = [(0, rows, None)] if skip is None else buffer.take(skip, rows)
        for first, n, piece in pieces:
            if n:
                target = out.content[:, :, r * first : r * (first + n)]
                compute(window[:, :, first : first + n + 2 * radius], skip=piece, padding=0, out=target)
        return out

    def enter(self, x: Tensor, mean: Sequence[float] = NO_MEAN) -> Band:
        return Band.holding(self._layers.enter(x, mean))

    def bicubic(self, x: Band, scale: int) -> Band:
        buffer = self._next_buffer()
        if not buffer.started and x.rows:  # beyond the image it goes on like its outermost rows
            buffer.carried = x.content[:, :, :1].expand(-1, -1, BICUBIC_RADIUS, -1)
            buffer.started = True
        window = buffer.extend(x, BICUBIC_RADIUS, padded=False)
        if window.shape[2] <= BICUBIC_RADIUS * (1 if buffer.flushing else 2):
            return Band.empty(window, window.shape[1], 0, window.shape[3] * scale, window.dtype)
        return Band.holding(self._layers.bicubic(window, scale, (False, buffer.flushing)))

    def luma(self, x: Band) -> Band:
        return Band.holding(self._layers.luma(x.content))

    def chroma(self, x: Band) -> Band:
        return Band.holding(self._layers.chroma(x.content))

    def leave(
        self,
        x: Band,
        mean: Sequence[float] = NO_MEAN,
        result: OutputSpec = RAW_OUTPUT,
        tanh: bool = False,
        image: Band | None = None,
    ) -> Tensor:
        if image is None:
            pieces = [(0, x.rows, None)]
        else:
            pieces = self._next_buffer().take(image, x.rows)
        parts = [
            self._layers.leave(x.content[:, :, first : first + n], mean, result, tanh, piece)
            for first, n, piece in pieces
            if n
        ]
        if not parts:
            return _no_rows(x.buffer, x.buffer.shape[3], result)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def tail(self, x: Band, weight: Tensor, bias: Tensor, mean: Sequence[float], result: OutputSpec) -> Tensor:
        window = self._next_buffer().extend(x, 1)
        if window.shape[2] <= 2:
            return _no_rows(window, window.shape[3], result)
        return self._ops.tail(window, weight, bias, mean, result, padding=0)

    def collapsed_tail(
        self, x: Band, weight: Tensor, bias: Tensor, mean: Sequence[float], shuffle: int, result: OutputSpec
    ) -> Tensor:
        buffer = self._next_buffer()
        window = buffer.extend(x, 2)
        if window.shape[2] <= 4:
            return _no_rows(window, window.shape[3] * shuffle, result)
        ends = (not buffer.started, buffer.flushing)
        buffer.started = True
        return self._ops.collapsed_tail(window, weight, bias, mean, shuffle, result, padding=0, ends=ends)

    def _next_buffer(self) -> "LineBuffer":
        if self._calls == len(self._buffers):
            self._buffers.append(LineBuffer())
        buffer = self._buffers[self._calls]
        buffer.flushing = self._calls in self._flushing
        self._calls += 1
        return buffer


class LineBuffer:
    """The rows that one call remembers from band to band.

    Attributes:
        carried: Rows of the input that are still needed.
        delayed: Rows of the skip connection that have not been handed out yet.
        started: Whether any row came out.
        flushing: Whether no row of input will follow this band.
    """

    def __init__(self):
        self.carried: Tensor | None = None
        self.delayed: deque[Tensor] = deque()
        self.started = False
        self.flushing = False

    def extend(self, band: Band, radius: int, padded: bool = True) -> Tensor:
        """The rows a convolution can read now: those carried, the band's, and the padding at either end."""
        buffer = band.buffer
        carried = self.carried
        if carried is None:
            carried = buffer.new_zeros(buffer.shape[0], buffer.shape[1], radius * padded, buffer.shape[3])
        if carried.shape[2] > HEADROOM or radius > FOOTROOM:  # no room: a copy
            padding = buffer.new_zeros(*carried.shape[:2], radius * (self.flushing and padded), carried.shape[3])
            window = torch.cat([carried, band.content, padding], 2)
            self.carried = window[:, :, max(0, window.shape[2] - 2 * radius) :].clone()
            return window.contiguous(memory_format=torch.channels_last)
        start, stop = HEADROOM - carried.shape[2], HEADROOM + band.rows
        buffer[:, :, start:HEADROOM] = carried
        if self.flushing and padded:
            buffer[:, :, stop : stop + radius] = 0
            stop += radius
        window = buffer[:, :, start:stop]
        self.carried = window[:, :, max(0, window.shape[2] - 2 * radius) :].clone()
        return window

    def take(self, skip: Band, rows: int) -> Iterator[tuple[int, int, Tensor]]:
        """Adds a band to those delayed and gives the oldest `rows` rows in pieces: (start, n, [N, C, n, W])."""
        late = sum(piece.shape[2] for piece in self.delayed)
        if len(self.delayed) == 1 and late <= HEADROOM:
            # The few rows before this band belong right before it, where there is room: one piece, one kernel.
            skip.buffer[:, :, HEADROOM - late : HEADROOM] = self.delayed.pop()
            self.delayed.append(skip.buffer[:, :, HEADROOM - late : HEADROOM + skip.rows])
        elif skip.rows:
            self.delayed.append(skip.content)
        first = 0
        while first < rows:
            piece = self.delayed.popleft()
            n = min(piece.shape[2], rows - first)
            yield first, n, piece[:, :, :n]
            first += n
            if n < piece.shape[2]:
                # A copy, so that the rest does not keep the whole band in memory.
                self.delayed.appendleft(piece[:, :, n:].clone())


def state_bytes(config: NetworkConfig, width: int, band: tuple[int, int], itemsize: int) -> int:
    """About how many bytes a Stream remembers between bands, for each image of the batch.

    Two rows of its input for every convolution, two for the skip connection of every block, and for the long one, whose
    rows wait for the body, two a block, with the rooms of the bands that they came in.

    Args:
        config: The network's.
        width: As of `Stream`.
        band: (rows, columns) that are computed at once.
        itemsize: Bytes of a value of a feature map.
    """
    rows = config.remembered_rows + (HEADROOM + FOOTROOM) * (2 + -(-config.late_rows // band[0]))
    return rows * config.features * itemsize * sum(part.width for part in _split(config, width, band[1]))


def _split(config: NetworkConfig, width: int, columns: int | None) -> list[ColumnSlice]:
    radius = config.receptive_radius
    count = 1 if columns is None or columns >= width else -(-width // (columns - 2 * radius))
    return split_columns(width, count, radius)


def _no_rows(like: Tensor, columns: int, result: OutputSpec) -> Tensor:
    dtype = result.dtype or torch.promote_types(like.dtype, torch.float32)
    return torch.empty(like.shape[0], 3, 0, columns, dtype=dtype, device=like.device)


class Stream:
    """One image, top to bottom, through a network in bands.

    Pieces of columns advance in step, so that whole rows come out in order.

    Args:
        model: The network.
        width: LR columns of the image.
        columns: How many are computed at once, overlap included (see `edsr.inference.plan.band_shape`); None for all.
        ops: The operations that compute; PyTorch by default.
        result: Dtype of the output, and whether to look for overflow.
        graphs: Whether bands of equal height become a CUDA graph (see `edsr.inference.cuda.BandGraph`).
    """

    def __init__(
        self,
        model: Network,
        width: int,
        columns: int | None = None,
        ops: TensorOps | None = None,
        result: OutputSpec = RAW_OUTPUT,
        graphs: bool = False,
    ):
        self.model, self.width, self.result = model, width, result
        self.ops = load_ops("torch") if ops is None else ops
        self._tallest = 1  # rows of the tallest band so far
        self._odd: Tensor | None = None  # rows of the result of which an LR pixel is not whole yet
        self._pieces = [(part, StreamingOps(self.ops)) for part in _split(model.config, width, columns)]
        self._graphs = [BandGraph(partial(self._compute, ops), ops) for _, ops in self._pieces if graphs]

    @torch.no_grad()
    def __call__(self, x: Tensor, last: bool = False) -> Tensor:
        """Computes the next rows.

        Args:
            x: [N, 3, T, W].
            last: Whether the image ends with them.

        Returns:
            [N, 3, s·T', s·W]. T' is less than T at first, and more at last.

        Raises:
            ValueError: x has another width than the image.
        """
        if x.shape[3] != self.width:
            raise ValueError(f"the stream is {self.width} pixels wide, not {x.shape[3]}")
        _, ops = self._pieces[0]
        if last and not len(ops):
            return self._pass(x, None)  # the whole image at once: nothing to remember
        self._tallest = max(self._tallest, x.shape[2], 1)
        passes = [self._pass(x, range(0))]
        # Each operation still owes the rows that its padding gives. Were all flushed at once, the band of the last
        # would grow by what all before it owe; so only as many are flushed at a time as a band has rows.
        for first in range(0, len(ops) if last else 0, self._tallest):
            passes.append(self._pass(x[:, :, :0], range(first, first + self._tallest)))
        return passes[0] if len(passes) == 1 else torch.cat(passes, 2)

    def _pass(self, x: Tensor, flushing: range | None) -> Tensor:
        """One forward pass of all pieces. flushing: see `StreamingOps.begin`; None for a whole image."""
        parts = []
        for i, (part, ops) in enumerate(self._pieces):
            columns = x[:, :, :, part.start : part.stop]
            if flushing is None:
                y = self.model(columns, self.ops, self.result)
            elif self._graphs and not flushing:
                y = self._graphs[i](columns)
            else:
                y = self._compute(ops, columns, flushing)
            parts.append(y[:, :, :, part.kept(self.model.config.scale)])
        return self._whole_pixels(parts[0] if len(parts) == 1 else torch.cat(parts, 3))

    def _whole_pixels(self, y: Tensor) -> Tensor:
        """Rows as they come, in multiples of the scale: of networks whose maps are as large as the result others do."""
        if self._odd is not None:
            y, self._odd = torch.cat([self._odd, y], 2), None
        if odd := y.shape[2] % self.model.config.scale:
            self._odd, y = y[:, :, -odd:].clone(), y[:, :, :-odd]
        return y

    def _compute(self, ops: StreamingOps, x: Tensor, flushing: range = range(0)) -> Tensor:
        ops.begin(flushing)
        return self.model(x, ops, self.result)
