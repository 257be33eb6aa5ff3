"""Files and folders that appear whole or not at all.

Both are written under a temporary name beside the final one, synced to disk, and then renamed. While that goes on the
temporary one is locked, so that `remove_abandoned` can tell what a killed process has left from what is being written.
"""

import ctypes
import errno
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import BinaryIO

from edsr.permissions import private, share, target_of

_PREFIX, _SUFFIX = ".edsr-", ".part"

_unfinished: set[Path] = set()
"""What is being written, and temporary folders."""
_undoing: set[Callable[[], object]] = set()
"""What else removes something unfinished, elsewhere than in files."""
UNDOING = 3.0
"""Seconds that these have, all together: they may wait for a network."""
_NO_REPLACE, _EXCHANGE, _CURRENT_FOLDER = 1, 2, -100  # of Linux's renameat2
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)  # what renaming a folder fails with if another has the name


@contextmanager
def atomic_file(
    path: str | os.PathLike[str], overwrite: bool = True, sources: Iterable[str | os.PathLike[str]] = ()
) -> Iterator[BinaryIO]:
    """A file that gets its name only when the block ends without an error; otherwise nothing has changed.

    Its name is synced to disk as well. Gives an open binary file (`x+b`) in the folder of `path`. It may also be
    written by its `name`, for libraries that open files themselves, if these notice every error. It must not be closed
    inside the block. Only its owner may read it until it is finished; then it has the usual permissions, or those of
    the file that it replaces.

    Args:
        path: the final name. Its folder must exist. If it is a link, and `overwrite` is true, what it links to.
        overwrite: whether a file of that name is replaced, in one step.
        sources: files that the new one is made from; who may not read these may not read it.

    Raises:
        FileExistsError: at the end, if the name is taken and `overwrite` is false; that file is left as it is.
        OSError: if the file cannot be created, written, synced or renamed, or if `path` is a device, FIFO or socket.
    """
    path = target_of(path) if overwrite else Path(path)
    while True:
        part = _temporary(path)
        _unfinished.add(part)
        try:
            with open(part, "x+b", opener=private) as file:
                if not _lock_new(file, part):
                    continue
                yield file
                share(file.fileno(), sources, path)
                file.flush()
                os.fsync(file.fileno())
                if sys.platform == "win32":  # which renames no open files
                    file.close()
                _rename_into_place(part, path, overwrite)
            _sync_folder(path.parent)
            return
        except OSError as error:
            if error.filename == str(part):  # a name that nobody has given
                error.filename = str(path)
            raise
        finally:
            with suppress(OSError):
                part.unlink()  # there is none after it was renamed
            _unfinished.discard(part)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder that gets its name only when the block ends without an error; otherwise nothing has changed.

    Gives an empty folder beside `path` to write into; files in it must be closed by the end of the block. They are
    synced to disk before the folder gets its name, and the name, too. A folder of that name is replaced.

    Args:
        path: the final name. The folder it lies in must exist.

    Raises:
        OSError: if something cannot be created, written, synced or renamed.
    """
    path = Path(path)
    while True:
        part, held = _temporary(path), None
        try:
            _unfinished.add(part)
            part.mkdir()
            if sys.platform != "win32":
                try:
                    held = os.open(part, os.O_RDONLY)
                except FileNotFoundError:  # removed already, see `_lock_new`
                    continue
                if not _lock_new(held, part):
                    continue
            yield part
            _sync_tree(part)
            _unfinished.discard(part)
            _move_into_place(part, path)
            _sync_folder(path.parent)
            return
        finally:
            if held is not None:
                os.close(held)
            shutil.rmtree(part, ignore_errors=True)
            _unfinished.discard(part)


def why_unwritable(folder: str | os.PathLike[str]) -> str:
    """Why nothing can be written into a folder, which may be yet to be made; "" if it can.

    It is tried, by a file without a name: permissions do not tell of disks that are read-only.
    """
    top = folder = Path(folder)
    while not os.path.lexists(top) and top != top.parent:
        top = top.parent
    if not os.path.isdir(top):
        return f"{top} is no folder"
    try:
        for name in folder.relative_to(top).parts:
            with suppress(FileNotFoundError):
                os.lstat(top / name)  # a name too long
        with TemporaryFile(prefix=_PREFIX, dir=top):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def why_unwritable_file(path: str | os.PathLike[str]) -> str:
    """Why `atomic_file` could not write a file, in place of one that is there; "" if it could."""
    try:
        target = target_of(path)
    except OSError as error:
        return error.strerror or str(error)
    if os.path.isdir(target):
        return "is a folder, name a file in it"
    if not os.path.isdir(target.parent):
        return f"there is no folder {target.parent}, create it first"
    why = why_unwritable(target.parent)
    return f"cannot be written ({why})" if why else ""


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder among the system's temporary ones, removed with what is in it at the end of the block.

    Raises:
        OSError: if there can be none.
    """
    with TemporaryDirectory(prefix="edsr-") as name:
        _unfinished.add(Path(name))
        try:
            yield Path(name)
        finally:
            _unfinished.discard(Path(name))


