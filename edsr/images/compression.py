"""How strongly an image file was compressed, from its header alone; pixels are not decoded.

A JPEG holds its quantization tables, and a lossy WebP its quantizers: these say how coarsely it was coded. What was
lost earlier, when the same image was saved another time, no header says.
"""

import io
from functools import cache, partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL.JpegImagePlugin import JpegImageFile

from . import exif
from .probe import identify

ASSUMED_QUALITY = 75
"""The quality assumed of a file that does not say; what most programs save JPEGs with by default."""


class LossyCompression(NamedTuple):
    """A lossy compression.

    format: its name. quality: 1 (worst) to 100, as libjpeg counts. known: whether the file says so; else it is
    `ASSUMED_QUALITY`.
    """

    format: str
    quality: int
    known: bool

    def __str__(self) -> str:
        return (
            f"{self.format} quality {self.quality}"
            if self.known
            else f"{self.format}, quality taken for {ASSUMED_QUALITY}"
        )


def detect_compression(path: Path) -> LossyCompression | None:
    """Find out by what lossy compression a file was made; None if by none, or if there is no image.

    - JPEG, and JPEG in TIFF: the quality of libjpeg whose tables come nearest to the file's. For an encoder that
      scales the standard's tables, as most do, that is the number that it was given.
    - Lossy WebP: the number that libwebp makes such quantizers of. Animations: the first frame's.
    - AVIF, HEIC, old-style JPEG and WebP in TIFF, and JPEGs without usable tables: not known, `ASSUMED_QUALITY`.
    - PNG, other TIFF, lossless WebP, and AVIF and HEIC whose samples are RGB, as lossless encoders have them: None.

    Never raises: a damaged file is reported when its pixels are read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(16)
            file.seek(0)
            return _DETECTORS.get(identify(head), lambda _: None)(file)
    except (OSError, ValueError, OverflowError):
        return None


def _known(name: str, quality: int | None) -> LossyCompression:
    return LossyCompression(name, ASSUMED_QUALITY if quality is None else quality, quality is not None)


# --- JPEG

# ITU-T T.81, tables K.1 (luma) and K.2 (chroma), row by row.
_LUMA = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
_CHROMA = """17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99"""
_STANDARD = np.array([_LUMA.split(), [*_CHROMA.split(), *["99"] * 32]], np.int64)


@cache
def _scaled(most: int) -> np.ndarray:
    """The logarithms of libjpeg's tables, of steps up to `most`: [100 qualities from 1, luma and chroma, 64]."""
    quality = np.arange(1, 101)
    percent = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)[:, None, None]
    return np.log(np.clip((_STANDARD * percent + 50) // 100, 1, most))


def jpeg_quality(file: BinaryIO) -> int | None:
    """The quality, 1 to 100, of libjpeg's tables nearest to those of the JPEG that begins here; None if it has none.

    Nearest in the sum of squares of the logarithms of steps, luma counting double: tables that are no multiple of the
    standard's differ most in their coarse steps, which an image feels least. On a photograph, for Photoshop's
    tables and eight of mozjpeg's, that came nearest to the quality of equal PSNR.
    """
    try:
        image = JpegImageFile(file)
        tables, components = image.quantization, image.layer
    except Exception:  # Pillow does not say what damaged bytes may lead it to
        return None
    error, first = np.zeros(100), components[0][3] if components else 0
    # Of CMYK the fourth, black, is coded as luma is. RGB has one table for all.
    used = {(number, int(i in (1, 2) and number != first)) for i, (_, _, _, number) in enumerate(components)}
    for number, kind in used:
        table = np.array(tables.get(number, ()), np.int64)
        if table.shape != (64,) or table.min() < 1:
            return None
        steps = _scaled(255 if table.max() < 256 else 32767)[:, kind]
        error += (2 - kind) * ((steps - np.log(table)) ** 2).sum(1)
    return 1 + int(error.argmin()) if used else None


# --- TIFF

_COMPRESSION, _STRIPS, _TILES, _TABLES = 259, 273, 324, 347  # tags
_JPEG, _OLD_JPEG, _WEBP = 7, 6, 50001  # of _COMPRESSION
_PART_BYTES = 2**16  # bytes of a strip or tile that are read; its header comes first


def _tiff(file: BinaryIO) -> LossyCompression | None:
    found = exif.find_first(file)
    if found is None:
        return None
    form, first = found
    entries, _ = exif.read_ifd(file, form, first)
    compression = exif.read_number(form, entries[_COMPRESSION]) if _COMPRESSION in entries else None
    if compression in (_OLD_JPEG, _WEBP):
        return _known("JPEG in TIFF" if compression == _OLD_JPEG else "WebP in TIFF", None)
    if compression != _JPEG:
        return None

    tables = exif.read_value(file, form, entries[_TABLES], _PART_BYTES) if _TABLES in entries else None
    places = entries.get(_STRIPS) or entries.get(_TILES)
    start = _first_number(file, form, places) if places else None
    if start is None:
        return _known("JPEG in TIFF", None)
    file.seek(start)
    part = file.read(_PART_BYTES)
    # The tables that all parts share stand in the directory, as a JPEG of tables alone; without its end and the
    # part's beginning they make one.
    whole = tables.data.removesuffix(b"\xff\xd9") + part[2:] if tables else part
    return _known("JPEG in TIFF", jpeg_quality(io.BytesIO(whole)))


def _first_number(file: BinaryIO, form: exif.TiffForm, entry: exif.Entry) -> int | None:
    """The first of an entry's numbers, in the entry or elsewhere in the file."""
    size = {3: 2, 4: 4, 16: 8}.get(entry.field_type, 0)  # SHORT, LONG, LONG8
    if size * entry.value_count > len(entry.data):
        file.seek(form.offset.unpack(entry.data)[0])
        entry = entry._replace(data=file.read(size))
    return exif.read_number(form, entry._replace(value_count=min(entry.value_count, 1)))


# --- WebP


def _webp(file: BinaryIO) -> LossyCompression | None:
    """Detect the compression of a WebP (RFC 9649, section 2)."""
    file.seek(12)
    while len(start := file.read(8)) == 8:
        kind, length = start[:4], int.from_bytes(start[4:], "little")
        if kind == b"VP8L":
            return None
        if kind == b"VP8 ":
            return _known("WebP", vp8_quality(file.read(min(length, 256))))
        # A frame of an animation holds chunks behind 16 bytes of its own.
        file.seek(16 if kind == b"ANMF" else length + length % 2, 1)
    return None


def vp8_quality(data: bytes) -> int | None:
    """The quality, 1 to 100, for which libwebp makes such quantizers; None if damaged. data: a VP8 frame's beginning.

    Segments of different quantizers count by how many macroblocks are expected in them (RFC 6386, section 9.3).
    """
    if len(data) < 20 or data[0] & 1 or data[3:6] != b"\x9d\x01\x2a":
        return None
    bits = _BoolDecoder(data[10:])
    bits.number(2)  # color space, clamping
    steps, shares, absolute = [0.0] * 4, [1.0, 0.0, 0.0, 0.0], False
    if bits.number(1):
        mapped, values = bits.number(1), bits.number(1)
        if values:
            absolute = bool(bits.number(1))
            steps = [float(bits.signed(7)) for _ in range(4)]
            for _ in range(4):
                bits.signed(6)  # loop filter
        if mapped:
            a, b, c = ((bits.number(8) if bits.number(1) else 255) / 256 for _ in range(3))
            shares = [a * b, a * (1 - b), (1 - a) * c, (1 - a) * (1 - c)]
    bits.number(10)  # loop filter: its kind, level and sharpness
    if bits.number(1) and bits.number(1):
        for _ in range(8):
            bits.signed(6)
    bits.number(2)  # how many partitions
    base = bits.number(7)
    index = [min(127.0, max(0.0, step if absolute else base + step)) for step in steps]
    mean = sum(share * i for share, i in zip(shares, index, strict=True))
    # libwebp's src/enc/quant_enc.c, QualityToCompression, the other way round.
    linear = (1 - mean / 127) ** 3
    return min(100, max(1, round(100 * (1.5 * linear if linear < 0.5 else (linear + 1) / 2))))


class _BoolDecoder:
    """The boolean decoder of RFC 6386, section 7, for bits of even probability; past the end come zeros."""

    def __init__(self, data: bytes):
        self._data, self._at = data, 2
        self._value, self._range, self._count = int.from_bytes(data[:2]), 255, 0

    def _bit(self) -> int:
        split = 1 + ((self._range - 1) >> 1)
        bit = int(self._value >= split << 8)
        if bit:
            self._range, self._value = self._range - split, self._value - (split << 8)
        else:
            self._range = split
        while self._range < 128:
            self._value, self._range, self._count = self._value << 1, self._range << 1, self._count + 1
            if self._count == 8:
                self._count = 0
                self._value |= self._data[self._at] if self._at < len(self._data) else 0
                self._at += 1
        return bit

    def number(self, bits: int) -> int:
        """Read a number of so many bits, the highest first."""
        value = 0
        for _ in range(bits):
            value = 2 * value + self._bit()
        return value

    def signed(self, bits: int) -> int:
        """Read a number and its sign, after a bit that says whether they are there; else 0."""
        if not self._bit():
            return 0
        value = self.number(bits)
        return -value if self._bit() else value


# --- AVIF, HEIC


def _heif(name: str, file: BinaryIO) -> LossyCompression | None:
    """Detect lossless AVIF and HEIC. Quantizers are within the coded image, different in each part, and not read."""
    boxes = file.read(2**16)  # what describes the images comes before them
    colors = boxes.find(b"colrnclx")
    if colors >= 0 and boxes[colors + 12 : colors + 14] == b"\0\0":  # of ITU-T H.273: no matrix
        return None
    return _known(name, None)


_DETECTORS = {
    "JPEG": lambda file: _known("JPEG", jpeg_quality(file)),
    "TIFF": _tiff,
    "WebP": _webp,
    "AVIF": partial(_heif, "AVIF"),
    "HEIF": partial(_heif, "HEIC"),
}
