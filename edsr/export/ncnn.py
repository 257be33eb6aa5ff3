"""The plain network as ncnn has it: a text that names the layers, and a file of their weights."""

from typing import Any, BinaryIO

import numpy as np
from torch import nn

from edsr.models import EDSR

MAGIC = "7767517"  # what an ncnn text begins with
FP32 = np.uint32(0).tobytes()  # what weights of that type begin with


class _Text:
    """Layers as lines; blobs, their inputs and outputs, are numbered."""

    def __init__(self, weights: BinaryIO):
        self.lines, self.blobs = ["Input x 0 1 x"], 1
        self._weights = weights

    def layer(self, kind: str, inputs: list[str], outputs: int = 1, options: str = "") -> list[str]:
        found = [f"b{self.blobs + i}" for i in range(outputs)]
        self.blobs += outputs
        words = [kind, f"l{len(self.lines)}", str(len(inputs)), str(outputs), *inputs, *found, options]
        self.lines.append(" ".join(words).strip())
        return found

    def conv(self, x: str, layer: Any, relu: bool = False) -> str:
        assert isinstance(layer, nn.Conv2d) and layer.bias is not None
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        self._weights.write(FP32 + np.ascontiguousarray(weight).tobytes() + bias.tobytes())
        options = f"0={len(bias)} 1=3 4=1 5=1 6={weight.size} 9={int(relu)}"
        return self.layer("Convolution", [x], options=options)[0]

    def whole(self, last: str) -> str:
        """The text, with `last` as y."""
        text = "\n".join([MAGIC, f"{len(self.lines)} {self.blobs}", *self.lines, ""])
        return text.replace(f" {last} ", " y ")


def write(model: EDSR, weights: BinaryIO) -> str:
    """The text, and in a file `model`'s weights, fp32 on the CPU. From blob x to y, both less the images' mean."""
    net = _Text(weights)
    x, long = net.layer("Split", [net.conv("x", model.head)], outputs=2)
    for block in model.body:
        x, skip = net.layer("Split", [x], outputs=2)
        y = net.conv(net.conv(x, block.conv1, relu=True), block.conv2)
        (x,) = net.layer("BinaryOp", [y, skip], options="0=0")
    (x,) = net.layer("BinaryOp", [net.conv(x, model.body_end), long], options="0=0")
    for layer, r in zip(model.upsampler, model.config.shuffle_factors, strict=True):
        (x,) = net.layer("PixelShuffle", [net.conv(x, layer)], options=f"0={r}")
    return net.whole(net.conv(x, model.tail))
