"""Photoshop's image resources, in which JPEG keeps IPTC data (Adobe Photoshop file formats, "Image resources")."""

import struct

_SIGNATURES = (b"8BIM", b"PHUT", b"DCSR", b"AgHg", b"MeSa")
_IPTC = 0x0404
_OF_THE_OLD_IMAGE = {0x03ED, 0x0409, 0x040C}  # resolution, which the file itself states, and thumbnails
_THUMBNAILS = {0x0409, 0x040C}


def _resources(data: bytes) -> list[tuple[int, bytes, bytes]] | None:
    """(number, contents, all of its bytes) of each resource; None if damaged."""
    found, at, last = [], 0, len(data.rstrip(b"\0"))
    while at < last:
        if len(data) < at + 7 or data[at : at + 4] not in _SIGNATURES:
            return None
        number, name = struct.unpack_from(">HB", data, at + 4)
        start = at + 6 + (name + 2) // 2 * 2
        if len(data) < start + 4:
            return None
        size = struct.unpack_from(">I", data, start)[0]
        end = start + 4 + size
        if len(data) < end:
            return None
        found.append((number, data[start + 4 : end], (data[at:end] + bytes(size % 2))))
        at = end + size % 2
    return found


def split(data: bytes) -> tuple[bytes, bytes] | None:
    """(IPTC records, the other resources), without those of the old image; None if the data is damaged."""
    resources = _resources(data)
    if resources is None:
        return None
    records = dict.fromkeys(content for number, content, _ in resources if number == _IPTC)
    iptc = b"".join(records)  # records may follow upon records
    return iptc, b"".join(whole for number, _, whole in resources if number not in {_IPTC, *_OF_THE_OLD_IMAGE})


def clean(data: bytes) -> bytes:
    """The resources, in their order, without those of the old image; as they are if damaged."""
    resources = _resources(data)
    if resources is None or not any(number in _OF_THE_OLD_IMAGE for number, _, _ in resources):
        return data
    return b"".join(whole for number, _, whole in resources if number not in _OF_THE_OLD_IMAGE)


def has_thumbnail(data: bytes) -> bool:
    """Whether there is a small copy of the image among the resources."""
    return any(number in _THUMBNAILS for number, _, _ in _resources(data) or ())


def join(iptc: bytes, rest: bytes) -> bytes:
    """Resources of IPTC records and others."""
    if not iptc:
        return rest
    return b"8BIM" + struct.pack(">HHI", _IPTC, 0, len(iptc)) + iptc + bytes(len(iptc) % 2) + rest
