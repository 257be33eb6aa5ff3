"""Images to train on and to score: transparency has no place there, but an alpha channel without any does no harm."""

import os

import numpy as np

from edsr.errors import ImageError

from .reader import read_image


def read_opaque(path: str | os.PathLike[str], sixteen: bool = False, warnings: list[str] | None = None) -> np.ndarray:
    """Reads a whole image without alpha, which is left out where the image is opaque everywhere.

    Args:
        path: The file.
        sixteen: Whether 16-bit samples are read besides 8-bit ones.
        warnings: Where the reader's warnings are added, without the path.

    Returns:
        [height, width, 1 or 3], uint8 or uint16.

    Raises:
        ImageError: As `ImageReader` does, and for an image that is transparent anywhere.
    """
    image = read_image(path, sixteen, with_alpha=True, warnings=warnings)
    if image.shape[2] in (1, 3):
        return image
    if (image[..., -1] != np.iinfo(image.dtype).max).any():
        raise ImageError(f"{path}: is transparent in places, lay it over a color or take another image")
    return np.ascontiguousarray(image[..., :-1])
