"""Image files read as rows of pixels, which are decoded as they are needed."""

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyvips

from edsr.errors import ImageError

from . import exif, heic, reorder
from .claims import PIXELS_PER_BYTE, check_before_opening, check_claim, tiff_block
from .codecs import advise, check_tiff_codec, describe_codec, has_tiff_codec
from .decoding import DECODER_ERRORS, CheckedImage, check_gif
from .formats import check_memory, to_srgb
from .kinds import HALF_SPACES, Wanted, check_kind
from .messages import describe_error, set_up_libvips
from .metadata import inventory, transfer
from .metadata.entries import Entry
from .metadata.mended import open_mended
from .nodata import read_nodata
from .palette import LACKS_COLORS, lacks_colors
from .probe import probe, refuse_pages
from .samples import rescale
from .tiff_half import NO_NAN, widen
from .tiff_lzma import LZMA, open_inflated
from .tiff_parts import checksums_hold, find_sparse
from .value_range import UNIT, FoundRange, ValueRange, map_rows

_DTYPES = {"uchar": np.uint8, "ushort": np.uint16, "float": np.float32}
_AS_A_WHOLE = "here images are held whole, upscale takes them in rows"


class ReadLimits(NamedTuple):
    """Sizes in bytes that decide how an ImageReader works.

    spooled: up to this many bytes of pixels that must be reordered stay in memory; more take a temporary file.
    block: how much is decoded at once where rows are not handed out as they come.
    strips: a row of strips or tiles in a TIFF counts as buffered above this.
    pixels_per_byte: no bytes, but pixels that a file may claim for each of its own, see `edsr.images.claims`.
    """

    spooled: int = 2**24
    block: int = 2**21
    strips: int = 2**26
    pixels_per_byte: float = PIXELS_PER_BYTE


DEFAULT_LIMITS = ReadLimits()


