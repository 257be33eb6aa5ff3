"""Upscaler: a network made ready for a device, a precision and a memory budget, for images of any size."""

import contextlib
import copy
import importlib
import itertools
import math
import threading
from collections.abc import Callable, Generator, Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from edsr.devices import PRECISIONS, cpu_has, pick_device
from edsr.errors import BackendError
from edsr.kernels import OutputSpec, load_ops
from edsr.models import EDSR, FoldedEDSR, dihedral

from .cuda import GraphCache
from .image_run import ImageRun, OutOfMemory
from .streaming import MIN_TILE, plan

BACKENDS = ("auto", "torch", "triton", "winograd")
AUTO_TILE = {
    "cpu": 256,
    "mps": 512,
    "cuda": 2048,
}  # pixels a side; only "cpu" has been measured (docs/log.md)
WHOLE = 512, 2**24  # "winograd" takes an image whole up to so many pixels a side and values of a map: a fifth faster


class Upscaler:
    """Makes images `model.config.scale` times larger.

    model: an EDSR, left untouched. device: "auto" (CUDA, else Apple's MPS, else CPU), "cpu", "cuda",
    "cuda:N" or "mps". precision: "auto" (fp16 on CUDA, fp32 elsewhere), "fp32", "fp16" or "bf16".
    backend: "triton" (this project's kernels; CUDA from compute capability 8.0 on, or for tests any CPU with
    TRITON_INTERPRET=1), "winograd" (this project's kernels for CPUs, fp32), "torch", or "auto": the kernels where
    they can be had, else torch. tile: "auto" (on CUDA by the memory that is free), or N: no feature map is larger
    than one of N x N pixels (at least 32). On a CPU bands use no more than 256, because larger maps take memory and
    little less time; an image within N x N is computed whole, with "winograd" up to 512 x 512 (64 features).
    Raises BackendError where one of these cannot be had.

    The result does not depend on `tile`: it is the whole image's, to rounding. An Upscaler may be called
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
        self.backend = _backend(backend, self.device, model, self.precision)
        self._forced = backend != "auto"
        self.scale = model.config.scale
        self.tile = _tile(tile, self.device, model, self.precision, self.backend)
        self.say: Callable[[str], None] = lambda line: None
        self._folded = FoldedEDSR(copy.deepcopy(model).float().cpu())
        self._networks: dict[tuple[str, bool], list[FoldedEDSR]] = {}
        self._lock = threading.Lock()
        # Of several images one band is computed at a time: together they need no more memory than one.
        self.compute_lock = threading.Lock()
        self.ops = load_ops(self.backend)
        self.graphs = self.backend == "triton" and self.device.type == "cuda"
        self.model = self.networks(self.precision)[0]
        forward = partial(_forward, self.model, self.ops)
        self._whole = GraphCache(forward) if self.graphs else forward

    def __call__(self, image: np.ndarray, self_ensemble: bool = False) -> np.ndarray:
        """The image, s times larger.

        image: [H, W] gray, or [H, W, C] of gray, gray and alpha, RGB, or RGB and alpha (C = 1 to 4); uint8, uint16, or
        float32 in 0..1. Gives the same dtype and number of axes, clamped to the range and, for whole numbers,
        rounded to nearest. self_ensemble: see `bands`.
        Raises TypeError or ValueError for other dtypes and shapes, BackendError as `bands` does.
        """
        if image.dtype not in (np.uint8, np.uint16, np.float32):
            raise TypeError(f"images are uint8, uint16 or float32, not {image.dtype}")
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] > 4) or 0 in image.shape:
            raise ValueError(f"images are [H, W] or [H, W, 1 to 4] and not empty, not {list(image.shape)}")
        source = image[:, :, None] if image.ndim == 2 else image
        height, width, channels = source.shape
        step = self.band_rows(width, height)
        out, filled = np.empty((self.scale * height, self.scale * width, channels), image.dtype), 0
        for part in self.bands((source[i : i + step] for i in range(0, height, step)), width, self_ensemble):
            out[filled : filled + len(part)] = part
            filled += len(part)
        assert filled == len(out)
        return out[:, :, 0] if image.ndim == 2 else out

    def frame(self, x: Tensor) -> Tensor:
        """Images that are on the device already, made larger there: frames of a video.

        x: [H, W, 3] or [N, H, W, 3] RGB, uint8 or uint16, on `device`, computed whole. Gives the same kind,
        [.., s·H, s·W, 3], without waiting for the device. Does not look for overflow (see `bands`).
        Raises ValueError for other tensors.
        """
        if x.dtype not in (torch.uint8, torch.uint16) or x.ndim not in (3, 4) or x.shape[-1] != 3 or 0 in x.shape:
            raise ValueError(f"frames are uint8 or uint16 [H, W, 3] or [N, H, W, 3], not {x.dtype} {list(x.shape)}")
        images = (x[None] if x.ndim == 3 else x).permute(0, 3, 1, 2)
        with torch.no_grad(), self.current():
            y = self._whole(images, OutputSpec(x.dtype)).permute(0, 2, 3, 1)
        return y[0] if x.ndim == 3 else y

    def warm_up(self, say: Callable[[str], None]) -> None:
        """Compiles the kernels that images need, which takes a minute on a GPU and a second on a CPU the first time
        on a machine and is kept.

        say: gets a line for each kernel that is compiled, now or later, and one where the fastest of a Hopper GPU have
        not been tried on it, which is then begun (see `edsr.kernels.triton.hopper.probe`). Where those for CPUs
        cannot be compiled, torch becomes the backend, or BackendError is raised if they were asked for. Does nothing
        for other backends.
        """
        if self.backend == "triton" and self.device.type == "cuda":
            importlib.import_module("edsr.kernels.triton.hopper.probe").begin(self.device)
            self(np.zeros((8, 160, 3), np.uint8))
        elif self.backend == "winograd" and (reason := self.ops.compile_ahead()):
            if self._forced:
                raise BackendError(f"--backend winograd: {reason}; use --backend torch")
            say(f"{reason}: PyTorch computes")
            self.backend, self.ops = "torch", load_ops("torch")
            self._whole = partial(_forward, self.model, self.ops)

    def plan(self, width: int, height: int | None = None) -> tuple[int, int]:
        """(rows, columns) of an image that are computed at once within the budget. height: None if it is large."""
        if height is not None and width * height <= self.tile**2:
            return height, width
        tile = min(self.tile, AUTO_TILE["cpu"]) if self.device.type == "cpu" else self.tile
        return plan(width, tile, self.model.config.receptive_radius)

    def band_rows(self, width: int, height: int) -> int:
        """How many rows of an image are best handed over at once: all, where it is small enough."""
        return self.plan(width, height)[0]

    def bands(
        self, rows: Iterable[np.ndarray], width: int, self_ensemble: bool = False
    ) -> Generator[np.ndarray, None, None]:
        """Upscales an image as it arrives: memory does not depend on its height.

        rows: successive [n, width, C] arrays of one image, best of `band_rows` rows each; C is 1 to 4 (gray,
        gray and alpha, RGB, RGB and alpha); uint8, uint16, or float32 in 0..1. Yields successive [m, s·width, C]
        arrays of the same dtype; the first is late by the network's receptive radius, and on CUDA by one band more,
        because the next is being computed meanwhile. Alpha goes through the network like a gray image, colors
        times alpha; where alpha is 0, or full, in 5 x 5 pixels, it is that exactly, and colors are what they would
        be without it. self_ensemble: the mean over the eight flips and quarter turns (section 3.4 of the paper),
        eight times the work.

        Where a reduced precision overflows, the rest of the image is computed in fp32; where memory runs out, in
        smaller bands; `say` is told once. Raises BackendError where the smallest do not fit.
        """
        try:
            yield from ImageRun(self, rows, width, self_ensemble)
        except OutOfMemory as error:
            raise BackendError(f"{error}; close what else uses it, or use --device cpu") from None

    def networks(self, precision: str, self_ensemble: bool = False) -> list[FoldedEDSR]:
        """The network on the device in a precision; for a self-ensemble the eight, turned in all ways."""
        with self._lock:
            key = precision, self_ensemble
            if key not in self._networks:
                if self_ensemble:
                    models = [dihedral(self._folded, *turn) for turn in itertools.product((False, True), repeat=3)]
                else:
                    models = [
                        self._folded if self.device.type == "cpu" and precision == "fp32" else dihedral(self._folded)
                    ]
                # torch's stub leaves memory_format out.
                self._networks[key] = [
                    model.to(  # pyright: ignore[reportCallIssue]
                        self.device, PRECISIONS[precision], memory_format=torch.channels_last
                    )
                    for model in models
                ]
            return self._networks[key]

    def whole(self, precision: str) -> Callable[[Tensor, OutputSpec], Tensor]:
        """The network on a whole image; in the usual precision as CUDA graphs, where there are any."""
        return self._whole if precision == self.precision else partial(_forward, self.networks(precision)[0], self.ops)

    def current(self):
        """Where the device is the current one, as CUDA graphs want it."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()


