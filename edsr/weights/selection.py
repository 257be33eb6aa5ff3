"""Which network an image gets: `--model auto`, by how much its file was compressed, and `--strength`.

Lossless images get FAITHFUL, which takes every pixel as true; compressed ones a mixture of it with CLEAN, which
knows blocks, ringing and smeared colors from its training. How much of CLEAN is best at which quality is data:
TABLE, which `bench/photo.py --fit` makes.
"""

import json
import logging
import os
import threading
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edsr.images import LossyCompression, detect_compression

from .files import list_packaged
from .interpolation import mixture_name, parse_mixture

logger = logging.getLogger(__name__)
_warning = threading.Lock()

AUTO = "auto"
FAITHFUL, CLEAN = "edsr-baseline", "edsr-photo"
TABLE = Path(__file__).with_name("photo.json")
"""Scale -> [[quality, share of CLEAN], ...], qualities ascending; linear between them, constant beyond. It has the
scales that CLEAN is packaged for."""

STEP = 0.05
"""Chosen shares are multiples of this, so that a batch of many qualities needs few mixtures; nobody sees the
difference."""

Table = dict[str, list[list[float]]]
"""The content of TABLE."""


class Choice(NamedTuple):
    """A network chosen for an image.

    Attributes:
        model: As `load_model` takes it.
        description: For people: the network, and why it was chosen.
    """

    model: str
    description: str


def choose_by_strength(share: float) -> Choice:
    """The mixture with that share of CLEAN, in 0..1; at the ends one network alone."""
    if share <= 0:
        return Choice(FAITHFUL, FAITHFUL)
    model = CLEAN if share >= 1 else mixture_name({FAITHFUL: 1 - share, CLEAN: share})
    return Choice(model, f"{CLEAN} {share:.3g}")


def choose_by_quality(compression: LossyCompression | None, scale: int, table: Table | None = None) -> Choice:
    """The network for an image of that compression.

    Args:
        compression: None for a lossless image.
        scale: The network's.
        table: In place of TABLE's content.
    """
    if compression is None:
        return Choice(FAITHFUL, FAITHFUL)
    choice = choose_by_strength(share_for(compression.quality, scale, table))
    return choice._replace(description=f"{compression}: {choice.description}")


def choose_by_file(path: Path, scale: int) -> Choice:
    """The network for the image in a file; FAITHFUL for what is no image. Never raises.

    Compressed images get FAITHFUL, too, where CLEAN has no packaged weights of that scale, of which a warning is logged
    once.
    """
    compression = detect_compression(path)
    if compression is not None and scale not in list_packaged().get(CLEAN, ()):
        with _warning:
            warn_not_packaged(scale)
        return choose_by_strength(0)
    return choose_by_quality(compression, scale)


@cache
def warn_not_packaged(scale: int) -> None:
    """Logs once in a process that compressed images are not treated as such at that scale."""
    logger.warning("%s x%d is not packaged: compressed images get %s, too", CLEAN, scale, FAITHFUL)


def share_for(quality: float, scale: int, table: Table | None = None) -> float:
    """The best share of CLEAN at a JPEG quality, a multiple of STEP; 0 at scales that were not fitted.

    Args:
        quality: In 1..100.
        scale: The network's.
        table: In place of TABLE's content.
    """
    qualities, shares = zip(*(table or _read_table(TABLE)).get(str(scale), [[100, 0.0]]), strict=True)
    return round(round(float(np.interp(quality, qualities, shares)) / STEP) * STEP, 2)


def available_scales(model: str) -> tuple[int, ...]:
    """The scales that a name has packaged weights for, ascending; a mixture those of all its parts, a file none.

    Raises:
        ValueError: As `parse_mixture` does.
    """
    packaged = list_packaged()
    model = FAITHFUL if model == AUTO else model
    if model not in packaged and os.path.exists(model):
        return ()
    parts = [model] if model in packaged else list(parse_mixture(model) or ())
    common = [set(packaged.get(part, ())) for part in parts]
    return tuple(sorted(set.intersection(*common))) if common else ()


@cache
def _read_table(path: Path) -> Table:
    return json.loads(path.read_text(encoding="utf-8"))
