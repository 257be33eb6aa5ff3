"""Which compressions can be decoded here: libvips' builds differ. Named before anything is decoded."""

import struct
from functools import cache
from pathlib import Path

import pyvips

from edsr.errors import ImageError
from edsr.wording import either

from .messages import list_errors, set_up_libvips
from .tiff_lzma import LZMA

TIFF_CODECS = {  # tag 259 -> name
    1: "nothing",
    2: "CCITT RLE",
    3: "CCITT Group 3",
    4: "CCITT Group 4",
    5: "LZW",
    6: "old-style JPEG",
    7: "JPEG",
    8: "deflate",
    32766: "NeXT's RLE",
    32771: "CCITT RLE",
    32773: "PackBits",
    32809: "ThunderScan",
    32908: "PIXAR's film codec",
    32909: "PIXAR's log codec",
    32946: "deflate",
    33003: "JPEG 2000",
    33004: "JPEG 2000",
    33005: "JPEG 2000",
    34661: "JBIG",
    34676: "SGI LogLuv",
    34677: "SGI LogLuv",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG of DNG",
    LZMA: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_HEIF_CODECS = {  # what configures a codec -> name
    b"hvcC": "HEVC",
    b"vvcC": "VVC",
    b"avcC": "AVC",
    b"evcC": "EVC",
    b"j2kH": "JPEG 2000",
    b"jpgC": "JPEG",
    b"uncC": "uncompressed samples",
    b"av1C": "AV1",
}
# Of kinds of images that libvips does not read, though they are whole.
_NOT_READ = ("upported", "out of range", "not a whole number", "not 1 bands", "Cannot handle", "required field 262")
_NOT_BUILT_IN = ("not configured", "not implemented", "not been built in", "nsupported codec")


def check_tiff_codec(path: Path, compression: int) -> None:
    """Raise ImageError if a TIFF's compression (tag 259) cannot be decoded here."""
    # Old-style JPEG was never specified well; builds that have it give YCbCr for RGB.
    if compression == 6 or not (has_tiff_codec(compression) or compression == LZMA):
        name = TIFF_CODECS.get(compression, f"a codec unknown here, number {compression}")
        raise ImageError(f"{path}: {describe_codec(name)}")


@cache
def has_tiff_codec(compression: int) -> bool:
    """Whether libvips decodes it: what it says of a strip of one zero byte."""
    set_up_libvips()
    bilevel = TIFF_CODECS.get(compression, "").startswith("CCITT")
    numbers = {256: 1, 257: 1, 258: 1 if bilevel else 8, 259: compression, 262: 1, 273: 8, 277: 1, 278: 1, 279: 1}
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, n) for tag, n in numbers.items())
    data = b"II*\0" + struct.pack("<IBxH", 10, 0, len(numbers)) + entries + bytes(4)
    try:
        pyvips.Operation.call("tiffload_buffer", data, fail_on="error").avg()
    except (pyvips.Error, UnicodeDecodeError) as error:
        return not any(map(is_missing, list_errors(error)))
    return True


def is_missing(why: str) -> bool:
    """Whether a line of libvips says that this build has no such decoder."""
    return any(text in why for text in _NOT_BUILT_IN)


def heif_codec(boxes: bytes) -> str:
    """The codec of a HEIF's images, by the beginning of the file; "" if that is unknown."""
    return next((name for kind, name in _HEIF_CODECS.items() if kind in boxes), "")


def describe_codec(name: str) -> str:
    """What people are told of a codec that is missing here. name: "" if that is unknown."""
    how = "install the extra heic (pip install pillow-heif), or convert" if name == "HEVC" else "convert"
    return f"compressed with {name or 'a codec'}{',' if name else ''} which cannot be decoded here; {how} it to PNG"


def advise(why: str, codec: str, salvage: bool) -> str:
    """What to do about a decoder's error. codec: of the image, as far as known. salvage: whether that was tried."""
    if "out of memory" in why:
        return f"needs more memory than is free ({why})"
    if is_missing(why):
        return describe_codec(codec)
    if "ecurity limit" in why or "maximum image size" in why:
        return f"larger than this decoder's limit, cut it into parts or convert it to PNG ({why})"
    if any(text in why for text in _NOT_READ):
        return f"cannot be decoded here, convert it to PNG, or floats to 32 bits in TIFF ({why})"
    if salvage:
        return f"damaged or cut off, and nothing is left of it; get an intact copy ({why})"
    by = either("ImageReader(salvage=True)", "upscale --salvage")
    return f"damaged or cut off, get an intact copy, or what is left of it by {by} ({why})"
