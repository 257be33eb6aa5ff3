"""One image by bicubic interpolation and by EDSR, beside its original where there is one, with scores and a detail.

`edsr.evaluation.figure` draws it, `edsr.evaluation.page` makes a web page of it.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edsr.errors import CompareError
from edsr.images import (
    ImageReader,
    matlab_bicubic,
    matlab_downscale,
    matlab_round,
    over_white,
    pixels_to_srgb,
    to_depth,
)
from edsr.inference import Upscaler
from edsr.progress import BatchProgress, Silent
from edsr.system import available_memory, rename_into_place, temporary

from . import metrics

LARGEST = 100_000_000
"""Pixels of a result that is compared; it is held in memory."""

LARGEST_DETAIL = 512
"""Pixels a side of a detail; three of them fit beside each other in a figure."""

NOTHING = "nothing to compare: give an image, its original with --hr, or both"

_SIDE = 96  # of a detail that is chosen here: pixels can be told apart, and a word or an eye fits in
_MEMORY, _MEMORY_SCORED = 30, 100  # bytes a pixel of the result, as measured, without and with an original
_BLOCK = 2**21  # samples that are converted at once


@dataclass(frozen=True)
class Comparison:
    """What `compare` finds.

    name: the file's. size: (width, height) of the small image. scale: how many times larger the result is.
    images: by title, in the order in which they are shown: "bicubic", "EDSR x2" ("EDSR+ x2" for a self-ensemble) and
    perhaps "original"; uint8 [H, W, 3] in sRGB, all of one shape. scores: (PSNR in dB, SSIM) by title; empty without an
    original and where no pixel lies inside the border; SSIM is nan below 11 pixels a side inside it, PSNR inf for
    equal images. detail: (x, y, side) of a square in `images`, in pixels.
    """

    name: str
    size: tuple[int, int]
    scale: int
    images: dict[str, np.ndarray]
    scores: dict[str, tuple[float, float]]
    detail: tuple[int, int, int]


def compare(
    upscaler: Upscaler,
    image: Path | None = None,
    hr: Path | None = None,
    detail: tuple[int, int, int] | None = None,
    self_ensemble: bool = False,
    bars: BatchProgress | None = None,
) -> Comparison:
    """Bicubic interpolation and EDSR on one image file.

    image: the small image. hr: its original, `upscaler.scale` times as large after being cropped at right and bottom
    to a multiple of that. Either may be left out: without `hr` there are no scores, without `image` the small image
    is made from the original as MATLAB's bicubic does. All kinds of files that `edsr.images` reads.

    Scores are on luma with a border of `scale` pixels left out, as `edsr.evaluation.scoring` has them by default.
    Transparent images are laid over white and 16-bit ones rounded to 8 bits: results before they are scored and
    shown, an original before it is reduced. Scores are of the values in the files; what is shown went through the
    files' color profiles into sRGB, so that every program shows it alike.

    detail: (x, y, side) of a square in the result, in pixels. None chooses the one of 96 pixels a side, or what there
    is, in which the squared difference between EDSR and bicubic, summed over R, G and B, is largest: there one sees
    best what the network does, for better or worse. The original has no say in it, so the choice does not favor
    either. Squares are tried every eighth of their side.

    self_ensemble: see `Upscaler.bands`. bars: told of the rows that are done.
    Raises CompareError; ImageError for files that cannot be read; BackendError as `Upscaler.bands` does.
    """
    s = upscaler.scale
    source, original, (width, height) = _open(image, hr, s)
    detail = _checked(detail, s * width, s * height)
    truth = None if original is None else _flat(original)[: s * height, : s * width]
    if truth is not None and image is None:
        rows = matlab_downscale(truth, s)
    else:
        rows = np.concatenate(list(_rows(source)))

    step, bands = upscaler.band_rows(width, height), []
    with (bars or Silent()).file(source.path.name, width, height) as bar:
        for band in upscaler.bands((rows[y : y + step] for y in range(0, height, step)), width, self_ensemble):
            bands.append(to_depth(over_white(band), np.uint8))
            bar.advance(len(band) // s)
    network = f"EDSR{'+' if self_ensemble else ''} x{s}"
    results = {"bicubic": _enlarged(rows, s), network: np.concatenate(bands)}
    scores = {}
    if truth is not None and min(truth.shape[:2]) > 2 * s:
        scores = {title: metrics.score(*_alike(result, truth), s) for title, result in results.items()}
    images = {title: _shown(result, _profile(source)) for title, result in results.items()}
    detail = detail or _choose(images["bicubic"], images[network])
    if truth is not None and original is not None:
        images["original"] = _shown(truth, _profile(original))
    return Comparison(source.path.name, (width, height), s, images, scores, detail)


# --- files


def _open(image: Path | None, hr: Path | None, s: int) -> tuple[ImageReader, ImageReader | None, tuple[int, int]]:
    """What the results are made of, the original, and (width, height) of the small image; nothing decoded yet.

    Raises CompareError unless they fit each other and memory.
    """
    original = ImageReader(hr, full=True) if hr is not None else None
    source = ImageReader(image, full=True) if image is not None else original
    if source is None:
        raise CompareError(NOTHING)
    width, height = source.width, source.height
    if original is not None:
        reduced = original.width // s, original.height // s
        sizes = f"{hr} is {original.width} x {original.height}"
        if min(reduced) == 0:
            raise CompareError(f"{sizes}, too small to be reduced by {s}; choose a larger original")
        if image is not None and reduced != (width, height):
            should = f"{s} times {image}, {width} x {height}, which is {s * width} x {s * height}"
            raise CompareError(f"{sizes}, not {should}; check --scale, or give --hr alone to have it reduced")
        width, height = reduced
    pixels = s * width * s * height
    needed, free = pixels * (_MEMORY if original is None else _MEMORY_SCORED), available_memory()
    if pixels > LARGEST:
        trouble = f"{s * width} x {s * height} are more than the {LARGEST // 10**6} million pixels that are compared"
    elif needed > free:
        trouble = f"needs {needed / 1e6:,.0f} MB of memory, where {free / 1e6:,.0f} MB are free"
    else:
        return source, original, (width, height)
    raise CompareError(f"{source.path}: {trouble}; crop it to the part of interest")


def _rows(reader: ImageReader) -> Iterator[np.ndarray]:
    return reader.rows(max(1, _BLOCK // (reader.width * reader.channels)))


def _profile(reader: ImageReader) -> bytes | None:
    """The ICC profile of the pixels, if the file has one for their kind."""
    profile = next((value for _, name, value in reader.metadata if name == "icc-profile-data"), b"")
    return profile if profile[16:20] == (b"GRAY" if reader.channels <= 2 else b"RGB ") else None


def comparison_path(image: Path | None, hr: Path | None, output: str | None, suffix: str, overwrite: bool) -> Path:
    """Where a comparison goes: NAME_compare with `suffix`, beside the small image or else the original, or `output`.

    output: a file, or a folder that is there. suffix: ".png" or ".html", which a file must end in.
    Raises CompareError if that is another ending, no place, one of the inputs, or there already while not `overwrite`.
    """
    sources = [path for path in (image, hr) if path is not None]
    if not sources:
        raise CompareError(NOTHING)
    target = sources[0].with_name(f"{sources[0].stem}_compare{suffix}")
    if output is not None:
        target = Path(output) / target.name if os.path.isdir(output) else Path(output)
    if target.suffix.lower() != suffix:
        what = "figures" if suffix == ".png" else "pages"
        raise CompareError(f"{target}: {what} are written as {suffix}, give such a name")
    if not os.path.isdir(target.parent):
        raise CompareError(f"{target}: there is no folder {target.parent}, create it first")
    if os.path.isdir(target):
        raise CompareError(f"{target}: is a folder, name a file in it")
    if any(os.path.exists(path) and os.path.exists(target) and os.path.samefile(path, target) for path in sources):
        raise CompareError(f"{target}: is the input itself, choose another output")
    if os.path.lexists(target) and not overwrite:
        raise CompareError(f"{target}: exists; add --overwrite to replace it")
    return target


def save_comparison(target: Path, data: bytes, overwrite: bool) -> None:
    """Writes a file, whole or not at all: under another name, then renamed.

    Raises CompareError if it cannot be written, or if it is there and may not be replaced.
    """
    part = temporary(target)
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        rename_into_place(part, target, overwrite)
    except FileExistsError:
        raise CompareError(f"{target}: exists; add --overwrite to replace it") from None
    except OSError as error:
        raise CompareError(f"{target}: cannot be written ({error.strerror})") from None
    finally:
        with suppress(OSError):
            part.unlink()  # there is none after it was renamed


# --- pixels


def _flat(reader: ImageReader) -> np.ndarray:
    """The whole image, uint8 [H, W, 1 or 3], laid over white."""
    return np.concatenate([to_depth(over_white(rows), np.uint8) for rows in _rows(reader)])


def _enlarged(rows: np.ndarray, s: int) -> np.ndarray:
    """Bicubic interpolation of [h, w, 1 to 4], uint8 [s·h, s·w, 1 or 3], laid over white.

    Interpolation is linear, so white may come first. It goes in bands, each with the two rows beyond it that Keys'
    kernel reaches, and one to spare: a whole image in fp64 would be eight times the memory.
    """
    height, width, channels = rows.shape
    step, bands = max(1, _BLOCK // (s * s * width * channels)), []
    for top in range(0, height, step):
        bottom, first = min(top + step, height), max(0, top - 3)
        part = over_white(rows[first : bottom + 3], 255)
        large = matlab_bicubic(part, s * len(part), s * width)
        bands.append(matlab_round(large[s * (top - first) : s * (bottom - first)]))
    return np.concatenate(bands)


def _alike(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as they are, or both in RGB if one is gray and the other is not."""
    return (a, b) if a.shape == b.shape else (_rgb(a), _rgb(b))


