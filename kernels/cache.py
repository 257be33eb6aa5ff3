"""This project's folder in the user's cache: what is measured or compiled once on a machine and kept.

Machine code from there is executed, so folder and files must be the user's own and writable by nobody else; what is not
counts as missing. They are looked at through the handles that they are then read or written by, so that nothing can be
exchanged in between. Windows has no such owners and modes: there the user's profile protects the folder.
"""

import contextlib
import functools
import logging
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import platformdirs

logger = logging.getLogger(__name__)


class Untrusted(OSError):
    """A folder or file that others can write to, or that belongs to somebody else; says so in one line."""


def folder() -> Path:
    """$XDG_CACHE_HOME/edsr-triton, on every system, or where the system keeps caches. It need not exist.

    A relative $XDG_CACHE_HOME counts for nothing, as its standard asks: the folder would depend on where one is.
    """
    base = os.path.expanduser(os.environ.get("XDG_CACHE_HOME", ""))
    if os.path.isabs(base):
        return Path(base) / "edsr-triton"
    if base:  # platformdirs would take it
        return Path(os.path.expanduser("~/.cache/edsr-triton"))
    return platformdirs.user_cache_path("edsr-triton", appauthor=False)


def read_private(path: Path) -> bytes | None:
    """The content of a file in the folder; None if there is none, or none to be trusted, of which a warning is logged.

    Args:
        path: The file; the folder that it lies in is checked, too.
    """
    try:
        with _private_folder(path.parent) as handle:
            flags = os.O_RDONLY | _flag("O_NOFOLLOW") | _flag("O_NONBLOCK") | _flag("O_BINARY")
            with open(_open_in(handle, path, flags), "rb") as file:
                _check(path, os.fstat(file.fileno()), stat.S_ISREG)
                return file.read()
    except Untrusted as error:
        _warn(str(error))
    except OSError:
        pass
    return None


def write_whole(path: Path, content: bytes) -> bool:
    """Writes a file that at any moment is the old one or the new one. Makes its folder, for the user alone.

    Returns:
        Whether it could be written; not into a folder that others can write to.
    """
    try:
        make_folder(path.parent)
        with _private_folder(path.parent) as handle:
            part = path.with_name(f"{path.stem}{secrets.token_hex(6)}.part")
            try:
                with _create_in(handle, part) as file:
                    file.write(content)
                if handle is None:
                    os.replace(part, path)
                else:
                    os.replace(part.name, path.name, src_dir_fd=handle, dst_dir_fd=handle)
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(part if handle is None else part.name, dir_fd=handle)
    except OSError:
        return False
    return True


def open_private(path: Path) -> BinaryIO:
    """Opens a file in the folder for writing, emptied, and makes the folder if need be.

    Raises:
        OSError: It cannot be had, or not for the user alone.
    """
    make_folder(path.parent)
    with _private_folder(path.parent) as handle:
        file = _create_in(handle, path, new=False)
        try:
            _check(path, os.fstat(file.fileno()), stat.S_ISREG)
            file.truncate()
        except OSError:
            file.close()
            raise
        return file


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it, with mode 0700 whatever the umask; what is there stays as it is.

    Raises:
        OSError: It cannot be made.
    """
    if not path.is_absolute():
        raise OSError(f"{path}: not an absolute path")
    for missing in reversed([path, *path.parents]):
        with contextlib.suppress(FileExistsError):
            missing.mkdir(mode=0o700)
            missing.chmod(0o700)


@contextlib.contextmanager
def _private_folder(path: Path) -> Iterator[int | None]:
    """A handle of a folder that is the user's alone; None on Windows. Raises Untrusted if it is not."""
    if sys.platform == "win32":
        yield None
        return
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check(path, os.fstat(handle), stat.S_ISDIR)
        yield handle
    finally:
        os.close(handle)


def _check(path: Path, status: os.stat_result, is_kind: object) -> None:
    """Raises Untrusted unless what was opened is of that kind, the user's, and writable by nobody else."""
    if not callable(is_kind) or not is_kind(status.st_mode):
        raise Untrusted(f"{path}: not used, it is neither a file nor a folder; remove it")
    if sys.platform == "win32":
        return
    if status.st_uid != os.geteuid():
        raise Untrusted(f"{path}: not used, it belongs to another user; remove it, or set XDG_CACHE_HOME")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Untrusted(f"{path}: not used, other users can write to it; remove it, or take that away: chmod go-w")


def _open_in(handle: int | None, path: Path, flags: int) -> int:
    flags |= _flag("O_CLOEXEC")
    if handle is None:
        return os.open(path, flags, 0o600)
    return os.open(path.name, flags, 0o600, dir_fd=handle)


def _create_in(handle: int | None, path: Path, new: bool = True) -> BinaryIO:
    """A file for writing, of mode 0600 whatever the umask if it is made now."""
    flags = os.O_WRONLY | os.O_CREAT | _flag("O_NOFOLLOW") | _flag("O_NONBLOCK") | _flag("O_BINARY")
    file = os.fdopen(_open_in(handle, path, flags | (os.O_EXCL if new else 0)), "wb")
    if new and hasattr(os, "fchmod"):
        os.fchmod(file.fileno(), 0o600)
    return file


def _flag(name: str) -> int:
    """A flag of `os.open` where the system has it."""
    return getattr(os, name, 0)


@functools.cache
def _warn(line: str) -> None:
    """Logs a line once in a process."""
    logger.warning("%s", line)
