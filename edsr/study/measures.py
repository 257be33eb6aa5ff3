"""What is measured of a trained network."""

import math
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from edsr.evaluation import score
from edsr.inference import Upscaler
from edsr.models import Network, build_network, multiply_adds
from edsr.system import atomic_file

from .images import load_square, reduce

TIMED_SIDE, TIMED = 192, 3  # LR pixels a side of the image that inference is timed with, and how many times


def measure(model: Network, scale: int, squares: Sequence[Path], device: str, kept: Path | None = None) -> dict:
    """Scores and times a network at one of its scales.

    Args:
        model: The network.
        scale: Which of its scales.
        squares: What is scored.
        device: What computes.
        kept: Folder for the results, as PNG; None: they are not kept.

    Returns:
        `psnr` and `ssim`: of each square, on luma. `psnr_ensemble`: of the geometric self-ensemble. `shift`: how much
        brighter the results are than the originals, in 8-bit levels, by color, mean of squares; `contrast`: the ratio
        of their standard deviations, mean of squares. `seconds` and
        `multiply_adds`: for a megapixel of the result.

    Raises:
        WeightsError: The network gives NaN or infinite values.
    """
    upscaler = Upscaler(model.at(scale), device)
    found: dict[str, Any] = {"psnr": [], "ssim": [], "psnr_ensemble": []}
    shifts, contrasts = [], []
    for path in squares:
        high = load_square(path)
        low = reduce(high, scale)
        result, ensemble = upscaler(low), upscaler(low, self_ensemble=True)
        for name, value in zip(("psnr", "ssim"), score(result, high, scale), strict=True):
            found[name].append(value)
        found["psnr_ensemble"].append(score(ensemble, high, scale)[0])
        one, other = result.astype(np.float64), high.astype(np.float64)
        shifts.append((one - other).mean((0, 1)))
        contrasts.append(one.std((0, 1)).mean() / max(1e-9, other.std((0, 1)).mean()))
        if kept is not None:
            kept.mkdir(parents=True, exist_ok=True)
            with atomic_file(kept / path.name) as file:
                Image.fromarray(result).save(file, "PNG")
    side = TIMED_SIDE // scale
    image, seconds = np.full((side, side, 3), 128, np.uint8), []
    upscaler(image)
    for _ in range(TIMED):
        begun = time.perf_counter()
        upscaler(image)
        seconds.append(time.perf_counter() - begun)
    megapixels = (side * scale) ** 2 / 1e6
    found["seconds"] = statistics.median(seconds) / megapixels
    found["multiply_adds"] = multiply_adds(model.at(scale)) * 1e6 / scale**2
    return found | {"shift": np.mean(shifts, 0).tolist(), "contrast": float(np.mean(contrasts))}


def mean_of_finite(scores: Iterable[float | None]) -> float | None:
    """The mean of those that are finite: PSNR of equal images is not, and None is what JSON keeps of it.

    None if there are none.
    """
    finite = [score for score in scores if score is not None and math.isfinite(score)]
    return statistics.mean(finite) if finite else None


def peak_bytes(device: str) -> int:
    """The most memory that this process has had so far: a GPU's, or the system's."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def bytes_kept_for_gradients(config: Any, batch: int, patch: int) -> int:
    """What a training step keeps of a network's maps between its forward and its backward pass, by PyTorch's account.

    The same on every machine, where the peak of a process is not. Each tensor counts once; the network's own do not.
    """
    model = build_network(config).train()
    own = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    seen: dict[int, int] = {}
    held = []  # so that no memory is used again

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
            held.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model(torch.rand(batch, 3, patch, patch)).mean()
    return sum(seen.values())