def _forward(model: EDSR, ops, x: Tensor, result: OutputSpec) -> Tensor:
    return model(x, ops, result)


def _precision(name: str, device: torch.device) -> str:
    if name == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if name not in PRECISIONS:
        raise BackendError(f"unknown precision {name!r}: use auto, fp32, fp16 or bf16")
    if device.type == "cpu" and name != "fp32" and not cpu_has(name):
        raise BackendError(f"--precision {name}: this CPU has no fast {name}; use --precision fp32")
    return name


def _backend(name: str, device: torch.device, model: EDSR, precision: str) -> str:
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}: use {', '.join(BACKENDS)}")
    best = {"cuda": "triton", "cpu": "winograd"}.get(device.type, "torch")
    chosen = best if name == "auto" else name
    if chosen == "torch":
        return "torch"
    if chosen == "triton":
        trouble = _no_triton(device, model)
    else:
        trouble = load_ops(chosen).unavailable_reason(device, PRECISIONS[precision], model.config.features)
    if trouble and name != "auto":
        raise BackendError(f"--backend {name}: {trouble}; use --backend torch")
    return "torch" if trouble else chosen


def _no_triton(device: torch.device, model: EDSR) -> str:
    """Why the Triton kernels cannot run `model` on `device`; empty if they can."""
    try:
        launch = importlib.import_module("edsr.kernels.triton.launch")
    except ImportError:
        return "the package triton is not installed"
    if model.config.features % 16:
        return f"the kernels need a multiple of 16 features, not {model.config.features}"
    if device.type == "cuda":
        arch = launch.architecture(device)
        return "" if arch >= 80 else f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    return "" if device.type == "cpu" and launch.interpreted() else f"the kernels need a CUDA device, not {device}"


def _tile(tile: int | str, device: torch.device, model: EDSR, precision: str, backend: str) -> int:
    best = AUTO_TILE[device.type]
    if backend == "winograd":
        side, values = WHOLE
        best = max(best, min(side, math.isqrt(values // model.config.features)))
    if tile == "auto":
        if device.type == "cuda":
            # Half of what is free, for the five maps alive at once: one late for the long skip, four of a block.
            pixel = 5 * model.config.features * PRECISIONS[precision].itemsize
            best = min(best, max(MIN_TILE, math.isqrt(torch.cuda.mem_get_info(device)[0] // 2 // pixel)))
        return best
    if not isinstance(tile, int) or tile < MIN_TILE:
        raise BackendError(f"--tile {tile}: give auto or a whole number of {MIN_TILE} or more")
    return min(tile, best) if device.type == "cpu" else tile
