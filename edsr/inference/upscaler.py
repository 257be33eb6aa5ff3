"""Upscaler: a network made ready for a device, a precision and a memory budget, for images of any size."""

import os
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edsr.devices import PRECISIONS
from edsr.errors import BackendError, WeightsError
from edsr.kernels import OutputSpec, TensorOps, compile_ahead
from edsr.models import TITLES, Network, check_network
from edsr.wording import option

from .arrays import checked_rows
from .executor import Executor
from .forking import adapt_to_fork, check_owner
from .image_run import FaultyWeights, ImageRun, OutOfMemory
from .pixels import fill_hidden_colors
from .plan import ExecutionPlan, make_plan
from .streaming import state_bytes
from .whole_images import WholeImages


class Upscaler(WholeImages):
    """Upscales images by `model.config.scale`. May be called from several threads at once, but stays in its process.

    The result does not depend on the memory budget: it is the whole image's, to rounding.

    Args:
        model: The network, left untouched.
        device: "auto" (CUDA, else Apple's MPS, else CPU), "cpu", "cuda", "cuda:N" or "mps".
        precision: "auto" (fp16 on CUDA, fp32 elsewhere), "fp32" (never TF32), "fp16" or "bf16".
        backend: "triton" (this project's kernels; CUDA from compute capability 8.0 on, or for tests any CPU with
            TRITON_INTERPRET=1), "winograd" (this project's kernels for CPUs, fp32; compiled here the first time on a
            machine, which takes a second), "torch", or "auto": the kernels where they can be had, else torch.
        tile: The memory budget. "auto" (on CUDA by the memory that is free), or N: no feature map has more than N x N
            pixels. At least 32, and at least 44 for 32 residual blocks (see `edsr.inference.plan.smallest_tile`). On a
            CPU bands use no more than 256, because larger maps take memory and little less time; an image within N x N
            is computed whole, with "winograd" up to 512 x 512 (64 features).
        threads: How many threads compute on a CPU, in all of this process: PyTorch and this project's kernels have one
            number for it. None: as it is, one for each core unless something else has set it.
        name: What messages call the weights.
        compute_lock: Held while a band is computed. Upscalers of one device that share it together need no more memory
            than one. By default the Upscaler's own.

    Attributes:
        plan: Device, precision, backend and memory budget as settled; they do not change any more.
        scale: The network's.
        name: As given.
        title: What its paper calls the kind of network, such as "EDSR".

    Raises:
        BackendError: A device, precision, backend, budget or number of threads cannot be had.
        TypeError: The model is none.
    """

    def __init__(
        self,
        model: Network,
        device: str | torch.device = "auto",
        precision: str = "auto",
        backend: str = "auto",
        tile: int | str = "auto",
        *,
        threads: int | None = None,
        name: str = "the network",
        compute_lock: AbstractContextManager[Any] | None = None,
    ):
        check_network(model)
        adapt_to_fork(str(device), threads)
        self._process = os.getpid()
        self.plan: ExecutionPlan = make_plan(model.config, device, precision, backend, tile)
        self.scale: int = model.config.scale
        self.name, self.title = name, TITLES[model.config.architecture]
        self._executor = Executor(model, self.plan, compute_lock)

    def __reduce__(self):
        raise TypeError("an Upscaler cannot be sent to another process: send the model, and make one there")

    @property
    def device(self) -> torch.device:
        return self.plan.device

    @property
    def precision(self) -> str:
        return self.plan.precision

    @property
    def backend(self) -> str:
        return self.plan.backend

    @property
    def tile(self) -> int:
        return self.plan.tile

    @property
    def compute_lock(self) -> AbstractContextManager[Any]:
        return self._executor.compute_lock

    @property
    def model(self) -> Network:
        """The network as it is executed: folded, on the device, in the precision."""
        return self._executor.model

    @property
    def model_device(self) -> torch.device:
        """As `device`, with the number that "cuda" leaves open."""
        return next(self.model.parameters()).device

    @property
    def ops(self) -> TensorOps:
        """The operations that execute it."""
        return self._executor.ops

    def frame(self, x: Tensor) -> Tensor:
        """Upscales images that are on the device already, and leaves them there: frames of a video.

        Does not wait for the device, and does not look for overflow (see `bands`).

        Args:
            x: [H, W, 3] or [N, H, W, 3] RGB, uint8 or uint16, on `device`; computed whole.

        Returns:
            [.., s·H, s·W, 3] of the same dtype, on the device.

        Raises:
            TypeError: No tensor.
            ValueError: Another tensor.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"frames are tensors on the device, not {type(x).__name__}; call the Upscaler for arrays")
        if x.dtype not in (torch.uint8, torch.uint16) or x.ndim not in (3, 4) or x.shape[-1] != 3 or 0 in x.shape:
            raise ValueError(f"frames are uint8 or uint16 [H, W, 3] or [N, H, W, 3], not {x.dtype} {list(x.shape)}")
        self._check_process()
        images = (x[None] if x.ndim == 3 else x).permute(0, 3, 1, 2)
        with torch.no_grad(), self._executor.computing(self.precision):
            y = self._executor.compute_whole(images, OutputSpec(x.dtype)).permute(0, 2, 3, 1)
        return y[0] if x.ndim == 3 else y

    def state_bytes(self, width: int, height: int, channels: int, self_ensemble: bool = False) -> int:
        """About how many bytes of the system's memory `bands` needs for what it remembers of the rows above.

        They grow with the width alone: 40 kB a column for `edsr-baseline`. 0 for images computed at once, and on CUDA,
        where a lack of memory leads to smaller bands, and then to a BackendError.
        """
        rows, columns = self.plan.band_shape(width, height)
        if self.device.type == "cuda" or (rows >= height and columns == width and not self_ensemble):
            return 0
        images = (2 if channels in (2, 4) else 1) * (8 if self_ensemble else 1)
        itemsize = PRECISIONS[self.precision].itemsize
        return images * state_bytes(self.model.config, width, (rows, columns), itemsize)

    def warm_up(self) -> None:
        """Compiles the kernels that images need on a GPU: a minute the first time on a machine; they are kept.

        Each kernel that is compiled, now or later, is logged. Where the fastest kernels of a Hopper GPU have not been
        tried on it, that begins in the background, and is logged (see `edsr.kernels.triton.hopper.probe`). Does
        nothing for other backends.
        """
        if self.plan.uses_graphs:
            compile_ahead(self.backend, self.device)
            self(np.zeros((8, 160, 3), np.uint8))

    def band_rows(self, width: int, height: int) -> int:
        """How many rows of an image are best handed over at once: all if it is small enough."""
        return self.plan.band_shape(width, height)[0]

    def bands(
        self, rows: Iterable[np.ndarray], width: int, self_ensemble: bool = False
    ) -> Generator[np.ndarray, None, None]:
        """Upscales an image as it arrives: memory does not depend on its height.

        Alpha goes through the network like a gray image, and so do colors by themselves, of which those under alpha 0
        are filled from their neighbors; where alpha is 0, or full, in 5 x 5 pixels, it is that exactly. If a reduced
        precision overflows, the rest of the image is computed in fp32; if memory runs out, in smaller bands. Both are
        logged.

        Args:
            rows: Successive [n, width, C] arrays of one image, best of `band_rows` rows each; C is 1 to 4 (gray, gray
                and alpha, RGB, RGB and alpha); uint8, uint16, or float32 in 0..1.
            width: The image's.
            self_ensemble: Whether to compute the mean over the eight flips and quarter turns (section 3.4 of the
                paper), which is eight times the work.

        Yields:
            Successive [m, s·width, C] arrays of the same dtype. The first is late by the network's receptive radius,
            by 15 rows where alpha is near 0, and on CUDA by one band more, because the next is computed meanwhile.

        Raises:
            BackendError: Not even the smallest bands fit into memory, or the process was forked since this was made.
            WeightsError: The network gives NaN or infinite values, in fp32, too.
        """
        return self.bands_of_filled(fill_hidden_colors(checked_rows(rows, width)), width, self_ensemble)

    def bands_of_filled(
        self, rows: Iterable[np.ndarray], width: int, self_ensemble: bool = False
    ) -> Generator[np.ndarray, None, None]:
        """As `bands`, for rows whose colors under alpha 0 have been filled by `fill_hidden_colors`."""
        yield from (band.numpy() for band in self._run(rows, width, self_ensemble))

    def _check_process(self) -> None:
        check_owner(self._process)

    def _tensor_bands(self, image: Tensor, self_ensemble: bool) -> Generator[Tensor, None, None]:
        if image.device != self.model_device:
            return super()._tensor_bands(image, self_ensemble)
        rows = (part.float().contiguous() for part in self._in_bands(image))
        return self._run(rows, image.shape[1], self_ensemble)

    def _run(
        self, rows: Iterable[np.ndarray | Tensor], width: int, self_ensemble: bool
    ) -> Generator[Tensor, None, None]:
        """The bands of an `ImageRun`."""
        self._check_process()
        try:
            yield from ImageRun(self._executor, rows, width, self_ensemble)
        except FaultyWeights:
            why = "gives values that are no numbers (NaN or infinite), so its weights are faulty"
            raise WeightsError(f"{self.name}: {why}; use others") from None
        except OutOfMemory as error:
            raise BackendError(f"{error}; close what else uses it, or use {option('device', 'cpu')}") from None
