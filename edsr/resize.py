"""Bicubic resizing as MATLAB's `imresize(image, scale, "bicubic")` does it: what every paper's LR files are made with.

The kernel is Keys' cubic with a = -0.5, widened by the factor when reducing (antialiasing). As in
MATLAB, rows are resized first, then columns, and integer pictures are rounded after each pass.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F


def bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The picture at another size.

    image: [H, W] or [H, W, C]; uint8 gives uint8, rounded half up and clamped after each pass; floating
    point is computed and returned in its own precision, not clamped. Sizes in pixels, at least 1.
    Raises TypeError for other dtypes.
    """
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise TypeError(f"bicubic takes uint8 or floating point pictures, not {image.dtype}")
    flat = image if image.ndim == 3 else image[:, :, None]
    integer = image.dtype == np.uint8
    x = torch.tensor(np.ascontiguousarray(flat), dtype=torch.float64 if integer else None)
    x = x.permute(2, 1, 0)[None]  # [1, C, W, H]
    for size in height, width:
        # Always along the last axis: torch 2.13 interpolates the rows of a picture one pixel wide wrongly.
        x = _resize_columns(x.contiguous(), size)
        if integer:
            x = x.add_(0.5).floor_().clamp_(0, 255)
        x = x.transpose(2, 3)
    y = x[0].permute(2, 1, 0).contiguous().numpy().astype(image.dtype)
    return y if image.ndim == 3 else y[:, :, 0]


def downscale(image: np.ndarray, scale: int) -> np.ndarray:
    """The LR picture of a HR one: cropped at right and bottom to a multiple of `scale`, then reduced by it.

    image: [H, W] or [H, W, C] uint8, at least `scale` pixels each way, else ValueError.
    """
    height, width = image.shape[0] // scale, image.shape[1] // scale
    if height == 0 or width == 0:
        raise ValueError(f"a picture of {image.shape[1]} x {image.shape[0]} is too small to reduce by {scale}")
    return bicubic(image[: height * scale, : width * scale], height, width)


def _resize_columns(x: torch.Tensor, size: int) -> torch.Tensor:
    """One pass along the last axis of [1, C, H, W], the border replicated."""
    length = x.shape[3]
    if size == length:
        return x.clone()
    # Interpolation knows no replicated border: it renormalises the weights there. So the picture is extended
    # by more than the kernel reaches (2 taps, widened when reducing), by a whole number of output pixels.
    reach = 3 * max(1, -(-length // size))
    unit = length // math.gcd(length, size)  # input pixels to a whole number of output pixels
    pad = -(-reach // unit) * unit
    extra = pad * size // length
    x = F.pad(x, (pad, pad, 0, 0), mode="replicate")
    x = F.interpolate(x, size=(x.shape[2], size + 2 * extra), mode="bicubic", antialias=True)
    return x.narrow(3, extra, size)
