"""The network in ncnn's files: a text that lists the layers (.param), and their weights one after the other (.bin).

Formats: https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure
"""

from typing import Any, BinaryIO

import numpy as np
from torch import nn

from edsr.errors import WeightsError
from edsr.models import EDSR, check_network

MAGIC = "7767517"  # the first line of a .param
FP32 = np.uint32(0).tobytes()  # comes before weights of that type in a .bin


class _ParamBuilder:
    """The lines of a .param, a layer each, while their weights go to a .bin; blobs are named by number."""

    def __init__(self, weights: BinaryIO):
        self._lines, self._blobs = ["Input x 0 1 x"], 1
        self._weights = weights

    def layer(self, kind: str, inputs: list[str], outputs: int = 1, options: str = "") -> list[str]:
        """Adds a layer; gives the names of its outputs."""
        names = [f"b{self._blobs + i}" for i in range(outputs)]
        self._blobs += outputs
        words = [kind, f"l{len(self._lines)}", str(len(inputs)), str(outputs), *inputs, *names, options]
        self._lines.append(" ".join(words).strip())
        return names

    def conv(self, x: str, layer: Any, relu: bool = False, factor: float = 1.0) -> str:
        """Adds a 3x3 convolution, its result multiplied by `factor`; gives the name of its output."""
        assert isinstance(layer, nn.Conv2d) and layer.bias is not None
        weight, bias = (np.float32(factor) * p.detach().numpy() for p in (layer.weight, layer.bias))
        self._weights.write(FP32 + np.ascontiguousarray(weight).tobytes() + bias.tobytes())
        options = f"0={len(bias)} 1=3 4=1 5=1 6={weight.size} 9={int(relu)}"
        return self.layer("Convolution", [x], options=options)[0]

    def text(self, output: str) -> str:
        """The .param, with the blob `output` renamed to y."""
        text = "\n".join([MAGIC, f"{len(self._lines)} {self._blobs}", *self._lines, ""])
        return text.replace(f" {output} ", " y ")


def write_ncnn(model: EDSR, weights: BinaryIO) -> str:
    """Writes a network's weights as ncnn reads them.

    The network reads blob `x`, [3, H, W] RGB in 0..1 less `model.config.mean`, and gives blob `y`, [3, s·H, s·W], less
    the same mean. ncnn has no layer for the factor on residual branches: it goes into their second convolution.

    Args:
        model: In fp32 on the CPU.
        weights: The .bin, open for writing.

    Returns:
        The .param.

    Raises:
        TypeError: The model is none.
        WeightsError: It is of another architecture.
    """
    check_network(model)
    if model.config.architecture != "edsr":
        raise WeightsError(f"the network is of {model.config.architecture}; only EDSR's are written for ncnn")
    net = _ParamBuilder(weights)
    factor = model.config.residual_scale
    x, long_skip = net.layer("Split", [net.conv("x", model.head)], outputs=2)
    for block in model.body:
        x, skip = net.layer("Split", [x], outputs=2)
        y = net.conv(net.conv(x, block.conv1, relu=True), block.conv2, factor=factor)
        (x,) = net.layer("BinaryOp", [y, skip], options="0=0")
    (x,) = net.layer("BinaryOp", [net.conv(x, model.body_end), long_skip], options="0=0")
    for layer, r in zip(model.upsampler, model.config.shuffle_factors, strict=True):
        (x,) = net.layer("PixelShuffle", [net.conv(x, layer)], options=f"0={r}")
    return net.text(net.conv(x, model.tail))
