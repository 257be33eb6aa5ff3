"""A network in ncnn's format: a text that lists the layers (.param), and their weights one after the other (.bin).

Formats: https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure. The layers are those that other readers
of the format know as well: no MemoryData, no Scale, no Interp, nothing that broadcasts. The first is a convolution from
three channels, by which some tell that an image goes in; ncnn would also crash on one that works in place there, if
the image's memory is not its own.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from edsr.kernels import (
    BICUBIC_RADIUS,
    LUMA,
    LUMA_BLACK,
    LUMA_GAIN,
    NO_MEAN,
    RAW_OUTPUT,
    OutputSpec,
    bicubic_weight,
)
from edsr.models import Network

from .recorder import Recorder, as_half

MAGIC = "7767517"  # the first line of a .param
INPUT, OUTPUT = "data", "output"  # as realesrgan-ncnn-vulkan and its relatives call them
FP32, FP16 = bytes(4), (0x01306B47).to_bytes(4, "little")  # come before weights of that type


class _Layer(NamedTuple):
    kind: str
    inputs: list[str]
    output: str
    options: str


class _Recorder(Recorder):
    """`edsr.kernels.Layers` over names of blobs."""

    def __init__(self, half: bool, span: float):
        super().__init__(half, span)
        self.layers = [_Layer("Input", [], INPUT, "")]
        self.weights: list[bytes] = []

    def enter(self, x: str, mean: Sequence[float] = NO_MEAN) -> str:
        return self._affine(x, 1 / self.span, [-value for value in mean])

    def conv(
        self,
        x: str,
        weight: Tensor,
        bias: Tensor,
        relu: bool = False,
        slope: Tensor | None = None,
        skip: str | None = None,
        shuffle: int = 1,
        scale: float = 1.0,
    ) -> str:
        assert scale == 1 or not (relu or slope is not None)  # no layer multiplies: the factor goes into the weights
        y = self._conv(x, weight * scale, bias * scale, relu=relu, half=self.half)
        if slope is not None:
            self.weights.append(slope.float().numpy().tobytes())
            y = self._layer("PReLU", [y], f"0={slope.numel()}")
        if skip is not None:
            y = self._layer("BinaryOp", [y, skip], "0=0")  # a sum
        return y if shuffle == 1 else self._layer("PixelShuffle", [y], f"0={shuffle}")

    def bicubic(self, x: str, scale: int) -> str:
        taps = bicubic_weight(scale, torch.float32, torch.device("cpu"))
        weight = torch.kron(torch.eye(3).view(3, 3, 1, 1), taps)  # each channel by itself
        sides = " ".join(f"{side}={BICUBIC_RADIUS}" for side in range(4))
        y = self._layer("Padding", [x], f"{sides} 4=1")  # by repetition
        y = self._conv(y, weight, torch.zeros(len(weight)), padding=0)
        return self._layer("PixelShuffle", [y], f"0={scale}")

    def luma(self, x: str) -> str:
        return self._conv(x, torch.tensor(LUMA).view(1, 3, 1, 1), torch.tensor([LUMA_BLACK]))

    def chroma(self, x: str) -> str:
        weight = torch.eye(3) - LUMA_GAIN * torch.tensor(LUMA)
        return self._conv(x, weight.view(3, 3, 1, 1), torch.full((3,), -LUMA_GAIN * LUMA_BLACK))

    def leave(
        self,
        x: str,
        mean: Sequence[float] = NO_MEAN,
        result: OutputSpec = RAW_OUTPUT,
        tanh: bool = False,
        image: str | None = None,
    ) -> Tensor:
        if image is not None:  # x is luma
            x = self._conv(x, torch.full((3, 1, 1, 1), LUMA_GAIN), torch.zeros(3))
            x = self._layer("BinaryOp", [x, image], "0=0")
        half = 0.5 if tanh else 0.0
        x = self._layer("TanH", [x]) if tanh else x
        return cast(Any, self._affine(x, self.span * (1 - half), [self.span * (half + value) for value in mean]))

    # --- layers

    def _affine(self, x: str, factor: float, offsets: Sequence[float]) -> str:
        """factor * x + offset of the channel, on three channels."""
        if factor == 1 and not any(offsets):
            return x
        return self._conv(x, factor * torch.eye(3).view(3, 3, 1, 1), torch.tensor(offsets))

    def _conv(
        self,
        x: str,
        weight: Tensor,
        bias: Tensor,
        relu: bool = False,
        padding: int | None = None,
        half: bool = False,
    ) -> str:
        count, kernel = weight.shape[0], weight.shape[2]
        values = np.ascontiguousarray(weight.float().numpy())
        # Readers do not agree on what follows an odd number of fp16 values.
        stored = FP16 + as_half(values).tobytes() if half and values.size % 2 == 0 else FP32 + values.tobytes()
        self.weights.append(stored + bias.float().numpy().tobytes())
        padding = kernel // 2 if padding is None else padding
        options = f"0={count} 1={kernel} 4={padding} 5=1 6={values.size} 9={int(relu)}"
        return self._layer("Convolution", [x], options)

    def _layer(self, kind: str, inputs: list[str], options: str = "") -> str:
        output = f"b{len(self.layers)}"
        self.layers.append(_Layer(kind, inputs, output, options))
        return output

    def lines(self, last: str) -> tuple[list[str], int]:
        """The layers as lines, and how many blobs there are. What several layers read, ncnn wants split."""
        readers = Counter(name for layer in self.layers for name in layer.inputs)
        copies: dict[str, Iterator[str]] = {}
        lines, blobs = [], 0
        for i, (kind, inputs, output, options) in enumerate(self.layers):
            read = [next(copies[name]) if name in copies else name for name in inputs]
            name = OUTPUT if output == last else output
            lines.append(_line(kind, f"l{i}", read, [name], options))
            blobs += 1
            if readers[output] > 1:
                names = [f"{output}_{n}" for n in range(readers[output])]
                lines.append(_line("Split", f"s{i}", [name], names))
                copies[output] = iter(names)
                blobs += len(names)
        return lines, blobs


def _line(kind: str, name: str, inputs: list[str], outputs: list[str], options: str = "") -> str:
    words = [f"{kind:<24}", f"{name:<8}", str(len(inputs)), str(len(outputs)), *inputs, *outputs, options]
    return " ".join(words).rstrip()


def build_ncnn(model: Network, half: bool = False, span: float = 1) -> tuple[str, bytes]:
    """The .param and the .bin: "data" [3, H, W] RGB float in 0..span, "output" [3, s·H, s·W].

    Args:
        model: In fp32 on the CPU. What `edsr.models.fold` gives of an EDSR has a collapsed tail.
        half: Whether weights are stored in fp16.
        span: The value that is white.
    """
    recorder = _Recorder(half, span)
    with torch.no_grad():
        last = cast(Any, model.forward(cast(Any, INPUT), cast(Any, recorder)))
    lines, blobs = recorder.lines(last)
    return "\n".join([MAGIC, f"{len(lines)} {blobs}", *lines, ""]), b"".join(recorder.weights)
