"""Whether the options of a run make sense, and which of them must be those of the run that it goes on with."""

import logging
import math
import os
from dataclasses import asdict, fields, replace
from pathlib import Path

from edsr.errors import TrainError, WeightsError
from edsr.models import NETWORKS
from edsr.storage import why_not_a_path
from edsr.system import why_unwritable, why_unwritable_file
from edsr.wording import as_words, either, named, option

from . import checkpoint
from .config import (
    ADVERSARIAL,
    AUTO,
    LOSSES,
    OF_SEVERAL_SCALES,
    PRECISIONS,
    SCALES,
    SCHEDULES,
    TrainConfig,
)
from .run_log import load_wandb

logger = logging.getLogger(__name__)

SIGNATURE = ("model", "scale", "steps", "batch", "patch", "loss", "schedule", "seed", "crop", "degrade")
SIGNATURE += ("candidates", "recolor")
# What a run did that was begun before there was the option; --degrade it had not.
EARLIER = {"candidates": 1, "recolor": False}
PATHS = ("data", "val", "cache")
LISTS = ("data", "val", "scales")  # of which JSON makes lists
# What may be changed when a run is resumed. The learning rate on purpose; what computes, because machines differ.
CHANGEABLE = ("lr", "precision", "deterministic", "val_every", "save_every")


def check(config: TrainConfig, world_size: int, is_main: bool, folder_option: str | None = None) -> None:
    """Checks that the options make a run; those of a resumed run are what `recall` gives.

    Args:
        config: The options.
        world_size: How many processes there are.
        is_main: Whether this is the main one, which alone looks into the run's folder: it will make that.
        folder_option: What names the folder, for messages; None: out.

    Raises:
        TrainError, WeightsError: They do not.
        TypeError: The data is one name, not a tuple of names.
    """
    if isinstance(config.data, str | os.PathLike):
        raise TypeError(f"data is a tuple of sources, ({str(config.data)!r},), not one")
    run, folder_option = Path(config.out), folder_option or named("out")
    for path in (*config.data, *config.val_sources, config.out, config.cache, config.init, config.vgg):
        if path is not None and "\0" in os.fspath(path):
            raise TrainError(f"{path}: a name has no NUL in it; give another", misuse=True)
        if path is not None and (why := why_not_a_path(path)):
            raise TrainError(why, misuse=True)
    if config.model not in NETWORKS:
        raise WeightsError(f"unknown model {config.model!r}: choose {' or '.join(NETWORKS)}", misuse=True)
    _check_network(config, world_size)
    if config.network is not None and config.shape:
        raise TrainError("a network is given: leave blocks, features and residual_scale out", misuse=True)
    if config.residual_scale is not None and not 0 < config.residual_scale < math.inf:
        raise TrainError(f"{named('residual_scale')} must be above 0, not {config.residual_scale}", misuse=True)
    for name in ("steps", "decay", "batch", "patch", "candidates", "val_every", "save_every", "blocks", "features"):
        value = getattr(config, name)
        if value is not None and value != AUTO and value < 1:
            raise TrainError(f"{named(name)} must be 1 or more, not {value}", misuse=True)
    if not -(2**63) <= config.seed < 2**63:
        raise TrainError(f"{named('seed')} must fit into 64 bits, with its sign, not be {config.seed}", misuse=True)
    for name in ("decay", "steps"):
        if getattr(config, name) == AUTO and config.minutes is None:
            raise TrainError(f"{option(name, AUTO)} needs to know for how long; add {named('minutes')}", misuse=True)
    for name, choices in (("loss", LOSSES), ("schedule", SCHEDULES), ("precision", PRECISIONS)):
        if getattr(config, name) not in choices:
            raise TrainError(
                f"{named(name)} must be {' or '.join(choices)}, not {getattr(config, name)!r}", misuse=True
            )
    if config.degradation is not None and config.recolor:
        why = "compression treats colors differently"
        raise TrainError(f"{named('recolor')} does not go with {named('degrade')}: {why}", misuse=True)
    if config.wandb is not None:
        load_wandb()
    if config.batch % world_size:
        raise TrainError(
            f"{option('batch', config.batch)} cannot be shared evenly by {world_size} processes", misuse=True
        )
    if run.exists() and not run.is_dir():
        raise TrainError(f"{run} is a file; give a folder with {folder_option}")
    if is_main and (why := why_unwritable(run)):
        raise TrainError(f"{run}: cannot be written into ({why}); choose another {folder_option}")
    at_or_above = {run.resolve(), *run.resolve().parents}
    source = next((folder for folder in config.data if Path(folder).resolve() in at_or_above), None)
    if source is not None:  # its plot and samples would be trained on after the next start
        where = "is" if Path(source).resolve() == run.resolve() else f"lies in {source},"
        raise TrainError(f"{run} {where} a folder of images to train on; choose another {folder_option}")
    if is_main and not config.resume and checkpoint.exists(run):
        raise TrainError(
            f"{run} holds a run already; add {option('resume')} to continue it, or choose another {named('out')}"
        )


