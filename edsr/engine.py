"""Upscaler: a network made ready for a device, a precision and a memory budget, for pictures of any size."""

import contextlib
import copy
import importlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from edsr.fold import FoldedEDSR
from edsr.graphs import Graphs
from edsr.model import EDSR
from edsr.stream import MIN_TILE, Stream, plan
from edsr.transfer import Transfers
from kernels.reference import Result, quantise

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BACKENDS = ("auto", "torch", "triton")
AUTO_TILE = {
    "cpu": 256,
    "mps": 512,
    "cuda": 2048,
}  # pixels a side; only "cpu" has been measured (docs/log.md)
RECORDED = 1 << 20  # pixels of a band up to which it becomes a CUDA graph; larger ones hide their launches, and graphs
# hold feature maps of their own. Predicted, not measured: 1 Mpx takes an H200 4 ms, launching it takes the CPU 3 ms.


class EngineError(Exception):
    """A device, precision or backend that cannot be had here; one line that says what to do."""


class Upscaler:
    """Makes pictures `model.config.scale` times larger.

    model: an EDSR, left untouched. device: "auto" (CUDA, else Apple's MPS, else CPU), "cpu", "cuda",
    "cuda:N" or "mps". precision: "auto" (fp16 on CUDA, fp32 elsewhere), "fp32", "fp16" or "bf16".
    backend: "triton" (this project's kernels; CUDA from compute capability 8.0 on, or for tests any CPU with
    TRITON_INTERPRET=1), "torch", or "auto": triton where CUDA can have it, else torch. tile: "auto" (on CUDA by
    the memory that is free), or N: no feature map is larger than one of N x N pixels (at least 32; on a CPU no
    more than 256 are used, because larger maps are slower).
    Raises EngineError where one of these cannot be had.

    The result does not depend on `tile`: it is the whole picture's, to rounding. An Upscaler may be called
    from several threads at once.
    """

    def __init__(
        self,
        model: EDSR,
        device: str = "auto",
        precision: str = "auto",
        backend: str = "auto",
        tile: int | str = "auto",
    ):
        self.device = pick_device(device)
        self.precision = _precision(precision, self.device)
        self.backend = _backend(backend, self.device, model)
        self.scale = model.config.scale
        self.tile = _tile(tile, self.device, model, self.precision)
        self.model = FoldedEDSR(copy.deepcopy(model).float())
        # torch's stub leaves memory_format out.
        self.model.to(  # pyright: ignore[reportCallIssue]
            self.device, PRECISIONS[self.precision], memory_format=torch.channels_last
        )
        self._ops = importlib.import_module("kernels.fused" if self.backend == "triton" else "kernels.reference")
        self._graphs = self.backend == "triton" and self.device.type == "cuda"
        forward = partial(_forward, self.model, self._ops)
        self._whole = Graphs(forward) if self._graphs else forward

    def __call__(self, image: np.ndarray, self_ensemble: bool = False) -> np.ndarray:
        """The picture, s times larger.

        image: [H, W, 3] RGB or [H, W] gray; uint8, uint16, or float32 in 0..1. Gives the same dtype and number of
        axes, clamped to the range and, for whole numbers, rounded to nearest. self_ensemble: the mean over the
        eight flips and quarter turns of the picture (section 3.4 of the paper), eight times the work.
        Raises TypeError or ValueError for other dtypes and shapes, EngineError as `bands` does.
        """
        if image.dtype not in (np.uint8, np.uint16, np.float32):
            raise TypeError(f"pictures are uint8, uint16 or float32, not {image.dtype}")
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)) or 0 in image.shape:
            raise ValueError(f"pictures are [H, W, 3] or [H, W] and not empty, not {list(image.shape)}")
        gray = image.ndim == 2
        source = image[:, :, None] if gray else image
        s, (height, width, channels) = self.scale, source.shape
        if self_ensemble:
            total = np.zeros((s * height, s * width, channels), np.float32)
            for turns, flip in itertools.product(range(4), (False, True)):
                y = self._assemble(_turn(source, turns, flip), as_computed=True)
                total += np.rot90(y[:, ::-1] if flip else y, -turns)
            result = _finish(torch.from_numpy(total / 8), source.dtype).numpy()
        else:
            result = self._assemble(source)
        return result[:, :, 0] if gray else result

    def frame(self, x: Tensor) -> Tensor:
        """Pictures that are on the device already, made larger there: frames of a video.

        x: [H, W, 3] or [N, H, W, 3] RGB, uint8 or uint16, on `device`, computed whole. Gives the same kind,
        [.., s·H, s·W, 3], without waiting for the device. Does not look for overflow (see `bands`).
        Raises ValueError for other tensors.
        """
        if x.dtype not in (torch.uint8, torch.uint16) or x.ndim not in (3, 4) or x.shape[-1] != 3 or 0 in x.shape:
            raise ValueError(f"frames are uint8 or uint16 [H, W, 3] or [N, H, W, 3], not {x.dtype} {list(x.shape)}")
        pictures = (x[None] if x.ndim == 3 else x).permute(0, 3, 1, 2)
        with torch.no_grad(), self._current():
            y = self._whole(pictures, Result(x.dtype)).permute(0, 2, 3, 1)
        return y[0] if x.ndim == 3 else y

    def warm_up(self, say: Callable[[str], None]) -> None:
        """Compiles the kernels that pictures need, which takes a minute the first time on a machine and is kept.

        say: gets a line for each kernel that is compiled, now or later. Does nothing for other backends.
        """
        if self.backend == "triton" and self.device.type == "cuda":
            importlib.import_module("kernels.launch").announce_compilation(say)
            self(np.zeros((8, 160, 3), np.uint8))

    def band_rows(self, width: int) -> int:
        """How many rows of a picture `width` pixels wide are computed at once within the budget."""
        return plan(width, self.tile, self.model.config.radius)[0]

    def bands(self, rows: Iterable[np.ndarray], width: int) -> Iterator[np.ndarray]:
        """Upscales a picture as it arrives: memory does not depend on its height.

        rows: successive [n, width, C] arrays of one picture, best of `band_rows(width)` rows each; C is 3 or
        1; uint8, uint16, or float32 in 0..1. Yields successive [m, s·width, C] arrays of the same dtype; the
        first is late by the network's receptive radius, and on CUDA by one band more, because the next is
        being computed meanwhile. Raises EngineError where a reduced precision overflows.
        """
        return self._stream(rows, width)

    def _assemble(self, image: np.ndarray, as_computed: bool = False) -> np.ndarray:
        """A whole picture [H, W, C], by bands. as_computed: float32, not clamped."""
        height, width, channels = image.shape
        step = self.band_rows(width)
        dtype = np.float32 if as_computed else image.dtype
        out, filled = np.empty((self.scale * height, self.scale * width, channels), dtype), 0
        for part in self._stream((image[i : i + step] for i in range(0, height, step)), width, as_computed):
            out[filled : filled + len(part)] = part
            filled += len(part)
        assert filled == len(out)
        return out

    def _stream(self, rows: Iterable[np.ndarray], width: int, as_computed: bool = False) -> Iterator[np.ndarray]:
        transfers, arriving = Transfers(self.device), None
        overflow = None if self.precision == "fp32" else torch.zeros(1, dtype=torch.int32, device=self.device)
        stream = None
        for last, piece in _mark_last(rows):
            gray, dtype = piece.shape[2] == 1, piece.dtype
            x = transfers.to_device(piece).permute(2, 0, 1)[None].expand(1, 3, -1, -1)
            # The tail rounds colours by itself; gray is the mean of three channels, which comes before rounding.
            rounded = not gray and not as_computed and dtype != np.float32
            result = Result(x.dtype if rounded else None, overflow)
            columns = plan(width, self.tile, self.model.config.radius)[1]
            with torch.no_grad(), self._current():
                if stream is None and last and columns == width:
                    y = self._whole(x, result)
                else:
                    recorded = self._graphs and columns * self.band_rows(width) <= RECORDED
                    stream = stream or Stream(self.model, width, columns, self._ops, result, recorded)
                    y = stream(x, last)
                y = y[0].permute(1, 2, 0)
                if not rounded:
                    y = y.mean(2, keepdim=True) if gray else y
                    y = y.float() if as_computed else _finish(y, dtype)
            if len(y) == 0:
                continue
            following = transfers.to_host(y.contiguous(), *(() if overflow is None else (overflow,)))
            if arriving is not None:
                yield self._arrived(arriving)
            arriving = following
            if self.device.type != "cuda":
                yield self._arrived(arriving)
                arriving = None
        if arriving is not None:
            yield self._arrived(arriving)

    def _current(self):
        """Where the device is the current one, as CUDA graphs want it."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    def _arrived(self, arriving) -> np.ndarray:
        y, *overflow = arriving.wait()
        if overflow and overflow[0].item():
            raise EngineError(f"the network overflows in {self.precision}; use --precision fp32")
        return y.numpy()


def _forward(model: EDSR, ops, x: Tensor, result: Result) -> Tensor:
    return model(x, ops, result)


def _finish(y: Tensor, dtype: np.dtype) -> Tensor:
    """Values as computed, clamped to 0..1 and, for whole numbers, of full range and rounded. In place."""
    kind = getattr(torch, np.dtype(dtype).name)
    return quantise(y, kind) if kind in (torch.uint8, torch.uint16) else y.clamp_(0, 1).float()


def _turn(image: np.ndarray, turns: int, flip: bool) -> np.ndarray:
    turned = np.rot90(image, turns)
    return turned[:, ::-1] if flip else turned


def _mark_last(items: Iterable) -> Iterator[tuple[bool, np.ndarray]]:
    """(False, item), …, (True, last item): a stream must know where its picture ends."""
    iterator = iter(items)
    try:
        current = next(iterator)
    except StopIteration:
        return
    for following in iterator:
        yield False, current
        current = following
    yield True, current


def pick_device(name: str) -> torch.device:
    """The device of that name, or the fastest here for "auto". Raises EngineError where there is none such."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise EngineError(f"unknown device {name!r}: use auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineError(f"--device {name}: no CUDA device here; use --device cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EngineError(f"--device {name}: the last CUDA device is cuda:{torch.cuda.device_count() - 1}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise EngineError("--device mps: no Apple GPU here; use --device cpu or auto")
    if device.type not in AUTO_TILE:
        raise EngineError(f"unknown device {name!r}: use auto, cpu, cuda, cuda:N or mps")
    return device


def _precision(name: str, device: torch.device) -> str:
    if name == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if name not in PRECISIONS:
        raise EngineError(f"unknown precision {name!r}: use auto, fp32, fp16 or bf16")
    if device.type == "cpu" and name != "fp32" and not cpu_has(name):
        raise EngineError(f"--precision {name}: this CPU has no fast {name}; use --precision fp32")
    return name


def cpu_has(precision: str) -> bool:
    """Whether the CPU's convolutions compute in fp16 or bf16 themselves."""
    if not torch.backends.mkldnn.is_available():
        return False
    ops = torch.ops.mkldnn
    return ops._is_mkldnn_fp16_supported() if precision == "fp16" else ops._is_mkldnn_bf16_supported()


def _backend(name: str, device: torch.device, model: EDSR) -> str:
    if name not in BACKENDS:
        raise EngineError(f"unknown backend {name!r}: use {', '.join(BACKENDS)}")
    if name == "torch" or (name == "auto" and device.type != "cuda"):
        return "torch"
    trouble = _no_triton(device, model)
    if trouble and name == "triton":
        raise EngineError(f"--backend triton: {trouble}; use --backend torch")
    return "torch" if trouble else "triton"


def _no_triton(device: torch.device, model: EDSR) -> str:
    """Why the Triton kernels cannot run `model` on `device`; empty if they can."""
    try:
        launch = importlib.import_module("kernels.launch")
    except ImportError:
        return "the package triton is not installed"
    if model.config.features % 16:
        return f"the kernels need a multiple of 16 features, not {model.config.features}"
    if device.type == "cuda":
        arch = launch.architecture(device)
        return "" if arch >= 80 else f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    return "" if device.type == "cpu" and launch.interpreted() else f"the kernels need a CUDA device, not {device}"


def _tile(tile: int | str, device: torch.device, model: EDSR, precision: str) -> int:
    best = AUTO_TILE[device.type]
    if tile == "auto":
        if device.type == "cuda":
            # Half of what is free, for the five maps alive at once: one late for the long skip, four of a block.
            pixel = 5 * model.config.features * PRECISIONS[precision].itemsize
            best = min(best, max(MIN_TILE, math.isqrt(torch.cuda.mem_get_info(device)[0] // 2 // pixel)))
        return best
    if not isinstance(tile, int) or tile < MIN_TILE:
        raise EngineError(f"--tile {tile}: give auto or a whole number of {MIN_TILE} or more")
    return min(tile, best) if device.type == "cpu" else tile
