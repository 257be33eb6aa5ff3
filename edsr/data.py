"""Training patches cut from folders of pictures, the same ones for the same seed and step."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edsr import imageio
from edsr.resize import downscale


class DataError(Exception):
    """The pictures given cannot be trained on; one line that says what to do."""


def load_pairs(
    paths: Iterable[Path], scale: int, patch: int, skipped: Callable[[str], None]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(LR, HR) of each picture, [h, w, 3] and [s·h, s·w, 3] uint8, decoded and reduced once, kept in memory.

    Gray pictures are repeated to three channels. Unreadable pictures and those with fewer than `patch` LR
    pixels a side are left out, `skipped` being told in one line. Raises DataError if none is left.
    """
    pairs = []
    for path in paths:
        try:
            hr = imageio.read(path)
        except imageio.ImageError as error:
            skipped(str(error))
            continue
        if min(hr.shape[:2]) < patch * scale:
            skipped(f"{path}: {hr.shape[1]} x {hr.shape[0]} is smaller than a patch of {patch * scale} pixels")
            continue
        hr = hr[: hr.shape[0] // scale * scale, : hr.shape[1] // scale * scale]
        hr = np.ascontiguousarray(np.broadcast_to(hr, (*hr.shape[:2], 3)))
        pairs.append((downscale(hr, scale), hr))
    if not pairs:
        raise DataError("no picture left to train on; give other folders with --data or a smaller --patch")
    return pairs


class PatchSampler:
    """Batches of random patches, flipped and rotated by quarter turns.

    pairs: as `load_pairs` gives them. A picture is drawn in proportion to its area, so that every patch is
    as likely as any other. The batch of a step depends on (seed, step) alone: a resumed run needs no state.
    """

    def __init__(self, pairs: list[tuple[np.ndarray, np.ndarray]], scale: int, patch: int, batch: int, seed: int):
        self.pairs, self.scale, self.patch, self.batch, self.seed = pairs, scale, patch, batch, seed
        areas = np.array([lr.shape[0] * lr.shape[1] for lr, _ in pairs], dtype=np.float64)
        self.chance = areas / areas.sum()

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """(LR [N, 3, p, p], HR [N, 3, s·p, s·p]) of a step, float32 in 0..1."""
        random = np.random.default_rng((self.seed, step))
        p, s = self.patch, self.scale
        lrs, hrs = [], []
        for index in random.choice(len(self.pairs), size=self.batch, p=self.chance):
            lr, hr = self.pairs[index]
            y, x = random.integers(lr.shape[0] - p + 1), random.integers(lr.shape[1] - p + 1)
            turns, flip = int(random.integers(4)), bool(random.integers(2))
            for patches, image, r in (lrs, lr, 1), (hrs, hr, s):
                cut = np.rot90(image[y * r : (y + p) * r, x * r : (x + p) * r], turns)
                patches.append(cut[:, ::-1] if flip else cut)
        return _to_tensor(lrs), _to_tensor(hrs)


def _to_tensor(patches: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2).float().div_(255)
