"""Samples of pixels: their depth, transparency laid over white, and reduction to any size below the network's.

Samples are uint8, uint16 or float32, white being 255, 65535 or 1. Wherever their depth changes, values are clamped to
black and white and rounded to nearest, ties to even: so do NumPy, PyTorch and the network's last layer. The one
exception is what MATLAB did with a bicubic image, see `edsr.images.matlab_round`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:  # arrays are converted where libvips is not installed, too: on machines that only train or measure
    import pyvips

_GAP = 4
"""Reductions by twice this or more begin with a mean over whole blocks of pixels (`resample`)."""
SAMPLE_NAMES = {"ushort": "16-bit", "float": "floating-point", "uint": "32-bit whole-number"}
SAMPLE_NAMES |= {"char": "signed 8-bit", "short": "signed 16-bit", "int": "signed 32-bit"}
"""libvips' sample types, as people are told of them."""
_THREADS = 2
"""Of libvips, in a reduction. Each holds rows of its own, and the encoder behind them is a single one."""
_HELD_ROWS = 5_000
"""Rows of the image that libvips holds at most while it reduces, as measured."""


def to_float(samples: np.ndarray) -> np.ndarray:
    """Samples as float32 in 0..1; those that are floating point already as they are."""
    _check_dtype(samples)
    if samples.dtype.kind == "f":
        return samples.astype(np.float32, copy=False)
    return samples.astype(np.float32) / np.float32(np.iinfo(samples.dtype).max)


def to_depth(samples: np.ndarray, dtype: Any, bits: int = 16, white: float | None = None) -> np.ndarray:
    """Samples of another depth, clamped and rounded to nearest, ties to even.

    Args:
        samples: any shape, of uint8, uint16 or floating point, computed in fp64. Not changed, and given back as they
            are where there is nothing to do.
        dtype: uint8, uint16, or float32, to which nothing is clamped or rounded but what float32 cannot hold.
        bits: the bits that are used of a uint16, the upper ones.
        white: of the samples; by default 1 for floating point, else the most that their dtype holds.
    """
    _check_dtype(samples)
    dtype = np.dtype(dtype)
    used = min(bits, 8 * dtype.itemsize)
    floating = samples.dtype.kind == "f"
    if white is None:
        white = 1 if floating else int(np.iinfo(samples.dtype).max)
    if dtype == np.float32:
        if not floating:
            return to_float(samples)
        return (samples if white == 1 else samples / np.float64(white)).astype(np.float32, copy=False)
    if samples.dtype == dtype and used == 8 * dtype.itemsize:
        return samples
    levels = 2**used - 1
    if floating:
        values = samples * np.float64(levels / white)
        values = np.rint(values, out=values).clip(0, levels, out=values).astype(dtype)
    elif levels % white == 0:
        values = samples.astype(dtype) * dtype.type(levels // white)
    else:
        values = rescale(samples, int(white), levels).astype(dtype)
    return values << (8 * dtype.itemsize - used) if used < 8 * dtype.itemsize else values


def rescale(samples: np.ndarray, white: int, levels: int) -> np.ndarray:
    """Whole numbers in 0..white as uint32 in 0..levels, rounded to nearest. white: odd, so that there are no ties."""
    return (samples * np.uint32(levels) + np.uint32(white // 2)) // np.uint32(white)


def over_white(samples: np.ndarray, white: float = 1) -> np.ndarray:
    """Pixels laid over white, where they have alpha, clamped but not rounded.

    Args:
        samples: [..., 1 to 4] uint8, uint16 or float32; with 2 or 4 channels the last is alpha, not premultiplied.
        white: of the result.

    Returns:
        fp64 [..., 1 or 3] in 0..white.
    """
    _check_dtype(samples)
    full = 1 if samples.dtype.kind == "f" else np.iinfo(samples.dtype).max
    values = samples * np.float64(white)
    values /= full
    values.clip(0, white, out=values)
    if samples.shape[-1] in (1, 3):
        return values
    return white - values[..., -1:] / white * (white - values[..., :-1])


def _check_dtype(samples: np.ndarray) -> None:
    if samples.dtype.kind != "f" and samples.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise TypeError(f"samples are uint8, uint16 or floating point, not {samples.dtype}")


class TargetSize(NamedTuple):
    """The size and depth that an image is reduced to.

    width, height: pixels, no more than it has. dtype: uint8, uint16 or float32. linear: whether light is averaged, as
    an sRGB display would emit it, and not the values that stand for it.
    """

    width: int
    height: int
    dtype: np.dtype
    linear: bool = False


def resample(image: pyvips.Image, to: TargetSize) -> pyvips.Image:
    """Reduce an image by a Lanczos kernel of three lobes, row by row and in floating point.

    Where it becomes an eighth or less, blocks of n x n pixels are averaged first, n being the factor divided by 4 and
    rounded down: the kernel then spans 48 rows at most, and memory does not grow with the factor.

    Args:
        image: float samples in 0..1, of 1 to 4 channels; with 2 or 4 the last is alpha. Colors are weighted by
            their opacity.
        to: the size; its dtype is not used here.

    Returns:
        Float samples, which overshoot 0..1 beside sharp edges.
    """
    import pyvips

    across, down = image.width / to.width, image.height / to.height
    image = image.copy()
    image.set_type(pyvips.GValue.gint_type, "concurrency", _THREADS)
    alpha = image.bands in (2, 4)
    if to.linear:
        image = apply_to_colors(image, _to_light)
    if alpha:
        image = image.premultiply(max_alpha=1)
    # Before a reduction of 8 or more an exact mean over whole pixels: rows that the kernel spans are held in memory.
    image = image.reduce(across, down, kernel="lanczos3", gap=_GAP)
    if alpha:
        image = image.unpremultiply(max_alpha=1)
    return apply_to_colors(image, _from_light) if to.linear else image


def resampling_memory(width: int, height: int, channels: int) -> int:
    """About how many bytes `resample` needs for an image of width x height."""
    return 4 * width * channels * min(height, _HELD_ROWS)


def quantize(image: pyvips.Image, dtype: np.dtype, bits: int) -> pyvips.Image:
    """`to_depth` for an image of libvips with float samples in 0..1: to uint8, or to uint16 of `bits` upper bits."""
    size = 8 * dtype.itemsize
    used = min(bits, size)
    kind = "uchar" if size == 8 else "ushort"
    levels = (image * (2**used - 1)).rint().cast(kind)  # which clamps
    levels = (levels * 2 ** (size - used)).cast(kind) if used < size else levels
    spaces = {8: ("b-w", "srgb"), 16: ("grey16", "rgb16")}[size]
    return levels.copy(interpretation=spaces[image.bands >= 3])


def apply_to_colors(image: pyvips.Image, function) -> pyvips.Image:
    """Apply a function to all bands but alpha."""
    if image.bands in (1, 3):
        return function(image)
    colors = function(image[0 : image.bands - 1])
    return colors.bandjoin(image[image.bands - 1])


def _to_light(values: pyvips.Image) -> pyvips.Image:
    """From sRGB values in 0..1 to linear light (IEC 61966-2-1)."""
    return (values <= 0.04045).ifthenelse(values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _from_light(light: pyvips.Image) -> pyvips.Image:
    """From linear light to sRGB values. What overshoots below 0 stays below."""
    small = light <= 0.0031308
    return small.ifthenelse(light * 12.92, 1.055 * small.ifthenelse(0.0031308, light) ** (1 / 2.4) - 0.055)
