"""Which network an image gets: `--model auto`, by how much its file was compressed, and `--strength`.

Lossless images get FAITHFUL, which takes every pixel as true; compressed ones a mixture of it with CLEAN, which
knows blocks, ringing and smeared colors from its training. How much of CLEAN is best at which quality is data:
TABLE, which `bench/photo.py --fit` makes.
"""

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edsr.images import LossyCompression, detect_compression

from . import files, interpolation

AUTO = "auto"
FAITHFUL, CLEAN = "edsr-baseline", "edsr-photo"
TABLE = Path(__file__).with_name("photo.json")
"""Scale -> [[quality, share of CLEAN], ...], qualities ascending; linear between them, constant beyond. It has the
scales that CLEAN is packaged for."""

STEP = 0.05
"""Between the shares that are chosen: so that a batch of many qualities has few mixtures, which nobody sees."""

Table = dict[str, list[list[float]]]
"""What TABLE holds."""


class Choice(NamedTuple):
    """model: as `load_model` takes it. said: what a person is told of it, and why it was chosen."""

    model: str
    description: str


def choose_by_strength(share: float) -> Choice:
    """The mixture with so much of CLEAN, in 0..1; at the ends one network alone."""
    if share <= 0:
        return Choice(FAITHFUL, FAITHFUL)
    said = f"{CLEAN} {share:.3g}"
    return Choice(CLEAN if share >= 1 else interpolation.mixture_name({FAITHFUL: 1 - share, CLEAN: share}), said)


def choose_by_quality(found: LossyCompression | None, scale: int) -> Choice:
    """The network for an image of that compression; None: of none."""
    if found is None:
        return Choice(FAITHFUL, FAITHFUL)
    choice = choose_by_strength(share_for(found.quality, scale))
    return choice._replace(description=f"{found}: {choice.description}")


def choose_by_file(path: Path, scale: int, say: Callable[[str], None]) -> Choice:
    """The network for the image in a file; FAITHFUL for what is no image. Never raises.

    say: told, in a line, where it would be a mixture and CLEAN has no packaged weights of that scale: then FAITHFUL.
    """
    found = detect_compression(path)
    if found is not None and scale not in files.list_packaged().get(CLEAN, ()):
        say(f"{CLEAN} x{scale} is not packaged: compressed images get {FAITHFUL}, too")
        return choose_by_strength(0)
    return choose_by_quality(found, scale)


def share_for(quality: float, scale: int, table: Table | None = None) -> float:
    """How much of CLEAN is best at that JPEG quality, a multiple of STEP; none of it at scales that were not fitted.

    table: another than TABLE's.
    """
    qualities, shares = zip(*(table or _table(TABLE)).get(str(scale), [[100, 0.0]]), strict=True)
    return round(round(float(np.interp(quality, qualities, shares)) / STEP) * STEP, 2)


def available_scales(model: str) -> tuple[int, ...]:
    """The scales that a name has packaged weights for, ascending; a mixture those of all its parts, a file none.

    Raises ValueError as `mixture.parse_mixture` does.
    """
    known = files.list_packaged()
    model = FAITHFUL if model == AUTO else model
    if model not in known and os.path.exists(model):
        return ()
    parts = [model] if model in known else list(interpolation.parse_mixture(model) or ())
    common = [set(known.get(part, ())) for part in parts]
    return tuple(sorted(set.intersection(*common))) if common else ()


@cache
def _table(path: Path) -> Table:
    return json.loads(path.read_text(encoding="utf-8"))
