"""What a file is that is none of the images that are read, by its first bytes: for the line that refuses it."""

_IMAGES = {  # first bytes -> what they begin
    b"BM": "a BMP image",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 image",
    b"\xff\x4f\xff\x51": "a JPEG 2000 image",
    b"\0\0\0\x0cJXL ": "a JPEG XL image",
    b"\xff\x0a": "a JPEG XL image",
    b"8BPS": "a Photoshop document",
    b"gimp xcf": "a GIMP document",
    b"\0\0\x01\0": "an icon",
    b"\x76\x2f\x31\x01": "an OpenEXR image",
    b"#?RADIANCE": "a Radiance HDR image",
    b"DDS ": "a DDS texture",
    b"qoif": "a QOI image",
    b"SIMPLE  =": "a FITS image",
    b"FUJIFILM": "a camera raw file",
    b"IIRO": "a camera raw file",
    b"IIU\0": "a camera raw file",
    b"<svg": "an SVG drawing",
    b"%PDF": "a PDF document",
} | {b"P%d%c" % (kind, space): "a Netpbm image" for kind in range(1, 8) for space in b" \n\r\t"}
_BRANDS = {  # of ISO media files
    b"crx ": "a camera raw file",
    b"msf1": "an image sequence",
    **dict.fromkeys((b"qt  ", b"isom", b"iso2", b"mp41", b"mp42", b"M4V ", b"avc1", b"3gp4", b"3gp5"), "a video"),
}
_OTHERS = {
    b"PK\x03\x04": "a zip archive",
    b"<!DOCTYPE ": "a web page",
    b"<!doctype ": "a web page",
    b"<html": "a web page",
    b"version https://": "a Git LFS pointer",
    b"\x1a\x45\xdf\xa3": "a video",
}


def describe(head: bytes) -> str:
    """What is said of a file that begins so, after its name. head: its first 16 bytes, or all if there are fewer."""
    name = _BRANDS.get(head[8:12]) if head[4:8] == b"ftyp" else _find(_IMAGES, head)
    if name == "a video" or (name is None and (name := _find(_OTHERS, head))):
        return f"is {name}, not an image; give an image"
    if name:
        return f"is {name}, which is not read here; convert it to PNG or TIFF"
    return "is not a PNG, JPEG, WebP, TIFF, AVIF, HEIC or GIF image"


def _find(kinds: dict[bytes, str], head: bytes) -> str | None:
    return next((name for start, name in kinds.items() if head.startswith(start)), None)
