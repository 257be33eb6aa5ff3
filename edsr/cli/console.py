"""What people are shown: lines, and errors as lines. The only module that writes to the standard streams.

A stream that is closed, full, or cannot show a character never ends the work. Imports no torch, which takes seconds.
"""

import contextlib
import io
import logging
import os
import shutil
import sys
import traceback
from typing import TextIO

from edsr.errors import EDSRError, printable

_failure: OSError | None = None
"""Why a line for standard output was lost."""

_closed: set[str] = set()
"""Which of "stdin", "stdout" and "stderr" were closed when the program was started."""


def open_streams() -> None:
    """Makes the standard streams safe to print to; once, before anything else is opened.

    Closed ones (`2>&-`, as cron jobs have them) lead nowhere from now on, and their numbers are not given to other
    files, which libraries would write their messages into. What an encoding lacks is escaped.
    """
    global _failure
    _failure = None
    if sys.platform != "win32":
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(number, True)
        os.close(number)
    for name, mode in ("stdin", "r"), ("stdout", "w"), ("stderr", "w"):
        if getattr(sys, name) is None:
            _closed.add(name)
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for good
    for stream in sys.stdout, sys.stderr:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.excepthook = _show_traceback


def print_line(*lines: str) -> None:
    """Prints lines to standard error, in one write: several processes may share the stream.

    print() writes a line and its end one after the other where Python does not buffer, and lines of others get between.
    """
    with contextlib.suppress(OSError, ValueError):  # full, broken, closed: nobody is left to tell
        _write(sys.stderr, lines)  # looked up now: progress bars put another in its place


def print_result(*lines: str) -> None:
    """Prints lines to standard output, in one write. Where that fails, `lost_output` tells."""
    global _failure
    if _failure is not None:
        return
    try:
        _write(sys.stdout, lines)
    except (OSError, ValueError) as error:
        _failure = error if isinstance(error, OSError) else OSError(str(error))


def result_width() -> int | None:
    """The columns of the terminal that standard output is; None where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def lost_output() -> OSError | None:
    """Why lines for standard output were lost, if they were."""
    return _failure


def settle_streams() -> bool:
    """Drops what the streams have not taken: Python would try again at its end, and change the exit code.

    Returns:
        Whether they have taken everything.
    """
    settled = True
    for stream in sys.stdout, sys.stderr:
        try:
            stream.flush()
        except (OSError, ValueError):
            settled = False
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
    return settled


def is_closed(name: str) -> bool:
    """Whether "stdin", "stdout" or "stderr" was closed when the program was started."""
    return name in _closed


def require_output(what: str) -> None:
    """Raises UsageError, before any work, if standard output, where `what` is to go, is closed."""
    if is_closed("stdout"):
        raise UsageError(f"standard output is closed, and {what} would be lost; redirect it into a file")


def _write(stream: TextIO, lines: tuple[str, ...]) -> None:
    if lines:
        stream.write("".join(f"{printable(line)}\n" for line in lines))
        stream.flush()


def _show_traceback(kind, error, trace) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    print_line(*text.rstrip("\n").split("\n"))


class LineHandler(logging.Handler):
    """Shows what the packages log as plain lines on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        print_line(self.format(record))


def show_log(quiet: bool) -> None:
    """Shows what is logged from INFO on, or nothing if `quiet`."""
    logger = logging.getLogger("edsr")
    logger.handlers = [LineHandler(logging.CRITICAL + 1 if quiet else logging.INFO)]
    logger.setLevel(logging.INFO)


class UsageError(Exception):
    """Options that make no sense together; the message is one line that says what to do."""


def is_expected(error: Exception) -> bool:
    """Whether an error is about the user's files, devices or options, and its message is meant for them."""
    return isinstance(error, (EDSRError, OSError)) or _is_out_of_memory(error)


def is_misuse(error: Exception) -> bool:
    """Whether what was asked for makes no sense, whatever the files and the machine."""
    return isinstance(error, UsageError) or (isinstance(error, EDSRError) and error.misuse)


def describe(error: Exception) -> str:
    """One line for a person."""
    if _is_out_of_memory(error):
        return "out of memory; try a smaller --tile"
    if isinstance(error, OSError) and error.filename:
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        return printable(f"{name}: {error.strerror}")
    return printable(str(error)) if is_expected(error) else printable(f"{error!r}, a defect; --debug shows where")


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # where it was never imported, it cannot have raised the error
    return isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError))
