"""One image by bicubic interpolation and by networks, beside its original, with scores and a detail.

`edsr.evaluation.figure` draws such a comparison, `edsr.evaluation.page` makes a web page of it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
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
from edsr.progress import BatchProgress, ImageProgress, Silent
from edsr.resources import available_memory
from edsr.system import atomic_file, remove_abandoned, why_unwritable_file
from edsr.wording import either, named, option

from . import metrics
from .results import check_upscaler

MAX_PIXELS = 100_000_000
"""Of a result; it is kept in memory."""

MAX_DETAIL = 512
"""The largest side of a detail, in pixels; three of them fit beside each other in a figure."""

_DETAIL_SIDE = 96  # of a detail that is chosen here: pixels can be made out, and a word or an eye fits in
_BYTES, _BYTES_SCORED = 30, 100  # of memory a pixel of the result, as measured, without and with an original
_BYTES_MORE = 6  # for each further network: its result, and that in sRGB
_BLOCK = 2**21  # samples that are converted at once


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        name: The file's.
        size: (width, height) of the small image.
        scale: How many times larger the results are.
        images: uint8 [H, W, 3] in sRGB, all of one shape, by title, in the order in which they are shown: "bicubic",
            "EDSR x2" ("EDSR+ x2" for a self-ensemble) or the networks' own titles and, where there is one, "original".
        scores: (PSNR in dB, SSIM) by title; empty without an original and where no pixel lies inside the border. PSNR
            is inf for equal images, SSIM nan for fewer than 11 pixels a side inside the border; `warnings` say so.
        detail: (x, y, side) of a square in `images`, in pixels.
        warnings: What the reader says of the files, and scores that are missing, in lines, each with a file's path.
    """

    name: str
    size: tuple[int, int]
    scale: int
    images: dict[str, np.ndarray]
    scores: dict[str, tuple[float, float]]
    detail: tuple[int, int, int]
    warnings: tuple[str, ...] = ()


