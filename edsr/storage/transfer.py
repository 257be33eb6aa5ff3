"""Objects at URLs to files and back, by fsspec. What is stored appears whole or not at all.

An image is fetched whole into a temporary file before it is read: what it is, and whether it goes on to its end, is
looked for in many places of it, each of which would be a request. Memory holds a piece or a part, and the library's
copies of it.
"""

import logging
import mimetypes
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from edsr.errors import ImageError
from edsr.system import undone

from .faults import explain, is_passing
from .url import Url

PIECE = 2**23
"""Bytes that are asked for in one request."""
PART = 2**24
"""Bytes that are stored in one request: each costs as much as twelve that read. S3 takes no less than 5 MB."""
PARTS = 9_000
"""Of an upload; S3 takes 10,000."""
RESERVE = 2**27
"""Bytes that are left free on the disk of temporary files."""
ATTEMPTS, PAUSE = 2, 1.0
"""How often it is tried when connections are lost, and seconds in between; s3fs and gcsfs try for themselves, too."""

_LIBRARIES = ("fsspec", "s3fs", "gcsfs", "aiobotocore", "botocore")
_SILENT = logging.NullHandler()

T = TypeVar("T")


def file_system(url: Url) -> Any:
    """fsspec's access to the URL's scheme; endpoints and credentials are those of the environment.

    Raises:
        ImageError: A package for it is missing, or its settings are wrong.
    """
    for name in _LIBRARIES:  # which would show their errors, addresses included, where nobody asks for a log
        logging.getLogger(name).addHandler(_SILENT)
    try:
        import fsspec

        if url.scheme in ("http", "https"):
            import aiohttp

            # The whole of a large image may take its time; silence may not.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
            return fsspec.filesystem(url.scheme, client_kwargs={"timeout": timeout, "trust_env": True}, encoded=True)
        return fsspec.filesystem(url.scheme, use_listings_cache=False)
    except Exception as error:
        raise explain(error, url) from None


def key_of(url: Url) -> str:
    """The URL as the methods of its `file_system` take it. A name may hold "?", "#", "%" and "::" as they are.

    Raises:
        ImageError: s3fs would take a part of its name for something else, and another object for it.
    """
    if url.scheme == "s3" and "?versionId=" in url.path:
        raise ImageError(f"{url}: versions of objects are not read; leave out ?versionId=")
    return url.address if url.scheme in ("http", "https", "memory") else f"{url.host}/{url.path}"


def fetch(url: Url, path: Path, stopped: Callable[[], bool] = lambda: False) -> None:
    """Writes the object at the URL into a new file.

    Args:
        stopped: Asked now and then, whether to give up, with an ImageError.

    Raises:
        ImageError: It cannot be read, or would leave less than RESERVE bytes on the disk; what has come of it is in
            the file all the same.
    """
    if url.is_folder:
        raise ImageError(f"{url}: names no object; give the whole address of an image")
    files = file_system(url)
    if url.scheme in ("http", "https"):
        repeated(lambda: files.get_file(url.address, os.fspath(path), callback=_room(url, path, stopped)), url)
    else:
        repeated(lambda: _copy_out(files, url, path, stopped), url)


def store(path: Path, url: Url, overwrite: bool = False, stopped: Callable[[], bool] = lambda: False) -> None:
    """Stores a file at the URL, whole or not at all.

    Args:
        overwrite: Whether an object that is there is replaced.
        stopped: Asked now and then, whether to give up, with an ImageError.

    Raises:
        ImageError: It cannot be written, or there is an object that may not be replaced.
    """
    files = file_system(url)
    mode = "wb" if overwrite else "xb"
    failed = False

    def copy() -> None:
        nonlocal failed
        try:
            _copy_in(files, path, url, mode, stopped)
        except FileExistsError:
            if not (failed and _holds(files, url, path)):  # else it was stored before, and the answer was lost
                raise
        except Exception:
            failed = True
            raise

    repeated(copy, url, writing=True)


def size_of(url: Url) -> int | None:
    """The bytes of the object at the URL; None if there is none.

    Raises:
        ImageError: It cannot be found out.
    """
    files = file_system(url)

    def look() -> int | None:
        try:
            if url.scheme == "s3":  # the object alone: fsspec would list the prefix of its name, too
                return files.call_s3("head_object", Bucket=url.host, Key=url.path)["ContentLength"]
            found = files.info(key_of(url))
        except FileNotFoundError as error:
            if explain(error, url).args != explain(FileNotFoundError(), url).args:  # there is no bucket, either
                raise
            return None
        return found["size"] if found["type"] == "file" else None

    return repeated(look, url)


