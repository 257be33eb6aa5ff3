"""What a run starts with: images, weights, what computes, and how many steps at once."""

import importlib.util
from collections.abc import Callable

import torch

from edsr.data import PairedImages, load_dataset, train_val_split
from edsr.devices import ProcessGroup
from edsr.errors import BackendError, WeightsError
from edsr.kernels import load_ops, load_training_ops
from edsr.models import EDSR
from edsr.weights import list_packaged, load_model

from .config import TrainConfig
from .step import BLOCK_FLOPS

reference = load_ops("torch")


def images(
    options: TrainConfig, ranks: ProcessGroup, say: Callable[[str], None]
) -> tuple[PairedImages, PairedImages | None]:
    """To train on, and to validate on if there are any."""
    more = {"crop": options.crop, "cache": options.cache, "device": ranks.device}
    if ranks.local > 0 and options.cache:
        ranks.barrier()  # for the first process of this machine to make the cache
    training, held = load_dataset(options.data, options.scale, options.patch, **more)
    if ranks.local == 0 and options.cache:
        ranks.barrier()
    if options.val:
        held, _ = load_dataset([options.val], options.scale, 1)
    elif held is None:
        training, held = train_val_split(training)
    say(f"{len(training)} images to train on, {len(held) if held else 0} to validate on")
    return training, held


def initialize(model: EDSR, options: TrainConfig, say: Callable[[str], None]) -> None:
    """Copies every tensor of the starting weights that has the same name and shape: for another scale, the body.

    A packaged name means its weights of this scale, if there are such, else of x2; nothing, for x3 and x4, x2's.
    """
    source, scales = options.init, list_packaged().get(options.init or options.model, ())
    scale = options.scale if source is not None and options.scale in scales else 2
    if source is None and options.scale > 2 and 2 in scales:
        source = options.model
    if source is None or source == "none":
        say("starting from random weights")
        return
    named = source in list_packaged()
    start = load_model(source, scale=scale if named else None).state_dict()
    own = model.state_dict()
    taken = {name: tensor for name, tensor in start.items() if name in own and own[name].shape == tensor.shape}
    if "head.weight" not in taken:
        raise WeightsError(f"{source}: not a network of the shape of {options.model}; give another --init")
    own.update(taken)
    model.load_state_dict(own)
    say(f"starting from {source}{f' x{scale}' if named else ''}: {len(taken)} of {len(own)} tensors")


def dtype(options: TrainConfig, ranks: ProcessGroup) -> torch.dtype:
    auto = "bf16" if ranks.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[auto if options.precision == "auto" else options.precision]


def ops(options: TrainConfig, ranks: ProcessGroup, dtype: torch.dtype, features: int, say: Callable[[str], None]):
    """The ops to train with: on kernels of ours if asked for, or where they were measured to be faster."""
    triton = ranks.device.type == "cuda" and importlib.util.find_spec("triton") is not None
    if options.backend == "triton" and not triton:
        raise BackendError(f"--backend triton needs an NVIDIA GPU and triton, not {ranks.device}; use --backend torch")
    if ranks.device.type == "cpu":
        return _on_cpu(options, dtype, features, say)
    if options.backend == "torch" or not triton:
        return reference
    training = load_training_ops("triton")
    return training if options.backend == "triton" or training.fastest(dtype, features, ranks.device) else reference


def _on_cpu(options: TrainConfig, dtype: torch.dtype, features: int, say: Callable[[str], None]):
    if options.backend == "torch":
        return reference
    winograd, training = load_ops("winograd"), load_training_ops("winograd")
    if dtype == torch.float32 and features % winograd.CHANNELS == 0:
        reason = winograd.compile_ahead(say, training=True)
    else:
        reason = f"the kernels need fp32 and a multiple of {winograd.CHANNELS} features, not {features} in {dtype}"
    if options.backend == "winograd" and reason:
        raise BackendError(f"--backend winograd: {reason}; use --backend torch")
    return reference if reason else training


def block(options: TrainConfig, model: EDSR, ranks: ProcessGroup) -> int:
    """Steps handed to the device at once; by arithmetic, so that all processes agree."""
    if ranks.device.type != "cuda":
        return 1
    # Each weight works on a pixel three times: forward, and for either gradient; the upsampler's on more, a little.
    pixels = options.batch // ranks.world * options.patch**2
    flops = 6 * pixels * sum(p.numel() for p in model.parameters())
    return max(1, min(250, int(BLOCK_FLOPS / flops)))
