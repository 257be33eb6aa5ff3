"""What people are shown: lines, and errors as lines. Imports no torch, which takes seconds."""

import logging
import sys
from typing import TextIO

from edsr.errors import EDSRError, printable


def print_line(line: str, stream: TextIO | None = None) -> None:
    """Prints a line, to standard error unless told otherwise, in one write: several processes may share the stream.

    print() writes a line and its end one after the other where Python does not buffer, and lines of others get between.
    """
    target = sys.stderr if stream is None else stream  # looked up now: progress bars put another in its place
    target.write(f"{line}\n")
    target.flush()


class LineHandler(logging.Handler):
    """Shows what the packages log as plain lines on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        print_line(printable(self.format(record)))


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


def describe(error: Exception) -> str:
    """One line for a person."""
    if _is_out_of_memory(error):
        return "out of memory; try a smaller --tile"
    if isinstance(error, OSError) and error.filename:
        return printable(f"{error.filename}: {error.strerror}")
    return printable(str(error)) if is_expected(error) else f"{error!r}, a defect; --debug shows where"


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # where it was never imported, it cannot have raised the error
    return isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError))
