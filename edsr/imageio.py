"""Picture files as rows of pixels, read and written in bounded memory, metadata kept.

Pixels are numpy uint8 arrays [rows, width, channels], 0..255, channels 1 (gray) or 3 (RGB), top row first and
already upright: an EXIF orientation is applied once and not passed on. Formats: PNG, JPEG, WebP and TIFF;
palettes and 1, 2 or 4 bits per sample come out as 8-bit. What would lose something (16-bit or float samples,
alpha, other colour spaces, animations, several pages) is refused, never silently reduced; 16-bit PNG and TIFF are
read as uint16, 0..65535, where that is asked for.

libvips decodes and encodes row by row. Held whole are, by their nature: WebP both ways, progressive JPEG and
interlaced PNG when read, and a picture that must be turned upright (above 100 MB in a temporary file).
"""

import os
import secrets
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

# Operations kept for reuse hold memory, and would answer for a file that has changed since.
pyvips.cache_set_max(0)

FORMATS = {
    ".png": "pngsave",
    ".jpg": "jpegsave",
    ".jpeg": "jpegsave",
    ".webp": "webpsave",
    ".tif": "tiffsave",
    ".tiff": "tiffsave",
}
"""File name extension (lower case) -> the libvips operation that writes the format."""

_OPTIONS: dict[str, dict[str, Any]] = {
    # Paeth at level 3 is within 2 % of the size of level 6 at twice its speed; unfiltered PNG is 60 % larger.
    "pngsave": {"compression": 3, "filter": "paeth"},
    # Full-resolution colour. Optimised Huffman tables would save 3 %, but hold the whole picture to do so.
    "jpegsave": {"Q": 95, "subsample_mode": "off"},
    "webpsave": {"Q": 95},
    "tiffsave": {"compression": "deflate", "predictor": "horizontal", "level": 3},
}
_MAX_SIDE = {"jpegsave": 65_500, "webpsave": 16_383}  # JPEG's format ends at 65,535, its library at 65,500
_LOADERS = {
    b"\x89PNG\r\n\x1a\n": "pngload",
    b"\xff\xd8\xff": "jpegload",
    b"II*\0": "tiffload",
    b"MM\0*": "tiffload",
    b"II+\0": "tiffload",  # BigTIFF
    b"MM\0+": "tiffload",
}
_SPACES = {"uchar": (("srgb", 3), ("b-w", 1)), "ushort": (("rgb16", 3), ("grey16", 1))}
_METADATA = ("icc-profile-data", "xmp-data", "iptc-data", "resolution-unit")  # and exif-*, except:
_NOT_KEPT = ("exif-ifd0-Orientation", "exif-ifd1-")  # ifd1: the thumbnail, which is not turned upright


class ImageError(Exception):
    """A picture cannot be read or written: one line that names the file and says why or what to do."""


