"""Every error that is meant for a person: one line that says what went wrong and what to do."""

import re


class EDSRError(Exception):
    """The base of all errors that this project raises about files, devices and options."""


class ImageError(EDSRError):
    """An image cannot be read or written: one line that names the file and says why or what to do."""


class WeightsError(EDSRError):
    """Weights that cannot be found, read or written; one line that says what to do about it."""

    def __init__(self, message: str):
        # A file's own words (its name, its keys) must not break the line or steer the terminal.
        super().__init__(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", "?", message))


class BackendError(EDSRError):
    """A device, precision or backend that cannot be had here; one line that says what to do."""


class DataError(EDSRError):
    """The images given cannot be trained on; one line that says what to do."""


class EvaluateError(EDSRError):
    """A folder that cannot be scored; one line that says what to do."""


class CompareError(EDSRError):
    """Images that cannot be compared, or no place for the outcome; one line that says what to do."""


class CheckpointError(EDSRError):
    """A checkpoint cannot be written or read; one line that says what to do."""


class TrainError(EDSRError):
    """A run that cannot be begun or go on; one line that says what to do."""
