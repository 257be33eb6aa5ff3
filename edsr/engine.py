"""Upscaler: a network made ready for a device, a precision and a memory budget, for pictures of any size."""

import copy
import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from edsr.fold import FoldedEDSR
from edsr.model import EDSR
from edsr.stream import MIN_TILE, Stream, plan

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BACKENDS = ("auto", "torch", "triton")
AUTO_TILE = {
    "cpu": 256,
    "mps": 512,
    "cuda": 2048,
}  # pixels a side; only "cpu" has been measured (docs/log.md)


class EngineError(Exception):
    """A device, precision or backend that cannot be had here; one line that says what to do."""


class Upscaler:
    """Makes pictures `model.config.scale` times larger.

    model: an EDSR, left untouched. device: "auto" (CUDA, else Apple's MPS, else CPU), "cpu", "cuda",
    "cuda:N" or "mps". precision: "auto" (fp16 on CUDA, fp32 elsewhere), "fp32", "fp16" or "bf16".
    backend: "auto" or "torch". tile: "auto", or N: no feature map is larger than one of N x N pixels (at
    least 32; on a CPU no more than 256 are used, because larger maps are slower).
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
        self.backend = _backend(backend)
        self.scale = model.config.scale
        self.tile = _tile(tile, self.device)
        self.model = FoldedEDSR(copy.deepcopy(model).float())
        # torch's stub leaves memory_format out.
        self.model.to(  # pyright: ignore[reportCallIssue]
            self.device, PRECISIONS[self.precision], memory_format=torch.channels_last
        )

    def __call__(self, image: np.ndarray, self_ensemble: bool = False) -> np.ndarray:
        """The picture, s times larger.

        image: [H, W, 3] RGB or [H, W] gray, uint8 or float32 in 0..1; gives the same dtype and number of
        axes, clamped to the range and, for uint8, rounded to nearest. self_ensemble: the mean over the
        eight flips and quarter turns of the picture (section 3.4 of the paper), eight times the work.
        Raises TypeError or ValueError for other dtypes and shapes, EngineError as `bands` does.
        """
        if image.dtype not in (np.uint8, np.float32):
            raise TypeError(f"pictures are uint8 or float32, not {image.dtype}")
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)) or 0 in image.shape:
            raise ValueError(f"pictures are [H, W, 3] or [H, W] and not empty, not {list(image.shape)}")
        gray = image.ndim == 2
        source = image[:, :, None] if gray else image
        s, (height, width, channels) = self.scale, source.shape
        if self_ensemble:
            total = np.zeros((s * height, s * width, channels), np.float32)
            for turns, flip in itertools.product(range(4), (False, True)):
                y = self._whole(_turn(source, turns, flip), lambda rows: _numpy(rows))
                total += np.rot90(y[:, ::-1] if flip else y, -turns)
            result = _numpy(_quantise(torch.from_numpy(total / 8).permute(2, 0, 1)[None], image.dtype))
        else:
            result = self._whole(source, lambda rows: _numpy(_quantise(rows, image.dtype)))
        return result[:, :, 0] if gray else result

    def band_rows(self, width: int) -> int:
        """How many rows of a picture `width` pixels wide are computed at once within the budget."""
        return plan(width, self.tile, self.model.config.radius)[0]

    def bands(self, rows: Iterable[np.ndarray], width: int) -> Iterator[np.ndarray]:
        """Upscales a picture as it arrives: memory does not depend on its height.

        rows: successive [n, width, C] arrays of one picture, best of `band_rows(width)` rows each; C is 3 or
        1, uint8 or float32 in 0..1. Yields successive [m, s·width, C] arrays of the same dtype; the first is
        late by the network's receptive radius. Raises EngineError where a reduced precision overflows.
        """
        for y, dtype in self._stream(rows, width):
            yield _numpy(_quantise(y, dtype))

    def _whole(self, image: np.ndarray, finish) -> np.ndarray:
        """A whole picture [H, W, C] through `finish`, which turns [1, C, n, W] results into [n, W, C] arrays."""
        height, width, channels = image.shape
        step = self.band_rows(width)
        out, filled = None, 0
        for y, _ in self._stream((image[i : i + step] for i in range(0, height, step)), width):
            part = finish(y)
            if out is None:
                out = np.empty((self.scale * height, self.scale * width, channels), part.dtype)
            out[filled : filled + len(part)] = part
            filled += len(part)
        assert out is not None and filled == len(out)
        return out

    def _stream(self, rows: Iterable[np.ndarray], width: int) -> Iterator[tuple[Tensor, np.dtype]]:
        """([1, C, n, s·width] in at least fp32, not clamped; the picture's dtype), as rows become ready."""
        stream = Stream(self.model, width, plan(width, self.tile, self.model.config.radius)[1])
        for last, piece in _mark_last(rows):
            y = stream(_network_input(piece, self.device), last)
            if y.shape[2] == 0:
                continue
            if self.precision != "fp32" and not torch.isfinite(y).all():
                raise EngineError(f"the network overflows in {self.precision}; use --precision fp32")
            yield y.mean(1, keepdim=True) if piece.shape[2] == 1 else y, piece.dtype


def _network_input(piece: np.ndarray, device: torch.device) -> Tensor:
    """[n, W, C] uint8 or float32 -> [1, 3, n, W] float32 in 0..1; gray is repeated."""
    x = torch.tensor(np.ascontiguousarray(piece), device=device)
    x = x.float().div_(255) if x.dtype == torch.uint8 else x
    return x.permute(2, 0, 1)[None].expand(1, 3, -1, -1)


def _quantise(y: Tensor, dtype) -> Tensor:
    """Clamped to 0..1 and, for uint8, scaled to 0..255 and rounded. In place."""
    y = y.clamp_(0, 1)
    return y.mul_(255).round_().to(torch.uint8) if dtype == np.uint8 else y.float()


def _numpy(y: Tensor) -> np.ndarray:
    """[1, C, n, W] -> [n, W, C]."""
    return y[0].permute(1, 2, 0).contiguous().cpu().numpy()


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


def _backend(name: str) -> str:
    if name not in BACKENDS:
        raise EngineError(f"unknown backend {name!r}: use auto or torch")
    if name == "triton":
        raise EngineError("--backend triton: the Triton kernels are not part of this version; use --backend torch")
    return "torch"


def _tile(tile: int | str, device: torch.device) -> int:
    best = AUTO_TILE[device.type]
    if tile == "auto":
        return best
    if not isinstance(tile, int) or tile < MIN_TILE:
        raise EngineError(f"--tile {tile}: give auto or a whole number of {MIN_TILE} or more")
    return min(tile, best) if device.type == "cpu" else tile
