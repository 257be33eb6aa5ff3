"""The weights that a run publishes for `upscale --model`: last.safetensors and best.safetensors."""

import contextlib
import math
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from edsr.errors import WeightsError
from edsr.models import Network
from edsr.weights import make_terms, mix_terms, read_info, save_model

from .config import TrainConfig
from .resuming import Decay
from .setup import starting_weights
from .validation import Scores


def published(run: Path, name: str) -> Path:
    """The file of the weights "last" or "best"."""
    return run / f"{name}.safetensors"


def publish(
    model: Network,
    path: Path,
    config: TrainConfig,
    step: int,
    images: int,
    *,
    decay: Decay | None,
    lr_factor: float,
    scores: Scores | None,
) -> None:
    """Writes weights with a header that says how they were trained.

    Args:
        model: The network.
        path: As `published` gives it.
        config: Options of the run.
        step: Steps done.
        images: How many there are to train on.
        decay: Set if the run is one.
        lr_factor: What the learning rate is multiplied by after rollbacks.
        scores: Of a validation of these weights, if there was one.
    """
    training = {"data": [Path(source).name for source in config.data], "pictures": images, "steps": step}
    training |= {
        name: getattr(config, name) for name in ("batch", "patch", "candidates", "lr", "loss", "schedule", "seed")
    }
    training |= {"recolor": True} if config.recolor else {}
    training |= {} if decay is None else {"decay_from": decay.first}
    training |= {} if lr_factor == 1 else {"lr_factor": lr_factor}
    training |= {} if config.degradation is None else {"degrade": str(config.degradation)}
    training |= {key: round(value, 4) for key, value in scores_by_name(scores, "validation_psnr").items()}
    start = _beginning(path.parent, config.resume, config.source, starting_weights(config))
    training |= {} if start is None else {"init": start.name}
    # What is trained further keeps the terms of what it began with; its license, whoever trains it may state.
    own = make_terms(None, training, (), "edsr-triton")
    save_model(model, path, training=training, terms=None if start is None else mix_terms([start.terms, own]))


class Beginning(NamedTuple):
    """The weights that a run starts from.

    Attributes:
        name: As they were named, without folders.
        terms: Theirs, see `edsr.weights`.
    """

    name: str
    terms: dict[str, Any]


@lru_cache(maxsize=1)
def _beginning(run: Path, resumed: bool, source: str | None, start: tuple[str, int | None] | None) -> Beginning | None:
    """The weights that a run started from; None for random ones. One that goes on finds them in what is published."""
    if resumed or source:
        for folder in (run, Path(source or run)):
            with contextlib.suppress(WeightsError):
                info = read_info(published(folder, "last"))
                name = (info["training"] or {}).get("init")
                return None if name is None else Beginning(name, info["terms"])
        return None
    if start is None:
        return None
    with contextlib.suppress(WeightsError):  # it may be gone by now
        return Beginning(Path(start[0]).name, read_info(start[0], scale=start[1])["terms"])
    return None


def published_score(path: Path) -> float:
    """What weights that a run has published are ranked by, see `Scores.mean`; -inf if there are none."""
    with contextlib.suppress(WeightsError):
        training = read_info(path)["training"] or {}
        psnr, degraded = training.get("validation_psnr"), training.get("validation_psnr_degraded")
        if isinstance(psnr, (int, float)) and isinstance(degraded, (int, float, type(None))):
            return Scores(psnr, degraded).mean
    return -math.inf


def scores_by_name(scores: Scores | None, name: str) -> dict[str, float]:
    """The scores that there are, as `name`, `name`_degraded and, of several sets, `name`/SET."""
    values = {} if scores is None else {name: scores.psnr, f"{name}_degraded": scores.degraded}
    values |= {} if scores is None else {f"{name}/{of_set}": psnr for of_set, psnr in scores.sets.items()}
    return {key: value for key, value in values.items() if value is not None}
