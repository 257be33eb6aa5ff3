"""Picture files <-> rows of pixels, in bounded memory, nothing lost without a word.

Pixels are numpy arrays [rows, width, channels] of uint8, uint16 or float32 (1.0 is white), channels 1 (gray), 2 (gray
and alpha), 3 (RGB) or 4 (RGB and alpha, not premultiplied), top row first and already upright: an EXIF orientation is
applied once and not passed on, while the rest of EXIF goes from every format to every other. Formats: PNG, JPEG, WebP,
TIFF (BigTIFF above 4 GB), AVIF, and HEIF where libvips has its decoder; palettes and 1, 2 or 4 bits a sample come out
as 8-bit, CMYK as sRGB. Animations and files of several pages are refused, and so are colours that would be misread
(Lab, uncompressed YCbCr, HDR). Second pictures inside a JPEG (previews, gain maps) are left out, and so are EXIF's
thumbnails.

libvips decodes and encodes row by row; what is held whole instead is told by `Reader.held` and by `Writer`.
"""

import os
from pathlib import Path

from edsr.formats import FORMATS, Fit, ImageError, fitting
from edsr.publish import remove_abandoned
from edsr.reading import Reader, read
from edsr.reducing import Reduced
from edsr.writing import Writer

__all__ = [
    "FORMATS",
    "Fit",
    "ImageError",
    "Reader",
    "Reduced",
    "Writer",
    "find_pictures",
    "fitting",
    "output_path",
    "read",
    "remove_abandoned",
]

_READ = (*FORMATS, ".heic", ".heif")


def output_path(
    source: str | os.PathLike[str],
    tag: str,
    output: str | os.PathLike[str] | None = None,
    form: str | None = None,
) -> Path:
    """Where the enlarged `source` goes: NAME_x2.png for the tag "x2", beside it or in the folder `output`.

    `output` is a folder if one is there or if it ends in a slash, otherwise the file to write. form: the extension
    without its dot ("png", "jpg", "webp", "tiff", "avif"), or "keep" for the source's own (AVIF for HEIF); None is
    PNG, or what the name in `output` says.
    Raises ImageError if that is the source itself, or if the ending of `output` is another format's.
    """
    source = Path(source)
    kept = source.suffix if source.suffix.lower() in FORMATS else ".avif" if source.suffix.lower() in _READ else ".png"
    suffix = kept if form == "keep" else f".{form or 'png'}"
    target = source.parent / f"{source.stem}_{tag}{suffix}"
    if output is not None:
        text = os.fspath(output)
        folder = text.endswith(("/", os.sep)) or os.path.isdir(text)
        target = Path(text) / target.name if folder else Path(text)
        if form and FORMATS.get(target.suffix.lower()) != FORMATS[suffix.lower()]:
            raise ImageError(f"{target}: its ending is not that of --format {form}, leave one of them out")
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
        raise ImageError(f"{folder}: no pictures in this folder ({', '.join(_READ)})")
    return sorted(found)


def _list_pictures(folder: Path, found: list[Path], seen: set[str] | None) -> None:
    """Appends the pictures in `folder` to `found`; goes into the folders in it unless `seen`, those done, is None."""
    try:
        entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    except OSError as error:
        raise ImageError(f"{folder}: cannot be listed as a folder ({error.strerror})") from None
    found += [entry for entry in entries if entry.suffix.lower() in _READ and entry.is_file()]
    if seen is not None:
        seen.add(os.path.realpath(folder))
        for entry in entries:
            if entry.is_dir() and os.path.realpath(entry) not in seen:
                _list_pictures(entry, found, seen)
