"""How good a network is while it is trained, measured cheaply enough to be done often."""

import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

from edsr.data import Degradation, PairedImages, degrade
from edsr.devices import in_precision
from edsr.evaluation import psnr, scored_region
from edsr.images import matlab_bicubic, to_depth
from edsr.models import Network

logger = logging.getLogger(__name__)

PROBE_IMAGES = 4  # from which a run judges whether it has learned at all
PROBE_SIDE = 48  # LR pixels of each
DEGRADATION_SEED = 0  # of validation images: the same in every run, so that runs can be compared
SAMPLES, SAMPLE_SIDE = 3, 192  # images of which details are shown, of so many HR pixels a side at most


class Scores(NamedTuple):
    """PSNR in dB of a network.

    Args:
        psnr: Of the validation images as they are.
        degraded: Of the same with LR sides degraded, in a run that trains on such.
        sets: Of each set by its name, as the images are; empty if there is only one.
    """

    psnr: float
    degraded: float | None = None
    sets: Mapping[str, float] = MappingProxyType({})

    @property
    def mean(self) -> float:
        """Of clean and degraded, where there are two: the best weights are best by this."""
        return self.psnr if self.degraded is None else (self.psnr + self.degraded) / 2


def degrade_images(images: PairedImages, degradation: Degradation) -> PairedImages:
    """The images with all LR sides degraded; HR sides as they are."""
    every = replace(degradation, clean=0.0)
    pairs = [images.pair(i) for i in range(len(images))]
    lows = [degrade(low, every.draw(DEGRADATION_SEED, 0, i)) for i, (low, _) in enumerate(pairs)]
    return PairedImages.from_pairs([(low, high) for low, (_, high) in zip(lows, pairs, strict=True)], images.scale)


def probe_patches(images: PairedImages, degradation: Degradation | None) -> PairedImages:
    """Centers of a few images, degraded if that is asked for: `mean_absolute_error` takes a second on one core."""
    s, pairs = images.scale, []
    for i in np.unique(np.linspace(0, len(images) - 1, PROBE_IMAGES).astype(int)):
        low, high = images.pair(i)
        height, width = (min(PROBE_SIDE, side) for side in low.shape[:2])
        y, x = (low.shape[0] - height) // 2, (low.shape[1] - width) // 2
        low, high = low[y : y + height, x : x + width], high[s * y : s * (y + height), s * x : s * (x + width)]
        pairs.append((low, high))
    centers = PairedImages.from_pairs(pairs, s)
    return centers if degradation is None else degrade_images(centers, degradation)


def mean_absolute_error(model: Network, images: PairedImages) -> float:
    """Mean absolute difference of the network's output and the target, in values of 0..1; may be infinite or NaN.

    The output is not clamped, so that a network that has diverged differs from one that has learned nothing.
    """
    device = next(model.parameters()).device
    model, means = model.at(images.scale), []
    for i in range(len(images)):
        low, high = (
            torch.from_numpy(np.ascontiguousarray(to_depth(image, np.uint8)))
            .to(device)
            .permute(2, 0, 1)[None]
            .float()
            .div_(255)
            for image in images.pair(i)
        )
        with torch.no_grad(), in_precision(torch.float32, device):
            means.append((model(low) - high).abs().mean().item())
    return float(np.mean(means))


def bicubic_psnr(images: PairedImages) -> float:
    """PSNR in dB of bicubic upscaling, measured as `validate` measures a network's."""
    scores = []
    for i in range(len(images)):
        low, high = (np.ascontiguousarray(to_depth(image, np.uint8)) for image in images.pair(i))
        scores.append(psnr(*scored_region(matlab_bicubic(low, *high.shape[:2]), high, images.scale)))
    return _mean_psnr(scores)


def is_flat(high: np.ndarray, scale: int) -> bool:
    """Whether an image, uint8 or uint16 [H, W, 3], has one luma in all that is scored: even bicubic's PSNR may then be
    infinite, and it tells nothing of a network."""
    high = to_depth(high, np.uint8)
    scored, _ = scored_region(high, high, scale)
    return bool((scored == scored.flat[0]).all())


