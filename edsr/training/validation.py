"""How good a network is while it is trained: cheap enough to be asked often."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from edsr.data import Degradation, PairedImages, degrade, pack
from edsr.evaluation import psnr, scored
from edsr.images import matlab_bicubic
from edsr.models import EDSR

PROBED = 4  # images from which a run judges whether it has learnt at all, and of each so many LR pixels a side
PROBE = 48
SEED = 0  # of what is done to validation images: the same in every run, so that runs can be compared


class Scores(NamedTuple):
    """psnr: of the images as they are, in dB. degraded: of the same with their LR side degraded, if asked for."""

    psnr: float
    degraded: float | None = None

    @property
    def both(self) -> float:
        """What the best weights are best by: the mean of the two."""
        return self.psnr if self.degraded is None else (self.psnr + self.degraded) / 2


def worsened(images: PairedImages, degradation: Degradation) -> PairedImages:
    """The images with LR sides all degraded, whole; HR sides as they are."""
    every = replace(degradation, clean=0.0)
    pairs = [images.pair(i) for i in range(len(images))]
    lows = [degrade(low, every.draw(SEED, 0, i)) for i, (low, _) in enumerate(pairs)]
    return pack([(low, high) for low, (_, high) in zip(lows, pairs, strict=True)], images.scale)


def probe(images: PairedImages, degradation: Degradation | None) -> PairedImages:
    """Middles of a few images, degraded if that is asked for: what `misfit` takes a second for on one core."""
    s, pairs = images.scale, []
    for i in np.unique(np.linspace(0, len(images) - 1, PROBED).astype(int)):
        low, high = images.pair(i)
        height, width = (min(PROBE, side) for side in low.shape[:2])
        y, x = (low.shape[0] - height) // 2, (low.shape[1] - width) // 2
        low, high = low[y : y + height, x : x + width], high[s * y : s * (y + height), s * x : s * (x + width)]
        pairs.append((low, high))
    middles = pack(pairs, s)
    return middles if degradation is None else worsened(middles, degradation)


def misfit(model: EDSR, images: PairedImages) -> float:
    """Mean absolute difference of network and original, values being 0..1; may be infinite or NaN.

    The network's are not cut off at 0 and 1, so that one that has diverged is told from one that knows nothing.
    """
    device = next(model.parameters()).device
    means = []
    for i in range(len(images)):
        low, high = (
            torch.from_numpy(np.ascontiguousarray(_eight_bits(image)))
            .to(device)
            .permute(2, 0, 1)[None]
            .float()
            .div_(255)
            for image in images.pair(i)
        )
        with torch.no_grad():
            means.append((model(low) - high).abs().mean().item())
    return float(np.mean(means))


def plain(images: PairedImages) -> float:
    """What bicubic enlargement has where `validate` gives a network's PSNR, in dB."""
    scores = []
    for i in range(len(images)):
        low, high = (np.ascontiguousarray(_eight_bits(image)) for image in images.pair(i))
        scores.append(psnr(*scored(matlab_bicubic(low, *high.shape[:2]), high, images.scale)))
    return float(np.mean(scores))


def validate(model: EDSR, images: PairedImages, scale: int) -> tuple[float, dict[str, np.ndarray]]:
    """Mean PSNR in dB on luma, a border of `scale` pixels left out; and of the first three images details at most
    192 pixels a side, uint8: bicubic, network and original side by side."""
    device = next(model.parameters()).device
    scores, samples = [], {}
    for i in range(len(images)):
        low, high = map(_eight_bits, images.pair(i))
        with torch.no_grad():
            x = torch.from_numpy(np.ascontiguousarray(low)).to(device).permute(2, 0, 1)[None].float().div_(255)
            y = model(x).clamp_(0, 1).mul_(255).round_().byte()[0].permute(1, 2, 0).cpu().numpy()
        scores.append(psnr(*scored(y, high, scale)))
        if i < 3:
            h, w = (min(192 // scale, side) * scale for side in low.shape[:2])
            views = matlab_bicubic(np.ascontiguousarray(low[: h // scale, : w // scale]), h, w), y[:h, :w], high[:h, :w]
            samples[f"sample/{i}"] = np.concatenate(views, axis=1)
    return float(np.mean(scores)), samples


def _eight_bits(image: np.ndarray) -> np.ndarray:
    return image if image.dtype == np.uint8 else ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
