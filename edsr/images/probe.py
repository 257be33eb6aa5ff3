"""What libvips does not say about an image file, from its first bytes: format, animation, colors it would misread."""

import os
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

from edsr.errors import ImageError

from . import exif
from .codecs import heif_codec
from .foreign import describe
from .formats import FORMATS, MAX_SIDE
from .jpeg_header import find_oddities
from .lost_alpha import heif_alpha_lost, webp_alpha_lost
from .metadata.tiff import find_mends
from .number_range import NumberRange, read_heif_range
from .tiff_bands import TiffBands, read_bands
from .tiff_half import find_half
from .tiff_parts import count_pages

_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II+\0": "TIFF",  # BigTIFF
    b"MM\0+": "TIFF",
}
EXTENSIONS = {
    "PNG": ".png",
    "JPEG": ".jpg",
    "WebP": ".webp",
    "TIFF": ".tif",
    "GIF": ".gif",
    "AVIF": ".avif",
    "HEIF": ".heic",
}
"""Format -> its usual file name extension."""
LOADERS = {"PNG": "pngload", "JPEG": "jpegload", "WebP": "webpload", "TIFF": "tiffload", "GIF": "gifload"}
"""Format -> the libvips operation that reads it; the others are read by heifload."""
_HEIF_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"mif1"), "HEIF")
# Of the color codes of ITU-T H.273 those that are sRGB's, or so near that they are shown as sRGB, or "unspecified".
_PRIMARIES, _TRANSFERS = (1, 2, 5, 6), (1, 2, 4, 5, 6, 13, 14, 15)
_NO_TRANSPARENCY = "its transparency (tRNS) is not as PNG has it, and left out"
_YCBCR = "the color space YCbCr is"
_UNSUPPORTED_PHOTOMETRIC = {  # of TIFF, what libvips passes off as RGB, or converts by another white than the file's
    4: "a transparency mask is",
    6: _YCBCR,
    8: "the color space CIELab is",
    9: "the color space ICCLab is",
    10: "the color space ITULab is",
    32803: "a camera's color filter array is",
    32844: "the color space LogL is",
    32845: "the color space LogLuv is",
    34892: "a camera's linear colors are",
}


class Header(NamedTuple):
    """What a file's header says.

    Attributes:
        format: its name.
        loader: the libvips operation that reads it.
        gray: whether all colors are gray, though the decoder gives RGB.
        tags: of a TIFF, the numbers in its first IFD; 0 for what is not a number.
        exif: of a TIFF, as `edsr.images.exif.pack` makes it.
        exif_whole: whether `exif` is all of it.
        numbers: how colors are stored, where the decoder leaves them so.
        bands: of a TIFF, what its bands are.
        half: whether it has 16-bit floats, which are read as whole numbers of the same bits.
        mends: offset -> bytes that must stand there, see `edsr.images.metadata.tiff` and `edsr.images.jpeg_header`.
        pages: of a TIFF, how many images it holds, without reduced copies and masks.
        warnings: a line for each thing that is left out.
        alpha_lost: whether transparency that it announces is missing.
        codec: of a HEIF, its name; "" if unknown.
    """

    format: str
    loader: str
    gray: bool = False
    tags: dict[int, int] = {}  # noqa: RUF012 - never changed
    exif: bytes = b""
    exif_whole: bool = True
    bands: TiffBands = TiffBands()
    half: bool = False
    mends: dict[int, bytes] = {}  # noqa: RUF012 - never changed
    pages: int = 1
    warnings: tuple[str, ...] = ()
    codec: str = ""
    numbers: NumberRange = NumberRange()
    alpha_lost: bool = False


def identify(head: bytes) -> str:
    """The format of a file, from its first 16 bytes; "" if it is none of `EXTENSIONS`."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        return _HEIF_BRANDS.get(head[8:12], "")
    return next((name for signature, name in _SIGNATURES.items() if head.startswith(signature)), "")


def probe(path: Path) -> Header:
    """Read a file's header. Raises ImageError if it is missing, no image, animated or in colors that are misread."""
    if os.path.isdir(path):
        raise ImageError(f"{path}: is a folder, not an image")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ImageError(f"{path}: is not a regular file; save its content as one, or pipe it into upscale -")
    try:
        with open(path, "rb") as file:
            return _read_header(path, file)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from None


def _read_header(path: Path, file: BinaryIO) -> Header:
    head = file.read(16)
    if not head:
        raise ImageError(f"{path}: is empty, get an intact copy")
    name = identify(head)
    if not name:
        raise ImageError(f"{path}: {describe(head)}")
    loader = LOADERS.get(name, "heifload")
    if name == "PNG":
        narrow, lines = _check_png(path, file)
        return Header(name, loader, numbers=NumberRange(narrow), warnings=lines)
    if name == "TIFF":
        tags, bands = _check_tiff(path, file)
        found, whole = exif.parse(file)
        packed, mends = exif.pack(found), find_mends(file)
        pages, left_out = count_pages(file)
        half = {} if bands.premultiplied else find_half(file, tags)  # libvips divides by alpha
        return Header(name, loader, False, tags, packed, whole, bands, bool(half), mends | half, pages, left_out)
    if name == "JPEG":
        odd = find_oddities(file)
        return Header(name, loader, mends=odd.mends, warnings=odd.warnings)
    if loader == "heifload":
        file.seek(0)
        codec = heif_codec(file.read(2**16))
        gray, numbers, lost = _check_heif(path, file), read_heif_range(file), heif_alpha_lost(file)
        return Header(name, loader, gray, codec=codec, numbers=numbers, alpha_lost=lost)
    return Header(name, loader, alpha_lost=name == "WebP" and webp_alpha_lost(path))


