"""How good a network is while it is trained: cheap enough to be asked often."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from edsr.degrade import Degradation, degraded
from edsr.metrics import psnr, scored
from edsr.model import EDSR
from edsr.pictures import Pictures, pack
from edsr.resize import bicubic

SEED = 0  # of what is done to validation pictures: the same in every run, so that runs can be compared


class Scores(NamedTuple):
    """psnr: of the pictures as they are, in dB. degraded: of the same with their LR side degraded, if asked for."""

    psnr: float
    degraded: float | None = None

    @property
    def both(self) -> float:
        """What the best weights are best by: the mean of the two."""
        return self.psnr if self.degraded is None else (self.psnr + self.degraded) / 2


def worsened(pictures: Pictures, degradation: Degradation) -> Pictures:
    """The pictures with LR sides all degraded, whole; HR sides as they are."""
    every = replace(degradation, clean=0.0)
    pairs = [pictures.pair(i) for i in range(len(pictures))]
    lows = [degraded(low, every.draw(SEED, 0, i)) for i, (low, _) in enumerate(pairs)]
    return pack([(low, high) for low, (_, high) in zip(lows, pairs, strict=True)], pictures.scale)


def validate(model: EDSR, pictures: Pictures, scale: int) -> tuple[float, dict[str, np.ndarray]]:
    """Mean PSNR in dB on luma, a border of `scale` pixels left out; and of the first three pictures details at most
    192 pixels a side, uint8: bicubic, network and original side by side."""
    device = next(model.parameters()).device
    scores, samples = [], {}
    for i in range(len(pictures)):
        low, high = map(_eight_bits, pictures.pair(i))
        with torch.no_grad():
            x = torch.from_numpy(np.ascontiguousarray(low)).to(device).permute(2, 0, 1)[None].float().div_(255)
            y = model(x).clamp_(0, 1).mul_(255).round_().byte()[0].permute(1, 2, 0).cpu().numpy()
        scores.append(psnr(*scored(y, high, scale)))
        if i < 3:
            h, w = (min(192 // scale, side) * scale for side in low.shape[:2])
            views = bicubic(np.ascontiguousarray(low[: h // scale, : w // scale]), h, w), y[:h, :w], high[:h, :w]
            samples[f"sample/{i}"] = np.concatenate(views, axis=1)
    return float(np.mean(scores)), samples


def _eight_bits(image: np.ndarray) -> np.ndarray:
    return image if image.dtype == np.uint8 else ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
