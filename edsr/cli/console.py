"""What a person is told of an error. Imports what raises it only when asked: torch takes seconds."""

import logging
import sys


def print_line(line: str, stream=None) -> None:
    """Prints a line, to standard error unless told otherwise, in one write: several processes may share the stream.

    print() writes a line and its end one after the other where Python does not buffer, and lines of others get between.
    """
    stream = sys.stderr if stream is None else stream
    stream.write(f"{line}\n")
    stream.flush()


class LineHandler(logging.Handler):
    """What the packages log, as plain lines on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        print_line(self.format(record))


def show_log(quiet: bool) -> None:
    """Shows what is logged from INFO on, or nothing if `quiet`."""
    logger = logging.getLogger("edsr")
    logger.handlers = [LineHandler(logging.CRITICAL + 1 if quiet else logging.INFO)]
    logger.setLevel(logging.INFO)


def is_expected(error: Exception) -> bool:
    """Whether an error is about the user's files, devices or options, and its message is meant for them."""
    import torch

    from edsr.errors import (
        BackendError,
        CheckpointError,
        CompareError,
        DataError,
        EvaluateError,
        ImageError,
        TrainError,
        WeightsError,
    )

    ours = (ImageError, WeightsError, BackendError, DataError, EvaluateError, TrainError, CheckpointError, CompareError)
    return isinstance(error, (*ours, OSError, MemoryError, torch.OutOfMemoryError))


def describe(error: Exception) -> str:
    """One line for a person."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return "out of memory; try a smaller --tile"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) if is_expected(error) else f"{error!r}, a defect; --debug shows where"
