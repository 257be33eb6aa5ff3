"""The weights that a run publishes for `upscale --model`: last.safetensors and best.safetensors."""

import contextlib
import math
from pathlib import Path

from edsr.errors import WeightsError
from edsr.models import Network
from edsr.weights import read_info, save_model

from .config import TrainConfig
from .resuming import Decay
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
    training |= {} if decay is None else {"decay_from": decay.first}
    training |= {} if lr_factor == 1 else {"lr_factor": lr_factor}
    training |= {} if config.degradation is None else {"degrade": str(config.degradation)}
    training |= {key: round(value, 4) for key, value in scores_by_name(scores, "validation_psnr").items()}
    save_model(model, path, training=training)


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
