"""The system below: files that appear whole or not at all, and memory.

A file is written under another name, in the same folder, and then renamed.
"""

import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_PREFIX, _SUFFIX = ".edsr-", ".part"


def temporary(path: Path) -> Path:
    """A name to write the file `path` under."""
    return path.with_name(f"{_PREFIX}{secrets.token_hex(6)}{_SUFFIX}")


def lock(file: BinaryIO) -> None:
    """Holds a lock on the file until it is closed. Raises OSError if somebody else has one, or there are none here.

    Windows needs none: an open file cannot be deleted there.
    """
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_abandoned(folder: Path) -> None:
    """Deletes what Writers that were killed have left in the folder; not what others are writing at this moment."""
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):
            with open(path, "rb+") as file:
                lock(file)
            path.unlink()


def rename_into_place(part: Path, path: Path, overwrite: bool) -> None:
    """Give a finished file its name, in the same folder. FileExistsError if that is taken and may not be replaced."""
    if not overwrite:
        try:
            os.link(part, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links: claim the name, if it is free
            open(path, "xb").close()
            try:
                os.replace(part, path)
            except OSError:
                os.unlink(path)
                raise
    else:
        os.replace(part, path)


def free_memory() -> int | None:
    """Bytes of memory to be had without swapping; None where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:")), None)
    except OSError:
        return None
