"""Images reduced on their way to the file, by libvips: any size below the network's."""

from typing import NamedTuple

import numpy as np
import pyvips


class TargetSize(NamedTuple):
    """What an image is reduced to. width, height: pixels, no more than it has. dtype: uint8, uint16 or float32.

    linear: whether light is averaged, as an sRGB display would give it off, and not the values that stand for it.
    """

    width: int
    height: int
    dtype: np.dtype
    linear: bool = False


def resample(image: pyvips.Image, to: TargetSize) -> pyvips.Image:
    """Lanczos reduction (three lobes), rows and columns, in order of rows and in floating point.

    image: float samples in 0..1, of 1 to 4 channels; with 2 or 4 the last is alpha. Colors are averaged in the measure
    in which they are opaque. Gives float samples, which overshoot 0..1 beside sharp edges.
    """
    across, down = image.width / to.width, image.height / to.height
    alpha = image.bands in (2, 4)
    if to.linear:
        image = _colors(image, _to_light)
    if alpha:
        image = image.premultiply(max_alpha=1)
    image = image.reduce(across, down, kernel="lanczos3")
    if alpha:
        image = image.unpremultiply(max_alpha=1)
    return _colors(image, _from_light) if to.linear else image


def quantize(image: pyvips.Image, dtype: np.dtype, bits: int) -> pyvips.Image:
    """Float samples in 0..1 clamped and rounded to nearest: to uint8, or uint16 of which the upper `bits` are used."""
    size = 8 * dtype.itemsize
    levels = 2 ** min(bits, size) - 1
    # Half up. libvips clamps when it casts, and cuts off.
    whole = (image * levels + 0.5).cast("uchar" if size == 8 else "ushort")
    whole = whole * 2 ** (size - bits) if bits < size else whole
    spaces = {8: ("b-w", "srgb"), 16: ("grey16", "rgb16")}[size]
    return whole.cast("uchar" if size == 8 else "ushort").copy(interpretation=spaces[image.bands >= 3])


def _colors(image: pyvips.Image, function) -> pyvips.Image:
    """The function of all bands but alpha."""
    if image.bands in (1, 3):
        return function(image)
    colors = function(image[0 : image.bands - 1])
    return colors.bandjoin(image[image.bands - 1])


def _to_light(values: pyvips.Image) -> pyvips.Image:
    """IEC 61966-2-1: of sRGB's values in 0..1 the light."""
    return (values <= 0.04045).ifthenelse(values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _from_light(light: pyvips.Image) -> pyvips.Image:
    """The inverse. What overshoots below 0 stays below."""
    small = light <= 0.0031308
    return small.ifthenelse(light * 12.92, 1.055 * small.ifthenelse(0.0031308, light) ** (1 / 2.4) - 0.055)
