"""Images as callers have them, brought to the arrays that a network takes: never with a guess at what numbers mean.

Read-only arrays, views, other byte orders, nested sequences, images of Pillow, whatever else gives its pixels to NumPy,
and floats of 16 or 64 bits are taken. What could mean two things is refused in a line that says what to do.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from edsr.images import HIGHEST, LOWEST, UNIT, ValueRange

_ALPHA_ROUNDING = 1e-3


def checked_range(value_range: Any) -> ValueRange:
    """(black, white) as a ValueRange. Raises ValueError if it is none."""
    try:
        low, high = (float(value) for value in value_range)
    except (TypeError, ValueError):
        low = high = np.nan
    if not (np.isfinite(low) and np.isfinite(high)) or low == high:
        raise ValueError(f"value_range is (black, white), two different numbers like (0, 255), not {value_range!r}")
    return ValueRange(low, high)


def as_pixels(image: Any, of: ValueRange = UNIT) -> np.ndarray:
    """An image as uint8, uint16 or fp32, [H, W] or [H, W, 1 to 4], in the machine's byte order; a copy where needed.

    of: the floats that are black and white; they come as 0 and 1.

    Raises:
        TypeError: It is no image, or its numbers could mean several things.
        ValueError: Another shape, empty, or values that are NaN, infinite or far from 0..1.
    """
    pixels = native(_as_array(image))
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] > 4) or 0 in pixels.shape:
        hint = "; the channels come last" if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) else ""
        hint = "; give one at a time" if pixels.ndim == 4 else hint
        raise ValueError(f"images are [H, W] or [H, W, 1 to 4] and not empty, not {list(pixels.shape)}{hint}")
    if of != UNIT and pixels.dtype != np.float32:
        raise ValueError(f"value_range is for floats, and these are {pixels.dtype}; leave it out")
    unit = of.to_unit(pixels if pixels.ndim == 3 else pixels[:, :, None])
    check_values(unit, "divide them by 255, or give value_range=(0, 255)", of)
    return unit.reshape(pixels.shape)


def checked_rows(rows: Iterable[Any], width: int) -> Iterator[np.ndarray]:
    """Successive rows of one image, [n, width, 1 to 4] as `native` gives them. Raises as `as_pixels` does."""
    first = None
    for part in rows:
        pixels = native(_as_array(part))
        if pixels.ndim != 3 or pixels.shape[1] != width or not 1 <= pixels.shape[2] <= 4:
            raise ValueError(f"rows are [n, {width}, 1 to 4], not {list(pixels.shape)}")
        first = first or (pixels.shape[2], pixels.dtype)
        if first != (pixels.shape[2], pixels.dtype):
            raise ValueError("all rows of an image have the same channels and dtype")
        check_values(pixels)
        yield pixels


def native(pixels: np.ndarray) -> np.ndarray:
    """Pixels as uint8, uint16 or fp32 in the machine's byte order. Raises TypeError."""
    kind = pixels.dtype.newbyteorder("=")
    if kind.kind == "f" and kind.itemsize <= 8:
        with np.errstate(over="ignore"):  # infinity is refused later
            return pixels.astype(np.float32, copy=False)
    if kind not in (np.uint8, np.uint16):
        advice = {"i": ": .astype(np.uint8) if they are 0..255", "b": ": image.astype(np.uint8) * 255"}
        more = advice.get("i" if kind.kind == "u" else kind.kind, "")
        raise TypeError(f"images are uint8, uint16, or floats in 0..1, not {kind}{more}")
    return pixels.astype(kind, copy=False)


def check_values(pixels: np.ndarray, advice: str = "divide them by 255", of: ValueRange = UNIT) -> None:
    """Raise ValueError for floats [.., C] that are NaN, infinite or far from 0..1.

    advice: for those of 0..255. of: the range that they had before.
    """
    if pixels.dtype != np.float32 or pixels.size == 0:
        return
    check_bounds(float(pixels.min()), float(pixels.max()), advice, of)  # NaN if any is
    if pixels.shape[-1] in (2, 4):
        alpha = pixels[..., -1]
        if alpha.min() < -_ALPHA_ROUNDING or alpha.max() > 1 + _ALPHA_ROUNDING:
            raise ValueError("alpha, the last channel, is 0..1; clip it, or leave it out if it is none")


def check_bounds(low: float, high: float, advice: str = "divide them by 255", of: ValueRange = UNIT) -> None:
    """As `check_values`, by the least and the greatest of the floats."""
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("the image holds NaN or infinite values; replace them")
    if low < LOWEST or high > HIGHEST:
        if of != UNIT:
            raise ValueError(f"the image lies far beyond value_range={(of.low, of.high)}; give the range that it has")
        advice = advice if low >= 0 and high <= 255 else "map them to it"
        raise ValueError(f"floats are 0..1 from black to white, these are {low:.6g}..{high:.6g}; {advice}")


def is_pillow(image: Any) -> bool:
    """Whether it is an image of Pillow, found without importing Pillow."""
    return hasattr(image, "mode") and hasattr(image, "getbands")


def as_kind_of(image: Any, pixels: np.ndarray, of: ValueRange = UNIT) -> np.ndarray | Any:
    """A result, of pixels like those that `as_pixels` has given for the image, as what the caller handed over.

    An image of Pillow for one of Pillow, else an array; floats in the range `of`, and of 16 or 64 bits if an array was.
    """
    pixels = of.from_unit(pixels if pixels.ndim == 3 else pixels[:, :, None]).reshape(pixels.shape)
    if is_pillow(image):
        from .pillow import image_like

        return image_like(image, pixels)
    if isinstance(image, np.ndarray) and image.dtype.kind == "f":
        return pixels.astype(image.dtype.newbyteorder("="), copy=False)
    return pixels


def _as_array(image: Any) -> np.ndarray:
    if isinstance(image, np.ma.MaskedArray):
        raise TypeError("images are not masked arrays, since a network needs every pixel; fill them first")
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, (str, bytes, os.PathLike)):
        raise TypeError("images are arrays, not names of files; read them with edsr.images.read_image")
    if type(image).__module__.partition(".")[0] == "torch":
        raise TypeError("images are arrays [H, W, C], not tensors; call .tensor(x), or .frame(x) for whole numbers")
    if is_pillow(image):
        from .pillow import pixels_of

        return pixels_of(image)
    kind = "None" if image is None else type(image).__name__
    listed = isinstance(image, (list, tuple))
    if listed and any(hasattr(part, "mode") or getattr(part, "ndim", 0) > 1 for part in image):
        raise TypeError(f"images are arrays [H, W, C], not a {kind} of several; give one at a time")
    try:
        pixels = np.asarray(image)
    except (TypeError, ValueError):
        raise TypeError(f"images are arrays [H, W, C], not {kind} of uneven parts") from None
    if pixels.ndim == 0 or pixels.dtype == object:
        raise TypeError(f"images are arrays [H, W, C], not {kind}")
    if listed and pixels.dtype.kind in "iu":
        advice = "give np.array(image, np.uint8) if they are 0..255"
        raise TypeError(f"images are arrays, not a {kind} of whole numbers; {advice}")
    return pixels
