"""ICC profiles: looked at and mended before they are written, and made of a PNG's gAMA and cHRM (ICC.1:2022)."""

import io
import struct

import numpy as np
from PIL import ImageCms

_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50 = np.array([0.9642, 1.0, 0.8249])
_SRGB = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # white, red, green, blue
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def mend(profile: bytes) -> tuple[bytes, str]:
    """Bring a profile into the form that all readers take.

    Returns:
        The profile, none if it cannot be used, and what was wrong with it, or "".
    """
    if len(profile) < 132 or profile[36:40] != b"acsp":
        return b"", "damaged"
    stated = int.from_bytes(profile[:4], "big")
    if stated > len(profile):
        return b"", "cut off"
    wrong = "padded" if stated < len(profile) else ""
    profile = profile[: max(stated, 132)]
    count = int.from_bytes(profile[128:132], "big")
    table = profile[132 : 132 + 12 * min(count, 1000)]
    if count > 1000 or len(table) < 12 * count:
        return b"", "damaged"
    if any(offset + size > len(profile) for _, offset, size in struct.iter_unpack(">4sII", table)):
        return b"", "damaged"
    if missing := -len(profile) % 4:
        wrong = wrong or "of an odd length"
        profile = struct.pack(">I", len(profile) + missing) + profile[4:84] + bytes(16) + profile[100:] + bytes(missing)
    try:
        ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ValueError):
        return b"", "damaged"
    return profile, wrong


def _number(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_number, values))


def _text(text: str) -> bytes:
    data = text.encode("utf-16-be")
    return b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(data), 28) + data


def is_srgb(gamma: int | None, chromaticities: tuple[int, ...] | None) -> bool:
    """Whether gAMA and cHRM say no more than that numbers are sRGB's, or near enough. None: there is no such chunk."""
    near = chromaticities is None or all(
        abs(value / 1e5 - other) < 0.002 for value, other in zip(chromaticities, _SRGB, strict=True)
    )
    return near and (gamma is None or abs(gamma - 45455) <= 500)


def make_profile(gamma: int | None, chromaticities: tuple[int, ...] | None, gray: bool) -> bytes:
    """The profile of what a PNG's chunks say.

    Args:
        gamma: gAMA, in 1/100,000; None for sRGB's curve.
        chromaticities: cHRM: x and y of white, red, green and blue, in 1/100,000; None for sRGB's.
        gray: whether the profile is for gray images.

    Returns:
        None of the bytes if the numbers describe no colors.
    """
    points = [value / 1e5 for value in chromaticities] if chromaticities else list(_SRGB)
    if (gamma is not None and not 1000 <= gamma <= 1_000_000) or any(y <= 0 for y in points[1::2]):
        return b""
    columns = [np.array([x / y, 1, (1 - x - y) / y]) for x, y in zip(points[::2], points[1::2], strict=True)]
    white, primaries = columns[0], np.stack(columns[1:], 1)
    if abs(np.linalg.det(primaries)) < 1e-6 or (cone := _BRADFORD @ white).min() <= 0:
        return b""
    adapted = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50) / cone) @ _BRADFORD
    matrix = adapted @ (primaries * np.linalg.solve(primaries, white))
    if np.abs(matrix).max() > 100:
        return b""
    curve = (3, _SRGB_CURVE) if gamma is None else (0, [1e5 / gamma])
    curve = b"para\0\0\0\0" + struct.pack(">HH", curve[0], 0) + b"".join(map(_number, curve[1]))
    tags = {b"desc": _text("from gAMA and cHRM"), b"cprt": _text("none"), b"wtpt": _xyz(_D50)}
    tags[b"chad"] = b"sf32\0\0\0\0" + b"".join(map(_number, adapted.ravel()))
    if gray:
        tags[b"kTRC"] = curve
    else:
        tags |= {name + b"XYZ": _xyz(matrix[:, i]) for i, name in enumerate((b"r", b"g", b"b"))}
        tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    table, data, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table += struct.pack(">4sII", name, start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = struct.pack(
        ">II4s4s4s4s", start + len(data), 0, b"\x04\x30\0\0", b"mntr", b"GRAY" if gray else b"RGB ", b"XYZ "
    )
    head += struct.pack(">6H4s", 2000, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + b"".join(map(_number, _D50))
    return head.ljust(128, b"\0") + table + data