class ImageReader:
    """An image file, open for reading. Also a context manager, which closes it.

    Args:
        path: the file.
        sixteen: whether 16-bit gray and RGB are read besides 8-bit; other kinds of images are refused.
        full: whether every kind is read: alpha, floating point and CMYK, too.
        folder: where temporary files go, by default the system's folder for them.
        limits: sizes at which it uses a temporary file, and others.
        with_alpha: whether alpha is read where `full` is false, too.
        salvage: whether what is left of a damaged image is given, with filler for the rest; `warnings` says so then, at
            the latest when all rows have been read.
        value_range: the floating-point values of black and white, for formats do not state them.

    Attributes:
        path: the file.
        format: the format's name, such as "PNG".
        width, height: pixels, upright.
        channels: 1 (gray), 2 (gray and alpha), 3 (RGB) or 4 (RGB and alpha, not premultiplied).
        alpha: whether the last channel is alpha.
        dtype: uint8, uint16 or float32.
        bits: of a sample in the file; 10 or 12 of some AVIF and HEIF, whose samples are brought to 16.
        value_range: of floating-point samples; that of others is 0..1.
        found: the least and greatest of the floating-point samples in the rows that have been read.
        resolution: pixels per mm, horizontally and vertically; 72 per inch where that is not known.
        metadata: all that the file holds besides pixels, as `edsr.images.metadata.entries.Entry`.
        source: the same, and the resolution where it is known, as an ImageWriter takes it.
        nodata: which samples are without data.
        warnings: a line for each thing that does not come out as it stands in the file.
        buffered_bytes: about how many bytes the decoder needs for the image as a whole, 0 where it goes row by row:

            - Progressive JPEG: 2 a sample, for its coefficients. WebP: 10 a pixel. AVIF and HEIF: 20 a pixel, 26 with
              more than 8 bits. TIFF: a row of strips or tiles, where that is more than 64 MB. The decoders work so; no
              temporary file would lessen it.
            - Interlaced PNG of up to 16 MB of pixels: that much. Larger ones, and any image that must be turned
              upright, pass through a temporary file as large as their pixels (up to 16 MB it stays in memory).

    Raises:
        ImageError: if the file is missing, unreadable, no image, damaged or of a kind that is not read, or if memory
            or temporary space do not suffice for it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sixteen: bool = False,
        full: bool = False,
        folder: str | os.PathLike[str] | None = None,
        limits: ReadLimits = DEFAULT_LIMITS,
        with_alpha: bool = False,
        salvage: bool = False,
        value_range: tuple[float, float] = UNIT,
    ) -> None:
        value_range = ValueRange(*value_range)
        set_up_libvips()
        self.path = Path(path)
        self._with_alpha = with_alpha
        self._limits, self._salvage, self._wants_pixels = limits, salvage, False
        self._sixteen, self._full, self._folder = sixteen, full, Path(folder) if folder else None
        self._header = probe(self.path)
        self._sources: list[pyvips.Source] = []
        self.format = self._header.format
        if self.format == "TIFF":
            check_tiff_codec(self.path, self._header.tags.get(259, 1))
        check_before_opening(self.path, self.format, limits.pixels_per_byte)
        with self._as_image_errors():
            checked = self._open()
            image = checked.loaded
            self.buffered_bytes = self._count_buffered(image)
            self._interlaced = self.format == "PNG" and _get_field(image, "interlaced") == 1 and not self.buffered_bytes
            found = self._take_inventory(image)
            self._orientation = found.orientation
            self.warnings = (*self._list_warnings(image), *found.warnings, *checked.warnings)
            cmyk, image = image.interpretation == "cmyk", checked.image
            self._stored: tuple[int, int, int] = (image.height, image.width, image.bands)
            self.dtype = self._dtype(image)
            heif = self._header.loader == "heifload"
            self.bits: int = (heif and _get_field(image, "bits-per-sample")) or 8 * self.dtype.itemsize
            self.value_range, self.found = value_range if self.dtype == np.float32 else UNIT, FoundRange()
            if self.value_range != value_range:
                self.warnings += (
                    "the range given is not applied, it is for floating-point samples, and these are whole numbers",
                )
            entries = found.entries
            if cmyk:
                converted = _get_field(image, "icc-profile-data") or b""
                entries = (*(e for e in entries if e.kind != "icc"), Entry("icc", "", "ICC", converted, len(converted)))
            turned = self._orientation >= 5
            resolution, aspect = (
                pair and (pair[turned], pair[not turned]) for pair in (found.resolution, found.aspect)
            )
            self.nodata, entries = read_nodata(entries, self._header.tags, self.dtype)
            self.source = transfer.Source(entries, resolution, aspect, turned)
            self.metadata: tuple[Entry, ...] = entries
            # Where a file says nothing, 72 per inch is what others assume.
            self.resolution: tuple[float, float] = self.source.resolution or (72 / 25.4, 72 / 25.4)
        self.height, self.width, self.channels = self._stored
        if self._orientation >= 5:
            self.height, self.width = self.width, self.height
        self.alpha = self.channels in (2, 4)
        self._check_resources()
        self._checked: CheckedImage | None = checked

    def __enter__(self) -> "ImageReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. The attributes stay; rows() opens it again."""
        self._checked = None

    def rows(self, count: int, with_holes: bool = False) -> Iterator[np.ndarray]:
        """Decode the image from its top, in arrays [count, width, channels] of `dtype`; the last may be shorter.

        Floating-point colors come as 0..1, see `value_range`, and a little beyond; with holes, as they are in the file.

        For one thread at a time; each call starts again at the top.

        Args:
            count: how many rows at once.
            with_holes: whether floating-point samples may be without data (`nodata`); they are given as they are.

        Raises:
            ImageError: at a damaged or missing part of the file, at such samples, or at others far beyond the range.
            ValueError: if count < 1.
        """
        if count < 1:
            raise ValueError(f"count must be 1 or more, got {count}")
        rows = self._upright(count, with_holes)
        return rows if with_holes else self.to_unit(rows)

    def to_unit(self, rows: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Rows that `rows` gives with holes, once these are NaN: floating-point colors as 0..1. Raises as it does."""
        self.found = FoundRange()
        return map_rows(self.path, rows, self.value_range, self.found) if self.dtype == np.float32 else rows

    def _upright(self, count: int, with_holes: bool) -> Iterator[np.ndarray]:
        """Yield the rows as they are in the file."""
        if self._orientation == 1:
            yield from self._decode(count, with_holes)
        elif self._orientation == 2:
            for rows in self._decode(count, with_holes):
                yield rows[:, ::-1]
        else:
            _, width, channels = self._stored
            block = max(1, self._limits.block // (width * channels * self.dtype.itemsize))
            rows = self._decode(block, with_holes)
            upright = reorder.reorient(
                rows, self._stored, self.dtype, self._orientation, count, self._folder, self._limits.spooled
            )
            yield from self._with_image_errors(upright)

    def _decode(self, count: int, with_holes: bool) -> Iterator[np.ndarray]:
        """Yield the rows in the order in which they are stored, not yet upright."""
        with self._as_image_errors():
            if self._header.codec == "HEVC":
                self._checked, self._wants_pixels = None, True  # now, and not only to look at the header
            checked, self._checked = self._checked or self._open(), None  # can be read once only
            image = checked.image
            shape = image.height, image.width, image.bands
            if shape != self._stored or self._dtype(image) != self.dtype:
                raise ImageError(f"{self.path}: has changed since it was opened, run again")
            deflated = self._header.tags.get(259) in (8, 32946)
            if deflated and not checksums_hold(self.path, int(np.prod(shape)) * self.dtype.itemsize):
                checked.report_damage("a checksum is wrong")
            if self.format == "PNG" and lacks_colors(self.path):
                self.warnings += tuple({LACKS_COLORS}.difference(self.warnings))
        if self._interlaced:
            rows = reorder.deinterlace(self.path, image.width, image.height, count, self._folder)
        else:
            rows = checked.rows(count, np.dtype(_DTYPES[str(image.format)]))
        for part in self._with_image_errors(rows):
            self.warnings += tuple(line for line in checked.warnings if line not in self.warnings)
            if self._header.half:
                part = widen(part)
            elif image.format == "float" and image.interpretation in HALF_SPACES and np.isinf(part).any():
                self.warnings += tuple({NO_NAN}.difference(self.warnings))
            if self.dtype == np.float32 and not with_holes and self.nodata.find(part) is not None:
                raise ImageError(f"{self.path}: holds samples without data (nodata, NaN or infinite), fill them first")
            if self._header.loader == "heifload" and self.dtype == np.uint16:
                yield self._header.numbers.restore(_stretch(part, self.bits), self.bits)
            else:
                yield self._header.numbers.restore(part, 8 * self.dtype.itemsize)

    def _with_image_errors(self, rows: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the same rows; what goes wrong on the way becomes an ImageError."""
        while True:
            with self._as_image_errors():
                part = next(rows, None)
            if part is None:
                return
            yield part

    def _take_inventory(self, image: pyvips.Image) -> inventory.Inventory:
        """List what the file holds besides pixels. Of AVIF and HEIF libvips gives EXIF data, XMP and profile."""
        names = {"exif": "exif-data", "xmp": "xmp-data", "icc": "icc-profile-data"}
        decoded = {kind: bytes(_get_field(image, name) or b"") for kind, name in names.items()}
        decoded["exif"] = decoded["exif"].removeprefix(b"Exif\0\0")
        decoded = decoded if self._header.loader == "heifload" else {}
        own = self._header.exif.removeprefix(b"Exif\0\0")
        try:
            return inventory.take(self.path, self.format, own, self._header.tags.get(274, 0), decoded)
        except OSError as error:
            raise ImageError(f"{self.path}: cannot be read ({error.strerror})") from None

    @contextmanager
    def _as_image_errors(self) -> Iterator[None]:
        """Turn what decoders and temporary files raise into an ImageError of one line."""
        try:
            yield
        except (*DECODER_ERRORS, zlib.error, UnicodeError, MemoryError) as error:
            raise ImageError(
                f"{self.path}: {advise(describe_error(error), self._header.codec, self._salvage)}"
            ) from None
        except OSError as error:
            raise ImageError(f"{self.path}: a temporary file cannot be written ({error.strerror})") from None

    def _open(self) -> CheckedImage:
        tags = self._header.tags
        tile = (tags[322], tags[323]) if tags.get(322) and tags.get(323) else None
        checked = CheckedImage(self._load, self._convert, self._salvage, lambda: find_sparse(self.path), tile)
        if self._header.alpha_lost:
            checked.report_damage("its transparency is missing")
        return checked

    def _load(self, fail_on: str) -> pyvips.Image:
        # As bytes: a name need not be valid Unicode, nor "[...]" in it be options.
        name, options = os.fsencode(self.path), {"unlimited": True} if self.format == "TIFF" else {}
        loader, source = self._header.loader, name
        own = None
        if self._header.tags.get(259) == LZMA and not has_tiff_codec(LZMA):
            own = open_inflated(self.path, self._header.mends)
            if own is None:
                raise ImageError(f"{self.path}: {describe_codec('LZMA')}")
        elif self._header.mends:
            own = open_mended(self.path, self._header.mends)
        if own:
            loader, source = f"{loader}_source", own
            self._sources.append(own)  # libvips does not keep it alive
        image = pyvips.Operation.call(loader, source, access="sequential", fail_on=fail_on, **options)
        if self._wants_pixels and heic.needs_package(self.path):
            image = heic.decode(self.path, image)
        if self.format == "GIF" and fail_on != "none":
            check_gif(self.path)
        return self._check_supported(image)

    def _check_supported(self, image: pyvips.Image) -> pyvips.Image:
        """The image without bands that are neither color nor alpha. Raises an ImageError if its kind is not read."""
        pages = self._header.pages if self.format == "TIFF" else _get_field(image, "n-pages") or 1
        if pages != 1:
            refuse_pages(self.path, "animation frames" if self.format in ("WebP", "GIF") else "pages", pages)
        image = self._header.bands.select(image)
        check_kind(self.path, image, self._header, Wanted(self._sixteen, self._full, self._with_alpha))
        return image

    def _dtype(self, image: pyvips.Image) -> np.dtype:
        """Of the samples of an image that libvips gives, as they are handed out."""
        return np.dtype(np.float32 if self._header.half else _DTYPES[str(image.format)])

    def _convert(self, image: pyvips.Image) -> pyvips.Image:
        """Convert CMYK to sRGB, and RGB to gray where the file holds gray."""
        if image.interpretation == "cmyk":
            return to_srgb(image)
        if self._header.gray and image.bands >= 3:
            return image[0] if image.bands == 3 else image[0].bandjoin(image[3])
        return image

    def _list_warnings(self, image: pyvips.Image) -> Iterator[str]:
        if image.interpretation == "cmyk":
            profile = _get_field(image, "icc-profile-data") or b""
            which = "its own profile" if profile[16:20] == b"CMYK" else "a standard profile, as it has none"
            yield f"CMYK is converted to sRGB through {which}"
        yield from self._header.warnings
        if not self._header.exif_whole:
            yield exif.incomplete_warning(exif.MAX_READ)
        if self._header.bands.dropped:
            yield self._header.bands.warning(image.bands + self._header.bands.dropped)

    def _count_buffered(self, image: pyvips.Image) -> int:
        """The value of `buffered_bytes`."""
        pixels = image.width * image.height
        size = image.bands * np.dtype(_DTYPES[str(image.format)]).itemsize  # of a pixel
        if self.format == "JPEG":
            return 2 * image.bands * pixels if _get_field(image, "jpeg-multiscan") else 0
        if self.format == "PNG":
            whole = self._salvage or pixels * size <= self._limits.spooled
            return pixels * size if _get_field(image, "interlaced") and whole else 0
        if self.format == "TIFF":
            block = tiff_block(self._header.tags, image.width, image.height) * size
            return 0 if block <= self._limits.strips else block
        if self.format == "GIF":
            return 8 * pixels
        return pixels * (10 if self.format == "WebP" else 20 if size == image.bands else 26)

    def _check_resources(self) -> None:
        """Raise ImageError unless there are memory and temporary space for what is not read row by row."""
        height, width, channels = self._stored
        check_claim(self.path, self.format, width, height, self._limits.pixels_per_byte)
        row = width * channels * self.dtype.itemsize
        check_memory(self.path, self.buffered_bytes + 30 * row)  # of which libvips has as many at a time
        passes = int(self._interlaced) + (self._orientation > 2)
        if passes:
            reorder.check_space(self.path, passes * height * row, self._folder, self._limits.spooled)


def read_image(
    path: str | os.PathLike[str],
    sixteen: bool = False,
    full: bool = False,
    limits: ReadLimits = DEFAULT_LIMITS,
    with_alpha: bool = False,
    warnings: list[str] | None = None,
) -> np.ndarray:
    """Read a whole image, [height, width, channels].

    The arguments are those of `ImageReader`, and so are channels and dtype; its warnings are added to `warnings`.

    Raises:
        ImageError: as `ImageReader` and its rows() do, or if there is no memory for the pixels.
    """
    with ImageReader(path, sixteen, full, limits=limits, with_alpha=with_alpha) as reader:
        check_memory(reader.path, reader.height * reader.width * reader.channels * reader.dtype.itemsize, _AS_A_WHOLE)
        try:
            image = np.empty((reader.height, reader.width, reader.channels), reader.dtype)
        except MemoryError:
            size = f"{reader.width} x {reader.height}"
            raise ImageError(f"{path}: {size} pixels do not fit in memory, read it in rows") from None
        y = 0
        for rows in reader.rows(max(1, limits.block // (reader.width * reader.channels))):
            image[y : y + len(rows)] = rows
            y += len(rows)
        if warnings is not None:
            warnings += reader.warnings
    return image


def _get_field(image: pyvips.Image, name: str) -> Any:
    """A field of the image's header; None if there is no such field."""
    return image.get(name) if image.get_typeof(name) else None


def _stretch(rows: np.ndarray, bits: int) -> np.ndarray:
    """Scale samples of fewer bits, which libvips has shifted up, so that white is 65535."""
    return rescale(rows >> (16 - bits), 2**bits - 1, 65535).astype(np.uint16)
