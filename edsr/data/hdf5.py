"""Images in HDF5, in the layout of the 91-image files: `lr` and `hr`, datasets of many or groups with one for each.

What was written for SRCNN has `lr` as large as `hr`, upscaled by bicubic beforehand. Networks here take LR images as
they are (those that want them upscaled do that themselves), so these are then made from `hr` anew.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edsr.errors import DataError, ImageError
from edsr.images import to_depth

from .value_range import find_white, measure

logger = logging.getLogger(__name__)

ENDINGS = (".h5", ".hdf5")
BLOCK = 2**22
"""HR pixels that are read at once."""


def is_hdf5(path: Path) -> bool:
    """Whether a path is that of an HDF5 file, by its name."""
    return path.suffix.lower() in ENDINGS and not path.is_dir()


def import_h5py(path: Path) -> Any:
    """The package h5py. Raises DataError, which names the file that it is needed for, where it is not installed."""
    try:
        import h5py
    except ImportError:
        raise DataError(f"{path}: HDF5 is read through h5py: pip install 'edsr-triton[train]'") from None
    return h5py


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, not read yet: a dataset of many, or the one of a dataset in a group.

    Attributes:
        hr_key: Of the HR images.
        lr_key: Of the LR images; None where these are to be made.
        many: Whether the dataset has an axis for the number of images.
        count: How many there are.
        height: Of each, in HR pixels.
        width: Of each, in HR pixels.
        is_16bit: Whether HR or LR has 16 bits.
    """

    hr_key: str
    lr_key: str | None
    many: bool
    count: int
    height: int
    width: int
    is_16bit: bool


class Hdf5Images:
    """The images of a file, checked, and read a few at a time.

    Args:
        path: The file.
        scale: How many times larger HR is than LR.
        block: About how many HR pixels are read at once where all values are looked at.

    Attributes:
        path: As above.
        sets: In order; those of a group by their names, numbers as numbers.

    Raises:
        DataError: It cannot be read, has no such images, or some of another scale.
    """

    def __init__(self, path: Path, scale: int, block: int = BLOCK):
        self.path, self._block = path, block
        with self._open(DataError) as file:
            many = hasattr(file.get("hr"), "ndim")  # a dataset with all images, not a group with one for each
            names = [] if many else sorted(file.get("hr") or [""], key=lambda name: (len(name), name))
            pairs = [("lr", "hr")] if many else [(f"lr/{name}", f"hr/{name}") for name in names]
            for key in (key for pair in pairs for key in pair):
                self._check_dataset(file, key, (3, 4) if many else (2, 3))
            self.sets = [self._image_set(file, *pair, many, scale) for pair in pairs]

    @cached_property
    def white(self) -> float:
        """The value of white in floating point, told from all values: 1 or 255. Raises DataError."""
        sides = {
            "lr": [part.lr_key for part in self.sets if part.lr_key is not None],
            "hr": [part.hr_key for part in self.sets],
        }
        with self._open(DataError) as file:
            ranges = {side: measure(_blocks(file, keys, self._block)) for side, keys in sides.items()}
        white = find_white(str(self.path), ranges)
        if any(ranges.values()):
            logger.info(f"{self.path}: floating-point values are taken for 0 (black) to {white:g} (white)")
        if len(sides["lr"]) < len(self.sets):
            made = "low-resolution images are made from hr by bicubic"
            logger.info(f"{self.path}: lr is as large as hr, upscaled already as for SRCNN; {made}")
        return white

    def read(self, part: ImageSet, start: int, stop: int) -> tuple[np.ndarray, ...]:
        """The images of a set from `start` to `stop`.

        Returns:
            HR [n, H, W, 1 or 3] and, where the file has it, LR; uint8 or uint16. Floating point is rounded to 8 bits.

        Raises:
            ImageError: They cannot be read.
            DataError: What black and white are in the file cannot be told.
        """
        keys = [key for key in (part.hr_key, part.lr_key) if key is not None]
        white = self.white
        with self._open(ImageError) as file:
            read = [file[key][start:stop] if part.many else file[key][()] for key in keys]
        return tuple(
            _to_integers(_to_nhwc(values, part.many), white, f"{self.path}: {key}")
            for key, values in zip(keys, read, strict=True)
        )

    @contextmanager
    def _open(self, kind: type[Exception]) -> Iterator[Any]:
        """An h5py.File; whatever goes wrong with it becomes an exception of this kind, with a message of one line."""
        h5py = import_h5py(self.path)
        try:
            with h5py.File(self.path, "r") as file:
                yield file
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            why = str(error).partition("\n")[0]
            raise kind(f"{self.path}: cannot be read as HDF5 ({why}), get an intact copy") from None

    def _check_dataset(self, file: Any, key: str, axes: tuple[int, int]) -> None:
        data = file.get(key)
        if not hasattr(data, "ndim"):
            layout = "in the 91-image layout there are lr and hr, of equal number"
            raise DataError(f"{self.path}: holds no {key.rstrip('/')}; {layout}")
        shape = _to_nhwc(_placeholder(data), axes == (3, 4)).shape if data.ndim in axes else (0,)
        if not (data.dtype.kind == "f" or data.dtype in (np.uint8, np.uint16)) or shape[-1] not in (1, 3):
            kinds = "gray or RGB images of uint8, uint16 or floating point"
            raise DataError(f"{self.path}: {key} is {data.dtype} {list(data.shape)}, not {kinds}")

    def _image_set(self, file: Any, lr_key: str, hr_key: str, many: bool, scale: int) -> ImageSet:
        lr, hr = (_to_nhwc(_placeholder(file[key]), many).shape[:3] for key in (lr_key, hr_key))
        upscaled = lr == hr
        if not upscaled and hr != (lr[0], lr[1] * scale, lr[2] * scale):
            shapes = f"{hr_key} {list(file[hr_key].shape)} is not {scale} x {lr_key} {list(file[lr_key].shape)}"
            raise DataError(f"{self.path}: {shapes}; ask for the scale of the file")
        used = [hr_key] if upscaled else [hr_key, lr_key]
        is_16bit = any(file[key].dtype == np.uint16 for key in used)
        count, height, width = hr
        return ImageSet(hr_key, None if upscaled else lr_key, many, count, height, width, is_16bit)


def _placeholder(data: Any) -> np.ndarray:
    """An array of a dataset's shape, with no memory behind it."""
    return np.broadcast_to(np.uint8(0), data.shape)


def _blocks(file: Any, keys: list[str], block: int) -> Iterator[np.ndarray]:
    """All floating-point values of datasets, at most about `block` at a time."""
    for key in keys:
        if file[key].dtype.kind == "f":
            step = max(1, block // max(1, int(np.prod(file[key].shape[1:]))))
            yield from (file[key][start : start + step] for start in range(0, len(file[key]), step))


def _to_nhwc(values: np.ndarray, many: bool) -> np.ndarray:
    """[N, h, w, C] from the axes that HDF5 files have; `many`: whether N is one of them."""
    values = values if many else values[None]
    if values.ndim == 3:
        return values[..., None]
    return np.moveaxis(values, 1, 3) if values.shape[3] not in (1, 3) and values.shape[1] in (1, 3) else values


def _to_integers(values: np.ndarray, white: float, name: str) -> np.ndarray:
    if values.dtype in (np.uint8, np.uint16):
        return values
    if not np.isfinite(values).all():
        raise ImageError(f"{name}: holds values that are no numbers")
    return to_depth(values, np.uint8, white=white)
