"""One process at a time trains in a folder: the lock is the system's, which releases it however the process ends."""

import errno
import logging
import os
import sys
from pathlib import Path

from edsr.errors import TrainError
from edsr.wording import named

logger = logging.getLogger(__name__)

_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)


def make_folder(run: Path) -> None:
    """Makes the folder of a run, if there is none.

    Raises:
        TrainError: It cannot be made.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainError(f"{run}: cannot be made ({error.strerror}); choose another {named('out')}") from None


class RunLock:
    """The lock of one run's folder, once it is acquired."""

    def __init__(self) -> None:
        self._handle: int | None = None

    def acquire(self, folder: Path) -> None:
        """Takes the lock of a folder, which exists; once it is held, nothing more happens.

        On a file system that has no locks a warning is logged instead.

        Raises:
            TrainError: Another process, or another run of this one, has it.
        """
        if self._handle is not None:
            return
        try:
            handle = _open(folder)
        except OSError as error:
            raise TrainError(f"{folder}: cannot be opened ({error.strerror}); choose another {named('out')}") from None
        try:
            _lock(handle)
        except OSError as error:
            os.close(handle)
            if error.errno in _TAKEN:
                raise TrainError(
                    f"{folder} is being trained by another process; wait for that, or choose another {named('out')}"
                ) from None
            logger.warning("%s: cannot be locked here; see to it that no other process trains there", folder)
            return
        self._handle = handle

    def close(self) -> None:
        """Gives the lock back."""
        if self._handle is not None:
            os.close(self._handle)
        self._handle = None


if sys.platform == "win32":
    import msvcrt

    def _open(folder: Path) -> int:
        return os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)

    def _lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _open(folder: Path) -> int:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
