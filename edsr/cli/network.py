"""The network that the options ask for. torch is imported when it is needed: it takes seconds."""

from argparse import Namespace
from collections.abc import Sequence
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


def make_upscalers(options: Namespace, models: Sequence[str]) -> "list[Upscaler]":
    """An Upscaler of each network, as `make_upscaler` gives it. Raises UsageError unless all have one scale."""
    upscalers = [make_upscaler(options, model) for model in models]
    for model, upscaler in zip(models, upscalers, strict=True):
        if upscaler.scale != upscalers[0].scale:
            scales = f"{models[0]} upscales x{upscalers[0].scale}, {model} x{upscaler.scale}"
            raise UsageError(f"{scales}; name networks of one scale, or choose with --scale")
    return upscalers


def requested_choices(options: Namespace) -> "list[Choice | None]":
    """As `requested_choice`, where --model may be given several times. Raises UsageError."""
    from edsr.weights import AUTO

    models = options.model or [AUTO]
    if len(set(models)) < len(models):
        raise UsageError("a network is named twice; name each once with --model")
    return [requested_choice(Namespace(model=model, strength=options.strength)) for model in models]


def requested_choice(options: Namespace) -> "Choice | None":
    """The network that --model and --strength name for all images; None for auto. Raises UsageError."""
    from edsr.weights import AUTO, Choice, choose_by_strength

    if options.strength is None:
        return None if options.model == AUTO else Choice(options.model, options.model)
    if options.model != AUTO:
        raise UsageError("--strength mixes edsr-baseline and edsr-photo; leave --model out")
    return choose_by_strength(options.strength)