def _check_png(path: Path, file: BinaryIO) -> tuple[bool, tuple[str, ...]]:
    """Whether samples are of narrow range, and a line for what is left out. Raises ImageError for what is not read."""
    file.seek(8)
    narrow, kind_of_colors, colors, lines = False, 0, 0, ()
    frames, first = 0, False  # of an animation; whether the image is its first
    while len(start := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        if kind == b"IDAT":
            if frames and (frames > 1 or not first):
                refuse_pages(path, "animation frames", frames + (not first))
            break
        data = file.read(min(length, 10 if kind == b"IHDR" else 4))
        if kind == b"IHDR" and len(data) == 10:
            kind_of_colors = data[9]
        elif kind == b"PLTE":
            colors = length // 3
        elif kind == b"tRNS":
            fits = {0: length == 2, 2: length == 6, 3: 0 < length <= colors}.get(kind_of_colors, True)
            lines = () if fits else (_NO_TRANSPARENCY,)
        if kind == b"acTL":
            frames = int.from_bytes(data, "big")
        first |= kind == b"fcTL"
        if kind == b"cICP" and len(data) == 4:
            _check_colors(path, data[0], data[1])
            narrow = data[3] == 0
        file.seek(length - len(data) + 4, os.SEEK_CUR)
    return narrow, lines


def _check_tiff(path: Path, file: BinaryIO) -> tuple[dict[int, int], TiffBands]:
    # Camera raw files begin like a TIFF, but what is read from them is a thumbnail.
    form = FORMATS.get(path.suffix.lower())
    if form is None or form.name != "TIFF":
        raise ImageError(f"{path}: is a TIFF or camera raw file; a TIFF must be named .tif or .tiff")
    tags, bands = _read_tags(file)
    color = _UNSUPPORTED_PHOTOMETRIC.get(tags.get(262, 2), "")
    if color and not (color == _YCBCR and tags.get(259) in (6, 7)):  # JPEG inside, which converts by itself
        raise ImageError(f"{path}: {color} not supported, convert it to RGB")
    if tags.get(284) == 2 and tags.get(277, 1) > 1 and tags.get(262) not in (2, 5):  # of which libvips makes noise
        raise ImageError(f"{path}: gray with alpha in separate planes is not supported, store them interleaved")
    if tags.get(262) == 3 and 320 not in tags:  # libtiff would take the numbers of colors for gray
        raise ImageError(f"{path}: damaged, get an intact copy (its palette is missing)")
    if bands.refusal:
        raise ImageError(f"{path}: {bands.refusal} not supported, convert it to RGB or gray")
    return tags, bands


def _read_tags(file: BinaryIO) -> tuple[dict[int, int], TiffBands]:
    found = exif.find_first(file)
    if found is None:
        return {}, TiffBands()
    entries, _ = exif.read_ifd(file, *found)
    tags = {tag: exif.read_number(found[0], entry) or 0 for tag, entry in entries.items()}
    return tags, read_bands(file, found[0], entries, tags)


def _check_heif(path: Path, file: BinaryIO) -> bool:
    """Whether all of the image is gray. Raises ImageError for what is not read."""
    file.seek(0)
    boxes = file.read(2**16)  # what describes the images comes before them
    if boxes[8:12] in (b"avis", b"hevc", b"hevx"):
        sizes = boxes.find(b"stsz")
        refuse_pages(
            path, "animation frames", int.from_bytes(boxes[sizes + 12 : sizes + 16], "big") if sizes > 0 else 0
        )
    for size in boxes.split(b"ispe")[1:]:  # version, width, height
        if len(size) >= 12 and max(struct.unpack_from(">II", size, 4)) > MAX_SIDE:  # libvips would print a warning
            raise ImageError(f"{path}: damaged, get an intact copy (more than {MAX_SIDE} pixels a side)")
    coded = boxes.find(b"colrnclx")
    if coded > 0 and b"colrprof" not in boxes and b"colrrICC" not in boxes and len(boxes) >= coded + 12:
        _check_colors(path, *struct.unpack_from(">HH", boxes, coded + 8))
    codecs = boxes.split(b"av1C")[1:]  # one for each of the images, tiles and masks; a mask is gray
    return bool(codecs) and all(len(codec) > 2 and codec[2] & 0x10 for codec in codecs)


def _check_colors(path: Path, primaries: int, transfer: int) -> None:
    if primaries not in _PRIMARIES or transfer not in _TRANSFERS:
        codes = f"color primaries {primaries} and transfer {transfer} of ITU-T H.273"
        raise ImageError(f"{path}: has {codes}, as HDR and wide-gamut images do; convert it to sRGB")


def refuse_pages(path: Path, what: str, count: int) -> None:
    """Raise the ImageError of a file that holds more than one image. count: 0 if that is unknown."""
    raise ImageError(f"{path}: has {count or 'several'} {what}, save each as an image of its own")
