"""What the header of one of this project's files says of its network."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from edsr.errors import WeightsError
from edsr.models import EDSRConfig, MDSRConfig, NetworkConfig, SRCNNConfig, SRResNetConfig, VDSRConfig
from edsr.strict_json import loads

from .edsr import FORMAT

MAX_RESIDUAL_SCALE = 1000
"""No network has more than 1; far more would leave the range of fp32."""

CONFIGS: dict[str, Any] = {
    "edsr": EDSRConfig,
    "mdsr": MDSRConfig,
    "srcnn": SRCNNConfig,
    "vdsr": VDSRConfig,
    "srresnet": SRResNetConfig,
}
OPTIONAL = {"all_scales", "kernels", "normalized", "tanh"}
"""What has its default where a header lacks it."""


def in_order(data: bytes) -> bytes:
    """A file of safetensors with what its header says of the file in alphabetical order, which is else another in
    each: equal weights are equal files."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def read_config(table: Mapping[str, Any]) -> NetworkConfig:
    """The configuration in a header; files written before there were other networks are of EDSR.

    Raises:
        ValueError, KeyError, TypeError, OverflowError: It is damaged.
    """
    kind = CONFIGS[table.get("architecture", "edsr")]
    values = {}
    for field in fields(kind):
        if field.name not in table and field.name in OPTIONAL:
            continue
        values[field.name] = _like(field.default, table[field.name])
    mean, residual_scale = values.get("mean", ()), values.get("residual_scale", 1.0)
    if not all(-1 <= value <= 2 for value in mean):
        raise ValueError("the mean is not within the range of pixels")
    if abs(residual_scale) > MAX_RESIDUAL_SCALE:
        raise ValueError(f"residual scale {residual_scale:g}")
    return kind(**values)


def _like(default: Any, value: Any) -> Any:
    """A value of the kind of a default. Raises ValueError for numbers that are not finite, and other lengths."""
    if isinstance(default, tuple):
        if not isinstance(value, list):
            raise TypeError(f"{value!r} is no list")
        items = tuple(_like(default[0], item) for item in value)
        if len(items) > len(default) or (isinstance(default[0], float) and len(items) != len(default)):
            raise ValueError(f"{len(items)} values")
        return items
    if isinstance(default, bool):
        return bool(value)
    number = type(default)(value)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def header_config(metadata: dict[str, str]) -> NetworkConfig | None:
    """The configuration in the header of one of our files; None in a file that does not claim to be one."""
    if metadata.get("format") != FORMAT:
        return None
    try:
        return read_config(header_json(metadata, "config"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WeightsError(f"its header is damaged (config: {_first_line(error)})") from error


def header_json(metadata: dict[str, str], key: str) -> dict:
    """A table in the header of one of our files."""
    try:
        value = loads(metadata[key])
    except (KeyError, ValueError) as error:
        raise WeightsError(f"its header is damaged ({key}: {_first_line(error)})") from error
    if not isinstance(value, dict):
        raise WeightsError(f"its header is damaged ({key} is not a table)")
    return value


def _first_line(error: Exception) -> str:
    """Of its message, at most 120 characters."""
    return next(iter(str(error).splitlines()), "")[:120] or type(error).__name__
