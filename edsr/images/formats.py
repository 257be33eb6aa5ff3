"""Image formats: what each can hold, and what an image loses in it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyvips

from edsr.errors import ImageError
from edsr.resources import available_memory

from .messages import set_up_libvips, take_errors

MAX_SIDE = 100_000_000
"""The most pixels of width or height in libvips."""


@dataclass(frozen=True)
class Format:
    """A format that can be written.

    Attributes:
        name: such as "PNG".
        saver: the libvips operation that writes it.
        options: of that operation.
        bits: the most bits of a sample; 32 is floating point.
        alpha: whether it can be transparent.
        gray: whether one channel can be stored; otherwise it becomes three equal ones.
        max_side: the most pixels of width or height.
        buffered_bytes: that the encoder takes for each pixel of the whole image, as measured; twice that with alpha or
            16 bits.
    """

    name: str
    saver: str
    options: dict[str, Any]
    bits: int
    alpha: bool = True
    gray: bool = True
    max_side: int = MAX_SIDE
    buffered_bytes: int = 0


# Paeth at level 3 is within 2 % of the size of level 6 at twice its speed; unfiltered PNG is 60 % larger.
_PNG = Format("PNG", "pngsave", {"compression": 3, "filter": "paeth"}, bits=16)
# Full-resolution color. Optimized Huffman tables would save 3 %, but hold the whole image to do so.
# JPEG's format ends at 65,535 pixels, its library at 65,500.
_JPEG = Format("JPEG", "jpegsave", {"Q": 95, "subsample_mode": "off"}, bits=8, alpha=False, max_side=65_500)
_WEBP = Format("WebP", "webpsave", {"Q": 95}, bits=8, gray=False, max_side=16_383, buffered_bytes=18)
_TIFF = Format("TIFF", "tiffsave", {"compression": "deflate", "predictor": "horizontal", "level": 3}, bits=32)
# Effort 4, the library's own choice, takes eight times as long for 1 % less at 1 dB more.
_AVIF_OPTIONS = {"compression": "av1", "Q": 90, "effort": 2, "subsample_mode": "off"}
_AVIF = Format("AVIF", "heifsave", _AVIF_OPTIONS, bits=12, gray=False, max_side=16_384, buffered_bytes=38)

FORMATS = {
    ".png": _PNG,
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".jpe": _JPEG,
    ".jfif": _JPEG,
    ".webp": _WEBP,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".avif": _AVIF,
}
"""File name extension (lower case) -> the format written under it."""

READABLE = (*FORMATS, ".gif", ".heic", ".heif", ".hif")
"""File name extensions (lower case) of images that can be read."""


class Storage(NamedTuple):
    """How a format stores an image. warnings: one line for each thing that is lost."""

    channels: int
    dtype: np.dtype
    warnings: tuple[str, ...]


def storage_for(extension: str, channels: int, dtype: Any, bits: int = 16) -> Storage:
    """How an image is stored in a file with the given extension.

    Args:
        extension: with its dot, in any case.
        channels: 1 (gray), 2 (gray and alpha), 3 (RGB) or 4 (RGB and alpha).
        dtype: uint8, uint16 or float32.
        bits: of the image's samples, where dtype is uint16; AVIF and HEIF have 10 or 12.

    Raises:
        ImageError: for an unknown extension.
    """
    form = FORMATS.get(extension.lower())
    if form is None:
        raise ImageError(f"unknown extension {extension!r}, use one of {', '.join(FORMATS)}", misuse=True)
    dtype, warnings = np.dtype(dtype), []
    if channels in (2, 4) and not form.alpha:
        channels -= 1
        warnings.append(f"{form.name} has no transparency, the image is laid over white")
    if dtype.itemsize * 8 > form.bits:
        samples = f"{bits}-bit" if dtype == np.uint16 else "floating-point"
        if dtype != np.uint16 or bits > form.bits:
            warnings.append(f"{form.name} has at most {form.bits} bits a sample, {samples} samples are rounded")
        dtype = np.dtype(np.uint8 if form.bits == 8 else np.uint16)
    return Storage(channels, dtype, tuple(warnings))


def to_srgb(image: pyvips.Image) -> pyvips.Image:
    """Convert to sRGB, at the same depth, by the image's own color profile; CMYK without one by a standard profile."""
    depth, profile = (16 if image.format == "ushort" else 8), "cmyk" if image.interpretation == "cmyk" else "srgb"
    return image.icc_transform(
        "srgb", embedded=True, input_profile=profile, intent="relative", black_point_compensation=True, depth=depth
    )


def pixels_to_srgb(pixels: np.ndarray, profile: bytes) -> np.ndarray:
    """Convert uint8 [H, W, 1 or 3] to [H, W, 3] in sRGB by an ICC profile; as it is if libvips cannot use that."""
    set_up_libvips()
    image = pyvips.Image.new_from_array(pixels)
    image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)  # pyright: ignore[reportArgumentType]
    try:
        return to_srgb(image).numpy()
    except (pyvips.Error, UnicodeDecodeError):
        take_errors()
        return np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels


def check_memory(path: Path, needed: int, advice: str = "PNG and TIFF are coded row by row") -> None:
    """Raise ImageError, about the file `path`, unless `needed` bytes of memory are available. advice: what to do."""
    free = available_memory()
    if needed > free:
        sizes = f"{needed / 1e6:,.0f} MB of memory, where {free / 1e6:,.0f} MB are free"
        raise ImageError(f"{path}: needs {sizes}; {advice}")