@contextmanager
def undone(action: Callable[[], object]) -> Iterator[None]:
    """In the block `remove_unfinished` calls the action, too, in another thread, for at most UNDOING seconds."""
    _undoing.add(action)
    try:
        yield
    finally:
        _undoing.discard(action)


def remove_unfinished() -> None:
    """Remove what this process is writing, and its temporary folders; for the moment before it ends by force."""
    for path in tuple(_unfinished):
        with suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
    threads = [threading.Thread(target=_undo, args=(action,), daemon=True) for action in tuple(_undoing)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + UNDOING
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _undo(action: Callable[[], object]) -> None:
    with suppress(Exception):  # nobody is left to be told
        action()


def remove_abandoned(folder: Path) -> None:
    """Delete what killed processes have left of atomic files and folders in `folder`.

    What others are writing at this moment stays, and so do folders on systems that cannot lock them.
    """
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):
            if path.is_dir():
                handle = os.open(path, os.O_RDONLY)
                try:
                    _lock(handle)
                    shutil.rmtree(path)
                finally:
                    os.close(handle)
            else:
                # Where locks need it, as on NFS, for writing; but it may be read-only.
                with open(path, "rb+" if os.access(path, os.W_OK) else "rb") as file:
                    _lock(file)
                    if sys.platform != "win32":  # while it is locked: see `_lock_new`
                        path.unlink()
                if sys.platform == "win32":  # which deletes no open files
                    path.unlink()


def _temporary(path: Path) -> Path:
    """A name to write `path` under."""
    return path.with_name(f"{_PREFIX}{secrets.token_hex(6)}{_SUFFIX}")


def _lock(file: BinaryIO | int) -> None:
    """Hold a lock on a file or folder until it is closed. Raises OSError if another has one, or there are none here.

    Windows needs none: an open file cannot be deleted there.
    """
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_new(file: BinaryIO | int, part: Path) -> bool:
    """Lock what was made just now. False if `remove_abandoned` of another process found it before, and removes it."""
    try:
        _lock(file)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, where abandoned files stay
        return True
    return os.path.lexists(part)


def _rename_into_place(part: Path, path: Path, overwrite: bool) -> None:
    """Give a finished file its name, in the same folder. FileExistsError if that is taken and may not be replaced."""
    if not overwrite:
        try:
            os.link(part, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if _rename_in_one_step(part, path, _NO_REPLACE):
                return
            open(path, "xb").close()  # claim the name, if it is free
            try:
                os.replace(part, path)
            except OSError:
                os.unlink(path)
                raise
    else:
        os.replace(part, path)


def _move_into_place(part: Path, path: Path) -> None:
    """Give a finished folder its name, in place of what has it. Others may be doing the same at this moment."""
    while True:
        there = os.path.lexists(path)
        try:
            if not there:
                os.rename(part, path)
            elif not _rename_in_one_step(part, path, _EXCHANGE):  # after which the old one is called `part`
                _rename_in_two_steps(part, path)
            return
        except OSError as error:
            came_or_went = error.errno in _TAKEN or (there and error.errno == errno.ENOENT)
            if not came_or_went or not os.path.lexists(part):
                raise


def _rename_in_one_step(source: Path, target: Path, how: int) -> bool:
    """Rename by Linux's renameat2. False where system or file system cannot do so. Raises OSError.

    how: `_NO_REPLACE`, or `_EXCHANGE`, by which each gets the other's name.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or an old C library
        return False
    if renameat2(_CURRENT_FOLDER, os.fsencode(source), _CURRENT_FOLDER, os.fsencode(target), how) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))


def _rename_in_two_steps(source: Path, target: Path) -> None:
    """Replace a folder by another; killed in between, none of that name is there."""
    old = _temporary(target)
    os.rename(target, old)
    try:
        os.rename(source, target)
    except BaseException:
        try:
            os.rename(old, target)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            shutil.rmtree(old, ignore_errors=True)  # another has replaced it
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    """Write to disk all files in a folder, at any depth, and the names of them."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb+") as file:
                os.fsync(file.fileno())
        _sync_folder(Path(parent))


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder last, where the system can (Windows cannot, and need not)."""
    if sys.platform == "win32":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder into which one may write, but not look
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that sync no folders
            raise
    finally:
        os.close(handle)
