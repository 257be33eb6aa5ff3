"""Scores of a network on a folder of originals, beside bicubic's, as papers report them."""

import logging
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from edsr.errors import EDSRError, EvaluateError
from edsr.images import (
    find_images,
    matlab_bicubic,
    matlab_downscale,
    matlab_round,
    passed_over,
    read_opaque,
    scan_images,
)
from edsr.inference import Upscaler

from . import metrics

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
            scale. A gray one is scored on its values as they are, 0 to 255, by every protocol, as MATLAB's scripts do.
        lr: Folder of their low-resolution images, `NAME.png` or `NAMEx2.png`; by default they are made as MATLAB's
            bicubic does.
        protocol: See `edsr.evaluation.metrics.score`.
        self_ensemble: See `Upscaler.bands`.

    Yields:
        {"name", "psnr", "ssim", "bicubic_psnr", "bicubic_ssim"}; PSNR in dB, inf where nothing differs, SSIM nan where
        fewer than 11 pixels a side are scored; then also "warnings", lines for a person that say so. Or {"name",
        "error"}, the error being a line for a person.

    Raises:
        ImageError: A folder cannot be read, or holds no images.
    """
    scan = scan_images(hr)
    paths = scan.images
    lr_paths = None if lr is None else _LowResolution(Path(lr), upscaler.scale)
    gray = 0
    for path in paths:
        try:
            target = _read_original(path, upscaler.scale, protocol)
            lr_image = matlab_downscale(target, upscaler.scale) if lr_paths is None else lr_paths.read(path, target)
            scores = _score(upscaler, lr_image, target, protocol, self_ensemble)
        except EDSRError as error:
            message = str(error)
            yield {"name": path.name, "error": message if path.name in message else f"{path.name}: {message}"}
        except (MemoryError, torch.OutOfMemoryError):
            yield {"name": path.name, "error": f"{path.name}: out of memory; try a smaller --tile"}
        else:
            gray += target.shape[2] == 1
            results = {"EDSR": (scores[0], scores[1]), "bicubic": (scores[2], scores[3])}
            lines = metrics.explain_missing(results, target.shape[1], target.shape[0], upscaler.scale, protocol)
            found = {"name": path.name} | dict(zip(FIELDS, scores, strict=True))
            yield found | ({"warnings": lines} if lines else {})
    if scan.others:
        logger.info(passed_over(scan.others, f"of {hr} are "))
    if gray and protocol == "y":
        logger.info(f"gray images are scored on their values as they are, 0 to 255: {gray} of {len(paths)}")


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


def _score(
    upscaler: Upscaler, lr_image: np.ndarray, target: np.ndarray, protocol: str, self_ensemble: bool
) -> tuple[float, ...]:
    """The scores in the order of FIELDS."""
    result = upscaler(lr_image, self_ensemble=self_ensemble)
    bicubic = matlab_round(matlab_bicubic(lr_image.astype(np.float64), *target.shape[:2]))
    return tuple(
        score for image in (result, bicubic) for score in metrics.score(image, target, upscaler.scale, protocol)
    )


def _read_original(path: Path, s: int, protocol: str) -> np.ndarray:
    """An original, cropped to a multiple of the scale."""
    whole = read_opaque(path)
    target = whole[: whole.shape[0] // s * s, : whole.shape[1] // s * s]
    if min(whole.shape[:2]) <= 2 * (s + 6) or min(target.shape[:2]) <= 2 * metrics.border_pixels(s, protocol):
        raise EvaluateError(f"{path}: {whole.shape[1]} x {whole.shape[0]} is too small to score; remove it")
    return target


class _LowResolution:
    """A folder of low-resolution images, found by the name of their original."""

    def __init__(self, folder: Path, scale: int):
        self.folder, self.scale = folder, scale
        self._by_stem: defaultdict[str, list[Path]] = defaultdict(list)
        for path in find_images(folder):
            self._by_stem[path.stem].append(path)

    def read(self, original: Path, target: np.ndarray) -> np.ndarray:
        """The image that belongs to an original, whose pixels are `target`. Raises EvaluateError or ImageError."""
        s, stem = self.scale, original.stem
        found = self._by_stem[stem] + self._by_stem[f"{stem}x{s}"]
        if not found:
            names = f"{stem}.png or {stem}x{s}.png"
            raise EvaluateError(f"{self.folder} has no low-resolution image of {original.name} ({names})")
        if len(found) > 1:
            names = " and ".join(path.name for path in found)
            raise EvaluateError(f"{self.folder}: {names} may both belong to {original.name}; keep one of them")
        image = read_opaque(found[0])
        if (image.shape[0] * s, image.shape[1] * s) != target.shape[:2]:
            raise EvaluateError(
                f"{original.name}: its low-resolution image is {image.shape[1]} x {image.shape[0]}, not a {s}th of "
                f"{target.shape[1]} x {target.shape[0]}; check --scale and --lr"
            )
        if image.shape[2] == target.shape[2]:
            return image
        if any((pixels != pixels[..., :1]).any() for pixels in (image, target)):
            kinds = ("gray", "RGB") if image.shape[2] == 1 else ("RGB", "gray")
            raise EvaluateError(f"{original.name}: its low-resolution image is {kinds[0]}, not {kinds[1]}; check --lr")
        return np.repeat(image, 3, 2) if image.shape[2] == 1 else np.ascontiguousarray(image[..., :1])
