"""What a file holds besides pixels, as a list of entries."""

from collections.abc import Iterable
from typing import BinaryIO, NamedTuple

MAX_BYTES = 2**25
"""An entry above 32 MB is listed without its data."""
MAX_ENTRIES = 10_000
"""As many entries are listed; further ones are counted."""


class Entry(NamedTuple):
    """One thing in a file that is not pixels.

    Attributes:
        kind: what it is: "exif" (data: a TIFF), "xmp", "extended xmp", "iptc" (IIM records), "photoshop" (image
            resources), "icc", "text" (of PNG), "comment", "color" (chunks of PNG that say what numbers mean), "aspect",
            "thumbnail", "images" (further ones), "gain map", "geo", "nodata", "other"; or "damaged", "large".
        code: by what it goes in the file: a PNG's or WebP's chunk, a JPEG's segment, a TIFF's tag, a HEIF's box.
        name: for people, such as the keyword of a text.
        data: the bytes; none where the entry is above `MAX_BYTES`, or can only be named.
        size: of the data in the file, in bytes.
    """

    kind: str
    code: str
    name: str = ""
    data: bytes = b""
    size: int = 0


def data_of(entries: Iterable[Entry], kind: str) -> bytes:
    """The data of the first entry of a kind; none if there is none."""
    return next((entry.data for entry in entries if entry.kind == kind), b"")


def read_exactly(file: BinaryIO, size: int) -> bytes:
    """The next `size` bytes; EOFError if there are fewer."""
    data = file.read(size)
    if len(data) != size:
        raise EOFError
    return data


def list_names(names: Iterable[str], most: int = 8) -> str:
    """Different names in a line, each shown without control characters."""
    found = list(dict.fromkeys("".join(c if c.isprintable() else "?" for c in name[:60]) for name in names))
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more
