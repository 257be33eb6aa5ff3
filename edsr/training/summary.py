"""What a run says of itself: a table before its first steps, and soon after them how long it will take."""

import torch

from edsr.data import PairedImages
from edsr.devices import ProcessGroup
from edsr.models import TITLES, Network, multiply_adds
from edsr.progress import describe_seconds
from edsr.wording import named

from .adversarial import ADVERSARIAL_WEIGHT
from .config import ADVERSARIAL, TrainConfig
from .setup import Execution
from .validation import ValidationSets

MIN_CHUNKS, MIN_SECONDS = 3, 2.0  # of steps, before their speed tells how long a run takes
VALIDATING = 0.04  # of the time of a run, at most, goes into validating and saving: see edsr.training.intervals


def rows(
    config: TrainConfig,
    group: ProcessGroup,
    execution: Execution,
    model: Network,
    images: list[PairedImages],
    validation: ValidationSets | None,
) -> list[str]:
    """The lines of the table.

    Args:
        config: Options of the run, complete.
        group: Its processes.
        execution: What it computes with.
        model: Its network.
        images: What it trains on, for each scale.
        validation: What it validates on.
    """
    name = TITLES[model.config.architecture] if config.network or config.shape else config.model
    scales = config.trained_scales
    parameters = sum(p.numel() for p in model.parameters())
    # Forward, and for the gradients of maps and of weights.
    each = sum(multiply_adds(model.at(scale)) for scale in scales) // len(scales)
    work = 3 * config.batch * config.patch**2 * each
    table = {
        "network": f"{name} {', '.join(f'x{scale}' for scale in scales)}: {model.config.describe()}, "
        f"{_short(parameters)} parameters, {_short(work)} multiply-adds a step",
        "device": _describe_device(group, execution),
        "images": f"{len(images[0]):,}, {_megapixels(images[0])}",
        "validation": "none",
        "steps": f"{config.steps:,} of {config.batch} patches of {config.patch} x {config.patch}",
    }
    if len(scales) > 1:
        table["steps"] += ", a scale each in turn"
    if config.model == ADVERSARIAL:
        pixels = f"pixels ({config.loss}), not VGG19's features: {named('vgg')} is not given"
        content = pixels if config.vgg is None else f"VGG19's features ({config.vgg})"
        table["loss"] = f"{ADVERSARIAL_WEIGHT:g} of a discriminator's, and {content}"
    if config.candidates > 1:
        table["steps"] += f", the most detailed of {config.candidates} places each"
    if config.recolor:
        table["steps"] += ", recolored"
    if config.degradation is not None:
        table["images"] += f", degraded by {config.degradation}"
    if validation is not None:
        bicubic, sets = validation.bicubic, validation.sets
        more = "" if bicubic.degraded is None else f", degraded {bicubic.degraded:.2f} dB"
        size = f"{sum(map(len, sets.values())):,}, {_megapixels(*sets.values())}"
        table["validation"] = f"{size}; bicubic has {bicubic.psnr:.2f} dB{more}"
        table |= {f"  {name}": f"{len(sets[name]):,}; {psnr:.2f} dB" for name, psnr in bicubic.sets.items()}
    return [_row(*row) for row in table.items()]


class Stopwatch:
    """Measures the first steps of a run that are as fast as all others will be."""

    def __init__(self) -> None:
        self._chunks = self._steps = 0
        self._seconds = 0.0
        self._told = False

    def add(self, steps: int, seconds: float, left: int) -> str | None:
        """A row that says how long the run takes, once, as soon as that is known.

        Args:
            steps: So many were taken.
            seconds: In this time.
            left: Steps that are yet to be taken.
        """
        self._chunks, self._steps, self._seconds = self._chunks + 1, self._steps + steps, self._seconds + seconds
        if self._told or self._chunks < MIN_CHUNKS or self._seconds < MIN_SECONDS:
            return None
        self._told = True
        return time_row(self._steps / self._seconds, left)


def time_row(speed: float, left: int) -> str:
    """How long `left` steps take, of which there are `speed` a second, with validating and saving."""
    a_second = f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"
    return _row("time", f"about {describe_seconds(left / speed / (1 - VALIDATING))}; {a_second} steps a second")


def _describe_device(group: ProcessGroup, execution: Execution) -> str:
    device = str(group.device)
    if group.device.type == "cuda":
        device += f", {torch.cuda.get_device_name(group.device)}"
    elif group.device.type == "cpu":
        threads = torch.get_num_threads()
        device += f", {threads} thread{'s' if threads > 1 else ''}"
    precision = "fp32" if execution.dtype == torch.float32 else "bf16"
    processes = f", {group.world_size} processes" if group.world_size > 1 else ""
    return f"{device}{processes}, {precision}, backend {execution.backend}"


def _row(name: str, value: str) -> str:
    return f"{name:11} {value}"


def _megapixels(*sets: PairedImages) -> str:
    pixels = sum(int((images.index[:, 2] * images.index[:, 3]).sum()) * images.scale**2 for images in sets)
    return f"{pixels / 1e6:.3g} megapixels" if pixels < 1e9 else f"{pixels / 1e6:,.0f} megapixels"


def _short(number: int) -> str:
    """Three digits of a large number."""
    for unit, letter in (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"):
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return str(number)
