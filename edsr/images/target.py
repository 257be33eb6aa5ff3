"""Where encoders write to: a file opened here, whose every error is noticed.

libvips, given a file's name, writes by itself, and its TIFF encoder goes on after a write that failed: an error that
the next write does not meet again leaves a damaged file and no message.
"""

from collections.abc import Callable
from typing import Any, BinaryIO

import pyvips

from .metadata.splice import Splicer


class FileTarget:
    """A target for libvips that writes into an open binary file.

    Args:
        file: At its start.
        splice: What is put in between, for encoders that never go back.

    Attributes:
        target: What an encoder is given.
        error: The first error; all later writes fail.
    """

    def __init__(self, file: BinaryIO, splice: Splicer | None = None):
        self._file, self._splice = file, splice
        self.error: Exception | None = None
        self.target = pyvips.TargetCustom()
        self.target.on_write(self._write)
        if splice is None:
            self.target.on_read(self._read)
            self.target.on_seek(self._seek)

    def _write(self, data: Any) -> int:
        def write() -> int:
            self._file.write(data if self._splice is None else self._splice.feed(bytes(data)))
            return len(data)

        return self._attempt(write, -1)

    def _seek(self, offset: int, whence: int) -> int:
        return self._attempt(lambda: self._file.seek(offset, whence), -1)

    def _read(self, length: int) -> bytes | None:
        return self._attempt(lambda: self._file.read(length), None)

    def _attempt(self, action: Callable[[], Any], failed: Any) -> Any:
        """What the action gives, or `failed`: an exception must not reach libvips."""
        if self.error is None:
            try:
                return action()
            except Exception as error:
                self.error = error
        return failed
