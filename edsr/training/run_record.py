"""What the record of a checkpoint must be like for a run to go on from it: a file that somebody may have changed."""

import itertools
import math
from collections.abc import Callable
from typing import Any

from edsr.models import SCALES

from .config import PRECISIONS


def check_record(record: Any) -> None:
    """Checks a record as `edsr.training.trainer` writes it, of this version or earlier ones, which have less.

    Raises:
        ValueError: Something is missing or not of the kind it should be; names the first.
    """
    _check_table("record", record, _RECORD, _REQUIRED)
    _check_table("options", record["options"], _OPTIONS, {"model", "scale", "steps", "batch", "patch"})
    _check_table("remembered", record.get("remembered", {}), _REMEMBERED, set())


def _check_table(name: str, table: Any, kinds: dict[str, Callable[[Any], bool]], required: set[str]) -> None:
    if not isinstance(table, dict):
        raise ValueError(f"{name} is not a table")
    for key, value in table.items():
        if key in kinds and not kinds[key](value):
            raise ValueError(f"{key} in {name} is not what it was")
        if key not in kinds and kinds is not _RECORD:
            raise ValueError(f"{name} has an unknown {key[:40]}")
    if missing := sorted(required - table.keys()):
        raise ValueError(f"{name} lacks {missing[0]}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _or_none(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or kind(value)


def _is_list(*kinds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        same = isinstance(value, list) and len(value) == len(kinds)
        return same and all(kind(item) for kind, item in zip(kinds, value, strict=True))

    return fits


def _is_divergence(value: Any) -> bool:
    """The state of a DivergenceMonitor, or the three numbers of earlier versions."""
    return isinstance(value, list) and len(value) in (3, 5) and all(map(_is_number, value)) and value[2] >= 0


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


SETS_OF_SCALES = [[*some] for n in range(1, 4) for some in itertools.combinations(SCALES, n)]
_REQUIRED = {"options", "images", "seconds", "best_psnr", "divergence", "lr_factor", "rollbacks"}
_RECORD = {
    "decay": _or_none(_is_list(_is_text, _is_whole, _is_positive)),
    "images": _is_list(_is_count, _is_whole),
    "seconds": _is_number,
    "best_psnr": _or_none(_is_number),
    "divergence": _is_divergence,
    "lr_factor": _is_positive,
    "rollbacks": _is_whole,
    "initial_error": _or_none(_is_number),
}
_OPTIONS = {
    "model": _is_text,
    "scale": lambda value: _is_whole(value) and value in SCALES,
    "steps": _is_count,
    "batch": _is_count,
    "patch": _is_count,
    "loss": _is_text,
    "schedule": _is_text,
    "seed": _is_whole,
    "crop": _or_none(_is_count),
    "blocks": _is_count,
    "features": _is_count,
    "residual_scale": _is_positive,
    "degrade": _or_none(_is_text),
    "scales": lambda value: isinstance(value, list) and value in SETS_OF_SCALES,
    "vgg": _is_text,
    "candidates": _is_count,
    "recolor": lambda value: isinstance(value, bool),
}
_REMEMBERED = {
    "vgg": _is_text,
    "lr": _is_positive,
    "precision": lambda value: value in PRECISIONS,
    "deterministic": lambda value: isinstance(value, bool),
    "val_every": _or_none(_is_count),
    "save_every": _or_none(_is_count),
    "data": _is_texts,
    "val": lambda value: value is None or _is_text(value) or _is_texts(value),
    "cache": _or_none(_is_text),
    "init": _or_none(_is_text),
}
