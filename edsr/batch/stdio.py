"""Standard input and output as image files, by way of temporary ones, so that what is written out is complete."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from edsr.errors import ImageError
from edsr.images import EXTENSIONS, identify
from edsr.permissions import share_like

STDIN, STDOUT = "standard input", "standard output"
"""What people are shown for the two."""


@contextlib.contextmanager
def stdin_file(stream: BinaryIO) -> Iterator[Path]:
    """A file of what the stream holds, with the extension of its format; removed afterwards.

    Raises:
        ImageError: The file cannot be written.
    """
    with TemporaryDirectory(prefix="edsr-") as folder:
        path = Path(folder, "stdin")
        try:
            with open(path, "xb") as file:
                shutil.copyfileobj(stream, file, 2**20)
                share_like(file.fileno(), stream)
            with open(path, "rb") as file:
                path = path.rename(path.with_suffix(EXTENSIONS.get(identify(file.read(16)), "")))
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
    with TemporaryDirectory(prefix="edsr-") as folder:
        path = Path(folder, "stdout").with_suffix(extension)
        yield path
        if path.exists():
            try:
                with open(path, "rb") as file:
                    shutil.copyfileobj(file, stream, 2**20)
                stream.flush()
            except OSError as error:
                raise ImageError(f"{STDOUT}: cannot be written ({error.strerror})") from None
