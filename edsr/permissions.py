"""Who may read a new file: nobody who may not read what it was made from, or the file that it replaces."""

import errno
import os
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

_Path = str | os.PathLike[str]


def private(path: _Path, flags: int) -> int:
    """An `opener` for files that only their owner may read, until `share` says who else."""
    return os.open(path, flags, 0o600)


def share(handle: int, sources: Iterable[_Path], replaced: _Path) -> None:
    """Gives an open file that is `private` so far its permissions.

    They are those of the file `replaced`, or else the usual ones, without what any of the `sources` does not give its
    group or others. A source that is gone restricts nothing.
    """
    if sys.platform == "win32":
        return
    mode = usual_mode()
    with suppress(OSError):
        old = os.stat(replaced)
        mode = stat.S_IMODE(old.st_mode) & 0o666
        with suppress(OSError):
            os.fchown(handle, -1, old.st_gid)
        mode = _narrowed(handle, mode, old)
    for source in sources:
        with suppress(OSError):
            mode = _narrowed(handle, mode, os.stat(source))
    with suppress(OSError):  # a file system without permissions
        os.fchmod(handle, mode)


def share_like(handle: int, stream: IO[bytes]) -> None:
    """Gives an open file, which lies where nobody else can look, the permissions of the file that a stream comes from,
    if it comes from one: what is made of it is then `share`d accordingly."""
    if sys.platform != "win32":
        with suppress(OSError, ValueError):  # not a real stream
            mode = os.fstat(stream.fileno()).st_mode
            if stat.S_ISREG(mode):
                os.fchmod(handle, stat.S_IMODE(mode) | stat.S_IRUSR)


def usual_mode() -> int:
    """The permissions of a new file. Asking for the umask would change it, also for other threads, but for Linux."""
    with suppress(OSError, ValueError), open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        return next(0o666 & ~int(line.split()[1], 8) for line in lines if line.startswith("Umask:"))
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask


def target_of(path: _Path) -> Path:
    """The file that is replaced when `path` is written to: what it links to, if it is a link.

    Raises:
        OSError: It is a device, a FIFO or a socket, or a link in a circle.
    """
    with suppress(FileNotFoundError):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OSError(errno.EINVAL, "is a device, FIFO or socket, not a file; choose another name", os.fspath(path))
    return Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)


def _narrowed(handle: int, mode: int, other: os.stat_result) -> int:
    """The mode without what the `other` file does not give. May give the open file to the other's group."""
    if sys.platform == "win32":
        return mode
    for_group, for_rest = other.st_mode & stat.S_IRGRP, other.st_mode & stat.S_IROTH
    if for_group and not for_rest and os.fstat(handle).st_gid != other.st_gid:
        with suppress(OSError):
            os.fchown(handle, -1, other.st_gid)
    if os.fstat(handle).st_gid != other.st_gid:
        for_group = for_rest
    return mode & ~(0 if for_group else stat.S_IRWXG) & ~(0 if for_rest else stat.S_IRWXO)
