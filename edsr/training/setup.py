"""What a run starts with: images, weights, the ops and dtype that it computes with, and how many steps at once."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from edsr.data import IMAGE, PairedImages, PatchLoader, load_dataset, load_validation, train_val_split
from edsr.devices import ProcessGroup
from edsr.errors import BackendError, DataError, WeightsError
from edsr.kernels import compile_ahead, is_faster_in_training, load_training_ops, unavailable_reason
from edsr.models import NETWORKS, Discriminator, Network, build_network, worth_collapsing
from edsr.weights import list_packaged, load_model
from edsr.wording import named, option

from .adversarial import AdversarialStep, load_vgg
from .config import ADVERSARIAL, TrainConfig
from .consistency import warn_of_overlap
from .step import CHUNK_FLOPS, TrainStep
from .validation import is_flat

logger = logging.getLogger(__name__)

MIN_VALIDATED = 3  # LR pixels a side: of less, nothing is left when the border has been left out


def load_images(config: TrainConfig, group: ProcessGroup) -> tuple[list[PairedImages], dict[str, PairedImages]]:
    """Loads images to train on, for each scale, and by name the sets to validate on, if there are any.

    Validation images too small to be scored, or of one color, are left out.

    Raises:
        DataError: There is nothing to train on, or nothing in a source of `config.val` to validate on.
    """
    scales = config.trained_scales
    training, sets, held_out = [], {}, set()
    # The same images for each scale: what is held out of one must not be trained on with another.
    unit = math.lcm(*scales)
    least = -(-config.patch * max(scales) // unit) * unit
    for scale in scales:
        patch = config.patch if len(scales) == 1 else least // scale
        images, own = _load_training(config, group, scale, patch)
        if own is None and not config.val:
            held_out.add(len(np.unique(images.index[:, IMAGE])))
            images, own = train_val_split(images)
        training.append(images)
        found = None if own is None or config.val else _leave_out_unscored(own, group)
        sets |= {} if found is None else {_of_scale("", scale, scales): found}
    if len(held_out) > 1:
        raise DataError(f"of some images some scales are missing; name images to validate on with {named('val')}")
    if config.val:
        if group.is_main:
            warn_of_overlap(config)
        sets = _load_sets(config, group)
    return training, sets


def _load_training(
    config: TrainConfig, group: ProcessGroup, scale: int, patch: int
) -> tuple[PairedImages, PairedImages | None]:
    if group.local_rank > 0 and config.cache:
        group.barrier()  # for the first process of this machine to make the cache
    more = {"crop": config.crop, "cache": config.cache, "device": group.device}
    found = load_dataset(config.data, scale, patch, **more)
    if group.local_rank == 0 and config.cache:
        group.barrier()
    return found


def _of_scale(name: str, scale: int, scales: tuple[int, ...]) -> str:
    """What a validation set is called among those of all scales."""
    return name if len(scales) == 1 else f"{name}-x{scale}".lstrip("-")


def _load_sets(config: TrainConfig, group: ProcessGroup) -> dict[str, PairedImages]:
    sets: dict[str, PairedImages] = {}
    names: list[str] = []
    for source in config.val_sources:
        name = Path(source).resolve().name
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
        for scale in config.trained_scales:
            found = _leave_out_unscored(load_validation(source, scale), group)
            if found is None:
                least = MIN_VALIDATED * scale
                kinds = f"no image of {least} x {least} pixels or more that is not of one color"
                raise DataError(f"{source}: {kinds}; give another {named('val')}")
            name = names[-1] if len(config.val_sources) > 1 or len(config.trained_scales) == 1 else ""
            sets[_of_scale(name, scale, config.trained_scales)] = found
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


def build_model(config: TrainConfig, group: ProcessGroup) -> Network:
    """The network that a run starts with, on its device; its weights follow from the options.

    Raises:
        WeightsError: `config.init` names none that fit.
    """
    torch.manual_seed(config.seed)
    scales = config.trained_scales
    shape = config.shape | {"scale": scales[0]} | ({"all_scales": scales} if config.serves_several_scales else {})
    model = build_network(replace(config.network or NETWORKS[config.model], **shape))  # pyright: ignore[reportArgumentType]
    if not config.resume:
        _initialize(model, config, group)
    return model.to(group.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]: torch's stub


def starting_weights(config: TrainConfig) -> tuple[str, int | None] | None:
    """What a run starts from, and of which scale, as `load_model` takes them; None for random weights.

    A packaged name means its weights of this scale, if there are such, else of x2; no name, for x3 and x4, x2's.
    """
    source, scales = config.init, list_packaged().get(config.init or config.model, ())
    scale = config.scale if source is not None and config.scale in scales else 2
    if source is None and config.scale > 2 and 2 in scales and not config.shape:
        source = config.model
    if source is None or source == "none":
        return None
    return source, scale if source in list_packaged() else None


def _initialize(model: Network, config: TrainConfig, group: ProcessGroup) -> None:
    """Copies every tensor of the starting weights that has the same name and shape: for another scale, the body."""
    named_start = starting_weights(config)
    if named_start is None:
        if group.is_main:
            srgan = f"; the paper starts an SRGAN from a trained SRResNet: name it with {named('init')}"
            logger.info(f"starting from random weights{srgan if config.model == ADVERSARIAL else ''}")
        return
    source, scale = named_start
    starting = load_model(source, scale=scale)
    start, own = starting.state_dict(), model.state_dict()
    for name in ("residual_scale", "normalized", "tanh") if group.is_main else ():
        theirs, ours = (getattr(shape, name, None) for shape in (starting.config, model.config))
        if theirs != ours and None not in (theirs, ours):
            was = f"{source} was trained with {name.replace('_', ' ')} {theirs:g}, {config.model} has {ours:g}"
            logger.warning(f"{was}: it starts worse")
    taken = {name: tensor for name, tensor in start.items() if name in own and own[name].shape == tensor.shape}
    if next(name for name, tensor in own.items() if tensor.ndim == 4) not in taken:  # the first layer's
        raise WeightsError(f"{source}: not a network of the shape of {config.model}; give another {named('init')}")
    own.update(taken)
    model.load_state_dict(own)
    if group.is_main:
        of_scale = f" x{scale}" if scale else ""
        logger.info(f"starting from {source}{of_scale}: {len(taken)} of {len(own)} tensors")


class Execution(NamedTuple):
    """What steps are computed with.

    Args:
        dtype: What the network computes in.
        backend: "torch", "triton" or "winograd".
    """

    dtype: torch.dtype
    backend: str


def choose_execution(config: TrainConfig, device: torch.device, model: Network) -> Execution:
    """What the options mean on a device for a network.

    Raises:
        BackendError: The backend asked for cannot be had.
    """
    dtype = _compute_dtype(config, device)
    if config.backend == "auto" and not any(map(_is_for_kernels, model.modules())):
        return Execution(dtype, "torch")  # which would compute all of it anyway
    return Execution(dtype, _choose_backend(config, device, dtype, model.config.features))


def _is_for_kernels(layer: torch.nn.Module) -> bool:
    if not isinstance(layer, torch.nn.Conv2d):
        return False
    return layer.kernel_size == (3, 3) and layer.in_channels % 16 == layer.out_channels % 16 == 0


def step_factory(
    config: TrainConfig, group: ProcessGroup, model: Network, images: list[PairedImages], execution: Execution
) -> Callable[[float], TrainStep]:
    """What makes the TrainStep of a run for a given decay of the averaged weights. images: for each scale."""
    share = (group.rank, group.world_size)
    chunk = _steps_per_chunk(config, model, group)
    loaders = [
        PatchLoader(
            of_scale,
            config.patch,
            config.batch,
            config.seed + k,
            group.device,
            chunk,
            share,
            config.degradation,
            candidates=config.candidates,
            recolored=config.recolor,
        )
        for k, of_scale in enumerate(images)
    ]
    dtype, ops = execution.dtype, load_training_ops(execution.backend)
    collapsed = worth_collapsing(group.device, config.batch // group.world_size * config.patch**2)
    settings = {"collapsed": collapsed, "clip": config.clip}
    settings |= {"clip_peak": config.lr} if model.config.architecture == "vdsr" else {}
    common = model, loaders, group, config.loss
    if config.model == ADVERSARIAL:
        judge = Discriminator(config.patch * config.scale, model.config.features)
        judge.to(group.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]: torch's stub
        vgg = None if config.vgg is None else load_vgg(config.vgg).to(group.device)
        return lambda ema_decay: AdversarialStep(judge, vgg, *common, ema_decay, dtype, ops, False, **settings)
    return lambda ema_decay: TrainStep(*common, ema_decay, dtype, ops, config.graph, **settings)


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


def _steps_per_chunk(config: TrainConfig, model: Network, group: ProcessGroup) -> int:
    """Steps handed to the device at once; by arithmetic, so that all processes agree."""
    if group.device.type != "cuda":
        return 1
    # Each weight works on a pixel three times: forward, and for either gradient; the upsampler's on more, a little.
    pixels = config.batch // group.world_size * (config.patch * model.config.map_scale) ** 2
    flops = 6 * pixels * sum(p.numel() for p in model.parameters())
    return max(1, min(250, int(CHUNK_FLOPS / flops)))
