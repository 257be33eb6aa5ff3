"""Which bands of a TIFF are its colors, which is its alpha, and which are neither (TIFF 6.0, ExtraSamples).

libvips takes any band beyond the colors for alpha. Infrared, masks and the bands of satellites are none: colors must
not depend on them. Alpha is only what the file itself calls so.
"""

import struct
from typing import BinaryIO, NamedTuple

import pyvips

from .exif import Entry, TiffForm

_PHOTOMETRIC, _SAMPLES, _INK_SET, _EXTRA_SAMPLES = 262, 277, 332, 338
_COLORS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}  # photometric interpretation -> samples of a color
_ASSOCIATED, _UNASSOCIATED = 1, 2  # of ExtraSamples: alpha, with or without colors multiplied by it
_CODES = {1: "B", 3: "H", 4: "I"}  # type of ExtraSamples -> as `struct` names it; others are not understood
_NOT_CMYK = 2  # of InkSet


class TiffBands(NamedTuple):
    """The bands beyond a TIFF's colors.

    Attributes:
        extra: how many there are.
        alpha: which of them is alpha, from 0; None if none is.
        premultiplied: whether it says that colors are multiplied by alpha.
        refusal: why such bands are not read, as the subject and verb of a sentence; "" if they are.
    """

    extra: int = 0
    alpha: int | None = None
    premultiplied: bool = False
    refusal: str = ""

    @property
    def dropped(self) -> int:
        """How many are left out."""
        return max(0, self.extra - (self.alpha is not None))

    def select(self, image: pyvips.Image) -> pyvips.Image:
        """The colors and alpha of the image as libvips reads it."""
        if not self.dropped:
            return image
        colors = image.bands - self.extra
        found = image.extract_band(0, n=colors)
        return found if self.alpha is None else found.bandjoin(image.extract_band(colors + self.alpha))

    def warning(self, bands: int) -> str:
        """The line about bands that are left out. bands: how many the image has, these included."""
        first = bands - self.extra + 1
        numbers = [str(first + i) for i in range(self.extra) if i != self.alpha]
        if len(numbers) == 1:
            return f"band {numbers[0]} is left out: the file calls it neither color nor alpha"
        return f"bands {', '.join(numbers)} are left out: the file calls them neither color nor alpha"


def read_bands(file: BinaryIO, form: TiffForm, entries: dict[int, Entry], tags: dict[int, int]) -> TiffBands:
    """The bands of a TIFF.

    Args:
        file: it.
        form: its structure.
        entries: of its first IFD.
        tags: the numbers among them.
    """
    if tags.get(_PHOTOMETRIC) == 5 and tags.get(_INK_SET) == _NOT_CMYK:
        return TiffBands(refusal="inks other than CMYK are")
    colors = _COLORS.get(tags.get(_PHOTOMETRIC, 2))
    extra = tags.get(_SAMPLES, 1) - colors if colors else 0
    if extra <= 0:
        return TiffBands()
    kinds = _read_kinds(file, form, entries.get(_EXTRA_SAMPLES))[:extra]
    # libvips divides colors by the associated one, wherever it is.
    alpha = next((kinds.index(kind) for kind in (_ASSOCIATED, _UNASSOCIATED) if kind in kinds), None)
    found = TiffBands(extra, alpha, _ASSOCIATED in kinds)
    if colors == 1 and tags.get(_PHOTOMETRIC) != 3 and found.dropped > 1:  # colors of which the file says nothing?
        return found._replace(refusal=f"{1 + extra} bands of which the file calls the first gray and none a color are")
    return found


def _read_kinds(file: BinaryIO, form: TiffForm, entry: Entry | None) -> list[int]:
    code = _CODES.get(entry.field_type) if entry else None
    if entry is None or code is None:
        return []
    size = struct.calcsize(code) * min(entry.value_count, 65_535)
    data = entry.data
    if size > len(data):
        file.seek(form.offset.unpack_from(data)[0])
        data = file.read(size)
    return [value for (value,) in struct.iter_unpack(form.byte_order + code, data[:size])] if len(data) >= size else []
