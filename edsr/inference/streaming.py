"""Exact execution band by band: ops that remember rows.

Every convolution keeps the last rows of its input from the band before, so a band of T rows gives T rows,
late by the convolution's radius; every skip is a delay line that hands out as many rows as the
convolution produced. Nothing is computed twice, nothing is approximated at a seam, and memory does not
depend on the image's height. Where an image is too wide for the budget, columns are split as well,
with the network's whole receptive radius as overlap.
"""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edsr.kernels import RAW_OUTPUT, OutputSpec, empty_feature_map, load_ops
from edsr.models import EDSR

from .cuda import BandGraph

reference = load_ops("torch")

HEADROOM, FOOTROOM = (
    4,
    2,
)  # rows before and after a band, for what a convolution of radius 1 or 2 carries and pads
MIN_ROWS = 8  # thinner bands than this split columns instead
MIN_TILE = 32


class Band(NamedTuple):
    """Rows of a feature map with room around them, so that the next convolution finds all its rows in one piece.

    buffer: [N, C, HEADROOM + rows + FOOTROOM, W]. Only the convolution that reads a band writes to its rooms.
    """

    buffer: Tensor
    rows: int

    @classmethod
    def empty(cls, like: Tensor, channels: int, rows: int, columns: int, dtype: torch.dtype) -> "Band":
        size = (like.shape[0], channels, HEADROOM + rows + FOOTROOM, columns)
        return cls(empty_feature_map(size, dtype, like.device), rows)

    @property
    def content(self) -> Tensor:
        return self.buffer[:, :, HEADROOM : HEADROOM + self.rows]


