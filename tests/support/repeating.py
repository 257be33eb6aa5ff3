"""Networks that repeat every pixel: whatever they are given, the right result is known."""

import torch
from torch import Tensor

from edsr.models import EDSR, EDSRConfig
from edsr.weights.edsr import LAYOUTS

OFFSET = 32.0  # makes what goes through a block positive, so that its ReLU changes nothing


def repeating(scale=2, blocks=1, features=8, gain=0.0, residual_scale=1.0) -> EDSR:
    """A network that gives each pixel scale times in both directions.

    Args:
        gain: Each block multiplies by 1 + gain · residual_scale, and the end of the body divides that out, so that any
            other residual scale gives other colors. 0: the body is empty, and no residual scale matters.
    """
    model = EDSR(EDSRConfig(scale, blocks, features, residual_scale))
    center = torch.zeros(features, features, 3, 3)
    center[range(3), range(3), 1, 1] = 1
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.head.weight[range(3), range(3), 1, 1] = 1
        for block in model.body:
            block.conv1.weight.copy_(center)
            block.conv1.bias.fill_(OFFSET)
            block.conv2.weight.copy_(gain * center)
            block.conv2.bias[:3] = -OFFSET * gain
        if gain:  # together with the long skip: twice the pixels
            model.body_end.weight.copy_(center / (1 + gain * residual_scale) ** blocks)
        for layer, r in zip(model.upsampler, model.config.shuffle_factors, strict=True):
            for channel in range(features):
                layer.weight[channel * r * r : (channel + 1) * r * r, channel, 1, 1] = 1
        model.tail.weight[range(3), range(3), 1, 1] = 0.5 if gain else 1
    return model


def in_layout(model: EDSR, layout: str) -> dict[str, Tensor]:
    """The network's tensors as another project names and scales them; without tensors of a mean."""
    span = LAYOUTS[layout].rgb_range
    state = model.state_dict()
    names = LAYOUTS[layout].names(model.config.blocks, len(model.config.shuffle_factors))
    return {
        f"{theirs}.{kind}": state[f"{ours}.{kind}"] * (span if kind == "bias" else 1)
        for theirs, ours in names.items()
        for kind in ("weight", "bias")
    }
