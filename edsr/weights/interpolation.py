"""Mixtures of networks by their weights: of networks that have one ancestor, one between them, at no cost in speed.

A network trained further from another still lies near it, and on the straight line between the two every point is a
network that works; the best point depends on the images (weight interpolation). A mixture is named by its parts and
their shares: "edsr-baseline:0.3+edsr-photo:0.7".
"""

import math
import re
from collections.abc import Sequence
from dataclasses import fields

import torch

from edsr.models import Network, NetworkConfig, build_network

_NUMBER = r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|nan|inf)"
# A name ends where a colon, a number and a plus sign, or nothing, follow, so that C:\my+net.pt:0.3 is one part.
_PART = re.compile(rf"(.+?):({_NUMBER})(?:\+|$)", re.DOTALL)


def parse_mixture(text: str) -> dict[str, float] | None:
    """The parts of a mixture and their shares, scaled to sum to 1, in the order given; None if the text names none.

    Args:
        text: NAME:SHARE, or several with + between them; a name that comes twice has the sum of its shares. A share
            may be negative, which extrapolates beyond the others.

    Raises:
        ValueError: The shares' sum is not above 0, or not finite.
    """
    parts = _read_shares(text)
    if not parts:
        return None
    total = sum(parts.values())
    if not (total > 0 and math.isfinite(total)):
        raise ValueError(f"the shares sum to {total:g}, give some that sum to more than 0")
    return {name: share / total for name, share in parts.items()}


def notes(text: str) -> list[str]:
    """A line if the shares of a mixture, one that `parse_mixture` reads, do not sum to 1, and are scaled."""
    total = sum((_read_shares(text) or {}).values())
    return [] if abs(total - 1) < 1e-6 else [f"the shares sum to {total:g} and are scaled to sum to 1"]


def _read_shares(text: str) -> dict[str, float] | None:
    """The parts of a mixture and their shares as they are given; None if the text names none."""
    parts: dict[str, float] = {}
    position = 0
    while position < len(text):
        part = _PART.match(text, position)
        if part is None or (part.end() == len(text) and text.endswith("+")):
            return None
        parts[part[1]] = parts.get(part[1], 0.0) + float(part[2])
        position = part.end()
    return parts


def mixture_name(parts: dict[str, float]) -> str:
    """The text that `parse_mixture` reads as these parts."""
    return "+".join(f"{part}:{share:.15g}" for part, share in parts.items())


def mix(models: Sequence[Network], shares: Sequence[float], names: Sequence[str]) -> Network:
    """The network whose tensors are the sum of share · tensor, in fp64, rounded once to fp32.

    Args:
        models: On the CPU; none of them is changed.
        shares: One for each model.
        names: The models' names, for errors.

    Raises:
        ValueError: A configuration is not the first model's, or a sum is not finite.
    """
    first = models[0]
    for other, other_name in zip(models[1:], names[1:], strict=True):
        if what := difference(first.config, other.config):
            raise ValueError(f"{names[0]} and {other_name} do not mix: {what}")
    states = [model.state_dict() for model in models]
    mixed = {}
    for key in states[0]:
        total = sum(share * state[key].double() for share, state in zip(shares, states, strict=True))
        assert isinstance(total, torch.Tensor)
        mixed[key] = total.float()
        if not mixed[key].isfinite().all():
            raise ValueError(f"the mixture's {key} is not finite")
    with torch.device("meta"):  # shapes only
        model = build_network(first.config)
    model.load_state_dict(mixed, assign=True)
    return model.eval()


def difference(a: NetworkConfig, b: NetworkConfig) -> str:
    """How two configurations differ; empty if they do not."""
    if a.architecture != b.architecture:
        return f"{a.architecture} against {b.architecture}"
    formats = {
        "scale": lambda c: f"x{c.scale}",
        "blocks": lambda c: f"{c.blocks} blocks",
        "features": lambda c: f"{c.features} features",
        "residual_scale": lambda c: f"residual scale {c.residual_scale:g}",
        "mean": lambda c: f"mean {', '.join(f'{m:g}' for m in c.mean)}",
    }
    names = [field.name for field in fields(a) if getattr(a, field.name) != getattr(b, field.name)]  # pyright: ignore
    texts = {name: formats.get(name, lambda c, name=name: f"{name} {getattr(c, name)}") for name in names}
    return "; ".join(f"{text(a)} against {text(b)}" for text in texts.values())