def _check_network(config: TrainConfig, world_size: int) -> None:
    """Checks the options that are of some networks only."""
    own = [field.name for field in fields(NETWORKS[config.model])]
    for name in config.shape:
        if name not in own:
            raise TrainError(f"{config.model} has no {named(name)}; leave it out", misuse=True)
    several, chosen = config.serves_several_scales, "scale" in (config.given or ()) or config.scale != 2
    if several and chosen:
        instead = either(f"scales=({config.scale},)", f"--scales {config.scale}")
        raise TrainError(
            f"{config.model} serves several scales; give {instead} in place of {named('scale')}", misuse=True
        )
    if config.scales is not None and not several:
        of = ", ".join(OF_SEVERAL_SCALES)
        raise TrainError(f"{named('scales')} is of {of}; give {config.model} one {named('scale')}", misuse=True)
    if config.scales is not None and (not config.scales or not {*config.scales} <= {*SCALES}):
        raise TrainError(f"{named('scales')} are some of 2, 3 and 4, not {config.scales}", misuse=True)
    if config.vgg is not None and config.model != ADVERSARIAL:
        raise TrainError(f"{named('vgg')} is of {option('model', ADVERSARIAL)}; leave it out", misuse=True)
    if config.model == ADVERSARIAL and world_size > 1:
        raise TrainError(
            f"{ADVERSARIAL} trains in one process, not {world_size}; start it without torchrun", misuse=True
        )


def check_places(run: Path) -> None:
    """Checks that all that a run writes into its folder can be written. Raises TrainError."""
    if not run.is_dir():
        return
    metrics = run / "metrics.jsonl"
    for path in (
        metrics,
        *(run / name for name in ("plot.png", "config.toml", "best.safetensors", "last.safetensors")),
    ):
        if why := why_unwritable_file(path):
            raise TrainError(f"{path}: {why}; a run writes there, move it away, or choose another {named('out')}")
    for path in (run / "tensorboard", *checkpoint.places(run)):
        if os.path.lexists(path) and not path.is_dir():
            raise TrainError(
                f"{path}: is no folder; a run writes there, move it away, or choose another {named('out')}"
            )
    for path in (metrics, run / "tensorboard"):
        if path.exists() and not os.access(path, os.W_OK):
            raise TrainError(f"{path}: is read-only, and a run adds to it; choose another {named('out')}")


def warn_of_overlap(config: TrainConfig) -> None:
    """Logs it if images to validate on are among those that are trained on."""

    def place(source: str, split: str) -> Path:
        folder = Path(source, f"DIV2K_{split}_HR")
        return (folder if folder.is_dir() else Path(source)).resolve()

    for source in config.val_sources:
        val = place(source, "valid")
        for trained in config.data:
            data = place(trained, "train")
            if val.is_relative_to(data) or data.is_relative_to(val):
                logger.warning(
                    f"{option('val', source)} are images of {option('data', trained)}: trained on, they say nothing "
                    f"of others; leave {named('val')} out to hold some out"
                )


def run_signature(config: TrainConfig) -> dict:
    """What must be the same for a run to be the same run, but for the steps of one that may be of any length."""
    named = {name: asdict(config)[name] for name in SIGNATURE} | config.shape
    named |= {"scales": [*config.trained_scales]} if config.serves_several_scales else {}
    named |= {} if config.vgg is None else {"vgg": Path(config.vgg).name}
    return named | {"degrade": config.degradation and str(config.degradation)}


def remembered(config: TrainConfig) -> dict:
    """What a run keeps beside its signature, so that it can be resumed by its name alone. Paths are absolute."""
    kept = {name: asdict(config)[name] for name in (*CHANGEABLE, *PATHS)}
    kept |= {"init": config.init and Path(config.init).name}  # only to compare, wherever the file is by now
    val = [os.path.abspath(source) for source in config.val_sources]
    # One is kept as a text, as earlier versions did.
    kept |= {
        "cache": config.cache and os.path.abspath(config.cache),
        "val": val if len(val) > 1 else (val or [None])[0],
    }
    kept |= {} if config.vgg is None else {"vgg": os.path.abspath(config.vgg)}
    return kept | {"data": [os.path.abspath(source) for source in config.data]}


def recall(config: TrainConfig, record: dict, run: Path) -> TrainConfig:
    """The options of a resumed run: what was not given comes from its checkpoint's `record`.

    Raises:
        TrainError: What was given makes it another run; names all that does.
    """
    options = EARLIER | record["options"]
    before = options | record.get("remembered", {})
    before |= {name: tuple(before[name]) for name in LISTS if isinstance(before.get(name), list)}
    given = set(before if config.given is None else config.given)
    given -= {"steps"} if config.steps == AUTO else set()
    given -= set() if config.data else {"data"}
    differ = _difference("init", before["init"], Path(config.init).name) if config.init and "init" in before else []
    config = replace(config, **{name: value for name, value in before.items() if name not in given})
    if not config.data:
        raise TrainError(f"{run} does not remember its images; name them with {named('data')}")
    for name, value in run_signature(config).items():
        free = name == "steps" and config.schedule == "wsd" and record.get("decay") is None
        differ += [] if free else _difference(name, options.get(name), value)
    if differ:
        raise TrainError(f"{run} was started {'; '.join(differ)}")
    return config


def _difference(name: str, before: object, value: object) -> list[str]:
    """A line where an option is not what it was before."""
    if before == value:
        return []
    told = "without" if value is None else either(str(value), as_words(value))
    if before is None:
        return [f"without {named(name)}, not with {told}"]
    return [f"with {option(name, before)}, not {told}"]