class Reader:
    """A picture file, open for reading.

    sixteen: whether 16-bit pictures are read, instead of refused.
    Attributes: `path`; `width` and `height` in pixels, upright; `channels`, 1 (gray) or 3 (RGB); `dtype`, uint8 or
    uint16.
    Raises ImageError if the file is missing, unreadable, no picture, damaged, or of an unsupported kind.
    """

    def __init__(self, path: str | os.PathLike[str], sixteen: bool = False) -> None:
        self.path, self._sixteen = Path(path), sixteen
        self._loader = _find_loader(self.path)
        with _one_line(f"{self.path}: damaged or cut off, get an intact copy"):
            image = self._open()
            self.width: int = image.width
            self.height: int = image.height
            self.channels: int = image.bands
            self.dtype = np.dtype(np.uint16 if image.format == "ushort" else np.uint8)
            # libvips says 1 pixel per mm where a file says nothing; 72 per inch is what others assume.
            unknown = image.xres == image.yres == 1.0
            self._resolution = (72 / 25.4, 72 / 25.4) if unknown else (image.xres, image.yres)
            self._metadata = [
                (image.get_typeof(name), name, image.get(name))
                for name in image.get_fields()
                if name in _METADATA or (name.startswith("exif-") and not name.startswith(_NOT_KEPT))
            ]
        self._image: pyvips.Image | None = image

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. The attributes stay; rows() opens it again."""
        self._image = None

    def rows(self, count: int) -> Iterator[np.ndarray]:
        """The whole picture from its top, as arrays [count, width, channels] of `dtype`; the last may be shorter.

        Decodes as it goes, for one thread at a time; each call starts again at the top.
        Raises ImageError when it comes to a damaged or missing part of the file; ValueError if count < 1.
        """
        if count < 1:
            raise ValueError(f"count must be 1 or more, got {count}")
        with _one_line(f"{self.path}: damaged or cut off, get an intact copy"):
            image, self._image = self._image or self._open(), None  # a sequential image can be read once only
            kind = "ushort" if self.dtype == np.uint16 else "uchar"
            size = self.width, self.height, self.channels
            if (image.width, image.height, image.bands) != size or image.format != kind:
                raise ImageError(f"{self.path}: has changed since it was opened, run again")
            region = pyvips.Region.new(image)
        for y in range(0, self.height, count):
            with _one_line(f"{self.path}: damaged or cut off, get an intact copy"):
                pixels = region.fetch(0, y, self.width, min(count, self.height - y))
            yield np.frombuffer(pixels, self.dtype).reshape(-1, self.width, self.channels)

    def _open(self) -> pyvips.Image:
        name = os.fsencode(self.path)  # bytes: a name need not be valid Unicode, nor "[...]" in it be options
        # "error", not "truncated": libvips fills the missing part of a cut-off TIFF with black otherwise.
        image = pyvips.Operation.call(self._loader, name, access="sequential", fail_on="error")
        _refuse_unsupported(self.path, image, self._sixteen)
        if image.get_typeof("orientation") and image.get("orientation") != 1:
            # Turning needs pixels from anywhere, not only from the next row.
            image = pyvips.Operation.call(self._loader, name, access="random", fail_on="error").autorot()
        return image


def read(path: str | os.PathLike[str], sixteen: bool = False) -> np.ndarray:
    """The whole picture, [height, width, channels] uint8, or uint16 if `sixteen` allows it and the file has 16 bits.

    Raises ImageError, as Reader and rows() do.
    """
    with Reader(path, sixteen) as reader:
        try:
            picture = np.empty((reader.height, reader.width, reader.channels), reader.dtype)
        except MemoryError:
            size = f"{reader.width} x {reader.height}"
            raise ImageError(f"{path}: {size} pixels do not fit in memory, read it in rows") from None
        y = 0
        for rows in reader.rows(max(1, 2**24 // (reader.width * reader.channels))):
            picture[y : y + len(rows)] = rows
            y += len(rows)
    return picture


class Writer:
    """A picture file being written, row by row; encoding runs beside the caller's own work.

    path: its extension chooses the format (FORMATS). width, height: pixels. channels: 1 (gray) or 3 (RGB);
    WebP stores gray as RGB. like: the Reader whose metadata is kept: resolution, XMP, IPTC, EXIF (not into
    TIFF: libvips cannot), and the ICC profile if that has as many channels. quality: 1..100 for JPEG and
    WebP; PNG and TIFF are lossless at any.

    Use it as a context manager and write() all rows inside. The file appears, whole and synced to disk, when
    the context is left; if it is left by an exception or with rows missing, nothing has changed. An existing
    file stays untouched unless `overwrite`, which replaces it in one step.

    Raises ImageError, before any work, for what can be known to fail; ValueError for a wrong argument.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        width: int,
        height: int,
        channels: int,
        like: Reader | None = None,
        overwrite: bool = False,
        quality: int | None = None,
    ) -> None:
        if width < 1 or height < 1 or channels not in (1, 3):
            raise ValueError(f"cannot write {width} x {height} pixels of {channels} channels")
        if quality is not None and not 1 <= quality <= 100:
            raise ValueError(f"quality must be 1 to 100, got {quality}")
        self.path = Path(path)
        self.width, self.height, self.channels = width, height, channels
        self._like, self._overwrite = like, overwrite
        self._saver = _find_saver(self.path, width, height, overwrite)
        self._options = dict(_OPTIONS[self._saver])
        if quality is not None and "Q" in self._options:
            self._options["Q"] = quality
        if self._saver == "tiffsave":  # classic TIFF ends at 4 GB: change over if this could come near
            self._options["bigtiff"] = width * height * channels > 4_000_000_000
        # In the same folder, so that it can be renamed; created with open(), for the usual permissions.
        self._temporary = self.path.with_name(f".edsr-{secrets.token_hex(6)}.part")
        self._written = 0
        self._error = ""  # why the encoder has failed
        self._pipe: BinaryIO | None = None
        self._thread = threading.Thread()

    def __enter__(self) -> "Writer":
        try:
            self._begin()
        except BaseException as error:  # a signal, too: no __exit__ will follow
            if self._pipe is not None:
                self._pipe.close()
            if self._thread.is_alive():
                self._thread.join()  # it might create the file again otherwise
            with suppress(OSError):
                self._temporary.unlink()
            if isinstance(error, OSError):
                raise ImageError(f"{self.path}: cannot write into its folder ({error.strerror})") from None
            raise
        return self

    def _begin(self) -> None:
        open(self._temporary, "xb").close()
        source, sink = os.pipe()
        self._pipe = open(sink, "wb")  # noqa: SIM115 - closed by __exit__
        self._thread = threading.Thread(target=self._encode, args=(source,), daemon=True)
        self._thread.start()
        # libvips takes rows as they come in one way only: as a picture format it can read from a pipe. PNG
        # with "stored" (level 0) data is the one that every build has; it costs a copy and two checksums.
        self._deflate = zlib.compressobj(level=0)
        self._pipe.write(b"\x89PNG\r\n\x1a\n")
        colour = {1: 0, 3: 2}[self.channels]
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", self.width, self.height, 8, colour, 0, 0, 0))

    def write(self, rows: np.ndarray) -> None:
        """Append rows, uint8 [any number, width, channels]. Does not keep a reference to them.

        Raises ImageError if the encoder has failed (disk full, ...); ValueError for rows of another shape or
        type, for more rows than height, and outside the context.
        """
        if self._pipe is None:
            raise ValueError("write() works inside the Writer's context only")
        if rows.dtype != np.uint8 or rows.ndim != 3 or rows.shape[1:] != (self.width, self.channels):
            expected = f"uint8 [rows, {self.width}, {self.channels}]"
            raise ValueError(f"expected {expected}, got {rows.dtype} {list(rows.shape)}")
        if self._written + len(rows) > self.height:
            raise ValueError(f"{self._written + len(rows)} rows for a picture of {self.height}")
        step = max(1, 2**20 // (1 + self.width * self.channels))  # a chunk of about 1 MB
        for y in range(0, len(rows), step):
            part = rows[y : y + step]
            lines = np.zeros((len(part), 1 + self.width * self.channels), np.uint8)  # first the filter: none
            lines[:, 1:] = part.reshape(len(part), -1)
            self._chunk(b"IDAT", self._deflate.compress(lines.data))
            self._raise_error()
        self._written += len(rows)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._pipe is not None
        try:
            if kind is None:
                self._finish()
        finally:
            self._pipe.close()  # a stream that ends too early makes the encoder give up
            self._pipe = None
            self._thread.join()
            with suppress(OSError):
                self._temporary.unlink()  # there is none after success

    def _finish(self) -> None:
        assert self._pipe is not None
        if self._written < self.height:
            missing = self.height - self._written
            raise ImageError(f"{self.path}: not saved, {missing} of {self.height} rows are missing")
        self._chunk(b"IDAT", self._deflate.flush())
        self._chunk(b"IEND", b"")
        self._pipe.close()
        self._thread.join()
        self._raise_error()
        try:
            with open(self._temporary, "rb+") as file:
                os.fsync(file.fileno())
            self._publish()
        except FileExistsError:
            raise ImageError(_exists(self.path)) from None
        except OSError as error:
            raise ImageError(f"{self.path}: cannot be written ({error.strerror})") from None

    def _publish(self) -> None:
        """Give the finished file its name. FileExistsError if that is taken and may not be replaced."""
        if not self._overwrite:
            try:
                os.link(self._temporary, self.path)
            except FileExistsError:
                raise
            except OSError:  # a file system without links: claim the name, if it is free
                open(self.path, "xb").close()
                try:
                    os.replace(self._temporary, self.path)
                except OSError:
                    os.unlink(self.path)
                    raise
        else:
            os.replace(self._temporary, self.path)

    def _chunk(self, kind: bytes, data: bytes) -> None:
        assert self._pipe is not None
        check = zlib.crc32(data, zlib.crc32(kind))
        self._pipe.write(b"".join((struct.pack(">I4s", len(data), kind), data, struct.pack(">I", check))))

    def _raise_error(self) -> None:
        if self._error:
            raise ImageError(f"{self.path}: cannot be written ({self._error})")

    def _encode(self, source: int) -> None:
        """The encoder thread: from the pipe to the temporary file."""
        try:
            self._save(source)
        except Exception as error:
            self._error = _reason(error)
        # Until the writing end is closed, take what still comes, so that it never blocks nor breaks.
        with open(source, "rb", buffering=0) as rest:
            while rest.read(2**16):
                pass

    def _save(self, source: int) -> None:
        stream = pyvips.Source.new_from_descriptor(source)
        image = pyvips.Operation.call("pngload_source", stream, access="sequential", fail_on="error")
        xres, yres = self._like._resolution if self._like else (72 / 25.4, 72 / 25.4)
        image = image.copy(xres=xres, yres=yres)
        if self._like:
            for kind, name, value in self._like._metadata:
                if name != "icc-profile-data" or self._like.channels == self.channels:
                    image.set_type(kind, name, value)
            image.set_type(pyvips.GValue.gint_type, "orientation", 1)  # else the one inside exif-data is used
        pyvips.Operation.call(self._saver, image, os.fsencode(self._temporary), **self._options)


def output_path(source: str | os.PathLike[str], scale: int, output: str | os.PathLike[str] | None = None) -> Path:
    """Where the enlarged `source` goes: NAME_x2.png for scale 2, beside it or in the folder `output`.

    `output` is a folder if one is there or if it ends in a slash, otherwise the file to write.
    Raises ImageError if that is the source itself.
    """
    source = Path(source)
    target = source.parent / f"{source.stem}_x{scale}.png"
    if output is not None:
        text = os.fspath(output)
        folder = text.endswith(("/", os.sep)) or os.path.isdir(text)
        target = Path(text) / target.name if folder else Path(text)
    try:
        same = os.path.samefile(source, target)
    except (OSError, ValueError):  # one of them is not there
        same = os.path.realpath(source) == os.path.realpath(target)
    if same:
        raise ImageError(f"{target}: is the input itself, choose another output")
    return target


def find_pictures(folder: str | os.PathLike[str], recursive: bool = False) -> list[Path]:
    """The files in `folder` with a known extension (in any case), sorted; hidden ones left out.

    recursive: also those in folders in it, at any depth; hidden folders left out, links followed once.
    Raises ImageError if there are none, or no such folder.
    """
    found: list[Path] = []
    _list_pictures(Path(folder), found, set() if recursive else None)
    if not found:
        raise ImageError(f"{folder}: no pictures in this folder ({', '.join(FORMATS)})")
    return sorted(found)


def _list_pictures(folder: Path, found: list[Path], seen: set[str] | None) -> None:
    """Appends the pictures in `folder` to `found`; goes into the folders in it unless `seen`, those done, is None."""
    try:
        entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    except OSError as error:
        raise ImageError(f"{folder}: cannot be listed as a folder ({error.strerror})") from None
    found += [entry for entry in entries if entry.suffix.lower() in FORMATS and entry.is_file()]
    if seen is not None:
        seen.add(os.path.realpath(folder))
        for entry in entries:
            if entry.is_dir() and os.path.realpath(entry) not in seen:
                _list_pictures(entry, found, seen)


def _find_loader(path: Path) -> str:
    """The libvips operation that reads `path`, told by its first bytes."""
    if os.path.isdir(path):
        raise ImageError(f"{path}: is a folder, not a picture")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ImageError(f"{path}: is not a regular file")
    try:
        with open(path, "rb") as file:
            head = file.read(12)
            animated = head.startswith(b"\x89PNG") and _is_animated(file)
            colour = _tiff_colour(file)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from None
    if not head:
        raise ImageError(f"{path}: is empty, get an intact copy")
    if animated:
        raise ImageError(f"{path}: animated pictures are not supported yet")
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return "webpload"
    for signature, loader in _LOADERS.items():
        if head.startswith(signature):
            # Camera raw files begin like a TIFF, but what is read from them is a thumbnail.
            if loader == "tiffload" and FORMATS.get(path.suffix.lower()) != "tiffsave":
                raise ImageError(f"{path}: is a TIFF or camera raw file; a TIFF must be named .tif or .tiff")
            if loader == "tiffload" and colour:
                raise ImageError(f"{path}: the colour space {colour} is not supported yet, convert it to RGB")
            return loader
    raise ImageError(f"{path}: is not a PNG, JPEG, WebP or TIFF picture")


def _is_animated(png: BinaryIO) -> bool:
    """Whether this is an animated PNG, of which libvips would read the first frame without a word."""
    png.seek(8)
    while len(head := png.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"acTL", b"IDAT"):
            return kind == b"acTL"
        png.seek(length + 4, os.SEEK_CUR)
    return False


def _tiff_colour(file: BinaryIO) -> str:
    """ "YCbCr" if this is a TIFF of that kind which libvips would pass off as RGB, unconverted; else ""."""
    file.seek(0)
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16:
        return ""
    big = head[2:4] in (b"+\0", b"\0+")
    (first,) = struct.unpack_from(order + "Q", head, 8) if big else struct.unpack_from(order + "I", head, 4)
    file.seek(min(first, 2**40))
    entry = struct.Struct(order + ("HHQH6x" if big else "HHIH2x"))  # tag, type, count, value
    count = int.from_bytes(file.read(8 if big else 2), "little" if order == "<" else "big")
    table = file.read(entry.size * min(count, 65_535))
    table = table[: len(table) // entry.size * entry.size]
    tags = {tag: value for tag, _, _, value in entry.iter_unpack(table)}
    # Compression 6 and 7 are JPEG, which converts by itself.
    return "YCbCr" if tags.get(262) == 6 and tags.get(259) not in (6, 7) else ""


def _refuse_unsupported(path: Path, image: pyvips.Image, sixteen: bool) -> None:
    kind, space = str(image.format), str(image.interpretation)
    if image.get_typeof("n-pages") and image.get("n-pages") != 1:
        why = "animated and multi-page files are"
    elif kind not in _SPACES or (kind == "ushort" and not sixteen):
        bits = {"ushort": "16-bit", "float": "float"}.get(kind, kind)
        why = f"{bits} samples are"
    elif image.hasalpha():
        why = "transparency (alpha) is"
    elif (space, image.bands) not in _SPACES[kind]:
        why = f"the colour space {space.upper()} ({image.bands} channels) is"
    else:
        return
    raise ImageError(f"{path}: {why} not supported yet, convert it to one 8-bit RGB or gray picture")


def _find_saver(path: Path, width: int, height: int, overwrite: bool) -> str:
    """The libvips operation that writes `path`, after all checks that need no work."""
    saver = FORMATS.get(path.suffix.lower())
    folder = path.parent
    if os.path.isdir(path):
        raise ImageError(f"{path}: is a folder, name a file in it")
    if saver is None:
        raise ImageError(f"{path}: unknown extension {path.suffix!r}, use one of {', '.join(FORMATS)}")
    if not os.path.isdir(folder):
        raise ImageError(f"{path}: there is no folder {folder}, create it first")
    if not os.access(folder, os.W_OK):
        raise ImageError(f"{path}: no permission to write into the folder {folder}")
    try:
        taken = stat.S_IFMT(os.lstat(path).st_mode)
    except FileNotFoundError:
        taken = 0
    except (OSError, ValueError) as error:  # a name too long, ...
        raise ImageError(f"{path}: cannot be written ({getattr(error, 'strerror', error)})") from None
    if taken and not overwrite:
        raise ImageError(_exists(path))
    limit = _MAX_SIDE.get(saver)
    if limit and max(width, height) > limit:
        size = f"{width} x {height}"
        raise ImageError(f"{path}: {size} is more than this format's {limit} pixels a side, use .png or .tif")
    return saver


def _exists(path: Path) -> str:
    return f"{path}: exists; add --overwrite to replace it"


@contextmanager
def _one_line(message: str) -> Iterator[None]:
    """Turn what libvips raises into an ImageError that begins with `message`."""
    try:
        yield
    except (pyvips.Error, UnicodeError, MemoryError) as error:
        raise ImageError(f"{message} ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    """The one line of a libvips error that says most: the system's own, else the first."""
    text = getattr(error, "detail", "") or str(error) or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    system = [line for line in lines if line.startswith("system error: ") and "Unknown error" not in line]
    return (system or lines or [text])[0].removeprefix("system error: ")