def _mean_psnr(scores: Sequence[float], kind: str = "images") -> float:
    """The mean of those that are finite, which is logged where some are not; inf if none is."""
    finite = [score for score in scores if math.isfinite(score)]
    if 0 < len(finite) < len(scores):
        exact = f"{len(scores) - len(finite)} of {len(scores)} validation {kind}"
        logger.info(f"{exact} come out exact, with infinite PSNR: the mean is of the others")
    return float(np.mean(finite or scores))


def validate(
    model: Network, images: PairedImages, scale: int, measured: Callable[[], object] = lambda: None
) -> tuple[float, dict[str, np.ndarray]]:
    """Measures a network on validation images; calls `measured` after each.

    Returns:
        Mean PSNR in dB on luma, a border of `scale` pixels left out, of images that are not exact; and by name, of the
        first SAMPLES images, a detail of at most SAMPLE_SIDE pixels a side, uint8: bicubic, output and target side by
        side.
    """
    device = next(model.parameters()).device
    model, scores, samples = model.at(scale), [], {}
    for i in range(len(images)):
        low, high = (to_depth(image, np.uint8) for image in images.pair(i))
        with torch.no_grad(), in_precision(torch.float32, device):
            x = torch.from_numpy(np.ascontiguousarray(low)).to(device).permute(2, 0, 1)[None].float().div_(255)
            y = model(x).clamp_(0, 1).mul_(255).round_().byte()[0].permute(1, 2, 0).cpu().numpy()
        scores.append(psnr(*scored_region(y, high, scale)))
        if i < SAMPLES:
            h, w = (min(SAMPLE_SIDE // scale, side) * scale for side in low.shape[:2])
            views = matlab_bicubic(np.ascontiguousarray(low[: h // scale, : w // scale]), h, w), y[:h, :w], high[:h, :w]
            samples[f"sample/{i}"] = np.concatenate(views, axis=1)
        measured()
    return _mean_psnr(scores), samples


class ValidationSets:
    """The images that a run validates on.

    Args:
        sets: By name. Scores are means over sets of the means over images.
        degradation: What is done to LR sides for a second score; None for a run that trains on images as they are.

    Attributes:
        bicubic: What bicubic upscaling has, measured as a network is.
    """

    def __init__(self, sets: Mapping[str, PairedImages], degradation: Degradation | None):
        self.sets = sets
        self._degraded = {name: degrade_images(images, degradation) for name, images in sets.items() if degradation}
        by_set = [{name: bicubic_psnr(images) for name, images in kind.items()} for kind in (sets, self._degraded)]
        self.bicubic = _scores(*by_set)

    def measure(self, model: Network, watch: Callable[[int, int], object]) -> tuple[Scores, dict[str, np.ndarray]]:
        """Scores of a network, and samples as `validate` gives them, of each set.

        Args:
            model: The network.
            watch: Called after each image with how many are done, and how many there are.
        """
        done = itertools.count(1)
        total = sum(len(images) for kind in (self.sets, self._degraded) for images in kind.values())

        def measured() -> None:
            watch(next(done), total)

        samples, found = {}, []
        for prefix, kind in ("", self.sets), ("degraded-", self._degraded):
            psnrs = {}
            for name, images in kind.items():
                psnrs[name], views = validate(model, images, images.scale, measured)
                of_set = f"{name}/" if len(self.sets) > 1 else ""
                samples |= {f"{prefix}{of_set}{sample}": view for sample, view in views.items()}
            found.append(psnrs)
        return _scores(*found), samples


def _scores(clean: Mapping[str, float], degraded: Mapping[str, float]) -> Scores:
    """The scores of PSNR by set."""
    means = [_mean_psnr([*kind.values()], "sets") if kind else None for kind in (clean, degraded)]
    return Scores(means[0] or 0.0, means[1], clean if len(clean) > 1 else {})
