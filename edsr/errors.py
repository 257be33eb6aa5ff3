"""Errors that are meant for a person: each message is one line that says what went wrong and, where it can, what to do.

Every exception that this project raises about files, devices and options derives from `EDSRError`. Exceptions of other
classes (ValueError, TypeError, AssertionError) are mistakes of the program that calls.
"""

import re

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line and paragraph separators, what turns the direction of writing, and surrogates, which stand
for bytes that are no UTF-8."""


def printable(text: str) -> str:
    """The text as one line, with escapes such as \\n, \\x1b and \\u202e for all that could break the line, steer the
    terminal or not be encoded. A byte of a file name that is no UTF-8 is shown as \\xe9.

    File names and the contents of files may hold anything.
    """
    return _UNPRINTABLE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    if "\udc80" <= character <= "\udcff":  # os.fsdecode's stand-in for a byte
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


class EDSRError(Exception):
    """The base of all errors about the user's files, devices and options. Its message is made `printable`.

    Attributes:
        misuse: Whether what was asked for makes no sense, here and elsewhere: exit code 2 of the command line.
    """

    def __init__(self, message: str, misuse: bool = False):
        super().__init__(printable(message))
        self.misuse = misuse


class ImageError(EDSRError):
    """An image that cannot be read or written."""


class ExistsError(ImageError):
    """An output that is there already, and may not be replaced."""


class WeightsError(EDSRError):
    """Weights that cannot be found, read, written or computed with."""


class BackendError(EDSRError):
    """A device, precision or backend that cannot be had here."""


class DataError(EDSRError):
    """Images that cannot be trained on, or HDF5 files that hold none."""


class EvaluateError(EDSRError):
    """Images that cannot be scored."""


class CompareError(EDSRError):
    """Images that cannot be compared, or a figure that cannot be written."""


class CheckpointError(EDSRError):
    """A checkpoint that cannot be written or read."""


class TrainError(EDSRError):
    """A run that cannot be started or continued."""


class DivergenceError(TrainError):
    """A run that is given up because its network has diverged."""


class StudyError(EDSRError):
    """A study that cannot be begun, continued or written."""


class ExportError(EDSRError):
    """A network that cannot be written for another runtime."""


class ClusterError(EDSRError):
    """A cluster that cannot be had, or whose machines would not give the same results."""
