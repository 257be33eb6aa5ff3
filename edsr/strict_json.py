"""JSON as its standard has it: Python would also write NaN and Infinity, which other readers refuse."""

import json
import math
from typing import Any


def dumps(value: Any) -> str:
    """The JSON text of a value, on one line; numbers that are not finite become null.

    Raises:
        TypeError: The value is not of JSON's types.
    """
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
