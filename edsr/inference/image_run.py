"""One image's way through a network, top to bottom, whatever happens on it.

A device that runs out of memory, or a reduced precision that overflows, does not end it: rows are computed again, from
as many above the row reached as the network looks back, in smaller bands or in fp32. What comes out is the same.
"""

import contextlib
import gc
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edsr.kernels import MAX_VALUE, OutputSpec, quantize

from .cuda import DeviceCopier
from .streaming import MIN_TILE, Stream

RECORDED = 1 << 20  # pixels of a band up to which it becomes a CUDA graph; larger ones hide their launches, and graphs
# hold feature maps of their own. Predicted, not measured: 1 Mpx takes an H200 4 ms, launching it takes the CPU 3 ms.
ALPHA_WINDOW = 5  # pixels a side; where alpha is the same extreme in all of it, it is that in the result


class Overflow(Exception):
    """A value is NaN or infinite, in a precision that may not reach far enough."""


class OutOfMemory(Exception):
    """Not even the smallest bands fit into the device's memory."""


class Computing(Protocol):
    """What a passage needs of an `edsr.inference.upscaler.Upscaler`."""

    device: torch.device
    precision: str
    scale: int
    tile: int
    graphs: bool
    ops: Any
    model: Any
    say: Callable[[str], None]
    compute_lock: Any  # a lock

    def plan(self, width: int, height: int | None = None) -> tuple[int, int]: ...
    def networks(self, precision: str, self_ensemble: bool = False) -> list[Any]: ...
    def whole(self, precision: str) -> Callable[[Tensor, OutputSpec], Tensor]: ...
    def current(self) -> AbstractContextManager: ...


