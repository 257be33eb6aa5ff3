"""Scores of a network on a folder of originals, beside bicubic's, as papers report them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edsr.errors import EvaluateError
from edsr.images import find_images, matlab_bicubic, matlab_downscale, matlab_round, read_image
from edsr.inference import Upscaler

from . import metrics

FIELDS = ("psnr", "ssim", "bicubic_psnr", "bicubic_ssim")


def evaluate(
    upscaler: Upscaler,
    hr: str | Path,
    lr: str | Path | None = None,
    protocol: str = "y",
    self_ensemble: bool = False,
) -> Iterator[dict]:
    """One {"name", "psnr", "ssim", "bicubic_psnr", "bicubic_ssim"} per image of `hr`, in order of name.

    hr: folder of originals, cropped at right and bottom to a multiple of the scale. lr: folder of their
    reductions, `NAME.png` or `NAMEx2.png`; None makes them as MATLAB's bicubic does. protocol: see
    `edsr.evaluation.metrics.score`. Raises EvaluateError or ImageError.
    """
    s = upscaler.scale
    originals = find_images(hr)
    reductions = {path.stem: path for path in find_images(lr)} if lr else {}
    for path in originals:
        original = read_image(path)
        if min(original.shape[:2]) <= 2 * (s + 6):
            raise EvaluateError(f"{path}: {original.shape[1]} x {original.shape[0]} is too small to score; remove it")
        original = original[: original.shape[0] // s * s, : original.shape[1] // s * s]
        if lr:
            found = reductions.get(path.stem) or reductions.get(f"{path.stem}x{s}")
            if found is None:
                raise EvaluateError(f"{lr} has no reduction of {path.name} ({path.stem}.png or {path.stem}x{s}.png)")
            low = read_image(found)
        else:
            low = matlab_downscale(original, s)
        if (low.shape[0] * s, low.shape[1] * s, low.shape[2]) != original.shape:
            raise EvaluateError(
                f"{path.name}: its reduction is {low.shape[1]} x {low.shape[0]}, not a {s}th of "
                f"{original.shape[1]} x {original.shape[0]}; check --scale and --lr"
            )
        result = upscaler(low, self_ensemble=self_ensemble)
        smooth = matlab_round(matlab_bicubic(low.astype(np.float64), *original.shape[:2]))
        scores = *metrics.score(result, original, s, protocol), *metrics.score(smooth, original, s, protocol)
        yield {"name": path.name} | dict(zip(FIELDS, scores, strict=True))


def mean_scores(images: list[dict]) -> dict:
    """The mean of each score over images."""
    return {field: float(np.mean([image[field] for image in images])) for field in FIELDS}