def is_taken(url: Url) -> bool:
    """Whether there is an object at the URL, as far as one may look: who may write need not have a right to read.

    Raises:
        ImageError: As `size_of`, but for that.
    """
    try:
        return size_of(url) is not None
    except ImageError as error:
        if isinstance(error.__cause__, PermissionError):
            return False
        raise


def check_store(url: Url) -> None:
    """Raises ImageError where it is clear beforehand that nothing can be stored at the URL."""
    if not url.writable:
        raise ImageError(f"{url}: {url.scheme}:// cannot be written to; choose a bucket or a folder", misuse=True)
    files = file_system(url)
    if url.scheme in ("s3", "gs"):
        try:
            repeated(lambda: files.info(url.host), url, writing=True)
        except ImageError as error:
            if not isinstance(error.__cause__, PermissionError):  # who may write, may not always look
                raise


def repeated(action: Callable[[], T], url: Url, writing: bool = False) -> T:
    """What the action gives; it is tried ATTEMPTS times where connections are lost. Raises ImageError."""
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except Exception as error:
            if attempt + 1 == ATTEMPTS or not is_passing(error):
                # A traceback must not show what messages do not: addresses of HTTP may hold passwords and signatures.
                raise explain(error, url, writing) from (error if url.writable else None)
            time.sleep(PAUSE)
    raise AssertionError


def _copy_out(files: Any, url: Url, path: Path, stopped: Callable[[], bool]) -> None:
    with files.open(key_of(url), "rb", block_size=PIECE, cache_type="none") as source, open(path, "wb") as file:
        room = _room(url, path, stopped)
        room.set_size(size := source.size)
        while data := source.read(PIECE):
            file.write(data)
            room.relative_update(len(data))
        if size is not None and file.tell() != size:
            raise ConnectionError


def _copy_in(files: Any, path: Path, url: Url, mode: str, stopped: Callable[[], bool]) -> None:
    size = path.stat().st_size
    kind = {"s3": "ContentType", "gs": "content_type"}.get(url.scheme)
    more: dict[str, Any] = {kind: mimetypes.guess_type(path.name)[0] or "application/octet-stream"} if kind else {}
    with open(path, "rb") as file:
        if size <= PART or url.scheme == "memory":
            files.pipe_file(key_of(url), file.read(), mode="create" if mode == "xb" else "overwrite", **more)
        else:
            block = max(PART, -(-size // PARTS))
            target = files.open(key_of(url), mode, block_size=block, autocommit=False, **more)
            _upload(iter(lambda: file.read(block), b""), target, url, stopped)


def _holds(files: Any, url: Url, path: Path) -> bool:
    """Whether the object at the URL is the same as the file. False where that may not be read."""
    stored_as = {"block_size": PIECE, "cache_type": "none"}
    with suppress(Exception), open(path, "rb") as file, files.open(key_of(url), "rb", **stored_as) as stored:
        while (data := file.read(PIECE)) == stored.read(PIECE):
            if not data:
                return True
    return False


def _upload(pieces: Iterator[bytes], target: Any, url: Url, stopped: Callable[[], bool]) -> None:
    """Stores pieces, which become an object at the end, or are dropped."""
    try:
        with undone(target.discard):  # where a part takes longer than whoever interrupts will wait
            for piece in pieces:
                _go_on(url, stopped)
                target.write(piece)
            target.close()
            target.commit()
    except BaseException:
        target.autocommit = False
        with suppress(Exception):  # what is told is why the upload has failed
            target.discard()
        target.closed = True
        raise


def _go_on(url: Url, stopped: Callable[[], bool]) -> None:
    """Raises ImageError if the work is stopped."""
    if stopped():
        raise ImageError(f"{url}: interrupted")


def _room(url: Url, path: Path, stopped: Callable[[], bool]) -> Any:
    """A callback of fsspec that ends what would fill the disk, or is to stop."""
    from fsspec.callbacks import Callback

    class Room(Callback):
        def check(self, more: int) -> None:
            free = shutil.disk_usage(path.parent).free
            if more > free - RESERVE:
                sizes = f"{more / 1e6:,.0f} MB more, of which {path.parent.parent} has {free / 1e6:,.0f} MB free"
                raise ImageError(f"{url}: needs {sizes}; set TMPDIR to a folder on a larger disk")

        def set_size(self, size: int | None) -> None:
            super().set_size(size)
            self.check(size or 0)

        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            _go_on(url, stopped)
            if self.size is None:
                self.check(0)

    return Room()
