"""What a run starts with: images, weights, the ops and dtype that it computes with, and how many steps at once."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from edsr.data import PairedImages, PatchLoader, load_dataset, load_validation, train_val_split
from edsr.devices import ProcessGroup
from edsr.errors import BackendError, DataError, WeightsError
from edsr.kernels import compile_ahead, is_faster_in_training, load_training_ops, unavailable_reason
from edsr.models import EDSR, PRESETS, worth_collapsing
from edsr.weights import list_packaged, load_model
from edsr.wording import named, option

from .config import TrainConfig
from .consistency import warn_of_overlap
from .step import CHUNK_FLOPS, TrainStep
from .validation import is_flat

logger = logging.getLogger(__name__)

MIN_VALIDATED = 3  # LR pixels a side: of less, nothing is left when the border has been left out


def load_images(config: TrainConfig, group: ProcessGroup) -> tuple[PairedImages, dict[str, PairedImages]]:
    """Loads images to train on, and by name the sets to validate on, if there are any.

    Validation images too small to be scored, or of one color, are left out.

    Raises:
        DataError: There is nothing to train on, or nothing in a source of `config.val` to validate on.
    """
    more = {"crop": config.crop, "cache": config.cache, "device": group.device}
    if group.local_rank > 0 and config.cache:
        group.barrier()  # for the first process of this machine to make the cache
    training, own = load_dataset(config.data, config.scale, config.patch, **more)
    if group.local_rank == 0 and config.cache:
        group.barrier()
    if config.val:
        if group.is_main:
            warn_of_overlap(config)
        return training, _load_sets(config, group)
    if own is None:
        training, own = train_val_split(training)
    found = None if own is None else _leave_out_unscored(own, group)
    return training, {} if found is None else {"": found}


def _load_sets(config: TrainConfig, group: ProcessGroup) -> dict[str, PairedImages]:
    sets: dict[str, PairedImages] = {}
    for source in config.val_sources:
        found = _leave_out_unscored(load_validation(source, config.scale), group)
        if found is None:
            least = MIN_VALIDATED * config.scale
            kinds = f"no image of {least} x {least} pixels or more that is not of one color"
            raise DataError(f"{source}: {kinds}; give another {named('val')}")
        name = Path(source).resolve().name
        sets[name if name not in sets else f"{name}-{len(sets) + 1}"] = found
    return sets


def _leave_out_unscored(images: PairedImages, group: ProcessGroup) -> PairedImages | None:
    """The images whose score tells something; None if there are none."""
    tiny = np.array([min(images.pair(i)[0].shape[:2]) < MIN_VALIDATED for i in range(len(images))])
    flat = np.array([not tiny[i] and is_flat(images.pair(i)[1], images.scale) for i in range(len(images))])
    side, kept = MIN_VALIDATED * images.scale, ~tiny & ~flat
    for left_out, kind in (tiny, f"smaller than {side} x {side} pixels"), (flat, "of one color, or one luma"):
        if group.is_main and left_out.any():
            logger.info(f"{left_out.sum()} of {len(images)} validation images {kind}: left out")
    return replace(images, index=images.index[kept]) if kept.any() else None


def build_model(config: TrainConfig, group: ProcessGroup) -> EDSR:
    """The network that a run starts with, on its device; its weights follow from the options.

    Raises:
        WeightsError: `config.init` names none that fit.
    """
    torch.manual_seed(config.seed)
    model = EDSR(replace(config.network or PRESETS[config.model], scale=config.scale, **config.shape))
    if not config.resume:
        _initialize(model, config, group)
    return model.to(group.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]: torch's stub


def _initialize(model: EDSR, config: TrainConfig, group: ProcessGroup) -> None:
    """Copies every tensor of the starting weights that has the same name and shape: for another scale, the body.

    A packaged name means its weights of this scale, if there are such, else of x2; no name, for x3 and x4, x2's.
    """
    source, scales = config.init, list_packaged().get(config.init or config.model, ())
    scale = config.scale if source is not None and config.scale in scales else 2
    if source is None and config.scale > 2 and 2 in scales and not config.shape:
        source = config.model
    if source is None or source == "none":
        if group.is_main:
            logger.info("starting from random weights")
        return
    packaged = source in list_packaged()
    starting = load_model(source, scale=scale if packaged else None)
    start, own = starting.state_dict(), model.state_dict()
    theirs, ours = starting.config.residual_scale, model.config.residual_scale
    if theirs != ours and group.is_main:
        logger.warning(
            f"{source} was trained with residual scale {theirs:g}, {config.model} has {ours:g}: it starts worse"
        )
    taken = {name: tensor for name, tensor in start.items() if name in own and own[name].shape == tensor.shape}
    if "head.weight" not in taken:
        raise WeightsError(f"{source}: not a network of the shape of {config.model}; give another {named('init')}")
    own.update(taken)
    model.load_state_dict(own)
    if group.is_main:
        of_scale = f" x{scale}" if packaged else ""
        logger.info(f"starting from {source}{of_scale}: {len(taken)} of {len(own)} tensors")


class Execution(NamedTuple):
    """What steps are computed with.

    Args:
        dtype: What the network computes in.
        backend: "torch", "triton" or "winograd".
    """

    dtype: torch.dtype
    backend: str


def choose_execution(config: TrainConfig, device: torch.device, features: int) -> Execution:
    """What the options mean on a device for a network of so many features.

    Raises:
        BackendError: The backend asked for cannot be had.
    """
    dtype = _compute_dtype(config, device)
    return Execution(dtype, _choose_backend(config, device, dtype, features))


def step_factory(
    config: TrainConfig, group: ProcessGroup, model: EDSR, images: PairedImages, execution: Execution
) -> Callable[[float], TrainStep]:
    """What makes the TrainStep of a run for a given decay of the averaged weights."""
    share = (group.rank, group.world_size)
    chunk = _steps_per_chunk(config, model, group)
    loader = PatchLoader(
        images,
        config.patch,
        config.batch,
        config.seed,
        group.device,
        chunk,
        share,
        config.degradation,
        candidates=config.candidates,
    )
    dtype, ops = execution.dtype, load_training_ops(execution.backend)
    collapsed = worth_collapsing(group.device, config.batch // group.world_size * config.patch**2)

    def make(ema_decay: float) -> TrainStep:
        return TrainStep(model, loader, group, config.loss, ema_decay, dtype, ops, config.graph, collapsed, config.clip)

    return make


def _compute_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    auto = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[auto if config.precision == "auto" else config.precision]


def _choose_backend(config: TrainConfig, device: torch.device, dtype: torch.dtype, features: int) -> str:
    """The backend to train with: the one asked for, or one of ours where it was measured to be faster."""
    auto = {"cuda": "triton", "cpu": "winograd"}.get(device.type, "torch")
    backend = auto if config.backend == "auto" else config.backend
    # Triton's interpreter would do on a CPU, too, but nobody waits for that.
    if backend == "triton" and device.type != "cuda":
        reason = f"needs an NVIDIA GPU, not {device}"
    else:
        reason = unavailable_reason(backend, device, dtype, features)
    if config.backend == "auto" and not reason and not is_faster_in_training(backend, device, dtype, features):
        return "torch"
    reason = reason or compile_ahead(backend, device, training=True)
    if reason and config.backend != "auto":
        raise BackendError(f"{option('backend', backend)}: {reason}; use {option('backend', 'torch')}")
    return "torch" if reason else backend


def _steps_per_chunk(config: TrainConfig, model: EDSR, group: ProcessGroup) -> int:
    """Steps handed to the device at once; by arithmetic, so that all processes agree."""
    if group.device.type != "cuda":
        return 1
    # Each weight works on a pixel three times: forward, and for either gradient; the upsampler's on more, a little.
    pixels = config.batch // group.world_size * config.patch**2
    flops = 6 * pixels * sum(p.numel() for p in model.parameters())
    return max(1, min(250, int(CHUNK_FLOPS / flops)))
