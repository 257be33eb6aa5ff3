"""Files that libvips writes front to back, with bytes of ours in between, in constant memory."""

import os
from typing import Any, Protocol

import pyvips


class Splicer(Protocol):
    """Gives what is to be written for the next bytes of a stream."""

    def feed(self, data: bytes) -> bytes: ...


def save_spliced(image: pyvips.Image, saver: str, options: dict[str, Any], path: str | bytes, splice: Splicer) -> None:
    """Write an image through a `Splicer`.

    Args:
        image: what is written.
        saver: the libvips operation, one that writes to a target and never goes back.
        options: of that operation.
        path: an existing file, which is written from its start.
        splice: what is put in between.

    Raises:
        OSError: if the file cannot be written.
        pyvips.Error: if the encoder fails otherwise.
    """
    failed: list[OSError] = []
    with open(path, "r+b", buffering=0) as file:

        def write(data: Any) -> int:
            rest = memoryview(splice.feed(bytes(data)))
            try:
                while rest:
                    rest = rest[os.write(file.fileno(), rest) :]
            except OSError as error:  # which cannot pass through libvips
                failed.append(error)
                return -1
            return len(data)

        target = pyvips.TargetCustom()
        target.on_write(write)
        try:
            pyvips.Operation.call(saver, image, target, **options)
        except pyvips.Error:
            if not failed:
                raise
        if failed:
            raise failed[0]
