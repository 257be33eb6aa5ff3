"""PSNR and SSIM as super-resolution papers report them.

All functions take images as arrays in 0..255, [H, W] or [H, W, C], and compute in fp64.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

PROTOCOLS = ("y", "edsr", "rgb", "div2k")
SSIM_SIDE = 11  # of SSIM's window, which must fit into an image
_BAND_PIXELS = 2**18


def luma(image: np.ndarray) -> np.ndarray:
    """BT.601 studio-swing luma, 16..235, rounded to whole numbers as MATLAB's `rgb2ycbcr` does for uint8.

    [H, W, 3] RGB in 0..255 -> [H, W]; a gray image, [H, W] or [H, W, 1], stays as it is.
    """
    if image.ndim == 2 or image.shape[2] == 1:
        return image.reshape(image.shape[:2]).astype(np.float64)
    return np.floor(16.5 + _unrounded(image))


def unrounded_luma(image: np.ndarray) -> np.ndarray:
    """The same luma as EDSR-PyTorch scores it, without rounding, and of a gray image, too, as if it were RGB: 16..235.

    [H, W], [H, W, 1] or [H, W, 3] in 0..255 -> [H, W].
    """
    return 16 + _unrounded(np.broadcast_to(image.reshape(*image.shape[:2], -1), (*image.shape[:2], 3)))


def _unrounded(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] RGB in 0..255 -> [H, W] luma above black, 0..219."""
    return image.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255.0


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """10·log10(255² / mean((a - b)²)) in dB; inf for equal images.

    Raises:
        ValueError: The shapes differ.
    """
    _check_same_shape(a, b)
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def ssim(a: np.ndarray, b: np.ndarray, band_pixels: int = _BAND_PIXELS) -> float:
    """Structural similarity (Wang et al. 2004): 11x11 Gaussian window of sigma 1.5, windows inside the image.

    Channels are scored one by one and averaged.

    Args:
        a: An image.
        b: Another.
        band_pixels: About how many pixels are computed at once; the result depends on it by rounding alone.

    Raises:
        ValueError: The shapes differ, or a side is shorter than 11 pixels.
    """
    _check_same_shape(a, b)
    if min(a.shape[:2]) < SSIM_SIDE:
        raise ValueError(f"SSIM needs {SSIM_SIDE} pixels a side, not {a.shape[1]} x {a.shape[0]}")
    taps = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()

    def mean(z):  # [C, 1, h, W] -> [C, 1, h - 10, W - 10]
        return F.conv2d(F.conv2d(z, taps.view(1, 1, 11, 1)), taps.view(1, 1, 1, 11))

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    height, width = a.shape[0] - 10, a.shape[1] - 10  # of windows
    step, total = max(64, band_pixels // a.shape[1]), 0.0  # in bands: eight such maps of a whole image are gigabytes
    for top in range(0, height, step):
        x, y = (_channels(image[top : min(top + step, height) + 10]) for image in (a, b))
        mx, my = mean(x), mean(y)
        vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
        scores = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
        total += float(scores.sum()) / len(x)
    return total / (height * width)


def _channels(rows: np.ndarray) -> torch.Tensor:
    """[h, W] or [h, W, C] -> fp64 [C, 1, h, W]."""
    return torch.from_numpy(rows.astype(np.float64).reshape(*rows.shape[:2], -1)).permute(2, 0, 1)[:, None]


def score(sr: np.ndarray, hr: np.ndarray, scale: int, protocol: str = "y") -> tuple[float, float]:
    """(PSNR in dB, SSIM) of a result against its original.

    Args:
        sr: The result, uint8.
        hr: The original, uint8 of the same shape.
        scale: The upscaling factor.
        protocol: "y": `luma`, a border of `scale` pixels left out, as for Set5, Set14, B100 and Urban100 by MATLAB's
            scripts. "edsr": `unrounded_luma`, the same border, as for EDSR-PyTorch's figures of them. "rgb": all
            channels, the same border. "div2k": all channels, a border of 6 + `scale` pixels (NTIRE 2017).

    Returns:
        PSNR is inf for equal images; SSIM is nan with fewer than 11 pixels a side inside the border.

    Raises:
        ValueError: No pixel is left inside the border, the shapes differ, or there is no such protocol.
    """
    a, b = scored_region(sr, hr, scale, protocol)
    return psnr(a, b), ssim(a, b) if min(a.shape[:2]) >= SSIM_SIDE else float("nan")


def explain_missing(
    scores: Mapping[str, tuple[float, float]], width: int, height: int, scale: int, protocol: str = "y"
) -> list[str]:
    """Says in lines which scores of an image are no numbers, and why.

    Args:
        scores: (PSNR, SSIM) as `score` gives them, by what the result is called.
        width: Of the images compared, in pixels.
        height: Of the images compared, in pixels.
        scale: As for `score`.
        protocol: As for `score`.
    """
    border = border_pixels(scale, protocol)
    inside = f"inside the border of {border} are {width - 2 * border} x {height - 2 * border}"
    lines = [f"{name}: exact, so PSNR is infinite" for name, (psnr, _) in scores.items() if math.isinf(psnr)]
    if any(math.isnan(ssim) for _, ssim in scores.values()):
        lines.append(f"no SSIM, which needs {SSIM_SIDE} pixels a side: {inside}")
    return lines


def scored_region(sr: np.ndarray, hr: np.ndarray, scale: int, protocol: str = "y") -> tuple[np.ndarray, np.ndarray]:
    """The pixels of both images that a protocol compares; arguments as for `score`.

    Raises:
        ValueError: No pixel is left inside the border, or there is no such protocol.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: choose {', '.join(PROTOCOLS[:-1])} or {PROTOCOLS[-1]}")
    border = border_pixels(scale, protocol)
    scored = {"y": luma, "edsr": unrounded_luma}.get(protocol, np.asarray)
    a, b = scored(sr), scored(hr)
    a, b = (image[border : image.shape[0] - border, border : image.shape[1] - border] for image in (a, b))
    if a.size == 0:
        raise ValueError(f"{sr.shape[1]} x {sr.shape[0]} pixels leave none inside a border of {border}")
    return a, b


def border_pixels(scale: int, protocol: str) -> int:
    """How many pixels at each side of an image a protocol leaves out."""
    return scale + 6 if protocol == "div2k" else scale


def _check_same_shape(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise ValueError(f"images differ in shape: {a.shape} and {b.shape}")
