"""Rows as libvips decodes them, with damage told from what is merely odd.

libvips is asked to fail on warnings, because with less it fills what it cannot decode with gray, black or noise. But an
intact file may cause warnings, too: a tag of an unusual type, bytes between two segments. Such a file is decoded again
without that, while each message is looked at; so is a damaged one, where a person wants what is left of it.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyvips
from PIL.GifImagePlugin import GifImageFile

from .messages import hear_warnings, list_errors, take_errors

DECODER_ERRORS = (pyvips.Error, UnicodeDecodeError)
"""What pyvips raises when something cannot be decoded."""
_FETCH_ROWS = 128  # rows at once; many more take libvips memory, and quadratic time
_SPARSE_TILES = 64  # tiles at once of which some may be missing, so that libvips' 10 kB hold a message of each

# Of a whole file's header; the pixels are not concerned.
_HARMLESS = re.compile(
    r"ASCII value for tag|tags are not sorted|Unknown field|unknown JFIF revision|Invalid SOS parameters for sequential"
    r"|has IFD looping to directory|Bad value \d+ for \"Orientation\""
)
# Also harmless, but a person is told: something else than meant may have been lost, or assumed. Of TIFF what concerns
# its pixels; what describes them is told of elsewhere.
_ODD = re.compile(
    r'extraneous bytes before marker 0x(?!d[0-9a])|Photometric|ExtraSamples|TIFF directory|Bad value \d+ for "\w+" tag'
    r'|"(Image|Bits|Compression|FillOrder|Strip|Tile|Samples?|Rows|Planar|Color|Predictor|JPEG|YCbCr|Resolution|Group)'
)
_SPARSE = re.compile(r"Invalid (?:tile|strip) byte count(?: 0)?, (?:tile|strip) (\d+)$")
_CONSEQUENCE = re.compile(r"error in tile \d+ x \d+|tiff2vips: (?:read error|out of order read)")
_UNSPOKEN = "a part of it cannot be decoded"


class CheckedImage:
    """An image whose rows are fetched from libvips, once and from the top, and checked.

    Args:
        load: opens the image; its argument is libvips' `fail_on`.
        convert: makes of it the image whose rows are wanted.
        salvage: whether what is left of a damaged image is given out.
        find_sparse: gives the numbers of the tiles or strips that a TIFF leaves out on purpose; these are black.
        tile: width and height of a TIFF's tiles.

    Attributes:
        loaded: the image as `load` gives it.
        image: the same, converted.
        warnings: a line for each thing that is odd, or damaged.

    Raises:
        pyvips.Error, UnicodeDecodeError: the image cannot be opened.
    """

    def __init__(
        self,
        load: Callable[[str], pyvips.Image],
        convert: Callable[[pyvips.Image], pyvips.Image] = lambda image: image,
        salvage: bool = False,
        find_sparse: Callable[[], frozenset[int]] = frozenset,
        tile: tuple[int, int] | None = None,
    ) -> None:
        self._known, self._sparse = set[str](), None
        self._load, self._convert, self._salvage, self._find_sparse, self._tile = (
            load,
            convert,
            salvage,
            find_sparse,
            tile,
        )
        self.warnings: list[str] = []
        with hear_warnings() as lines:
            take_errors()
            try:
                self._start("warning")
            except DECODER_ERRORS as error:
                why = list_errors(error)
                odd = all(map(_is_odd, why))
                if not (odd or salvage):
                    raise pyvips.Error("", "\n".join(why)) from None
                self._start("none")
                if not odd:
                    self._report(why)
                lines += why
            lines += filter(_is_odd, take_errors())
        self._learn(lines)

    def rows(self, count: int, dtype: np.dtype) -> Iterator[np.ndarray]:
        """Yield the image in arrays [count, width, channels]; the last may be shorter.

        Raises:
            pyvips.Error, UnicodeDecodeError: at damage; those that salvage where nothing is left.
        """
        image = self.image
        for top in range(0, image.height, count):
            bottom = min(top + count, image.height)
            parts = [
                np.frombuffer(self._fetch(y, min(_FETCH_ROWS, bottom - y)), dtype)
                for y in range(top, bottom, _FETCH_ROWS)
            ]
            yield (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(-1, image.width, image.bands)

    def _start(self, fail_on: str) -> None:
        self.loaded, self._strict = self._load(fail_on), fail_on != "none"
        self.image, self._region = self._convert(self.loaded), None

    def _fetch(self, y: int, rows: int) -> bytes | memoryview:
        if self._strict:
            with hear_warnings() as lines:
                try:
                    data = self._get(0, y, self.image.width, rows)
                    # libvips decodes JPEG tiles by itself, and does not stop at what it says of them.
                    lines += [line for line in take_errors() if line.startswith("VipsJpeg")] if self._tile else []
                    if not any(line.startswith("VipsJpeg") for line in lines):
                        return data
                except DECODER_ERRORS as error:
                    lines += list_errors(error)
            damage = self._damage(lines)
            if damage or not any(map(self._is_harmless, lines)):
                if not self._salvage:
                    raise pyvips.Error("", "\n".join(damage) or _UNSPOKEN)
                self._report(damage)
            self._start("none")
        if not self._salvage:
            return self._fetch_watched(y, rows)
        with hear_warnings() as lines:
            take_errors()
            try:
                data = self._get(0, y, self.image.width, rows)
            except DECODER_ERRORS as error:
                lines += list_errors(error)
                if y == 0:
                    raise
                data = bytes(rows * self.image.width * self._pixel_bytes)
            lines += take_errors()
        if damage := self._damage(lines):
            self._report(damage)
        return data

    def _fetch_watched(self, y: int, rows: int) -> bytes:
        """Fetch rows of a file that is odd, and raise pyvips.Error if a message speaks of anything else."""
        width, step = self.image.width, self.image.width
        if self._tile and self._missing:
            step = self._tile[0] * max(1, _SPARSE_TILES // (rows // self._tile[1] + 2))
        pieces = []
        for x in range(0, width, step):
            columns = min(step, width - x)
            with hear_warnings() as lines:
                take_errors()
                pieces.append(np.frombuffer(self._get(x, y, columns, rows), np.uint8).reshape(rows, -1))
                lines += take_errors()
            if damage := self._damage(lines):
                raise pyvips.Error("", "\n".join(damage))
        return (pieces[0] if len(pieces) == 1 else np.concatenate(pieces, 1)).tobytes()

    def _get(self, x: int, y: int, columns: int, rows: int) -> memoryview:
        region = self._region = self._region or pyvips.Region.new(self.image)
        return region.fetch(x, y, columns, rows)

    @property
    def _pixel_bytes(self) -> int:
        return self.image.bands * {"uchar": 1, "ushort": 2}.get(str(self.image.format), 4)

    @property
    def _missing(self) -> frozenset[int]:
        if self._sparse is None:
            self._sparse = self._find_sparse()
        return self._sparse

    def _damage(self, lines: list[str]) -> list[str]:
        """Those of the lines that speak of damage, or may do so."""
        return [line for line in lines if not (_CONSEQUENCE.match(line) or self._is_harmless(line))]

    def _is_harmless(self, line: str) -> bool:
        if line in self._known or _HARMLESS.search(line):
            return True
        sparse = _SPARSE.search(line)
        return sparse is not None and int(sparse[1]) in self._missing

    def _learn(self, lines: list[str]) -> None:
        """Take the lines for what this file's header causes though the image is intact."""
        self._known.update(lines)
        odd = [line for line in lines if _ODD.search(line) and not _HARMLESS.search(line)]
        if odd:
            self.warnings.append(f"the file is odd, look whether the image is as it should be ({odd[0]})")

    def report_damage(self, why: str) -> None:
        """Treat the image as damaged: raise pyvips.Error, or say so where it is salvaged."""
        if not self._salvage:
            raise pyvips.Error("", why)
        self._report([why])

    def _report(self, lines: list[str]) -> None:
        """Say that the image is damaged, once."""
        if not any(line.startswith("damaged") for line in self.warnings):
            why = lines[0] if lines else _UNSPOKEN
            self.warnings.append(f"damaged: what is left of it is given, with filler for the rest ({why})")


def _is_odd(line: str) -> bool:
    return bool(_HARMLESS.search(line) or _ODD.search(line))


def check_gif(path: Path) -> None:
    """Raise pyvips.Error if a GIF is damaged: libvips fills what is missing, without a word; Pillow refuses."""
    try:
        with GifImageFile(path) as image:
            image.load()
    except Exception as error:  # Pillow does not say what damaged bytes may lead it to
        raise pyvips.Error("", str(error) or type(error).__name__) from None
