"""What a run starts with: images, weights, what computes, and how many steps at once."""

import importlib.util
from collections.abc import Callable

import torch

from edsr.data import Images, hold_back, load
from edsr.devices import Ranks
from edsr.errors import EngineError, WeightsError
from edsr.kernels import load_ops, load_training_ops
from edsr.models import EDSR
from edsr.weights import load_model, packaged

from .config import TrainOptions
from .step import BLOCK_FLOPS

reference = load_ops("torch")


def images(options: TrainOptions, ranks: Ranks, say: Callable[[str], None]) -> tuple[Images, Images | None]:
    """To train on, and to validate on if there are any."""
    more = {"crop": options.crop, "cache": options.cache, "device": ranks.device}
    if ranks.local > 0 and options.cache:
        ranks.wait()  # for the first process of this machine to make the cache
    training, held = load(options.data, options.scale, options.patch, say, **more)
    if ranks.local == 0 and options.cache:
        ranks.wait()
    if options.val:
        held, _ = load([options.val], options.scale, 1, say)
    elif held is None:
        training, held = hold_back(training)
    say(f"{len(training)} images to train on, {len(held) if held else 0} to validate on")
    return training, held


def initialize(model: EDSR, options: TrainOptions, say: Callable[[str], None]) -> None:
    """Copies every tensor of the starting weights that has the same name and shape: for another scale, the body.

    A packaged name means its weights of this scale, if there are such, else of x2; nothing, for x3 and x4, x2's.
    """
    source, scales = options.init, packaged().get(options.init or options.model, ())
    scale = options.scale if source is not None and options.scale in scales else 2
    if source is None and options.scale > 2 and 2 in scales:
        source = options.model
    if source is None or source == "none":
        say("starting from random weights")
        return
    named = source in packaged()
    start = load_model(source, scale=scale if named else None).state_dict()
    own = model.state_dict()
    taken = {name: tensor for name, tensor in start.items() if name in own and own[name].shape == tensor.shape}
    if "head.weight" not in taken:
        raise WeightsError(f"{source}: not a network of the shape of {options.model}; give another --init")
    own.update(taken)
    model.load_state_dict(own)
    say(f"starting from {source}{f' x{scale}' if named else ''}: {len(taken)} of {len(own)} tensors")


def dtype(options: TrainOptions, ranks: Ranks) -> torch.dtype:
    auto = "bf16" if ranks.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[auto if options.precision == "auto" else options.precision]


def ops(options: TrainOptions, ranks: Ranks, dtype: torch.dtype, features: int, say: Callable[[str], None]):
    """The ops to train with: on kernels of ours if asked for, or where they were measured to be faster."""
    triton = ranks.device.type == "cuda" and importlib.util.find_spec("triton") is not None
    if options.backend == "triton" and not triton:
        raise EngineError(f"--backend triton needs an NVIDIA GPU and triton, not {ranks.device}; use --backend torch")
    if ranks.device.type == "cpu":
        return _on_cpu(options, dtype, features, say)
    if options.backend == "torch" or not triton:
        return reference
    training = load_training_ops("triton")
    return training if options.backend == "triton" or training.fastest(dtype, features, ranks.device) else reference


def _on_cpu(options: TrainOptions, dtype: torch.dtype, features: int, say: Callable[[str], None]):
    if options.backend == "torch":
        return reference
    winograd, training = load_ops("winograd"), load_training_ops("winograd")
    if dtype == torch.float32 and features % winograd.CHANNELS == 0:
        reason = winograd.ready(say, training=True)
    else:
        reason = f"the kernels need fp32 and a multiple of {winograd.CHANNELS} features, not {features} in {dtype}"
    if options.backend == "winograd" and reason:
        raise EngineError(f"--backend winograd: {reason}; use --backend torch")
    return reference if reason else training


def block(options: TrainOptions, model: EDSR, ranks: Ranks) -> int:
    """Steps handed to the device at once; by arithmetic, so that all processes agree."""
    if ranks.device.type != "cuda":
        return 1
    # Each weight works on a pixel three times: forward, and for either gradient; the upsampler's on more, a little.
    pixels = options.batch // ranks.world * options.patch**2
    flops = 6 * pixels * sum(p.numel() for p in model.parameters())
    return max(1, min(250, int(BLOCK_FLOPS / flops)))
