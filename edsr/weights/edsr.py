"""The EDSR family's checkpoints: how each project names its tensors, and the networks that those make.

The shape of a network is read off its tensors, never off the file name. Checkpoints of other projects are brought to
this project's names and to its values in 0..1 (see `edsr.models.edsr`): where a project counts in 0..255, every bias
is divided by 255, which is exact up to one rounding.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from edsr.errors import WeightsError
from edsr.models import DIV2K_MEAN, EDSR, PRESETS, EDSRConfig

FORMAT = "edsr-triton"
"""This project's own layout, and what the headers of its files call themselves."""

NO_MEAN = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class CheckpointLayout:
    """How a project names its convolutions, and which pixel values they were trained on.

    Attributes:
        head, tail: Names of the first and the last convolution.
        conv1, conv2: Names of a block's two convolutions; `{}` stands for the block's number.
        body_end: Name of the convolution after the blocks; `{}` stands for their number.
        upsampler: Names of the convolutions of its two stages; x2 and x3 have the first one only.
        rgb_range: The largest pixel value the network meets.
        mean: RGB, in 0..1, subtracted before the head.
        extras: Names and shapes of further tensors, of which a checkpoint has all or none.
    """

    head: str
    conv1: str
    conv2: str
    body_end: str
    upsampler: tuple[str, str]
    tail: str
    rgb_range: float
    mean: tuple[float, float, float]
    extras: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def names(self, blocks: int, stages: int) -> dict[str, str]:
        """The project's name of each convolution, mapped to ours."""
        table = {self.head: "head", self.body_end.format(blocks): "body_end", self.tail: "tail"}
        for i in range(blocks):
            table[self.conv1.format(i)] = f"body.{i}.conv1"
            table[self.conv2.format(i)] = f"body.{i}.conv2"
        return table | {self.upsampler[i]: f"upsampler.{i}" for i in range(stages)}

    def count_blocks(self, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
        """How many blocks and upsampler stages there are, by the highest number of each among the keys."""
        digits = [re.escape(conv).replace(r"\{\}", "([0-9]{1,6})") for conv in (self.conv1, self.conv2)]
        block = re.compile(rf"(?:{digits[0]}|{digits[1]})\.(?:weight|bias)")
        blocks = max((int(m[1] or m[2]) + 1 for m in map(block.fullmatch, tensors) if m), default=0)
        stages = max((i + 1 for i in (0, 1) if f"{self.upsampler[i]}.weight" in tensors), default=0)
        return min(blocks, len(tensors)), stages  # a made-up block number must not cost memory


MEAN_SHIFT = (
    ("sub_mean.weight", (3, 3, 1, 1)),
    ("sub_mean.bias", (3,)),
    ("add_mean.weight", (3, 3, 1, 1)),
    ("add_mean.bias", (3,)),
)
BLOCK = ("body.{}.conv1", "body.{}.conv2")
OFFICIAL = ("head.0", "body.{}.body.0", "body.{}.body.2", "body.{}", ("tail.0.0", "tail.0.2"), "tail.1")
# Where two explain as many keys, the earlier one is taken.
LAYOUTS = {
    FORMAT: CheckpointLayout("head", *BLOCK, "body_end", ("upsampler.0", "upsampler.1"), "tail", 1, DIV2K_MEAN),
    # torchSR's, too: the same tensors; its forward multiplies by 255 before them and divides after.
    "edsr-pytorch": CheckpointLayout(*OFFICIAL, 255, DIV2K_MEAN, MEAN_SHIFT),
    # Builds sub_mean and add_mean for 0..255 and stores them, but its forward uses neither, on 0..1.
    "super-image": CheckpointLayout(*OFFICIAL, 1, NO_MEAN, MEAN_SHIFT),
    "basicsr": CheckpointLayout(
        "conv_first", *BLOCK, "conv_after_body", ("upsample.0", "upsample.2"), "conv_last", 255, DIV2K_MEAN,
        (("mean", (1, 3, 1, 1)),),
    ),
    "mmagic": CheckpointLayout(
        "conv_first", *BLOCK, "conv_after_body", ("upsample.0.upsample_conv", "upsample.1.upsample_conv"),
        "conv_last", 1, DIV2K_MEAN,
    ),
    "mlcommons": CheckpointLayout("head", *BLOCK, "body_tail", ("upsample.0", "upsample.1"), "tail", 255, NO_MEAN),
}  # fmt: skip

AMBIGUOUS = ("edsr-pytorch", "super-image")
"""Layouts with the same tensors, which only `edsr.weights.readings` tells apart."""

_SCALES = {(4,): 2, (9,): 3, (4, 4): 4}  # by the channels out of each upsampler stage, in features


def expand_collapsed_upsampler(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rewrites MLCommons' `upsample_out` (features -> 3 r² channels, then a pixel shuffle) as our upsampler and tail.

    Exactly the same function: the upsampler computes it in its first channels, which the shuffle makes the first
    three, and the tail picks those with its center tap. All other weights are zero. Other tensors are returned as
    they are.

    Raises:
        WeightsError: `upsample_out` has other shapes.
    """
    if "upsample_out.weight" not in tensors or "tail.weight" in tensors:
        return tensors
    features, outputs = _out_channels(tensors, "body_tail"), _out_channels(tensors, "upsample_out")
    weight, bias = tensors["upsample_out.weight"], tensors.get("upsample_out.bias", torch.empty(0))
    fits = weight.shape == (outputs, features, 3, 3) and bias.shape == (outputs,) and outputs in (12, 27)
    if not fits or features < 3 or tensors["body_tail.weight"].shape[1] != features:
        raise WeightsError("upsample_out must lead from the features to 12 or 27 channels, with a bias")
    rest = outputs // 3 * features - outputs
    tail = torch.zeros(3, features, 3, 3)
    tail[range(3), range(3), 1, 1] = 1
    tensors = {k: v for k, v in tensors.items() if not k.startswith("upsample_out.")}
    return tensors | {
        "upsample.0.weight": F.pad(weight.float(), (0, 0, 0, 0, 0, 0, 0, rest)),
        "upsample.0.bias": F.pad(bias.float(), (0, rest)),
        "tail.weight": tail,
        "tail.bias": torch.zeros(3),
    }


def detect_layout(tensors: dict[str, Tensor]) -> str:
    """The layout, a key of LAYOUTS, that explains the most keys.

    Of AMBIGUOUS layouts the first is given.

    Raises:
        WeightsError: No layout explains half of the keys.
    """

    def explained(layout: CheckpointLayout) -> int:
        convs = layout.names(*layout.count_blocks(tensors))
        own = {f"{name}.{kind}" for name in convs for kind in ("weight", "bias")} | dict(layout.extras).keys()
        return len(own & tensors.keys())

    name = max(LAYOUTS, key=lambda n: explained(LAYOUTS[n]))
    if 2 * explained(LAYOUTS[name]) < len(tensors):
        raise WeightsError(f"not an EDSR network that is known here (keys such as {next(iter(tensors))})")
    return name


def build_model(
    tensors: dict[str, Tensor], name: str, residual_scale: float | None, header: EDSRConfig | None = None
) -> EDSR:
    """The network of a checkpoint, in fp32 on the CPU.

    Args:
        tensors: The checkpoint's, by its own keys, on the CPU; checked key by key.
        name: Its layout, a key of LAYOUTS.
        residual_scale: See `edsr.weights.load_model`.
        header: The configuration that one of our own files states.

    Raises:
        WeightsError: Tensors are missing, unexpected, of other shapes, not finite, or contradict the header.
    """
    config = checkpoint_config(tensors, name, residual_scale, header)
    model, own = match_tensors(tensors, name, config)
    rgb_range, mean = range_and_mean(tensors, name)
    state = {}
    for key, ours in own.items():
        tensor = tensors[key].detach().double() / rgb_range if ours.endswith("bias") else tensors[key].detach()
        state[ours] = tensor.to(torch.float32, copy=True)
        if not state[ours].isfinite().all():
            raise WeightsError(f"{key} is not finite; the weights are broken")
    model.load_state_dict(state, assign=True)
    model.config = replace(config, mean=header.mean if header else mean)
    return model


def match_tensors(tensors: dict[str, Tensor], name: str, config: EDSRConfig) -> tuple[EDSR, dict[str, str]]:
    """The network of a configuration, without values, and our name of each of a checkpoint's tensors.

    Raises:
        WeightsError: Tensors are missing, unexpected, or of other shapes.
    """
    layout = LAYOUTS[name]
    with torch.device("meta"):  # shapes only
        model = EDSR(config)
    convs = layout.names(config.blocks, len(config.shuffle_factors))
    own = {f"{k}.{kind}": f"{v}.{kind}" for k, v in convs.items() for kind in ("weight", "bias")}
    expected = {key: model.get_parameter(ours).shape for key, ours in own.items()}
    if any(key in tensors for key, _ in layout.extras):
        expected |= dict(layout.extras)
    wrong = [f"{k} is missing, expected {list(v)}" for k, v in expected.items() if k not in tensors]
    wrong += [f"{k} is unexpected" for k in tensors if k not in expected]
    both = ((k, list(tensors[k].shape), list(v)) for k, v in expected.items() if k in tensors)
    wrong += [f"{k} is {found}, expected {shape}" for k, found, shape in both if found != shape]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsError(f"not a whole EDSR network of layout {name}: {'; '.join(wrong[:3])}{more}")
    return model, own


def checkpoint_config(
    tensors: dict[str, Tensor], name: str, residual_scale: float | None, header: EDSRConfig | None
) -> EDSRConfig:
    """The configuration that the shapes ask for; its mean is the header's or the layout's. See `build_model`."""
    layout = LAYOUTS[name]
    features = _out_channels(tensors, layout.head)
    if not features:
        raise WeightsError(f"{layout.head}.weight is missing or not [features, 3, 3, 3]")
    blocks, stages = layout.count_blocks(tensors)
    # A first stage that is missing beside a second one is named with the other wrong keys: take it for x2.
    outputs = [_out_channels(tensors, stage) or 4 * features for stage in layout.upsampler[:stages]]
    scale = _SCALES.get(tuple(n / features for n in outputs))
    if scale is None:
        channels = f"[{layout.upsampler[0]}.weight ...] with {outputs or 'no'} channels"
        raise WeightsError(f"its upsampler, {channels}, makes no x2, x3 or x4 of {features} features")
    if header:
        if header != replace(header, scale=scale, blocks=blocks, features=features):
            found = f"x{scale}, {blocks} blocks and {features} features"
            raise WeightsError(f"its tensors are those of {found}, what is stated is another: it is damaged")
        if residual_scale not in (None, header.residual_scale):
            contradiction = f"the file says residual scale {header.residual_scale}, not {residual_scale}"
            raise WeightsError(f"{contradiction}; leave it out")
        return header
    if residual_scale is None:
        residual_scale = published_residual_scale(name, blocks, features)
    return EDSRConfig(scale, blocks, features, residual_scale, layout.mean)


def published_residual_scale(name: str, blocks: int, features: int) -> float:
    """The residual scale that a project publishes networks of such a size with; 1 for sizes of no preset."""
    same_size = (p for p in PRESETS.values() if (p.blocks, p.features) == (blocks, features))
    return 1.0 if name == "super-image" else next(same_size, EDSRConfig()).residual_scale


def _out_channels(tensors: dict[str, Tensor], conv: str) -> int:
    """Of a convolution; 0 if there is none of that name."""
    weight = tensors.get(f"{conv}.weight")
    return weight.shape[0] if weight is not None and weight.ndim == 4 else 0


def range_and_mean(tensors: Mapping[str, Tensor], name: str) -> tuple[float, tuple[float, float, float]]:
    """The largest pixel value the network meets, and the mean, in 0..1, subtracted before it."""
    layout = LAYOUTS[name]
    rgb_range, mean = layout.rgb_range, layout.mean
    if name == "edsr-pytorch" and "sub_mean.weight" in tensors:
        one, sub, two, add = (tensors[key].detach().double() for key, _ in MEAN_SHIFT)
        eye = torch.eye(3, dtype=torch.float64)
        if not all(torch.equal(w[..., 0, 0], eye) for w in (one, two)) or not torch.equal(add, -sub):
            raise WeightsError("sub_mean and add_mean are not a mean shift of standard deviation 1 and its opposite")
        rgb_range = 255 if sub.abs().max() > 1 or not sub.any() else 1  # a mean of 0 leaves the project's default
        mean = tuple((add / rgb_range).tolist())
    elif name == "basicsr" and "mean" in tensors:
        mean = tuple(tensors["mean"].double().flatten().tolist())
    if not all(0 <= m <= 1 for m in mean):
        raise WeightsError(f"its mean {list(mean)} is not within the range of its pixels")
    # No file holds the published mean exactly: it is a decimal fraction.
    published = all(math.isclose(m, d, rel_tol=1e-6) for m, d in zip(mean, DIV2K_MEAN, strict=True))
    return rgb_range, DIV2K_MEAN if published else mean
