"""The network that the options ask for. torch is imported when it is needed: it takes seconds."""

from argparse import Namespace
from typing import TYPE_CHECKING

from .console import UsageError

if TYPE_CHECKING:
    from edsr.inference import Upscaler
    from edsr.weights import Choice


def set_threads(options: Namespace) -> None:
    """Sets how many threads compute on a CPU, in PyTorch and in this project's kernels."""
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)


def make_upscaler(options: Namespace, model: str | None = None) -> "Upscaler":
    """An Upscaler of the network that the options ask for, or of `model` in its place, ready to compute."""
    from edsr.inference import Upscaler
    from edsr.weights import load_model

    set_threads(options)
    name = model or options.model
    network = load_model(name, options.scale, options.residual_scale)
    upscaler = Upscaler(network, options.device, options.precision, options.backend, options.tile, name=name)
    upscaler.warm_up()
    return upscaler


def requested_choice(options: Namespace) -> "Choice | None":
    """The network that --model and --strength name for all images; None for auto. Raises UsageError."""
    from edsr.weights import AUTO, Choice, choose_by_strength

    if options.strength is None:
        return None if options.model == AUTO else Choice(options.model, options.model)
    if options.model != AUTO:
        raise UsageError("--strength mixes edsr-baseline and edsr-photo; leave --model out")
    return choose_by_strength(options.strength)