class StreamingOps:
    """The namespace of ops for one image (or one batch, or some columns of it), with a memory for each call.

    ops: the namespace that computes, `edsr.kernels.reference` or `edsr.kernels.triton.ops`. Calls are told apart by
    their order, so `begin` must precede every forward pass.
    """

    def __init__(self, ops: Any = reference):
        self._ops = ops
        self._memories: list[LineBuffer] = []
        self._calls = 0
        self._flushing = range(0)

    def begin(self, flushing: range) -> None:
        """Announces a pass. closing: the ops, by their order, whose input ends with it."""
        self._calls, self._flushing = 0, flushing

    def state(self) -> list[Tensor]:
        """All that is remembered, in one order."""
        memories = self._memories
        return [x for m in memories for x in (*([] if m.carried is None else [m.carried]), *m.delayed)]

    def restore(self, state: list[Tensor]) -> None:
        """Puts tensors of the same shapes in the place of what `state` gives."""
        tensors = iter(state)
        for memory in self._memories:
            if memory.carried is not None:
                memory.carried = next(tensors)
            memory.delayed = deque([next(tensors) for _ in memory.delayed])

    def __len__(self) -> int:
        """How many ops a pass has, known after the first."""
        return len(self._memories)

    def head(self, x: Tensor, weight: Tensor, bias: Tensor, mean: Sequence[float]) -> Band:
        memory = self._memory()
        band = Band.empty(x, x.shape[1], x.shape[2], x.shape[3], x.dtype)
        band.content.copy_(x)
        # The padding is zero once the mean is gone, so it cannot stand among the pixels.
        top, bottom = int(not memory.begun), int(memory.closing)
        window = memory.extend(band, 1, padded=False)
        rows = max(0, window.shape[2] - 2 + top + bottom)
        out = Band.empty(x, weight.shape[0], rows, x.shape[3], weight.dtype)
        if rows:
            memory.begun = True
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
        memory = self._memory()
        window = memory.extend(x, 1)
        rows, columns = max(0, window.shape[2] - 2), window.shape[3]
        r = shuffle
        out = Band.empty(window, weight.shape[0] // (r * r), rows * r, columns * r, weight.dtype)
        # Straight into the next convolution's buffer, and from wherever the skip's rows are: no copy of either.
        pieces = [(0, rows, None)] if skip is None else memory.take(skip, rows)
        for first, n, piece in pieces:
            if n:
                target = out.content[:, :, r * first : r * (first + n)]
                part = window[:, :, first : first + n + 2]
                self._ops.conv3x3(part, weight, bias, relu, scale, piece, r, padding=0, out=target)
        return out

    def resblock(
        self, x: Band, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, scale: float = 1.0
    ) -> Band:
        y = self.conv3x3(x, weight1, bias1, relu=True)
        return self.conv3x3(y, weight2, bias2, scale=scale, skip=x)

    def tail(self, x: Band, weight: Tensor, bias: Tensor, mean: Sequence[float], result: OutputSpec) -> Tensor:
        window = self._memory().extend(x, 1)
        if window.shape[2] <= 2:
            return _no_rows(window, window.shape[3], result)
        return self._ops.tail(window, weight, bias, mean, result, padding=0)

    def collapsed_tail(
        self, x: Band, weight: Tensor, bias: Tensor, mean: Sequence[float], shuffle: int, result: OutputSpec
    ) -> Tensor:
        memory = self._memory()
        window = memory.extend(x, 2)
        if window.shape[2] <= 4:
            return _no_rows(window, window.shape[3] * shuffle, result)
        ends = (not memory.begun, memory.closing)
        memory.begun = True
        return self._ops.collapsed_tail(window, weight, bias, mean, shuffle, result, padding=0, ends=ends)

    def _memory(self) -> "LineBuffer":
        if self._calls == len(self._memories):
            self._memories.append(LineBuffer())
        memory = self._memories[self._calls]
        memory.closing = self._calls in self._flushing
        self._calls += 1
        return memory


class LineBuffer:
    """What one call of an op remembers from band to band."""

    def __init__(self):
        self.carried: Tensor | None = None  # input rows still needed
        self.delayed: deque[Tensor] = deque()  # skip rows not handed out yet
        self.begun = False  # whether any row came out
        self.closing = False  # whether no row of input will follow this band

    def extend(self, band: Band, radius: int, padded: bool = True) -> Tensor:
        """The rows a convolution can read now: those carried, the band's, and the padding at either end."""
        buffer = band.buffer
        carried = self.carried
        if carried is None:
            carried = buffer.new_zeros(buffer.shape[0], buffer.shape[1], radius * padded, buffer.shape[3])
        start, stop = HEADROOM - carried.shape[2], HEADROOM + band.rows
        buffer[:, :, start:HEADROOM] = carried
        if self.closing and padded:
            buffer[:, :, stop : stop + radius] = 0
            stop += radius
        window = buffer[:, :, start:stop]
        self.carried = window[:, :, max(0, window.shape[2] - 2 * radius) :].clone()
        return window

    def take(self, skip: Band, rows: int) -> Iterator[tuple[int, int, Tensor]]:
        """Adds a skip's band to those delayed; gives the oldest `rows` rows in pieces: (start, n, [N, C, n, W])."""
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


def _no_rows(like: Tensor, columns: int, result: OutputSpec) -> Tensor:
    dtype = result.dtype or torch.promote_types(like.dtype, torch.float32)
    return torch.empty(like.shape[0], 3, 0, columns, dtype=dtype, device=like.device)


class Stream:
    """One image, top to bottom, through `model` in bands.

    width: LR columns. columns: widest piece computed at once, overlap included (see `plan`), None for all.
    ops: the namespace that computes. result: what is asked of the tail. recorded: whether bands of equal height
    are to be a CUDA graph (see `edsr.inference.cuda.BandGraph`). Pieces advance in step, so that whole rows come out in
    order.
    """

    def __init__(
        self,
        model: EDSR,
        width: int,
        columns: int | None = None,
        ops: Any = reference,
        result: OutputSpec = RAW_OUTPUT,
        recorded: bool = False,
    ):
        self.model, self.width, self.ops, self.result = model, width, ops, result
        self._tallest = 1  # rows of the tallest band so far
        radius = model.config.receptive_radius
        if columns is None or columns >= width:
            cuts = [0, width]
        else:
            pieces = -(-width // (columns - 2 * radius))
            cuts = [width * i // pieces for i in range(pieces + 1)]
        # (first and end column of the piece as computed, of the part kept, its ops)
        self._pieces = [
            (max(0, a - radius), min(width, b + radius), a, b, StreamingOps(ops)) for a, b in itertools.pairwise(cuts)
        ]
        self._bands = [
            BandGraph(partial(self._band, piece[-1], range(0)), piece[-1]) for piece in self._pieces if recorded
        ]

    @torch.no_grad()
    def __call__(self, x: Tensor, last: bool = False) -> Tensor:
        """x: [N, 3, T, W], the next rows. Gives [N, 3, s·T', s·W]: T' is less than T at first and more at last."""
        if x.shape[3] != self.width:
            raise ValueError(f"the stream is {self.width} pixels wide, not {x.shape[3]}")
        first_band = not len(self._pieces[0][-1])
        if first_band and last:
            return self._pass(x, None)  # the whole image at once: nothing to remember
        self._tallest = max(self._tallest, x.shape[2], 1)
        passes = [self._pass(x, range(0))]
        # Each op still owes the rows its padding gives. Were all of them closed at once, the last op would see
        # its band grow by the owings of all before it; so only as many at a time as a band has rows.
        ops = len(self._pieces[0][-1])
        for first in range(0, ops if last else 0, self._tallest):
            passes.append(self._pass(x[:, :, :0], range(first, first + self._tallest)))
        return passes[0] if len(passes) == 1 else torch.cat(passes, 2)

    def _pass(self, x: Tensor, closing: range | None) -> Tensor:
        s, parts = self.model.config.scale, []
        for i, (left, right, first, end, ops) in enumerate(self._pieces):
            part = x[:, :, :, left:right]
            if closing is None:
                y = self.model(part, self.ops, self.result)
            elif self._bands and not closing:
                y = self._bands[i](part)
            else:
                y = self._band(ops, closing, part)
            parts.append(y[:, :, :, (first - left) * s : (end - left) * s])
        return parts[0] if len(parts) == 1 else torch.cat(parts, 3)

    def _band(self, ops: StreamingOps, closing: range, x: Tensor) -> Tensor:
        ops.begin(closing)
        return self.model(x, ops, self.result)


def plan(width: int, tile: int, radius: int) -> tuple[int, int]:
    """(rows of a band, columns of a piece) so that no feature map is larger than one of tile x tile pixels.

    Bands are as wide as the image unless they would be thinner than MIN_ROWS; then columns are split,
    a piece being no narrower than four radii, so that its overlap at most doubles the work. Rows come in fours, because
    the kernels for CPUs compute four at a time. Raises ValueError for a tile below MIN_TILE.
    """
    if tile < MIN_TILE:
        raise ValueError(f"a tile of {tile} is too small; give {MIN_TILE} or more")
    room = HEADROOM + FOOTROOM
    budget = tile * tile
    columns = width
    if budget // width - room < MIN_ROWS:
        columns = min(width, max(budget // (MIN_ROWS + room), 4 * radius))
    rows = budget // columns - room
    return (rows - rows % 4 if rows > 4 else max(1, rows)), columns