def _rgb(image: np.ndarray) -> np.ndarray:
    return np.repeat(image, 3, 2) if image.shape[2] == 1 else image


def _shown(image: np.ndarray, profile: bytes | None) -> np.ndarray:
    """uint8 [H, W, 1 or 3] -> [H, W, 3] in sRGB, through a color profile unless libvips cannot use it."""
    return _rgb(image) if profile is None else pixels_to_srgb(image, profile)


def _checked(detail: tuple[int, int, int] | None, width: int, height: int) -> tuple[int, int, int] | None:
    if detail is not None:
        x, y, side = detail
        if not 1 <= side <= LARGEST_DETAIL:
            raise CompareError(f"--detail: its side must be 1 to {LARGEST_DETAIL} pixels, not {side}")
        if x < 0 or y < 0 or x + side > width or y + side > height:
            raise CompareError(f"--detail {x},{y},{side}: is not inside the result of {width} x {height} pixels")
    return detail


def _choose(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int]:
    """The detail in which two images differ most, see `compare`.

    Squared differences are summed in cells of an eighth of its side, and those over squares of 8 x 8 cells.
    """
    height, width, _ = after.shape
    side = min(_SIDE, height, width)
    cell = max(1, side // 8)
    down, across, count = height // cell, width // cell, side // cell
    energy = np.zeros((down + 1, across + 1), np.int64)  # sums of all above and to the left, when done
    for i in range(down):
        rows = slice(i * cell, (i + 1) * cell)
        difference = after[rows, : across * cell].astype(np.int64) - before[rows, : across * cell]
        energy[i + 1, 1:] = (difference**2).sum((0, 2)).reshape(across, cell).sum(1)
    energy = energy.cumsum(0).cumsum(1)
    squares = energy[count:, count:] - energy[:-count, count:] - energy[count:, :-count] + energy[:-count, :-count]
    y, x = (int(i) * cell for i in np.unravel_index(squares.argmax(), squares.shape))
    return min(x, width - side), min(y, height - side), side
