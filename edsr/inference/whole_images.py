"""Whole images and tensors, upscaled band by band: what Upscalers of one and of several devices have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, Protocol, TypeVar, overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from edsr.images import UNIT

from .arrays import as_kind_of, as_pixels, checked_range
from .tensors import as_images

Progress = Callable[[int, int], object]  # is told how many rows of the input are done, and how many there are
Rows = TypeVar("Rows", np.ndarray, Tensor)


class PillowImage(Protocol):
    """What type checkers know an image of Pillow by."""

    @property
    def mode(self) -> str: ...
    def getbands(self) -> tuple[str, ...]: ...


P = TypeVar("P", bound=PillowImage)


class WholeImages(ABC):
    """What upscales rows as they come, called with all of them at once."""

    scale: int

    @abstractmethod
    def band_rows(self, width: int, height: int) -> int: ...

    @abstractmethod
    def bands(
        self, rows: Iterable[np.ndarray], width: int, self_ensemble: bool = False
    ) -> Generator[np.ndarray, None, None]: ...

    @abstractmethod
    def _check_process(self) -> None:
        """Raise BackendError in a process forked after this was made."""

    @overload
    def __call__(
        self,
        image: P,
        self_ensemble: bool = ...,
        value_range: tuple[float, float] = ...,
        *,
        progress: Progress | None = ...,
    ) -> P: ...
    @overload
    def __call__(
        self,
        image: ArrayLike,
        self_ensemble: bool = ...,
        value_range: tuple[float, float] = ...,
        *,
        progress: Progress | None = ...,
    ) -> np.ndarray: ...
    def __call__(
        self,
        image: Any,
        self_ensemble: bool = False,
        value_range: tuple[float, float] = UNIT,
        *,
        progress: Progress | None = None,
    ) -> Any:
        """Upscales an image.

        Args:
            image: [H, W] gray, or [H, W, C] of gray, gray and alpha, RGB, or RGB and alpha (C = 1 to 4); uint8, uint16,
                or floats in 0..1, computed in fp32, which may be as far beyond as -0.5 and 4. Or an image of Pillow.
            self_ensemble: See `Upscaler.bands`.
            value_range: The floats that are black and white, such as (0, 255): a fixed linear map to 0..1 and, of the
                result, back. Alpha is always 0..1. For floats only.
            progress: Called with (rows done, rows in all) of the input, in this thread: first with 0, then after each
                band. What it raises is raised here and ends the work: nothing more is computed, no thread is left.

        Returns:
            The image, s times larger, of the same dtype (in the machine's byte order) and number of axes; whole numbers
            clamped to their range and rounded to nearest, floats as computed, but for alpha, which is clamped. For an
            image of Pillow one of Pillow: of the same mode, but L for 1 and RGB or RGBA for P, and with all of its
            `info`.

        Raises:
            TypeError: Another dtype, or not an array.
            ValueError: Another shape, a value range that is none, or floats that are NaN, infinite or of another range,
                such as 0..255.
            BackendError, WeightsError: As of `Upscaler.bands`.
        """
        of = checked_range(value_range)
        pixels = as_pixels(image, of)
        source = pixels[:, :, None] if pixels.ndim == 2 else pixels
        height, width, channels = source.shape
        out, filled = np.empty((self.scale * height, self.scale * width, channels), pixels.dtype), 0
        _tell(progress, 0, height)
        with closing(self.bands(self._in_bands(source), width, self_ensemble)) as bands:
            for part in bands:
                out[filled : filled + len(part)] = part
                filled += len(part)
                _tell(progress, filled // self.scale, height)
        assert filled == len(out)
        return as_kind_of(image, out[:, :, 0] if pixels.ndim == 2 else out, of)

    def tensor(self, x: Tensor, self_ensemble: bool = False, *, progress: Progress | None = None) -> Tensor:
        """Upscales images as networks have them, of any size and on any device, within the memory budget.

        Args:
            x: [N, 3, H, W] or [3, H, W] RGB; floats of 16, 32 or 64 bits, computed in the precision of the plan, in
                0..1, which may be as far beyond as -0.5 and 4. Any strides.
            self_ensemble: See `Upscaler.bands`.
            progress: As of a call. The rows are those of all N images.

        Returns:
            [N, 3, s·H, s·W] or [3, s·H, s·W], contiguous, on the device of x and of its dtype, neither clamped nor
            rounded to levels. It is the result of one image after the other, each that of the same image as an array.
            Without gradients.

        Raises:
            TypeError: No tensor, or another dtype.
            ValueError: Another shape, values that are NaN, infinite or of another range, or x requires gradients
                (outside of `torch.no_grad`), which there would be none of.
            BackendError, WeightsError: As of `Upscaler.bands`.
        """
        self._check_process()  # before anything is computed on several threads
        images, scale = as_images(x), self.scale
        count, _, height, width = images.shape
        out = torch.empty((count, 3, scale * height, scale * width), dtype=x.dtype, device=x.device)
        _tell(progress, 0, count * height)
        for i, image in enumerate(images):
            filled = 0
            with closing(self._tensor_bands(image.permute(1, 2, 0), self_ensemble)) as bands:
                for part in bands:
                    out[i, :, filled : filled + len(part)] = part.permute(2, 0, 1)
                    filled += len(part)
                    _tell(progress, i * height + filled // scale, count * height)
            assert filled == scale * height
        return out if x.ndim == 4 else out[0]

    def _tensor_bands(self, image: Tensor, self_ensemble: bool) -> Generator[Tensor, None, None]:
        """Successive [m, s·W, 3] of one image [H, W, 3], on any device; here by way of the host."""
        rows = (part.float().cpu().numpy() for part in self._in_bands(image))
        with closing(self.bands(rows, image.shape[1], self_ensemble)) as bands:
            yield from map(torch.from_numpy, bands)

    def _in_bands(self, image: Rows) -> Iterator[Rows]:
        """The rows of [H, W, C] in parts as large as is best."""
        step = self.band_rows(image.shape[1], image.shape[0])
        return (image[i : i + step] for i in range(0, len(image), step))


def _tell(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)
