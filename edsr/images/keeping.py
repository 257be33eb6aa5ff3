"""`--format keep`: an image's own format, and its own kind of compression."""

import os
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from .codecs import TIFF_CODECS
from .compression import detect_compression
from .formats import FORMATS
from .probe import EXTENSIONS, identify, probe

_INSTEAD = {"HEIF": ".avif", "GIF": ".png"}  # formats that are not written -> the extension of what is written for them
# Tag 259 -> the name in libvips.
_TIFF_COMPRESSIONS = {
    1: "none",
    5: "lzw",
    7: "jpeg",
    8: "deflate",
    32773: "packbits",
    32946: "deflate",
}  # libvips' names


def kept_extension(path: PurePath) -> str:
    """The extension under which an image keeps its format: the format of its content, whatever its name says; of a pure
    path, which is no file here, by its name."""
    head = b""
    if isinstance(path, Path) and os.path.isfile(path):
        try:
            with open(path, "rb") as file:
                head = file.read(16)
        except OSError:
            pass  # reading it will tell
    name, named = identify(head), FORMATS.get(path.suffix.lower())
    if named and name in ("", named.name):
        return path.suffix
    name = name or ("HEIF" if path.suffix.lower() in (".heic", ".heif") else "PNG")
    return _INSTEAD.get(name, EXTENSIONS[name])


def keep_compression(
    path: Path, written: str, channels: int, dtype: np.dtype, quality: int | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """How the file `path` is compressed, for libvips to do the same.

    Args:
        path: of the image that is kept.
        written: the name of the format that is written.
        channels, dtype: of what is stored.
        quality: the one asked for, if any.

    Returns:
        options of libvips' saver, and a line for each thing that is not kept.
    """
    header = probe(path)
    if header.format in _INSTEAD:
        return {}, (f"{header.format} is not written, {written} is instead",)
    if header.format != written:
        return {}, ()
    if written in ("WebP", "AVIF"):
        return ({"lossless": True} if quality is None and detect_compression(path) is None else {}), ()
    if written != "TIFF":
        return {}, ()
    code = header.tags.get(259, 1)
    kept = _TIFF_COMPRESSIONS.get(code)
    if kept == "jpeg" and (channels not in (1, 3) or dtype != np.uint8):
        kept = None
    if kept is None:
        name, samples = TIFF_CODECS.get(code, "its own"), f"{dtype.itemsize * 8}-bit samples"
        return {}, (f"its compression, {name}, is not kept: {samples} with deflate are written instead",)
    more = {"Q": quality or 95} if kept == "jpeg" else {}
    return {"compression": kept, **more}, ()
