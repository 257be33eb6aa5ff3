"""Standard input and output as image files, by way of temporary ones, so that what is written out is complete."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edsr.errors import ImageError
from edsr.images import EXTENSIONS, identify
from edsr.permissions import share_like
from edsr.system import temporary_folder

STDIN, STDOUT = "standard input", "standard output"
"""What people are shown for the two."""

RESERVE = 2**27
"""Bytes that are left free on the disk where standard input is kept."""
_CHECKED = 2**24  # bytes that are copied from one look at the free space to the next


@contextlib.contextmanager
def stdin_file(stream: BinaryIO) -> Iterator[Path]:
    """A file of what the stream holds, with the extension of its format; removed afterwards.

    If it does not begin like an image, no more of it is read: it may have no end.

    Raises:
        ImageError: The file cannot be written, or would leave less than RESERVE bytes on its disk.
    """
    with temporary_folder() as folder:
        try:
            head = stream.read(16)
            path = folder / f"stdin{EXTENSIONS.get(kind := identify(head), '')}"
            with open(path, "xb") as file:
                file.write(head)
                if kind:
                    _copy(stream, file, folder)
                share_like(file.fileno(), stream)
        except OSError as error:
            raise ImageError(f"{STDIN}: cannot be kept in {folder} ({error.strerror})") from None
        yield path


@contextlib.contextmanager
def stdout_file(stream: BinaryIO, extension: str) -> Iterator[Path]:
    """A path for a file of that extension. If there is one when the context is left without an error, it is written
    into the stream.

    Raises:
        ImageError: The stream takes no more.
    """
    with temporary_folder() as folder:
        path = (folder / "stdout").with_suffix(extension)
        yield path
        if path.exists():
            try:
                with open(path, "rb") as file:
                    shutil.copyfileobj(file, stream, 2**20)
                stream.flush()
            except OSError as error:
                raise ImageError(f"{STDOUT}: cannot be written ({error.strerror})") from None


def _copy(stream: BinaryIO, file: BinaryIO, folder: Path) -> None:
    """Copy the rest of standard input. Raises ImageError where that would fill the disk."""
    copied = 0
    while True:
        free = shutil.disk_usage(folder).free
        if free < RESERVE + _CHECKED:
            sizes = f"{copied / 1e6:,.0f} MB came and {free / 1e6:,.0f} MB are free"
            raise ImageError(f"{STDIN}: does not end before {folder.parent} is full, {sizes}; give a file instead")
        for _ in range(_CHECKED // 2**20):
            if not (data := stream.read(2**20)):
                return
            file.write(data)
            copied += len(data)
