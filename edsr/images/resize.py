"""Bicubic resizing as MATLAB's `imresize(image, scale, "bicubic")` does it, with which every paper makes its LR images.

The kernel is Keys' cubic with a = -0.5, widened by the factor when reducing (antialiasing). As in
MATLAB, rows are resized first, then columns, and integer images are rounded after each pass.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F


def matlab_bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image.

    Args:
        image: [H, W] or [H, W, C]; uint8 gives uint8, rounded half up and clamped after each pass; floating point is
            computed and returned in its own precision, not clamped.
        height: in pixels, at least 1.
        width: likewise.

    Raises:
        TypeError: for other dtypes.
    """
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise TypeError(f"matlab_bicubic takes uint8 or floating point images, not {image.dtype}")
    return _resize(image, height, width, torch.device("cpu"))


def matlab_downscale(image: np.ndarray, scale: int, device: torch.device | str = "cpu") -> np.ndarray:
    """Make the LR image of an HR one: crop it at right and bottom to a multiple of `scale`, then reduce it.

    For scales 2, 3 and 4 the bits are the same on every device, whatever the order of the sums: at 2 and 4 the weights
    are whole multiples of 1/256 and 1/4096, so that nothing is rounded before the end; at 3 they are multiples of 1/81,
    so that no exact result is nearer than 1/162 to where rounding changes.

    Args:
        image: [H, W] or [H, W, C] uint8 or uint16, at least `scale` pixels each way.
        scale: a whole number.
        device: where to compute, in fp64.

    Raises:
        ValueError: if the image is too small.
    """
    height, width = image.shape[0] // scale, image.shape[1] // scale
    if height == 0 or width == 0:
        raise ValueError(f"an image of {image.shape[1]} x {image.shape[0]} is too small to reduce by {scale}")
    return _resize(image[: height * scale, : width * scale], height, width, torch.device(device))


def matlab_round(image: np.ndarray) -> np.ndarray:
    """Convert floating point in 0..255 and a little beyond to uint8 as MATLAB does: rounded half up and clamped."""
    return np.clip(np.floor(image + 0.5), 0, 255).astype(np.uint8)


def _resize(image: np.ndarray, height: int, width: int, device: torch.device) -> np.ndarray:
    """Resize [H, W] or [H, W, C]: integers (uint8, uint16) in fp64, floating point in its own precision."""
    flat = np.ascontiguousarray(image if image.ndim == 3 else image[:, :, None])
    integer = np.issubdtype(image.dtype, np.integer)
    most = np.iinfo(image.dtype).max if integer else None
    # torch knows little of uint16; a copy, because floating point could otherwise be the caller's own memory.
    x = torch.tensor(flat.astype(np.int32) if image.dtype == np.uint16 else flat).to(device)
    if integer:
        x = x.double()
    x = x.permute(2, 1, 0)[None]  # [1, C, W, H]
    for size in height, width:
        # Always along the last axis: torch 2.13 interpolates the rows of an image one pixel wide wrongly.
        x = _resize_columns(x.contiguous(), size)
        if integer:
            x = x.add_(0.5).floor_().clamp_(0, most)
        x = x.transpose(2, 3)
    y = x[0].permute(2, 1, 0).contiguous().cpu().numpy().astype(image.dtype)
    return y if image.ndim == 3 else y[:, :, 0]


def _resize_columns(x: torch.Tensor, size: int) -> torch.Tensor:
    """One pass along the last axis of [1, C, H, W], the border replicated."""
    length = x.shape[3]
    if size == length:
        return x.clone()
    # Interpolation knows no replicated border: it renormalizes the weights there. So the image is extended
    # by more than the kernel reaches (2 taps, widened when reducing), by a whole number of output pixels.
    reach = 3 * max(1, -(-length // size))
    unit = length // math.gcd(length, size)  # input pixels to a whole number of output pixels
    pad = -(-reach // unit) * unit
    extra = pad * size // length
    x = F.pad(x, (pad, pad, 0, 0), mode="replicate")
    x = F.interpolate(x, size=(x.shape[2], size + 2 * extra), mode="bicubic", antialias=True)
    return x.narrow(3, extra, size)
