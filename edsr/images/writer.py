"""Image files written row by row, whole or not at all."""

import os
import stat
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyvips

from edsr.errors import ExistsError, ImageError
from edsr.system import atomic_file
from edsr.wording import option

from . import exif
from .descriptor import source_of
from .formats import FORMATS, Format, check_memory, storage_for, to_srgb
from .keeping import keep_compression
from .messages import describe_error, set_up_libvips
from .metadata import heif, jpeg, png, transfer, webp
from .reader import ImageReader
from .samples import TargetSize, apply_to_colors, over_white, quantize, resample, resampling_memory, to_depth
from .target import FileTarget
from .value_range import UNIT, ValueRange

_PNG_COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> PNG's color type
_SPLICES = {"PNG": png.Splice, "JPEG": jpeg.Splice}
_CHUNK_BYTES = 2**20  # bytes handed to the encoder at once
_PATIENCE = 0.5  # seconds that somebody who interrupts waits for an encoder
BIGTIFF_ABOVE = 4_000_000_000  # bytes of pixels; classic TIFF ends at 4 GB: change over if this could come near


class ImageWriter:
    """An image file being written, row by row; encoding runs beside the caller's own work.

    Use it as a context manager and write() all rows inside. The file appears, whole and synced to disk, when the
    context is left; if it is left by an exception or with rows missing, nothing has changed.

    Args:
        path: its extension chooses the format (`FORMATS`).
        width: of the rows, in pixels.
        height: how many rows there will be.
        channels: of the rows: 1 (gray), 2 (gray and alpha), 3 (RGB) or 4 (RGB and alpha, not premultiplied). WebP and
            AVIF store gray as RGB.
        like: the ImageReader whose metadata is kept or converted, or named in `warnings`.
        overwrite: whether an existing file is replaced, in one step; otherwise it stays untouched.
        quality: 1 to 100 for JPEG, WebP and AVIF; PNG and TIFF are lossless at any.
        dtype: of the rows: uint8, uint16 or float32 in 0..1. Stored as `storage_for` says: whole numbers clamped and
            rounded to nearest, floats as they are.
        reduced: what the image is reduced to on its way to the file; its dtype is then what is stored, if possible.
        keep: whether the kind of compression of `like` is kept, where its format is written.
        value_range: to which floating-point rows of 0..1 are brought in a file of floats; by default that of `like`.
        bigtiff_above: bytes of pixels above which a TIFF is written as a BigTIFF.
        new_folder: whether the folder of `path` may be yet to be made, before the context is entered.

    Attributes:
        stored_dtype: of the samples in the file.
        warnings: a line for each thing that the file will not hold.
        buffered_bytes: about how many bytes the encoder needs for the image as a whole: 0 for PNG, JPEG and TIFF, which
            go row by row; 18 a pixel for WebP and 38 for AVIF, twice that with alpha or 16 bits. What is reduced takes
            20,000 more for each of a row's samples.

    Raises:
        ImageError: before any work, for what can be known to fail; and when the file cannot be written.
        ValueError: for a wrong argument.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        width: int,
        height: int,
        channels: int,
        like: ImageReader | None = None,
        overwrite: bool = False,
        quality: int | None = None,
        dtype: Any = np.uint8,
        reduced: TargetSize | None = None,
        bigtiff_above: int = BIGTIFF_ABOVE,
        keep: bool = False,
        value_range: ValueRange | None = None,
        new_folder: bool = False,
    ) -> None:
        set_up_libvips()
        self.dtype = np.dtype(dtype)
        self._reduced = reduced or TargetSize(width, height, self.dtype)
        if (
            width < 1
            or height < 1
            or channels not in _PNG_COLOR_TYPES
            or self.dtype not in (np.uint8, np.uint16, np.float32)
        ):
            raise ValueError(f"cannot write {width} x {height} pixels of {channels} channels of {self.dtype}")
        if not (1 <= self._reduced.width <= width and 1 <= self._reduced.height <= height):
            raise ValueError(f"cannot reduce {width} x {height} to {self._reduced.width} x {self._reduced.height}")
        if quality is not None and not 1 <= quality <= 100:
            raise ValueError(f"quality must be 1 to 100, got {quality}")
        self.path = Path(path)
        self.width, self.height, self.channels = width, height, channels
        self._overwrite = overwrite
        self._sources = [like.path] if like else []
        self._format = _find_format(self.path, self._reduced.width, self._reduced.height, overwrite, new_folder)
        bits = like.bits if like and like.dtype == np.uint16 else 16
        self._storage = storage_for(self.path.suffix, channels, np.dtype(self._reduced.dtype), bits)
        self.stored_dtype = self._storage.dtype
        # What is reduced goes to the encoder as it was computed, and is rounded once, after that.
        self._piped_dtype = np.dtype(np.float32) if reduced else self._storage.dtype
        more = self._storage.channels in (2, 4) or self._storage.dtype != np.uint8
        self.buffered_bytes = (
            self._reduced.width * self._reduced.height * self._format.buffered_bytes * (2 if more else 1)
        )
        advice = "PNG and TIFF are coded row by row"
        if self._reduced[:2] != (width, height):
            self.buffered_bytes += resampling_memory(width, height, channels)
            advice = "reducing takes some for each column, the network's own size none"
        check_memory(self.path, self.buffered_bytes, advice)
        self._options = self._choose_options(quality, bigtiff_above)
        kept, not_kept = (
            keep_compression(like.path, self._format.name, self._storage.channels, self._storage.dtype, quality)
            if keep and like
            else ({}, ())
        )
        self._options |= kept
        self._resolution = like.resolution if like else (72 / 25.4, 72 / 25.4)
        source = like.source if like else transfer.Source()
        result = transfer.Result(self._format.name, channels <= 2, *self._reduced[:2])
        self._metadata = transfer.plan(source, result)
        self.warnings = (*self._storage.warnings, *self._metadata.warnings, *not_kept)
        self._like, self._range = like, like.value_range if like else UNIT
        self._own_range = self._range if value_range is None else value_range
        self._to_whole = self._storage.dtype != np.float32
        if self._range != UNIT and self._to_whole:
            self.warnings += (f"floating-point samples of {self._range} become black and white",)
        self._written = 0
        self._error = ""  # why the encoder has failed
        self._pipe: BinaryIO | None = None
        self._context = self._writing()

    def _choose_options(self, quality: int | None, bigtiff_above: int) -> dict[str, Any]:
        options = dict(self._format.options)
        if quality is not None and "Q" in options:
            options["Q"] = quality
        stored = self._storage.dtype
        if self._format.name == "TIFF":
            size = self._reduced.width * self._reduced.height * self._storage.channels * stored.itemsize
            options |= {"bigtiff": size > bigtiff_above} | ({"predictor": "float"} if stored == np.float32 else {})
        if self._format.name == "AVIF":
            options["bitdepth"] = 12 if stored == np.uint16 else 8
        return options

    def __enter__(self) -> "ImageWriter":
        try:
            self._context.__enter__()
        except OSError as error:
            raise ImageError(f"{self.path}: cannot write into its folder ({error.strerror})") from None
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self._context.__exit__(*error)
        except FileExistsError:
            raise ExistsError(_exists_message(self.path)) from None
        except OSError as failure:
            raise ImageError(f"{self.path}: cannot be written ({failure.strerror})") from None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Start the encoder, wait while rows are written, then finish the file, which gets its name."""
        with atomic_file(self.path, self._overwrite, self._sources) as file:
            source, sink = os.pipe()
            encoder = threading.Thread(target=self._encode, args=(source, file), name="edsr-encoder", daemon=True)
            patience = None
            with open(sink, "wb") as self._pipe:
                try:
                    encoder.start()
                    self._begin_png()
                    yield
                    if self._written < self.height:
                        missing = self.height - self._written
                        raise ImageError(f"{self.path}: not saved, {missing} of {self.height} rows are missing")
                    self._write_chunk(b"IDAT", self._deflate.flush())
                    self._write_chunk(b"IEND", b"")
                except KeyboardInterrupt:  # nobody waits for an encoder that hangs; without a name its file is nothing
                    patience = _PATIENCE
                    if hasattr(os, "set_blocking"):  # not on Windows before Python 3.12
                        os.set_blocking(sink, False)
                    raise
                finally:
                    with suppress(BlockingIOError):
                        self._pipe.close()  # a stream that ends too early makes the encoder give up
                    self._pipe = None
                    if encoder.is_alive():
                        encoder.join(patience)
            self._raise_error()
            if self._to_whole and self._like and self._like.found.is_beyond(self._range):
                self.warnings += (f"floating-point samples of {self._like.found} are cut off at {self._range}",)
            self._finish(file)

    def _finish(self, file: BinaryIO) -> None:
        """Put metadata into the finished file that libvips does not write, or not as it is."""
        found, name = self._metadata, self._format.name
        if name == "TIFF" and not exif.append(file, found.tiff_exif, *self._reduced[:2], found.tags):
            what = "EXIF data is" if any(found.tiff_exif.ifds.values()) else "metadata is"
            self.warnings += (f"{what} left out, the file would become larger than 4 GB",)
        elif name == "WebP":
            webp.replace_exif(file, found.exif_data)
        elif name == "AVIF" and not heif.replace_exif(file, found.exif_data):
            self.warnings += ("EXIF data is left out, this encoder has another way to store it",)

    def _begin_png(self) -> None:
        """Begin the stream of rows to the encoder.

        libvips takes rows as they come in one way only: as an image format it can read from a pipe. PNG with "stored"
        (level 0) data is the one that every build has; it costs a copy and two checksums. PNG has no floats: each goes
        as a pixel of four 8-bit samples, its bytes.
        """
        assert self._pipe is not None
        self._deflate = zlib.compressobj(level=0)
        self._pipe.write(b"\x89PNG\r\n\x1a\n")
        channels = self._storage.channels
        if self._piped_dtype == np.float32:
            layout = self.width * channels, self.height, 8, 6, 0, 0, 0
        else:
            layout = self.width, self.height, self._piped_dtype.itemsize * 8, _PNG_COLOR_TYPES[channels], 0, 0, 0
        self._write_chunk(b"IHDR", struct.pack(">IIBBBBB", *layout))

    def write(self, rows: np.ndarray) -> None:
        """Append rows, [any number, width, channels] of `dtype`; no reference to them is kept.

        Raises:
            ImageError: if the encoder has failed, as when the disk is full.
            TypeError: for what is no array.
            ValueError: for rows of another shape or dtype, for more rows than `height`, and outside the context.
        """
        if self._pipe is None:
            raise ValueError("write() works inside the ImageWriter's context only")
        if not isinstance(rows, np.ndarray):
            raise TypeError(f"rows are arrays [rows, {self.width}, {self.channels}], not {type(rows).__name__}")
        if rows.dtype != self.dtype or rows.ndim != 3 or rows.shape[1:] != (self.width, self.channels):
            expected = f"{self.dtype} [rows, {self.width}, {self.channels}]"
            raise ValueError(f"expected {expected}, got {rows.dtype} {list(rows.shape)}")
        if self._written + len(rows) > self.height:
            raise ValueError(f"{self._written + len(rows)} rows for an image of {self.height}")
        step = max(1, _CHUNK_BYTES // (self.width * self.channels * self.dtype.itemsize))
        for y in range(0, len(rows), step):
            part = rows[y : y + step]
            if part.dtype == np.float32 and self._to_whole:
                if np.isnan(part).any():
                    raise ValueError(f"NaN cannot be stored as {self._storage.dtype}")
                part = part.clip(0, 1)  # before it is reduced, as whole numbers are
            part = over_white(part) if self.channels > self._storage.channels else part
            part = to_depth(part, self._piped_dtype, self._format.bits)
            part = part.astype(part.dtype.newbyteorder(">") if part.dtype == np.uint16 else part.dtype, "C", copy=False)
            data = part.view(np.uint8).reshape(len(part), -1)
            lines = np.zeros((len(part), 1 + data.shape[1]), np.uint8)  # first the filter: none
            lines[:, 1:] = data
            self._write_chunk(b"IDAT", self._deflate.compress(lines.data))
            self._raise_error()
        self._written += len(rows)

    def _write_chunk(self, kind: bytes, data: bytes) -> None:
        assert self._pipe is not None
        check = zlib.crc32(data, zlib.crc32(kind))
        self._pipe.write(b"".join((struct.pack(">I4s", len(data), kind), data, struct.pack(">I", check))))

    def _raise_error(self) -> None:
        if self._error:
            raise ImageError(f"{self.path}: cannot be written ({self._error})")

    def _encode(self, source: int, file: BinaryIO) -> None:
        """The encoder's thread: from the pipe `source` to the temporary file."""
        splice = _SPLICES.get(self._format.name)
        output = FileTarget(file, splice and splice(self._metadata.head))
        try:
            self._save(source, output)
        except Exception as error:
            self._error = describe_error(error)
        if output.error is not None:
            self._error = getattr(output.error, "strerror", None) or str(output.error)
        # Until the writing end is closed, take what still comes, so that it never blocks nor breaks.
        with open(source, "rb", buffering=0) as rest:
            while rest.read(2**16):
                pass

    def _save(self, source: int, output: FileTarget) -> None:
        stream = source_of(source)
        image = pyvips.Operation.call("pngload_source", stream, access="sequential", fail_on="error")
        channels, dtype, _ = self._storage
        if self._piped_dtype == np.float32:
            image = image.copy(format="float", bands=1, interpretation="b-w").bandfold(factor=channels)
            image = image.copy(interpretation="scrgb" if channels >= 3 else "b-w")
        if self._reduced[:2] != (self.width, self.height):
            image = resample(image, self._reduced)
        if dtype != self._piped_dtype:
            image = quantize(image, dtype, self._format.bits)
        elif self._own_range != UNIT and not self._to_whole:
            low, high = self._own_range
            image = apply_to_colors(image, lambda colors: colors * (high - low) + low)
        image = image.copy()
        blobs: list[tuple[str, Any]] = [("icc-profile-data", self._metadata.profile), ("xmp-data", self._metadata.xmp)]
        for name, value in blobs:
            if value:
                image.set_type(pyvips.GValue.blob_type, name, value)
        xres, yres = self._resolution
        image = image.copy(xres=xres, yres=yres)
        if channels <= 2 and not self._format.gray and self._metadata.profile:
            image = to_srgb(image)  # what is stored is RGB
        options = self._options | ({"keep": "none"} if self._format.name in _SPLICES else {})
        pyvips.Operation.call(f"{self._format.saver}_target", image, output.target, **options)


def _find_format(path: Path, width: int, height: int, overwrite: bool, new_folder: bool) -> Format:
    """The format that `path` is written in, after all checks that need no work. Raises ImageError."""
    found = FORMATS.get(path.suffix.lower())
    folder = path.parent
    if os.path.isdir(path):
        raise ImageError(f"{path}: is a folder, name a file in it")
    if found is None:
        problem = f"unknown extension {path.suffix!r}" if path.suffix else "has no ending that names a format"
        raise ImageError(f"{path}: {problem}, use one of {', '.join(FORMATS)}")
    new = new_folder and not os.path.lexists(folder)
    if not new and not os.path.isdir(folder):
        raise ImageError(f"{path}: there is no folder {folder}, create it first")
    if not new and not os.access(folder, os.W_OK):
        raise ImageError(f"{path}: no permission to write into the folder {folder}")
    try:
        taken = stat.S_IFMT(os.lstat(path).st_mode)
    except FileNotFoundError:
        taken = 0
    except (OSError, ValueError) as error:  # a name too long, ...
        raise ImageError(f"{path}: cannot be written ({getattr(error, 'strerror', error)})") from None
    if taken and not overwrite:
        raise ExistsError(_exists_message(path))
    if os.path.exists(path) and not os.path.isfile(path):
        raise ImageError(f"{path}: is a device, FIFO or socket, not a file; name another output")
    if max(width, height) > found.max_side:
        size = f"{width} x {height}"
        raise ImageError(f"{path}: {size} is more than this format's {found.max_side} pixels a side, use .png or .tif")
    return found


def _exists_message(path: Path) -> str:
    return f"{path}: exists; add {option('overwrite')} to replace it"
