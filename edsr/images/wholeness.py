"""Whether a file ends where its image ends, without decoding it."""

import os
import struct
from pathlib import Path
from typing import BinaryIO

from edsr.errors import ImageError
from edsr.wording import option

from .probe import identify

_TAIL = 4096  # bytes in which the end of a PNG or a JPEG is looked for; some programs append to it


def ends_whole(path: str | os.PathLike[str]) -> bool:
    """Whether the end of an image's data is in the file: False for one that is empty, or was cut off.

    A TIFF is whole by this; its directory, without which nothing reads it, mostly lies at its end.

    Raises:
        ImageError: The file holds something that is no image, or cannot be read.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head, size = file.read(16), os.fstat(file.fileno()).st_size
            name = identify(head)
            if name:
                return _has_end(name, file, size)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from None
    if size > len(head) and any(head):  # less is what a crash leaves
        raise ImageError(f"{path}: is there, and is no image; add {option('overwrite')} to replace it")
    return False


def _has_end(name: str, file: BinaryIO, size: int) -> bool:
    file.seek(max(0, size - _TAIL))
    tail = file.read(_TAIL)
    if name == "PNG":
        return b"\0\0\0\0IEND\xae\x42\x60\x82" in tail
    if name == "JPEG":
        return b"\xff\xd9" in tail
    if name == "WebP":
        file.seek(4)
        return int.from_bytes(file.read(4), "little") + 8 <= size
    if name in ("AVIF", "HEIF"):
        return _boxes_fit(file, size)
    return True


def _boxes_fit(file: BinaryIO, size: int) -> bool:
    """Whether the outermost boxes of an ISO media file end within its `size`."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        length, long = struct.unpack(">I4xQ", file.read(16).ljust(16, b"\0"))
        length = long if length == 1 else size - at if length == 0 else length
        if length < 8:
            return False
        at += length
    return at == size
