"""Random degradations: images blurred a little, noisy, resized and compressed as JPEG or WebP, as people have them.

What is done to a patch follows from (seed, step, index in the batch) alone, by a counter-based generator, so that a
resumed run, and each of several processes, gets the same bits. Pillow blurs, resizes and compresses, in 8 bits.
"""

import io
import math
import re
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from edsr.images import to_depth

BLOCK_GRID = 16  # pixels between blocks of a 4:2:0 JPEG, chroma's included, and between macroblocks of WebP
SAVED_TWICE = 0.2  # of the images compressed have been compressed once before
WEBP_SHARE = 0.25  # of the images compressed are WebP, where both are asked for
CLEAN_SHARE = 0.2  # of the patches stay as they are, unless told
SUBSAMPLINGS = ((0.7, "4:2:0"), (0.85, "4:2:2"), (1.0, "4:4:4"))  # each up to its number of a draw in 0..1
RESIZE_FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
MAX_NOISE_SLOPE = 0.25  # how much more or less noise there is, at most, in black and in white than in middle gray
_STRIDE = 1 << 64  # random words for one patch; also added to the key, so that no PatchSampler has its words


class Range(NamedTuple):
    """A range that an amount is drawn from uniformly, ends included."""

    low: float
    high: float

    def interpolate(self, share: float) -> float:
        return self.low + share * (self.high - self.low)

    def pick_integer(self, share: float) -> int:
        """One of the whole numbers in the range; share: below 1."""
        return int(self.low) + int(share * (self.high - self.low + 1))


class Compression(NamedTuple):
    """How an image was compressed. offset: rows and columns, 1..BLOCK_GRID, of its grid of blocks before the crop."""

    codec: str
    quality: int
    subsampling: str
    offset: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.codec} {self.quality} {self.subsampling}"