def compare(
    upscaler: Upscaler | Mapping[str, Upscaler],
    image: Path | None = None,
    hr: Path | None = None,
    detail: tuple[int, int, int] | None = None,
    self_ensemble: bool = False,
    progress: BatchProgress | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Comparison:
    """Upscales one image file by bicubic interpolation and by EDSR, with one network or several.

    Scores are on luma with a border of `scale` pixels left out, as `evaluate` has them by default. Transparent images
    are composited on white and 16-bit ones rounded to 8 bits: results before they are scored and shown, an original
    before it is downscaled. Scores are of the values in the files; what is shown went through the files' color
    profiles into sRGB, so that every program shows the same colors.

    Args:
        upscaler: The network, on a device; or several of one scale, by the titles that their results get.
        image: The small image, of any kind that `edsr.images` reads. Without it, it is made from the original as
            MATLAB's bicubic does.
        hr: Its original, `upscaler.scale` times as large after being cropped at right and bottom to a multiple of
            that. Without it there are no scores.
        detail: (x, y, side) of a square in the result, in pixels; by default what `choose_detail` chooses: where the
            network differs most from bicubic, or several networks most from the first of them.
        self_ensemble: See `Upscaler.bands`.
        progress: Shows the rows that are done.
        max_pixels: How large the result may be.

    Raises:
        CompareError: The files do not fit each other, memory or `max_pixels`; or the detail is not in the result.
        ImageError: A file cannot be read.
        BackendError: As for `Upscaler.bands`.
        TypeError: What upscales is no Upscaler.
        ValueError: The networks have several scales, or a title that is taken.
    """
    if not isinstance(upscaler, Mapping):
        check_upscaler(upscaler)
        upscaler = {default_title(upscaler, self_ensemble): upscaler}
    for network in upscaler.values():
        check_upscaler(network)
    s = next(iter(upscaler.values())).scale
    if any(other.scale != s for other in upscaler.values()) or not upscaler.keys().isdisjoint(("bicubic", "original")):
        raise ValueError("networks must be of one scale, and none of them called bicubic or original")
    source, original, (width, height) = _open_inputs(image, hr, s, max_pixels, len(upscaler))
    detail = _check_detail(detail, s * width, s * height)
    target = None if original is None else _read_opaque(original)[: s * height, : s * width]
    if target is not None and image is None:
        rows = matlab_downscale(target, s)
    else:
        rows = np.concatenate(list(_read_rows(source)))

    progress = progress or Silent()
    results = {"bicubic": upscale_bicubic(rows, s)}
    for title, network in upscaler.items():
        with progress.file(source.path.name if len(upscaler) == 1 else title, width, height) as bar:
            results[title] = _upscale(network, rows, self_ensemble, bar)
    scores, missing = {}, []
    if target is not None and min(target.shape[:2]) > 2 * s:
        scores = {title: metrics.score(*_match_channels(result, target), s) for title, result in results.items()}
        missing = metrics.explain_missing(scores, s * width, s * height, s)
    elif target is not None:
        missing = [f"no scores, as {s * width} x {s * height} pixels leave none inside a border of {s}"]
    images = {title: _to_srgb(result, _icc_profile(source)) for title, result in results.items()}
    networks = [images[title] for title in upscaler]
    if detail is None:
        detail = choose_detail(*networks) if len(networks) > 1 else choose_detail(images["bicubic"], *networks)
    if target is not None and original is not None:
        images["original"] = _to_srgb(target, _icc_profile(original))
    readers = [source] if original is None or original is source else [source, original]
    warnings = tuple(f"{reader.path}: {line}" for reader in readers for line in reader.warnings)
    warnings += tuple(f"{hr}: {line}" for line in missing)
    return Comparison(source.path.name, (width, height), s, images, scores, detail, warnings)


def default_title(upscaler: Upscaler, self_ensemble: bool, name: str = "") -> str:
    """What a network's result is called, such as "EDSR x2"."""
    return f"{name or upscaler.title}{'+' if self_ensemble else ''} x{upscaler.scale}"


# --- files


def _open_inputs(
    image: Path | None, hr: Path | None, s: int, max_pixels: int, networks: int
) -> tuple[ImageReader, ImageReader | None, tuple[int, int]]:
    """The reader of the input, that of the original, and (width, height) of the small image; nothing decoded yet.

    Raises CompareError unless they fit each other and memory.
    """
    original = ImageReader(hr, full=True) if hr is not None else None
    source = ImageReader(image, full=True) if image is not None else original
    if source is None:
        raise _no_input()
    width, height = source.width, source.height
    if original is not None:
        lr_size = original.width // s, original.height // s
        sizes = f"{hr} is {original.width} x {original.height}"
        if min(lr_size) == 0:
            raise CompareError(f"{sizes}, too small to be reduced by {s}; choose a larger original")
        if image is not None and lr_size != (width, height):
            expected = f"{s} times {image}, {width} x {height}, which is {s * width} x {s * height}"
            raise CompareError(
                f"{sizes}, not {expected}; check {named('scale')}, or give {named('hr')} alone to have it reduced"
            )
        width, height = lr_size
    pixels = s * width * s * height
    each = (_BYTES if original is None else _BYTES_SCORED) + (networks - 1) * _BYTES_MORE
    needed, free = pixels * each, available_memory()
    if pixels > max_pixels:
        problem = f"{s * width} x {s * height} are more than the {max_pixels // 10**6} million pixels that are compared"
    elif needed > free:
        problem = f"needs {needed / 1e6:,.0f} MB of memory, where {free / 1e6:,.0f} MB are free"
    else:
        return source, original, (width, height)
    raise CompareError(f"{source.path}: {problem}; crop it to the part of interest")


def _no_input() -> CompareError:
    original = f"its original with {named('hr')}"
    return CompareError(f"nothing to compare: give an image, {original}, or both", misuse=True)


def _read_rows(reader: ImageReader) -> Iterator[np.ndarray]:
    return reader.rows(max(1, _BLOCK // (reader.width * reader.channels)))


def _icc_profile(reader: ImageReader) -> bytes | None:
    """The ICC profile of the pixels, if the file has one for their kind."""
    profile = next((entry.data for entry in reader.metadata if entry.kind == "icc"), b"")
    return profile if profile[16:20] == (b"GRAY" if reader.channels <= 2 else b"RGB ") else None


def comparison_path(image: Path | None, hr: Path | None, output: str | None, suffix: str, overwrite: bool) -> Path:
    """Where a comparison goes: NAME_compare with `suffix`, beside the small image or else the original, or `output`.

    Args:
        image: The small image.
        hr: The original.
        output: A file that ends in `suffix`, or an existing folder.
        suffix: ".png" or ".html".
        overwrite: Whether the file may exist.

    Raises:
        CompareError: It has another ending, cannot be written, is one of the inputs, or exists already.
    """
    sources = [path for path in (image, hr) if path is not None]
    if not sources:
        raise _no_input()
    target = sources[0].with_name(f"{sources[0].stem}_compare{suffix}")
    if output is not None:
        target = Path(output) / target.name if os.path.isdir(output) else Path(output)
        if output.endswith(("/", os.sep)) and not os.path.isdir(output):
            raise CompareError(f"{output}: there is no such folder, create it first")
    if target.suffix.lower() != suffix:
        kind = "figures" if suffix == ".png" else "pages"
        page = either(", or ask for the suffix .html", ", or add --html for a page")
        more = page if target.suffix.lower() == ".html" else ""
        raise CompareError(f"{target}: {kind} are written as {suffix}, give such a name{more}", misuse=True)
    if why := why_unwritable_file(target):
        raise CompareError(f"{target}: {why}")
    if any(os.path.exists(path) and os.path.exists(target) and os.path.samefile(path, target) for path in sources):
        raise CompareError(f"{target}: is the input itself, choose another output", misuse=True)
    if os.path.lexists(target) and not overwrite:
        raise CompareError(f"{target}: exists; add {option('overwrite')} to replace it")
    return target


def save_comparison(target: Path, data: bytes, overwrite: bool, sources: Sequence[Path] = ()) -> None:
    """Writes a file, whole or not at all, for those to read who may read its `sources`.

    Raises:
        CompareError: It cannot be written, or is there and may not be replaced.
    """
    remove_abandoned(target.parent)
    try:
        with atomic_file(target, overwrite, sources) as file:
            file.write(data)
    except FileExistsError:
        raise CompareError(f"{target}: exists; add {option('overwrite')} to replace it") from None
    except OSError as error:
        raise CompareError(f"{target}: cannot be written ({error.strerror})") from None


# --- pixels


def _upscale(network: Upscaler, rows: np.ndarray, self_ensemble: bool, bar: ImageProgress) -> np.ndarray:
    """[h, w, 1 to 4] -> uint8 [s·h, s·w, 1 or 3], composited on white."""
    height, width, _ = rows.shape
    step, bands = network.band_rows(width, height), []
    for band in network.bands((rows[y : y + step] for y in range(0, height, step)), width, self_ensemble):
        bands.append(to_depth(over_white(band), np.uint8))
        bar.advance(len(band) // network.scale)
    return np.concatenate(bands)


def _read_opaque(reader: ImageReader) -> np.ndarray:
    """The whole image, uint8 [H, W, 1 or 3], composited on white."""
    return np.concatenate([to_depth(over_white(rows), np.uint8) for rows in _read_rows(reader)])


def upscale_bicubic(rows: np.ndarray, s: int, block: int = _BLOCK) -> np.ndarray:
    """Bicubic interpolation of [h, w, 1 to 4] to uint8 [s·h, s·w, 1 or 3], composited on white.

    Interpolation is linear, so white may come first. It goes in bands of about `block` samples, each with the two rows
    beyond it that Keys' kernel reaches, and one to spare: a whole image in fp64 would be eight times the memory.
    """
    height, width, channels = rows.shape
    step, bands = max(1, block // (s * s * width * channels)), []
    for top in range(0, height, step):
        bottom, first = min(top + step, height), max(0, top - 3)
        part = over_white(rows[first : bottom + 3], 255)
        large = matlab_bicubic(part, s * len(part), s * width)
        bands.append(matlab_round(large[s * (top - first) : s * (bottom - first)]))
    return np.concatenate(bands)


def _match_channels(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both unchanged, or both in RGB if one is gray and the other is not."""
    return (a, b) if a.shape == b.shape else (_to_rgb(a), _to_rgb(b))


def _to_rgb(image: np.ndarray) -> np.ndarray:
    return np.repeat(image, 3, 2) if image.shape[2] == 1 else image


def _to_srgb(image: np.ndarray, profile: bytes | None) -> np.ndarray:
    """uint8 [H, W, 1 or 3] -> [H, W, 3] in sRGB, through a color profile unless libvips cannot use it."""
    return _to_rgb(image) if profile is None else pixels_to_srgb(image, profile)


def _check_detail(detail: tuple[int, int, int] | None, width: int, height: int) -> tuple[int, int, int] | None:
    if detail is not None:
        x, y, side = detail
        if not 1 <= side <= MAX_DETAIL:
            raise CompareError(f"{named('detail')}: its side must be 1 to {MAX_DETAIL} pixels, not {side}", misuse=True)
        if x < 0 or y < 0 or x + side > width or y + side > height:
            where = either(f"detail={detail}", f"--detail {x},{y},{side}")
            raise CompareError(f"{where}: is not inside the result of {width} x {height} pixels", misuse=True)
    return detail


def choose_detail(before: np.ndarray, *after: np.ndarray) -> tuple[int, int, int]:
    """The square, (x, y, side), of 96 pixels a side or what there is, in which images differ most from the first.

    That is where the squared difference, summed over R, G and B and over the others, is largest: there one
    sees best what a network does, for better or worse. The original does not enter into it, so the choice favors none.
    Squares are tried every eighth of their side: squared differences are summed in cells of that size, and those over
    8 x 8 cells.

    Args:
        before: uint8 [H, W, 3].
        after: One or more of the same shape.
    """
    height, width, _ = before.shape
    side = min(_DETAIL_SIDE, height, width)
    cell = max(1, side // 8)
    down, across, count = height // cell, width // cell, side // cell
    energy = np.zeros((down + 1, across + 1), np.int64)  # in the end an integral image
    for i in range(down):
        rows = slice(i * cell, (i + 1) * cell)
        for image in after:
            difference = image[rows, : across * cell].astype(np.int64) - before[rows, : across * cell]
            energy[i + 1, 1:] += (difference**2).sum((0, 2)).reshape(across, cell).sum(1)
    energy = energy.cumsum(0).cumsum(1)
    squares = energy[count:, count:] - energy[:-count, count:] - energy[count:, :-count] + energy[:-count, :-count]
    y, x = (int(i) * cell for i in np.unravel_index(squares.argmax(), squares.shape))
    return min(x, width - side), min(y, height - side), side
