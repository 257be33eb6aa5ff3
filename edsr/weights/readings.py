"""What a checkpoint does not say, found by trying: the range of its pixels, and its residual scale.

A trained network gives its input back, only larger, if it is read as it was trained. Read with another pixel range or
another residual scale it gives something else: a network of residual scale 0.1 read with 1 is off by more than a tenth
of the range, one of 1 read with 0.1 may lose detail, or hardly any (the packaged `edsr-baseline`). Those, networks that
change their input on purpose (trained on compressed images) and untrained ones may not tell; then what is usual is
assumed, and said.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from edsr.errors import WeightsError
from edsr.models import EDSR
from edsr.wording import option

from .edsr import build_model

PUBLISHED = (1.0, 0.1)
"""Residual scales that networks are published with."""

OTHERS = (0.03, 0.05, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

GOOD = 0.05
"""Largest error, of the range 0..1, of a network that gives its input back. The packaged ones: 0.001 to 0.022."""

BETTER = 2.0
"""How many times smaller the error of an unusual reading must be to be believed."""

CERTAIN = 0.005
"""An error this small cannot be another reading's by chance: nothing else is tried."""


class Reading(NamedTuple):
    """A network built from a checkpoint in one of the ways it can be read.

    Attributes:
        model: The network.
        layout: As which project's it is read.
        error: What it makes of an image, see `_reconstruction`.
        output: That image, upscaled.
    """

    model: EDSR
    layout: str
    error: float
    output: Tensor

    def beats(self, other: "Reading") -> bool:
        """Whether it gives images back, and the other does much worse."""
        return self.error < min(GOOD, other.error / BETTER)


def resolve(
    tensors: dict[str, Tensor], name: str, residual_scale: float | None, layouts: tuple[str, ...]
) -> tuple[EDSR, str, str]:
    """Decides how a checkpoint that does not say all is read; see `edsr.weights.load_model`.

    Args:
        tensors: The checkpoint's, by its own keys.
        name: The layout that its keys have.
        residual_scale: None to find it.
        layouts: In which of AMBIGUOUS it may be read; none for `name` alone.

    Returns:
        The network, its layout, and where its residual scale is from: "given", "found", "assumed", or "any" where it
        makes no difference.

    Raises:
        WeightsError: As `build_model` does; or the weights ask for a residual scale that is not one of PUBLISHED.
    """
    names = sorted(layouts, reverse="sub_mean.weight" not in tensors) if layouts else [name]
    models = [build_model(tensors, layout, residual_scale) for layout in names]
    if residual_scale is not None:
        found = _best([_read(model, layout) for model, layout in zip(models, names, strict=True)])
        return found.model, found.layout, "given"
    readings = []
    for model, layout in zip(models, names, strict=True):
        usual = model.config.residual_scale
        for scale in (usual, *(s for s in PUBLISHED if s != usual)):
            readings.append(_read(_rescaled(model, scale), layout))
    best = _best(readings)
    same_layout = [r for r in readings if r.layout == best.layout]
    if _indifferent(same_layout):
        return same_layout[0].model, best.layout, "any"
    if best.error > CERTAIN:
        _ask_if_another_fits(best)
    rivals = [r for r in same_layout if r is not best]
    return best.model, best.layout, "found" if all(best.beats(r) for r in rivals) else "assumed"


def _best(readings: list[Reading]) -> Reading:
    """The first, which is the usual one, unless others beat it: then the best of these."""
    usual, *others = readings
    return min((r for r in others if r.beats(usual)), key=lambda r: r.error, default=usual)


def _indifferent(readings: list[Reading]) -> bool:
    first = readings[0].output
    return all(torch.allclose(first, r.output, rtol=0, atol=1e-6) for r in readings[1:])


def _ask_if_another_fits(best: Reading) -> None:
    """Raises WeightsError if the weights give images back with a residual scale that is none of PUBLISHED."""
    rough = min((_read(_rescaled(best.model, s), best.layout) for s in OTHERS), key=lambda r: r.error)
    if not rough.beats(best):
        return
    near = rough.model.config.residual_scale
    finer = (near * (1 + step / 20) for step in range(-7, 8))
    fit = min((_read(_rescaled(best.model, s), best.layout) for s in finer), key=lambda r: r.error)
    right = float(f"{fit.model.config.residual_scale:.2g}")
    raise WeightsError(
        "the file does not state its residual scale, and read with 1 or 0.1 it gives no image back; it does with "
        f"about {right:g}: give {option('residual_scale', right)}"
    )


def _rescaled(model: EDSR, residual_scale: float) -> EDSR:
    """The same weights, which are shared, with another residual scale."""
    with torch.device("meta"):  # shapes only
        other = EDSR(replace(model.config, residual_scale=residual_scale))
    other.load_state_dict(model.state_dict(), assign=True)
    return other


def _read(model: EDSR, layout: str) -> Reading:
    error, output = _reconstruction(model)
    return Reading(model, layout, error, output)


def _reconstruction(model: EDSR) -> tuple[float, Tensor]:
    """An image of waves, upscaled, and how far it is from itself once it is reduced again.

    Returns:
        The mean absolute difference in the middle, inf where the network overflows; and the upscaled image. It is
        reduced in two ways, since a network that is exact by one of them is slightly off by the other.
    """
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    red, green = 0.5 + 0.3 * torch.sin(0.9 * x + 0.5 * y), 0.45 + 0.25 * torch.sin(0.5 * x - 0.9 * y)
    image = torch.stack([red, green, 0.5 + 0.2 * torch.sin(0.9 * x + 1) + 0.1 * torch.sin(0.9 * y)])[None]
    with torch.no_grad():
        output = model(image)
    bicubic = F.interpolate(output, size=(20, 20), mode="bicubic", antialias=True)
    reduced = F.avg_pool2d(output, model.config.scale), bicubic
    error = min((back - image)[..., 4:-4, 4:-4].abs().mean().item() for back in reduced)
    return error if math.isfinite(error) else math.inf, output
