"""Tensors as callers have them, brought to images [N, 3, H, W]: never with a guess at what numbers mean."""

from typing import Any

import torch
from torch import Tensor

from .arrays import check_bounds

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def as_images(x: Any) -> Tensor:
    """[N, 3, H, W] of the dtype and on the device of x, a view.

    Args:
        x: [N, 3, H, W] or [3, H, W], floats in 0..1, which may be as far beyond as arrays may.

    Raises:
        TypeError: No tensor, or another dtype or layout.
        ValueError: Another shape, values that are NaN, infinite or far from 0..1, or gradients are asked for.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"tensor takes tensors [N, 3, H, W], not {type(x).__name__}; call the Upscaler for arrays")
    if x.dtype not in _FLOATS:
        advice = ": x / 255 if they are 0..255" if x.dtype in (torch.uint8, torch.int32, torch.int64) else ""
        raise TypeError(f"tensors are floats of 16, 32 or 64 bits in 0..1, not {x.dtype}{advice}")
    if x.layout != torch.strided:
        raise TypeError(f"tensors are dense, not {x.layout}; call .to_dense()")
    if x.ndim not in (3, 4) or x.shape[-3] != 3 or 0 in x.shape:
        raise ValueError(f"tensors are [N, 3, H, W] or [3, H, W] and not empty, not {list(x.shape)}{_hint(x)}")
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError("an Upscaler computes no gradients; give x.detach(), or call the network itself")
    if x.is_meta:
        raise ValueError("a tensor on the device meta has no values to upscale")
    low, high = (bound.item() for bound in torch.aminmax(x.detach()))  # NaN if any is
    check_bounds(low, high)
    return x.detach() if x.ndim == 4 else x.detach()[None]


def _hint(x: Tensor) -> str:
    if x.ndim in (3, 4) and x.shape[-1] == 3:
        return "; the channels come first: x.movedim(-1, -3)"
    if x.ndim in (3, 4) and x.shape[-3] == 1:
        return "; repeat gray: x.expand(3, -1, -1)" if x.ndim == 3 else "; repeat gray: x.expand(-1, 3, -1, -1)"
    return ""
