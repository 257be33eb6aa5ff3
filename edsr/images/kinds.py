"""Which kinds of images are read: types of samples, color spaces, alpha."""

from pathlib import Path
from typing import NamedTuple

import pyvips

from edsr.errors import ImageError

from .probe import Header
from .samples import SAMPLE_NAMES

_COLOR_SPACES = {  # libvips' sample type -> the color spaces that are read, and their channels
    "uchar": {"b-w": (1, 2), "srgb": (3, 4), "cmyk": (4, 5)},
    "ushort": {"grey16": (1, 2), "rgb16": (3, 4), "cmyk": (4, 5)},
    "float": {"b-w": (1, 2), "scrgb": (3, 4)},
}
HALF_SPACES = {"grey16": "b-w", "rgb16": "scrgb"}
"""libvips' names for the color spaces of 16-bit floating point, which it gives as fp32 -> those of fp32."""


class Wanted(NamedTuple):
    """What `edsr.images.ImageReader` is asked for, under the same names."""

    sixteen: bool
    full: bool
    with_alpha: bool


def check_kind(path: Path, image: pyvips.Image, header: Header, wanted: Wanted) -> None:
    """Raise an ImageError if an image's kind is not read.

    Args:
        path: of its file.
        image: as libvips gives it, without the bands that are left out.
        header: of its file.
        wanted: which kinds are.
    """
    bands = header.bands
    kind, space = "float" if header.half else str(image.format), str(image.interpretation)
    space = HALF_SPACES.get(space, space) if kind == "float" else space
    if kind not in _COLOR_SPACES:
        why = f"{SAMPLE_NAMES.get(kind, kind)} samples are"
    elif image.bands not in _COLOR_SPACES[kind].get(space, ()):
        everything = image.bands + bands.dropped
        name = "of this file" if space == "multiband" else space.upper()
        why = f"the color space {name} ({everything} channel{'s' * (everything != 1)}) is"
    elif kind == "float" and image.bands == 2 and bands.premultiplied:
        why = "premultiplied alpha in floating-point gray is"  # libvips divides as if 255 were opaque
    elif kind == "float" and header.tags.get(262) == 0:
        why = "white as zero in floating-point gray is"  # libvips leaves it so
    elif wanted.full:
        return
    elif kind == "float" or (kind == "ushort" and not wanted.sixteen):
        why = f"{SAMPLE_NAMES[kind]} samples are"
    elif bands.dropped:
        why = "a band that is neither color nor alpha is"
    elif image.hasalpha() and not wanted.with_alpha:
        why = "transparency (alpha) is"
    elif space == "cmyk":
        why = "the color space CMYK is"
    else:
        return
    kinds = "RGB or gray of 8 or 16 bits, or of 32-bit floats" if wanted.full else "one 8-bit RGB or gray image"
    raise ImageError(f"{path}: {why} not supported here, convert it to {kinds}")
