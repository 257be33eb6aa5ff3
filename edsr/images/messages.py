"""What libvips and the libraries below it say while they work, as text that is safe to handle.

Errors go into one buffer for the whole process, warnings to GLib's log, in the thread that does the work. Both may hold
bytes that are not UTF-8, as names and file content do; pyvips would raise in the midst of reading them, and leave
the buffer full for whatever comes next.
"""

import atexit
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pyvips

logger = logging.getLogger("pyvips")  # where pyvips sends the warnings, and others may expect them

_ALL_LEVELS = 0xFF & ~3  # of GLib's log, apart from its flags
_heard = threading.local()


@cache
def set_up_libvips() -> None:
    """Switch off libvips' cache and listen to its warnings, at its first use here, so that merely importing this leaves
    other programs' as it is.

    Operations kept for reuse hold memory, and would answer for a file that has changed since.
    """
    pyvips.cache_set_max(0)
    handler = pyvips.glib_lib.g_log_set_handler(b"VIPS", _ALL_LEVELS, _listen, pyvips.ffi.NULL)
    atexit.register(pyvips.glib_lib.g_log_remove_handler, b"VIPS", handler)


@pyvips.ffi.callback("GLogFunc")
def _listen(_domain, _level, message, _data) -> None:
    text = _decode(message)
    if lines := getattr(_heard, "lines", None):
        lines[-1].extend(text.splitlines())
    logger.debug("libvips: %s", text)


@contextmanager
def hear_warnings() -> Iterator[list[str]]:
    """Collect libvips' warnings in this thread, line by line, while the context lasts."""
    if not hasattr(_heard, "lines"):
        _heard.lines = []
    _heard.lines.append([])
    try:
        yield _heard.lines[-1]
    finally:
        _heard.lines.pop()


def take_errors() -> list[str]:
    """The lines in libvips' error buffer, which is then empty. Of all threads: those of others may be among them."""
    text = _decode(pyvips.vips_lib.vips_error_buffer())
    pyvips.vips_lib.vips_error_clear()
    return _lines(text)


def list_errors(error: Exception) -> list[str]:
    """The lines of an exception that pyvips has raised; empties libvips' error buffer."""
    left = take_errors()
    if isinstance(error, UnicodeDecodeError):  # raised on reading the buffer, which it has left as it was
        return _lines(error.object.decode(errors="backslashreplace")) or left
    return _lines(getattr(error, "detail", str(error)) or "")


def describe_error(error: Exception) -> str:
    """The most telling line of a libvips error: the system's own, else the first."""
    lines = list_errors(error)
    system = [line for line in lines if line.startswith("system error: ") and "Unknown error" not in line]
    candidates = [line for line in (*system, *lines, getattr(error, "message", "")) if line]
    return candidates[0].removeprefix("system error: ") if candidates else type(error).__name__


def _decode(text) -> str:
    return pyvips.ffi.string(text).decode(errors="backslashreplace") if text else ""


def _lines(text: str) -> list[str]:
    # Looking for the end of an AVIF leaves "bad seek", with or without an error, for whatever error comes next.
    return [line.strip() for line in text.splitlines() if line.strip() and ": bad seek to " not in line]