class ImageRun:
    """The passage of one image, `width` pixels wide, through `upscaler`; see `Upscaler.bands`."""

    def __init__(self, upscaler: Computing, rows: Iterable[np.ndarray], width: int, self_ensemble: bool):
        self._upscaler, self._width, self._ensemble = upscaler, width, self_ensemble
        self._source = _mark_last(rows)
        self._radius = upscaler.model.config.receptive_radius
        self._precision = upscaler.precision
        self._kept: deque[tuple[int, bool, np.ndarray]] = deque()  # input: (first row, whether it is the last, rows)
        self._taken = 0  # rows of input
        self._reached = 0  # rows of input whose output has been given away

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            try:
                for y in self._attempt():
                    self._reached += len(y) // self._upscaler.scale
                    while self._kept and self._kept[0][0] + len(self._kept[0][2]) <= self._reached - self._radius:
                        self._kept.popleft()
                    yield y
                return
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                trouble = OutOfMemory
            except Overflow:
                trouble = Overflow
            # Not in the handlers: there the traceback would keep the feature maps alive.
            if trouble is Overflow:
                self._upscaler.say(f"the network overflows in {self._precision}: going on in fp32")
                self._precision = "fp32"
            else:
                self._halve_budget()

    def _halve_budget(self) -> None:
        """Bands of half as many pixels, for this image and later ones."""
        upscaler = self._upscaler
        gc.collect()
        if upscaler.device.type == "cuda":
            torch.cuda.empty_cache()
        tallest = max(len(rows) for _, _, rows in self._kept)
        tile = int(min(upscaler.tile, math.isqrt(self._width * tallest)) / math.sqrt(2))
        if tile < MIN_TILE:
            raise OutOfMemory(f"{upscaler.device} has too little free memory even for bands of {MIN_TILE} x {MIN_TILE}")
        upscaler.say(f"{upscaler.device} ran out of memory: going on with --tile {tile}")
        upscaler.tile = tile

    def _input(self) -> Iterator[tuple[int, bool, np.ndarray]]:
        """From as far above the row reached as matters: what has been taken before, then more."""
        yield from list(self._kept)
        for last, rows in self._source:
            self._kept.append((self._taken, last, rows))
            self._taken += len(rows)
            yield self._kept[-1]

    def _attempt(self) -> Iterator[np.ndarray]:
        """Output from the row reached on; as long as all goes well, to the end."""
        upscaler, s = self._upscaler, self._upscaler.scale
        transfers, arriving, streams = DeviceCopier(upscaler.device), None, []
        precise = self._precision == "fp32"
        overflow = None if precise else torch.zeros(1, dtype=torch.int32, device=upscaler.device)
        models = upscaler.networks(self._precision, self._ensemble)
        step, columns = upscaler.plan(self._width)
        at = None  # row of input that the next row of output belongs to
        for first, ending, rows in self._input():
            at = first if at is None else at
            if ending and first == 0:
                step, columns = upscaler.plan(self._width, len(rows))
            for i in range(0, len(rows), step):
                piece, last = rows[i : i + step], ending and i + step >= len(rows)
                x, rounded = _to_network(transfers.to_device(piece))
                # The tail rounds colors by itself; whatever else is done comes before rounding.
                rounded = rounded and not self._ensemble
                result = OutputSpec(x.dtype if rounded else None, overflow)
                with upscaler.compute_lock, torch.no_grad(), upscaler.current():
                    if not streams and last and columns == self._width and len(models) == 1:
                        y = upscaler.whole(self._precision)(x, result)
                    else:
                        recorded = upscaler.graphs and len(models) == 1 and columns * step <= RECORDED
                        streams = streams or [
                            Stream(model, self._width, columns, upscaler.ops, result, recorded) for model in models
                        ]
                        y = streams[0](x, last)
                        for stream in streams[1:]:
                            y = y + stream(x, last)
                        y = y / len(streams) if len(streams) > 1 else y
                    done = y.shape[2] // s
                    y = y[:, :, max(0, min(done, self._reached - at)) * s :]
                    top, at = at + done - y.shape[2] // s, at + done
                    if y.shape[2] == 0:
                        continue
                    if not rounded:
                        y = self._from_network(y, piece, top)
                    else:
                        y = y[0].permute(1, 2, 0)
                following = transfers.to_host(y.contiguous(), *(() if overflow is None else (overflow,)))
                if arriving is not None:
                    yield _arrived(arriving)
                arriving = following
                if upscaler.device.type != "cuda":
                    yield _arrived(arriving)
                    arriving = None
        if arriving is not None:
            yield _arrived(arriving)

    def _from_network(self, y: Tensor, like: np.ndarray, top: int) -> Tensor:
        """[rows, s·W, C] of the kind of `like` from [1 or 2, 3, rows, s·W] as computed. top: LR row it begins with."""
        channels, s = like.shape[2], self._upscaler.scale
        color = y[0].mean(0, keepdim=True) if channels < 3 else y[0]
        if channels in (1, 3):
            return finish(color.permute(1, 2, 0), like.dtype)
        clear, opaque = (
            mask.to(y.device).repeat_interleave(s, 0).repeat_interleave(s, 1)
            for mask in self._flat_alpha(top, y.shape[2] // s)
        )
        alpha = y[1].mean(0).masked_fill(clear, 0).masked_fill(opaque, 1)
        # Before alpha is clamped: where the network sharpens it beyond 1, it has done so to the colors, too.
        color = torch.where(alpha > 0, color / alpha.clamp_min(1e-6), 0)
        return finish(torch.cat([color, alpha[None]]).permute(1, 2, 0), like.dtype)

    def _flat_alpha(self, top: int, count: int) -> tuple[Tensor, Tensor]:
        """bool [count, W]: where alpha is nothing in the whole window around a pixel of the input, and where full."""
        reach = ALPHA_WINDOW // 2
        first = self._kept[0][0]
        known = np.concatenate([rows[:, :, -1] for _, _, rows in self._kept])
        start, end = max(first, top - reach), min(first + len(known), top + count + reach)
        part = torch.from_numpy(known[start - first : end - first].astype(np.float32))[None, None]
        # Beyond the image (or what is known of it, above rows that will be dropped) as at its edge.
        part = F.pad(part, (reach, reach, start - top + reach, top + count + reach - end), mode="replicate")
        white = MAX_VALUE[torch_dtype(known.dtype)] if known.dtype != np.float32 else 1.0
        highest = F.max_pool2d(part, ALPHA_WINDOW, 1)[0, 0]
        lowest = -F.max_pool2d(-part, ALPHA_WINDOW, 1)[0, 0]
        return highest <= 0, lowest >= white


def is_out_of_memory(error: Exception) -> bool:
    """Whether that is what an error is about: on a CPU torch says so in words alone."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def _to_network(rows: Tensor) -> tuple[Tensor, bool]:
    """([N, 3, n, W] for the network, whether it can give the rows' own dtype) from [n, W, C].

    Gray is repeated. With alpha, N is 2: colors times alpha in 0..1, and alpha.
    """
    x = rows.permute(2, 0, 1)
    if len(x) == 3:
        return x[None], x.dtype != torch.float32
    if len(x) == 1:
        return x[None].expand(1, 3, -1, -1), False
    values = x.float() / (MAX_VALUE[x.dtype] if x.dtype != torch.float32 else 1.0)
    alpha = values[-1:]
    return torch.stack([(values[:-1] * alpha).expand(3, -1, -1), alpha.expand(3, -1, -1)]), False


def finish(y: Tensor, dtype: np.dtype) -> Tensor:
    """Values as computed, clamped to 0..1 and, for whole numbers, of full range and rounded. In place."""
    kind = torch_dtype(dtype)
    return quantize(y, kind) if kind in (torch.uint8, torch.uint16) else y.clamp_(0, 1).float()


def torch_dtype(dtype: np.dtype) -> torch.dtype:
    return getattr(torch, np.dtype(dtype).name)


def _arrived(arriving) -> np.ndarray:
    y, *overflow = arriving.wait()
    if overflow and overflow[0].item():
        raise Overflow
    return y.numpy()


def _mark_last(items: Iterable) -> Iterator[tuple[bool, np.ndarray]]:
    """(False, item), …, (True, last item): a stream must know where its image ends."""
    iterator = iter(items)
    with contextlib.suppress(StopIteration):
        current = next(iterator)
        for following in iterator:
            yield False, current
            current = following
        yield True, current
