"""Scores of a network on a folder of originals, or an HDF5 file of them, beside bicubic's, as papers report them."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from edsr.errors import EDSRError
from edsr.images import matlab_bicubic, matlab_round
from edsr.inference import Upscaler
from edsr.progress import BatchProgress, ImageProgress, Silent
from edsr.wording import either

from . import metrics
from .originals import find_originals
from .results import check_upscaler

logger = logging.getLogger(__name__)

FIELDS = ("psnr", "ssim", "bicubic_psnr", "bicubic_ssim")
_COMPARED = {field: (field.removeprefix("bicubic_"), f"bicubic_{field.removeprefix('bicubic_')}") for field in FIELDS}


def evaluate(
    upscaler: Upscaler,
    hr: str | Path,
    lr: str | Path | None = None,
    protocol: str = "y",
    self_ensemble: bool = False,
) -> Iterator[dict]:
    """Scores a network on each image of a folder, in order of name.

    An image that does not suit (unreadable, transparent, too small, without its low-resolution image) is named, and the
    others go on.

    Args:
        upscaler: The network, on a device.
        hr: Folder of original images, 8-bit gray or RGB; they are cropped at right and bottom to a multiple of the
            scale. A gray one is scored on its values as they are, 0 to 255, as MATLAB's scripts do, but by the protocol
            "edsr".
            Or an HDF5 file (*.h5, *.hdf5) of originals and low-resolution images, as `edsr.data.load_dataset` reads it,
            rounded to 8 bits: each is scored by the name of its dataset in the groups, or as FILE[i]. Luma in it
            (16..235) is a gray image: the network gets it, and it is scored, as it is, not converted to luma again.
        lr: Folder of their low-resolution images, named as `edsr.evaluation.low_resolution` says; by default they are
            made as MATLAB's bicubic does. None for HDF5.
        protocol: See `edsr.evaluation.metrics.score`.
        self_ensemble: See `Upscaler.bands`.

    Yields:
        {"name", "psnr", "ssim", "bicubic_psnr", "bicubic_ssim"}; PSNR in dB, inf where nothing differs, SSIM nan where
        fewer than 11 pixels a side are scored. "warnings" where there are any: lines for a person that say why a score
        is missing, and what was not read as it stands in a file. Or {"name", "error"}, the error being a line for a
        person.

    Raises:
        ImageError: A folder cannot be read, or holds no images.
        DataError: The HDF5 file cannot be read, or holds no such images.
        EvaluateError: `lr` has several folders for the scale, or is given beside HDF5, of which nothing may be scored.
        TypeError: What upscales is no Upscaler.
    """
    for (found,) in evaluate_all([upscaler], hr, lr, protocol, self_ensemble):
        yield found


def evaluate_all(
    upscalers: Sequence[Upscaler],
    hr: str | Path,
    lr: str | Path | None = None,
    protocol: str = "y",
    self_ensemble: bool = False,
    keep: Callable[[int, Path, np.ndarray], None] | None = None,
    progress: BatchProgress | None = None,
) -> Iterator[list[dict]]:
    """Scores several networks of one scale on the same images; arguments and errors as for `evaluate`.

    Args:
        upscalers: The networks.
        hr: See `evaluate`.
        lr: See `evaluate`.
        protocol: See `evaluate`.
        self_ensemble: See `evaluate`.
        keep: Given each network's number, the original's path and the result, uint8 [H, W, 1 or 3].
        progress: Shows how far each image is, by its original's size.

    Yields:
        What `evaluate` yields, for each of the networks. An image that fails with one of them fails with all, so that
        all have scores of the same images.
    """
    for upscaler in upscalers:
        check_upscaler(upscaler)
    s = upscalers[0].scale
    if any(upscaler.scale != s for upscaler in upscalers):
        raise ValueError("the networks must be of one scale")
    originals = find_originals(Path(hr), None if lr is None else Path(lr), s, protocol)
    progress, gray = progress or Silent(), 0
    for path in originals.paths:
        warnings: list[str] = []
        try:
            target, lr_image = originals.read(path, warnings)
            bicubic = matlab_round(matlab_bicubic(lr_image.astype(np.float64), *target.shape[:2]))
            by = originals.gray_protocol if target.shape[2] == 1 else protocol
            reference = metrics.score(bicubic, target, s, by)
            found = []
            with progress.file(path.name, target.shape[1], target.shape[0], path) as bar:
                shared = _Shared(bar, len(upscalers))
                for i, upscaler in enumerate(upscalers):
                    result = _upscale(upscaler, lr_image, self_ensemble, shared)
                    scores = metrics.score(result, target, s, by)
                    found.append(_describe(path, scores, reference, target, s, protocol, warnings))
                    if keep is not None:
                        keep(i, path, result)
        except EDSRError as error:
            message = str(error)
            line = message if path.name in message else f"{path.name}: {message}"
            yield [{"name": path.name, "error": line} for _ in upscalers]
        except (MemoryError, torch.OutOfMemoryError):
            line = f"{path.name}: out of memory; try a smaller {either('tile', '--tile')}"
            yield [{"name": path.name, "error": line} for _ in upscalers]
        else:
            gray += target.shape[2] == 1
            yield found
    for line in originals.remarks:
        logger.info(line)
    if gray and originals.gray:
        logger.info(f"{originals.gray}: {gray} of {len(originals.paths)}")


class _Shared:
    """The progress of an image that several networks upscale, of whose rows each does a part."""

    def __init__(self, bar: ImageProgress, networks: int):
        self._bar, self._networks, self._rows = bar, networks, 0

    def advance(self, rows: int) -> None:
        before, self._rows = self._rows, self._rows + rows
        self._bar.advance(self._rows // self._networks - before // self._networks)


def _upscale(upscaler: Upscaler, image: np.ndarray, self_ensemble: bool, bar: ImageProgress) -> np.ndarray:
    """uint8 [h, w, 1 or 3] -> [s·h, s·w, the same]."""
    height, width, _ = image.shape
    step, bands = upscaler.band_rows(width, height), []
    for band in upscaler.bands((image[y : y + step] for y in range(0, height, step)), width, self_ensemble):
        bands.append(band)
        bar.advance(len(band))
    return np.concatenate(bands)


def _describe(
    path: Path,
    scores: tuple[float, float],
    bicubic: tuple[float, float],
    target: np.ndarray,
    s: int,
    protocol: str,
    warnings: list[str],
) -> dict:
    """What `evaluate` yields of an image that is scored."""
    results = {"EDSR": scores, "bicubic": bicubic}
    lines = warnings + metrics.explain_missing(results, target.shape[1], target.shape[0], s, protocol)
    found = {"name": path.name} | dict(zip(FIELDS, (*scores, *bicubic), strict=True))
    return found | ({"warnings": lines} if lines else {})


def mean_scores(images: list[dict]) -> dict:
    """The mean of each of FIELDS over what `evaluate` yields, errors left out; nan if nothing has been scored.

    Of each score it is the mean over the images of which it is finite, both the network's and bicubic's, so that the
    two can be compared (`mean_counts` says how many these are); over all if there are none such.
    """
    finite, scored = _with_finite(images), [image for image in images if "error" not in image]
    return {
        field: float(np.mean([image[field] for image in finite[field] or scored])) if scored else float("nan")
        for field in FIELDS
    }


def mean_counts(images: list[dict]) -> dict[str, int]:
    """Of how many images each mean of `mean_scores` is, where that is not all, nor all in want of a finite one."""
    scored = sum("error" not in image for image in images)
    return {field: len(chosen) for field, chosen in _with_finite(images).items() if 0 < len(chosen) < scored}


def _with_finite(images: list[dict]) -> dict[str, list[dict]]:
    """By field, the images of which it is finite, the network's and bicubic's."""
    scored = [image for image in images if "error" not in image]
    return {
        field: [image for image in scored if all(math.isfinite(image[name]) for name in _COMPARED[field])]
        for field in FIELDS
    }
