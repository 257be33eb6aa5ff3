"""Open files and pipes as sources for libvips."""

import os
import sys

import pyvips


def source_of(number: int) -> pyvips.Source:
    """A source that reads an open file or pipe from where it is.

    On Windows a library may have numbers for open files of its own, so Python reads for it there.

    Args:
        number: as Python has it. It stays open, and the source is kept, as long as an image reads from it.
    """
    if sys.platform != "win32":
        return pyvips.Source.new_from_descriptor(number)

    def seek(offset: int, whence: int) -> int:
        try:
            return os.lseek(number, offset, whence)
        except OSError:  # a pipe
            return -1

    source = pyvips.SourceCustom()
    source.on_read(lambda size: os.read(number, size))
    source.on_seek(seek)
    return source