@dataclass(frozen=True)
class DegradationParams:
    """The degradation of one image.

    Attributes:
        blur: Sigma in pixels.
        noise: Sigma in 8-bit levels at middle gray.
        noise_slope: How much more noise there is in white, as a share of `noise`; and less in black.
        resize: The image is resized to so many times its size, and back.
        filter: Of resizing.
        compressions: First to last.
        generator: Of the noise.
    """

    blur: float
    noise: float
    noise_slope: float
    resize: float
    filter: Image.Resampling
    compressions: tuple[Compression, ...]
    generator: np.random.Generator

    def __str__(self) -> str:
        amounts = {"blur": self.blur, "noise": self.noise, "resize": 0 if self.resize == 1 else self.resize}
        parts = [f"{name} {value:.2f}" for name, value in amounts.items() if value]
        return ", ".join([*parts, *map(str, self.compressions)])

    def padding(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Pixels that `apply` needs around an image of this size: ((above, below), (left, right))."""
        above, tall = self._coded_extent(height, 0)
        left, wide = self._coded_extent(width, 1)
        around = self._filter_margin
        return (above + around, tall - above - height + around), (left + around, wide - left - width + around)

    def apply(self, padded: np.ndarray, height: int, width: int) -> np.ndarray:
        """Degrades an image; only once, because the noise is drawn here.

        Args:
            padded: uint8 or uint16 [..., ..., 3], the image with what `padding` asks for around it.
            height: Of the image, in pixels.
            width: Of the image, in pixels.

        Returns:
            [height, width, 3] in the same dtype; of 16 bits only 8 are left.
        """
        if padded.dtype != np.uint8:
            return to_depth(self.apply(to_depth(padded, np.uint8), height, width), padded.dtype)
        image = Image.fromarray(np.ascontiguousarray(padded))
        if self.blur:
            image = image.filter(ImageFilter.GaussianBlur(self.blur))
        if self.noise:
            image = Image.fromarray(self._add_noise(np.asarray(image)))
        if self.resize != 1:
            size = image.size
            image = image.resize([max(1, round(side * self.resize)) for side in size], self.filter)  # pyright: ignore[reportArgumentType]: any sequence will do
            image = image.resize(size, self.filter)
        top = left = self._filter_margin
        tall, wide = self._coded_sizes(height, 0), self._coded_sizes(width, 1)
        for compression, h, w in zip(self.compressions, tall, wide, strict=True):
            image = _compress(image.crop((left, top, left + w, top + h)), compression)
            top, left = compression.offset
        return np.asarray(image.crop((left, top, left + width, top + height)))

    @property
    def _filter_margin(self) -> int:
        """Pixels on each side for blur and resizing, whose ends are not those of the image."""
        return math.ceil(3 * self.blur) + (0 if self.resize == 1 else math.ceil(3 / min(1, self.resize)))

    def _coded_sizes(self, size: int, axis: int) -> list[int]:
        """Rows, or columns, that each compression codes: whole blocks, and at least one pixel more than is kept."""
        sizes = []
        for compression in reversed(self.compressions):
            size = -(-(compression.offset[axis] + size + 1) // BLOCK_GRID) * BLOCK_GRID
            sizes.append(size)
        return sizes[::-1]

    def _coded_extent(self, size: int, axis: int) -> tuple[int, int]:
        """(where the image begins in what is coded first, how much that is)."""
        start = sum(compression.offset[axis] for compression in self.compressions)
        return start, (*self._coded_sizes(size, axis), size)[0]

    def _add_noise(self, image: np.ndarray) -> np.ndarray:
        levels = image.astype(np.float32)
        noise = self.generator.standard_normal(levels.shape, np.float32)
        slope = self.noise_slope
        noise *= levels * np.float32(self.noise * slope / 127.5) + np.float32(self.noise * (1 - slope))
        noise += levels
        return np.rint(noise, out=noise).clip(0, 255, out=noise).astype(np.uint8)


def _compress(image: Image.Image, compression: Compression) -> Image.Image:
    file = io.BytesIO()  # which the image opened keeps until it is decoded
    if compression.codec == "webp":
        image.save(file, "WEBP", quality=compression.quality)
    else:
        image.save(file, "JPEG", quality=compression.quality, subsampling=compression.subsampling)
    return Image.open(file, formats=[compression.codec.upper()])


@dataclass(frozen=True)
class Degradation:
    """Ranges that degradations are drawn from; None: not done.

    Attributes:
        jpeg: Quality, 1..100.
        webp: Quality, 1..100.
        noise: Sigma in 8-bit levels.
        blur: Sigma in pixels.
        resize: Factor.
        clean: The share of patches that stay as they are.
    """

    jpeg: Range | None = None
    webp: Range | None = None
    noise: Range | None = None
    blur: Range | None = None
    resize: Range | None = None
    clean: float = CLEAN_SHARE

    BOUNDS: ClassVar = {
        "jpeg": Range(1, 100),
        "webp": Range(1, 100),
        "noise": Range(0, 50),
        "blur": Range(0, 5),
        "resize": Range(0.5, 2),
    }

    def __str__(self) -> str:
        """As `parse_degradation` reads it; equal degradations are spelled alike."""
        ranges = {name: getattr(self, name) for name in self.BOUNDS}
        parts = [f"{name}:{_format(r.low)}-{_format(r.high)}" for name, r in ranges.items() if r is not None]
        return ",".join([*parts, f"clean:{_format(self.clean)}"])

    def draw(self, seed: int, step: int, index: int) -> DegradationParams | None:
        """Draws the degradation of one patch, by its index in the whole batch; None: it stays clean.

        Every amount has a random word of its own, drawn whether it is needed or not, so that another kind of
        degradation changes nothing of the others.
        """
        # 256 bits of counter: the lowest 64 count the words of one patch.
        words = np.random.Philox(key=seed % _STRIDE + _STRIDE, counter=(step * _STRIDE + index) * _STRIDE)
        random = np.random.Generator(words)
        clean, blur, noise, slope, resize, kernel, codec, twice, *rest = random.random(16).tolist()
        if clean < self.clean:
            return None
        return DegradationParams(
            blur=self.blur.interpolate(blur) if self.blur else 0.0,
            noise=self.noise.interpolate(noise) if self.noise else 0.0,
            noise_slope=MAX_NOISE_SLOPE * (2 * slope - 1),
            resize=self.resize.interpolate(resize) if self.resize else 1.0,
            filter=RESIZE_FILTERS[int(kernel * len(RESIZE_FILTERS))],
            compressions=self._draw_compressions(codec, twice, rest),
            generator=random,
        )

    def _draw_compressions(self, codec: float, twice: float, words: list[float]) -> tuple[Compression, ...]:
        qualities = self.webp if self.jpeg is None or (self.webp and codec < WEBP_SHARE) else self.jpeg
        if qualities is None:
            return ()
        name, compressions = "webp" if qualities is self.webp else "jpeg", []
        for quality, subsampling, down, right in (words[:4], words[4:])[: 2 if twice < SAVED_TWICE else 1]:
            sampled = "4:2:0" if name == "webp" else next(text for end, text in SUBSAMPLINGS if subsampling < end)
            at = 1 + int(down * BLOCK_GRID), 1 + int(right * BLOCK_GRID)
            compressions.append(Compression(name, qualities.pick_integer(quality), sampled, at))
        return tuple(compressions)


def parse_degradation(spec: str) -> Degradation:
    """Parses "jpeg:40-95,noise:0-10,clean:0.3". Raises ValueError, with a line that names what is known."""
    found: dict[str, Range | float] = {}
    for part in spec.split(","):
        name, _, values = part.strip().partition(":")
        if name != "clean" and name not in Degradation.BOUNDS:
            known = ", ".join(f"{known}:LOW-HIGH" for known in Degradation.BOUNDS)
            raise ValueError(f"{part.strip()!r} is not known; there are {known} and clean:SHARE")
        if name in found:
            raise ValueError(f"{name} is named twice")
        found[name] = _parse_share(values) if name == "clean" else _parse_range(name, values)
    if not found.keys() - {"clean"}:
        raise ValueError(f"clean alone degrades nothing; add one of {', '.join(Degradation.BOUNDS)}")
    return Degradation(**found)  # pyright: ignore[reportArgumentType]: by name


def _parse_range(name: str, text: str) -> Range:
    whole, bounds = name in ("jpeg", "webp"), Degradation.BOUNDS[name]
    number = "[0-9]{1,9}" if whole else r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
    match = re.fullmatch(f"({number})(?:-({number}))?", text.strip())
    low, high = (float(match[1]), float(match[2] or match[1])) if match else (math.nan, math.nan)
    if not bounds.low <= low <= high <= bounds.high:
        kind = "whole numbers" if whole else "numbers"
        raise ValueError(
            f"{name}:{text} must be {name}:LOW-HIGH, {kind} in order from {bounds.low:g} to {bounds.high:g}"
        )
    return Range(low, high)


def _format(number: float) -> str:
    return np.format_float_positional(number, trim="-")


def _parse_share(text: str) -> float:
    if not re.fullmatch(r"[0-9](\.[0-9]{1,9})?", text.strip()) or float(text) > 1:
        raise ValueError(f"clean:{text} must be clean:SHARE, a number from 0 to 1")
    return float(text)


def crop_padded(
    image: np.ndarray, y: int, x: int, side: int, dihedral: int, params: DegradationParams | None
) -> np.ndarray:
    """Crops a patch, flipped and rotated, with the padding that its degradation needs; a view where possible.

    The flipped and rotated patch is what is degraded: a camera stands upright on its side, too. Beyond the ends of the
    image its outermost pixels are repeated.

    Args:
        image: [h, w, 3].
        y: First row of the patch.
        x: First column of the patch.
        side: Pixels a side of the patch, without padding.
        dihedral: 0..7, as in `edsr.data.patches.patch_offsets`.
        params: The degradation; None: no padding.
    """
    rows, columns = ((0, 0), (0, 0)) if params is None else params.padding(side, side)
    if dihedral & 4:
        rows, columns = columns, rows
    rows, columns = rows[:: -1 if dihedral & 1 else 1], columns[:: -1 if dihedral & 2 else 1]
    (top, bottom), (left, right) = (y - rows[0], y + side + rows[1]), (x - columns[0], x + side + columns[1])
    height, width = image.shape[:2]
    crop = image[max(top, 0) : bottom, max(left, 0) : right]
    beyond = (max(-top, 0), max(bottom - height, 0)), (max(-left, 0), max(right - width, 0))
    if any(map(any, beyond)):
        crop = np.pad(crop, (*beyond, (0, 0)), mode="edge")
    crop = crop[:: -1 if dihedral & 1 else 1, :: -1 if dihedral & 2 else 1]
    return crop.transpose(1, 0, 2) if dihedral & 4 else crop


def degrade(image: np.ndarray, params: DegradationParams | None) -> np.ndarray:
    """Degrades a whole image [h, w, 3], uint8 or uint16, in its dtype; None: the image as it is."""
    if params is None:
        return image
    h, w = image.shape[:2]
    return params.apply(np.pad(image, (*params.padding(h, w), (0, 0)), mode="edge"), h, w)
