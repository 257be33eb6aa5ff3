"""Checkpoints of SRCNN, VDSR, SRResNet and MDSR: this project's own, and how widespread implementations name theirs.

As for EDSR (`edsr.weights.edsr`), the shape of a network is read off its tensors, and values are brought to RGB (or
luma) in 0..1: biases of a network that counts in 0..255 are divided by 255. Names of tensors are facts about files;
the implementations are named beside them.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edsr.errors import WeightsError
from edsr.models import (
    MDSRConfig,
    Network,
    NetworkConfig,
    SRCNNConfig,
    SRResNetConfig,
    VDSRConfig,
    build_network,
)
from edsr.wording import either

from .edsr import FORMAT, MEAN_SHIFT, range_and_mean

CONV, NORM = ("weight", "bias"), ("weight", "bias", "running_mean", "running_var")
COUNTER = "num_batches_tracked"  # of PyTorch's batch normalizations; of no use here
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of RGB

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class FamilyLayout:
    """How a project names the tensors of a network.

    Attributes:
        architecture: A key of `edsr.models.ARCHITECTURES`.
        marker: A tensor that no layout after this one has.
        rows: (theirs, ours, what there is of it: CONV, NORM, or () for a single tensor). In both names {i} is the
            number of a block, {j} one more and {k} two more, {s} an upsampler's stage, {g} one of several scales;
            {blocks} is how many blocks there are, {last} one more, and {stages} how many stages.
        block, stage: Tensors by which blocks and stages are counted.
        without_bias: Whether convolutions may have none.
        mean, deviation: What is subtracted from RGB in 0..1 before the network, and what it is then divided by.
        tanh: As in SRResNetConfig.
        rgb_range: The largest pixel value the network meets.
        extras: Names and shapes of further tensors.
    """

    architecture: str
    marker: str
    rows: tuple[tuple[str, str, tuple[str, ...]], ...]
    block: str = ""
    stage: str = ""
    without_bias: bool = False
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    deviation: tuple[float, float, float] = (1.0, 1.0, 1.0)
    tanh: bool = False
    rgb_range: float = 1.0
    extras: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def names(self, tensors: Tensors) -> dict[str, str]:
        """Their name of each tensor, mapped to ours."""
        blocks, stages = (_count(pattern, tensors) for pattern in (self.block, self.stage))
        ranges = {"i": range(blocks), "s": range(stages), "g": range(3)}
        table = {}
        for theirs, ours, kinds in self.rows:
            used = [name for name in ranges if f"{{{name}}}" in ours or (name == "i" and "{j}" in ours)]
            for numbers in itertools.product(*(ranges[name] for name in used)):
                values = dict(zip(used, numbers, strict=True))
                values |= {"last": blocks + 1, "blocks": blocks, "stages": stages} | _shifted(values.get("i", 0))
                pair = theirs.format(**values), ours.format(**values)
                table |= {f"{pair[0]}.{kind}": f"{pair[1]}.{kind}" for kind in kinds} or {pair[0]: pair[1]}
        return table


def _count(pattern: str, tensors: Tensors) -> int:
    """How many tensors there are of a pattern, numbered from 0."""
    numbers = itertools.count()
    return next(i for i in numbers if not pattern or pattern.format(s=i, **_shifted(i)) not in tensors)


def _shifted(i: int) -> dict[str, int]:
    return {"i": i, "j": i + 1, "k": i + 2}


FAMILY = {
    # S. Son's, as trained by the authors of the paper; the mean shift as in EDSR's.
    "mdsr-pytorch": FamilyLayout(
        "mdsr", "pre_process.0.0.body.0.weight",
        (
            ("head.0", "head", CONV),
            ("pre_process.{g}.0.body.0", "entries.{g}.0.conv1", CONV),
            ("pre_process.{g}.0.body.2", "entries.{g}.0.conv2", CONV),
            ("pre_process.{g}.1.body.0", "entries.{g}.1.conv1", CONV),
            ("pre_process.{g}.1.body.2", "entries.{g}.1.conv2", CONV),
            ("body.{i}.body.0", "body.{i}.conv1", CONV),
            ("body.{i}.body.2", "body.{i}.conv2", CONV),
            ("body.{blocks}", "body_end", CONV),
            ("upsample.{g}.0", "upsamplers.{g}.0", CONV),
            ("upsample.{g}.2", "upsamplers.{g}.1", CONV),
            ("tail.0", "tail", CONV),
        ),
        rgb_range=255, extras=MEAN_SHIFT,
        block="body.{i}.body.0.weight",
    ),
    # Lornatang/SRCNN-PyTorch.
    "srcnn-features": FamilyLayout(
        "srcnn", "reconstruction.weight",
        (("features.0", "convs.0", CONV), ("map.0", "convs.1", CONV), ("reconstruction", "convs.2", CONV)),
    ),
    # twtygqyy/pytorch-vdsr.
    "vdsr-pytorch": FamilyLayout(
        "vdsr", "residual_layer.0.conv.weight",
        (("input", "convs.0", CONV), ("residual_layer.{i}.conv", "convs.{j}", CONV), ("output", "convs.{last}", CONV)),
        without_bias=True,
        block="residual_layer.{i}.conv.weight",
    ),
    # Lornatang/VDSR-PyTorch.
    "vdsr-trunk": FamilyLayout(
        "vdsr", "trunk.0.conv.weight",
        (("conv1.0", "convs.0", CONV), ("trunk.{i}.conv", "convs.{j}", CONV), ("conv2", "convs.{last}", CONV)),
        without_bias=True,
        block="trunk.{i}.conv.weight",
    ),
    # leftthomas/SRGAN: five blocks, whatever its paper says; (tanh + 1) / 2.
    "srgan-blocks": FamilyLayout(
        "srresnet", "block8.0.conv.weight",
        (
            ("block1.0", "head", CONV), ("block1.1.weight", "head_slope", ()),
            ("block7.0", "body_end", CONV), ("block7.1", "bn", NORM),
            ("block8.{s}.conv", "upsampler.{s}", CONV), ("block8.{s}.prelu.weight", "slopes.{s}", ()),
            ("block8.{stages}", "tail", CONV),
            ("block{k}.conv1", "body.{i}.conv1", CONV), ("block{k}.bn1", "body.{i}.bn1", NORM),
            ("block{k}.prelu.weight", "body.{i}.slope", ()),
            ("block{k}.conv2", "body.{i}.conv2", CONV), ("block{k}.bn2", "body.{i}.bn2", NORM),
        ),
        tanh=True,
        block="block{k}.conv1.weight", stage="block8.{s}.conv.weight",
    ),
    # Lornatang/SRGAN-PyTorch.
    "srgan-trunk": FamilyLayout(
        "srresnet", "trunk.0.rcb.0.weight",
        (
            ("conv1.0", "head", CONV), ("conv1.1.weight", "head_slope", ()),
            ("trunk.{i}.rcb.0", "body.{i}.conv1", CONV), ("trunk.{i}.rcb.1", "body.{i}.bn1", NORM),
            ("trunk.{i}.rcb.2.weight", "body.{i}.slope", ()),
            ("trunk.{i}.rcb.3", "body.{i}.conv2", CONV), ("trunk.{i}.rcb.4", "body.{i}.bn2", NORM),
            ("conv2.0", "body_end", CONV), ("conv2.1", "bn", NORM),
            ("upsampling.{s}.upsample_block.0", "upsampler.{s}", CONV),
            ("upsampling.{s}.upsample_block.2.weight", "slopes.{s}", ()),
            ("conv3", "tail", CONV),
        ),
        without_bias=True,
        block="trunk.{i}.rcb.0.weight", stage="upsampling.{s}.upsample_block.0.weight",
    ),
    # sgrvinod/a-PyTorch-Tutorial-to-Super-Resolution: ImageNet's normalization before, tanh after.
    "srresnet-tutorial": FamilyLayout(
        "srresnet", "residual_blocks.0.conv_block1.conv_block.0.weight",
        (
            ("conv_block1.conv_block.0", "head", CONV), ("conv_block1.conv_block.1.weight", "head_slope", ()),
            ("residual_blocks.{i}.conv_block1.conv_block.0", "body.{i}.conv1", CONV),
            ("residual_blocks.{i}.conv_block1.conv_block.1", "body.{i}.bn1", NORM),
            ("residual_blocks.{i}.conv_block1.conv_block.2.weight", "body.{i}.slope", ()),
            ("residual_blocks.{i}.conv_block2.conv_block.0", "body.{i}.conv2", CONV),
            ("residual_blocks.{i}.conv_block2.conv_block.1", "body.{i}.bn2", NORM),
            ("conv_block2.conv_block.0", "body_end", CONV), ("conv_block2.conv_block.1", "bn", NORM),
            ("subpixel_convolutional_blocks.{s}.conv", "upsampler.{s}", CONV),
            ("subpixel_convolutional_blocks.{s}.prelu.weight", "slopes.{s}", ()),
            ("conv_block3.conv_block.0", "tail", CONV),
        ),
        mean=IMAGENET[0], deviation=IMAGENET[1], tanh=True,
        block="residual_blocks.{i}.conv_block1.conv_block.0.weight",
        stage="subpixel_convolutional_blocks.{s}.conv.weight",
    ),
    # yjn870/SRCNN-pytorch, and most others. The last: srgan-trunk has a conv3, too.
    "srcnn-pytorch": FamilyLayout(
        "srcnn", "conv3.weight",
        (("conv1", "convs.0", CONV), ("conv2", "convs.1", CONV), ("conv3", "convs.2", CONV)),
    ),
}  # fmt: skip
OWN_MARKERS = {
    "entries.0.0.conv1.weight": "mdsr",
    "head_slope": "srresnet",
    "convs.3.weight": "vdsr",
    "convs.2.weight": "srcnn",
}
"""Tensors by which a file of this project without its header is known, the first that it has."""

ENDS = (
    ("convs.0.weight", "convs.2.weight"),
    ("head.0.weight", "tail.0.weight"),
    ("conv1.weight", "conv3.weight"),
    ("features.0.weight", "reconstruction.weight"),
    ("input.weight", "output.weight"),
    ("conv1.0.weight", "conv2.weight"),
    ("block1.0.weight", "block7.0.weight"),
    ("conv1.0.weight", "conv3.weight"),
    ("conv_block1.conv_block.0.weight", "conv_block3.conv_block.0.weight"),
)
"""A tensor of the first convolution and one further on, by which a network is found in what is wrapped around it."""


class Loaded(NamedTuple):
    """A network from a file, and what was assumed.

    Attributes:
        model: In fp32 on the CPU.
        layout: A key of FAMILY, or FORMAT.
        notes: A line for each thing that the file does not state.
    """

    model: Network
    layout: str
    notes: list[str]


def find_layout(tensors: Tensors) -> str | None:
    """The layout of a network that is no EDSR: a key of FAMILY, or FORMAT; None for what is none of these."""
    for name, layout in FAMILY.items():
        if layout.marker in tensors:
            return name
    return FORMAT if any(marker in tensors for marker in OWN_MARKERS) else None


class Matched(NamedTuple):
    """A network without values, and the tensors of a checkpoint that it is to have.

    Attributes:
        model: Shapes only.
        state: The tensors by our names.
        theirs: Our name of each, mapped to theirs.
        rgb_range: What biases are divided by.
        notes: As in `Loaded`.
    """

    model: Network
    state: dict[str, Tensor]
    theirs: dict[str, str]
    rgb_range: float
    notes: list[str]


def build_family(
    tensors: Tensors, name: str, scale: int | None, residual_scale: float | None, header: NetworkConfig | None = None
) -> Loaded:
    """The network of a checkpoint.

    Args:
        tensors: By its own keys, on the CPU; checked key by key.
        name: Its layout, as `find_layout` gives it.
        scale: Of the network, where its file does not state one (SRCNN); one of several scales.
        residual_scale: Of an MDSR's blocks, 1 by default.
        header: The configuration that one of our own files states.

    Raises:
        WeightsError: Tensors are missing, unexpected, of other shapes, not finite, or contradict header or scale.
    """
    layout = FAMILY.get(name)
    model, state, theirs, rgb_range, notes = match_family(tensors, name, scale, residual_scale, header)
    values = {
        key: tensor.detach().double() / (rgb_range if key.endswith(".bias") else 1) for key, tensor in state.items()
    }
    if layout and layout.deviation != (1.0, 1.0, 1.0):  # into the first convolution, whose padding stays zero
        values["head.weight"] /= torch.tensor(layout.deviation, dtype=torch.float64)[:, None, None]
    model.load_state_dict({key: value.float() for key, value in values.items()}, assign=True)
    for key, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{theirs.get(key, key)} is not finite; the weights are broken")
    if scale is not None and scale not in model.config.scales:
        made_for = ", ".join(f"x{s}" for s in model.config.scales)
        raise WeightsError(f"its network upscales {made_for}, not x{scale}; give another file")
    return Loaded(model if scale is None else model.at(scale), name, notes)


def match_family(
    tensors: Tensors, name: str, scale: int | None, residual_scale: float | None, header: NetworkConfig | None = None
) -> Matched:
    """As `build_family`, but for the values, which are not looked at; same errors."""
    layout = FAMILY.get(name)
    architecture = header.architecture if header else layout.architecture if layout else _own_architecture(tensors)
    names = layout.names(tensors) if layout else {key: key for key in tensors}
    state = {ours: tensors[theirs] for theirs, ours in names.items() if theirs in tensors}
    rgb_range, mean = _range_and_mean(tensors, layout)
    config, notes = _read_config(architecture, state, layout, header.scale if header else scale, mean)
    if header:
        _check_header(header, config)
        config = header
    if residual_scale is not None:
        if not isinstance(config, MDSRConfig):
            raise WeightsError(f"it is of {architecture}, which has no residual scale; leave it out")
        if header and header != replace(config, residual_scale=residual_scale):
            raise WeightsError(
                f"the file says residual scale {config.residual_scale}, not {residual_scale}; leave it out"
            )
        config = replace(config, residual_scale=residual_scale)
    with torch.device("meta"):  # shapes only
        model = build_network(config)
    expected = {key: tensor.shape for key, tensor in model.state_dict().items()}
    if layout and layout.without_bias:
        state |= {
            key: torch.zeros(shape)
            for key, shape in expected.items()
            if key.endswith(".bias") and key not in state and f"{key.removesuffix('bias')}weight" in state
        }
    theirs = {ours: key for key, ours in names.items()}
    wrong = [
        f"{theirs.get(key, key)} is missing, expected {list(v)}" for key, v in expected.items() if key not in state
    ]
    extras = dict(layout.extras) if layout else {}
    wrong += [f"{key} is unexpected" for key in tensors if key not in extras and names.get(key) not in expected]
    both = ((theirs.get(key, key), list(state[key].shape), list(v)) for key, v in expected.items() if key in state)
    wrong += [f"{key} is {was}, expected {shape}" for key, was, shape in both if was != shape]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsError(f"not a whole {architecture} network: {'; '.join(wrong[:3])}{more}")
    return Matched(model, state, theirs, rgb_range, notes)


def _check_header(header: NetworkConfig, found: NetworkConfig) -> None:
    """Raises WeightsError unless tensors have the shape that a header states: a damaged one could ask for anything."""
    silent = {"scale", "residual_scale", "mean", "tanh"} | ({"all_scales"} if header.architecture == "vdsr" else set())
    for field in fields(header):  # pyright: ignore[reportArgumentType]: all are dataclasses
        theirs, own = getattr(found, field.name), getattr(header, field.name)
        if theirs != own and (field.name not in silent or (field.name == "scale" and len(found.scales) == 1)):
            raise WeightsError(f"its tensors have {field.name} {theirs}, and {own} is stated: it is damaged")


def _own_architecture(tensors: Tensors) -> str:
    return next(architecture for marker, architecture in OWN_MARKERS.items() if marker in tensors)


def _range_and_mean(tensors: Tensors, layout: FamilyLayout | None) -> tuple[float, tuple[float, float, float] | None]:
    """The largest pixel value the network meets, and its mean in 0..1; None: that of its kind of network."""
    if layout and layout.architecture == "mdsr":
        return range_and_mean(tensors, "edsr-pytorch")
    return (layout.rgb_range, layout.mean) if layout else (1.0, None)


def _read_config(
    architecture: str,
    state: Tensors,
    layout: FamilyLayout | None,
    scale: int | None,
    mean: tuple[float, float, float] | None,
) -> tuple[NetworkConfig, list[str]]:
    """The configuration that tensors, by our names, ask for, and what had to be assumed."""
    notes: list[str] = []
    try:
        if architecture == "srcnn":
            if scale is None:
                notes = [f"x2 assumed: the file does not tell its scale; {either('scale', '--scale')} sets another"]
            kernels = tuple(_shape(state, f"convs.{i}.weight")[2] for i in range(3))
            return SRCNNConfig(scale or 2, kernels), notes  # pyright: ignore[reportArgumentType]: three
        if architecture == "vdsr":
            depth = _count("convs.{i}.weight", state)
            return VDSRConfig(scale or 2, depth, _shape(state, "convs.0.weight")[0]), notes
        features = _shape(state, "head.weight")[0]
        blocks = _count("body.{i}.conv1.weight", state)
        means: dict[str, Any] = {} if mean is None else {"mean": mean}
        if architecture == "srresnet":
            made = _upsampler_scale(state, "upsampler", features)
            tanh = layout is not None and layout.tanh
            return SRResNetConfig(made, blocks, features, "bn.weight" in state, tanh=tanh, **means), notes
        scales = [
            _upsampler_scale(state, f"upsamplers.{g}", features)
            for g in itertools.takewhile(lambda g: f"upsamplers.{g}.0.weight" in state, range(3))
        ]
        first = scale if scale in scales else min(scales, default=2)
        return MDSRConfig(first, blocks, features, all_scales=tuple(scales), **means), notes
    except ValueError as error:
        raise WeightsError(f"not a {architecture} network that is known here ({error})") from None


def _shape(state: Tensors, key: str) -> tuple[int, ...]:
    """Of a convolution's weight. Raises ValueError if there is none."""
    if key not in state or state[key].ndim != 4:
        raise ValueError(f"{key} is missing, or no convolution's")
    return tuple(state[key].shape)


def _upsampler_scale(state: Tensors, name: str, features: int) -> int:
    stages = _count(f"{name}.{{s}}.weight", state)
    factors = tuple(_shape(state, f"{name}.{s}.weight")[0] / features for s in range(stages))
    if factors not in ((4,), (9,), (4, 4)):
        raise ValueError(f"{name} makes no x2, x3 or x4")
    return {(4,): 2, (9,): 3, (4, 4): 4}[factors]
