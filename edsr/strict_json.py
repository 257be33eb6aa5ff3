"""JSON as its standard has it: Python would also write NaN and Infinity, which other readers refuse."""

import json
import math
from typing import Any


def dumps(value: Any) -> str:
    """The JSON text of a value, on one line of printable ASCII; numbers that are not finite become null.

    A byte of a file name that is no UTF-8 becomes one of \\udc80 to \\udcff, from which `os.fsencode` gets it back.

    Raises:
        TypeError: The value is not of JSON's types.
    """
    return json.dumps(_finite(value), allow_nan=False).replace("\x7f", "\\u007f")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
