"""HEVC, the codec of phones' HEIC files: most builds of libvips lack its decoder, pillow-heif brings one."""

import importlib
import os
from pathlib import Path

import numpy as np
import pyvips

from .codecs import is_missing
from .messages import list_errors, take_errors

_FIELDS = ("exif-data", "xmp-data", "icc-profile-data", "n-pages", "bits-per-sample")
_libvips_decodes: bool | None = None  # None: as long as no such file has told


def needs_package(path: Path) -> bool:
    """Whether libvips lacks the decoder for a HEVC image. One is decoded to find out, once in a process."""
    global _libvips_decodes
    if _libvips_decodes is None:
        try:
            pyvips.Operation.call("heifload", os.fsencode(path)).avg()
            _libvips_decodes = True
        except (pyvips.Error, UnicodeDecodeError) as error:
            if any(map(is_missing, list_errors(error))):
                _libvips_decodes = False
            take_errors()
    return _libvips_decodes is False


def decode(path: Path, header: pyvips.Image) -> pyvips.Image:
    """The main image of a HEIC file, decoded by pillow-heif, with the metadata that libvips gives.

    Args:
        path: of the file.
        header: the image as libvips opens it, whose pixels it cannot decode.

    Raises:
        pyvips.Error: it cannot be decoded, or the package is not installed.
    """
    try:
        package = importlib.import_module("pillow_heif")
    except ImportError:
        raise pyvips.Error("", "HEVC has not been built in") from None
    try:
        pixels = np.asarray(package.open_heif(path, convert_hdr_to_8bit=False))
    except Exception as error:  # it does not say what damaged bytes may lead it to
        raise pyvips.Error("", str(error) or type(error).__name__) from None
    pixels = np.atleast_3d(pixels)
    if pixels.shape[2] < 3 <= header.bands:  # gray, which libvips gives as RGB
        pixels = np.concatenate([np.repeat(pixels[:, :, :1], 3, 2), pixels[:, :, 1:]], 2)
    dtype = {np.dtype(np.uint8): "uchar", np.dtype(np.uint16): "ushort"}.get(pixels.dtype)
    if (*pixels.shape, dtype) != (header.height, header.width, header.bands, str(header.format)):
        raise pyvips.Error("", f"decoded as {pixels.shape[1]} x {pixels.shape[0]} pixels of {pixels.shape[2]} channels")
    image = pyvips.Image.new_from_memory(
        pixels.tobytes(),
        header.width,
        header.height,
        header.bands,
        str(header.format),
    ).copy(interpretation=str(header.interpretation))
    for name in _FIELDS:
        if kind := header.get_typeof(name):
            image.set_type(kind, name, header.get(name))
    return image
