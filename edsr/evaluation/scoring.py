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
    """Scores a network on each image of a folder, in order of name.

    Args:
        upscaler: The network, on a device.
        hr: Folder of original images; they are cropped at right and bottom to a multiple of the scale.
        lr: Folder of their low-resolution images, `NAME.png` or `NAMEx2.png`; by default they are made as MATLAB's
            bicubic does.
        protocol: See `edsr.evaluation.metrics.score`.
        self_ensemble: See `Upscaler.bands`.

    Yields:
        {"name", "psnr", "ssim", "bicubic_psnr", "bicubic_ssim"}; PSNR in dB, inf where nothing differs, SSIM nan where
        fewer than 11 pixels a side are scored.

    Raises:
        EvaluateError: An image is too small, or does not fit its low-resolution image.
        ImageError: A file cannot be read, or there are none.
    """
    s = upscaler.scale
    hr_paths = find_images(hr)
    lr_paths = {path.stem: path for path in find_images(lr)} if lr else {}
    for path in hr_paths:
        target = read_image(path)
        if min(target.shape[:2]) <= 2 * (s + 6):
            raise EvaluateError(f"{path}: {target.shape[1]} x {target.shape[0]} is too small to score; remove it")
        target = target[: target.shape[0] // s * s, : target.shape[1] // s * s]
        if lr:
            lr_path = lr_paths.get(path.stem) or lr_paths.get(f"{path.stem}x{s}")
            if lr_path is None:
                names = f"{path.stem}.png or {path.stem}x{s}.png"
                raise EvaluateError(f"{lr} has no low-resolution image of {path.name} ({names})")
            lr_image = read_image(lr_path)
        else:
            lr_image = matlab_downscale(target, s)
        if (lr_image.shape[0] * s, lr_image.shape[1] * s, lr_image.shape[2]) != target.shape:
            raise EvaluateError(
                f"{path.name}: its low-resolution image is {lr_image.shape[1]} x {lr_image.shape[0]}, not a {s}th of "
                f"{target.shape[1]} x {target.shape[0]}; check --scale and --lr"
            )
        result = upscaler(lr_image, self_ensemble=self_ensemble)
        bicubic = matlab_round(matlab_bicubic(lr_image.astype(np.float64), *target.shape[:2]))
        scores = *metrics.score(result, target, s, protocol), *metrics.score(bicubic, target, s, protocol)
        yield {"name": path.name} | dict(zip(FIELDS, scores, strict=True))


def mean_scores(images: list[dict]) -> dict:
    """The mean of each of FIELDS over what `evaluate` yields."""
    return {field: float(np.mean([image[field] for image in images])) for field in FIELDS}
