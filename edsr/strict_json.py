"""JSON as its standard has it: Python would also write NaN and Infinity, which other readers refuse."""

import json
import math
from collections.abc import Iterable
from typing import Any

MAX_DEPTH = 100
"""Of what is read: tables within tables."""


def dumps(value: Any) -> str:
    """The JSON text of a value, on one line of printable ASCII; numbers that are not finite become null.

    A byte of a file name that is no UTF-8 becomes one of \\udc80 to \\udcff, from which `os.fsencode` gets it back.

    Raises:
        TypeError: The value is not of JSON's types.
    """
    return json.dumps(_finite(value), allow_nan=False).replace("\x7f", "\\u007f")


def loads(text: str | bytes) -> Any:
    """The value of a JSON text from a file that anybody may have written. Bytes must be UTF-8.

    Raises:
        ValueError: It is no JSON, or is nested deeper than MAX_DEPTH: what goes through it would run out of stack.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for part in level for item in _items(part)]
        if not level:
            return value
    raise ValueError("nested too deeply")


def _items(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
