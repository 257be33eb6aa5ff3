"""Bytes of ours put into files that libvips writes front to back, in constant memory."""

from typing import Protocol


class Splicer(Protocol):
    """Gives what is to be written for the next bytes of a stream."""

    def feed(self, data: bytes) -> bytes: ...
