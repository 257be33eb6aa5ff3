"""A network as an ONNX graph, recorded by handing its forward pass operations that write nodes."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from edsr.kernels import LUMA, LUMA_BLACK, LUMA_GAIN, NO_MEAN, RAW_OUTPUT, OutputSpec, bicubic_weight
from edsr.models import Network

from .recorder import Recorder, as_half

OPSET, IR_VERSION = 17, 8
INPUT, OUTPUT = "input", "output"
AXES = ["batch", 3, "height", "width"]


class _Recorder(Recorder):
    """`edsr.kernels.Layers` over names of values. With fp16 weights convolutions compute in it; both ends do not."""

    def __init__(self, half: bool, span: float):
        super().__init__(half, span)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._wide = {INPUT}  # values in fp32, whatever convolutions compute in

    def enter(self, x: str, mean: Sequence[float] = NO_MEAN) -> str:
        if self.span != 1:
            x = self._wide_node("Mul", x, self._values(1 / self.span))
        return self._wide_node("Sub", x, self._values(mean, (3, 1, 1))) if any(mean) else x

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
        pads = [weight.shape[2] // 2] * 4
        y = self._node("Conv", self._to_compute(x), self._own(weight), self._own(bias), pads=pads)
        if relu:
            y = self._node("Relu", y)
        elif slope is not None:
            y = self._node("PRelu", y, self._own(slope.view(-1, 1, 1)))
        if scale != 1:
            y = self._node("Mul", y, self._own(torch.tensor(scale)))
        if skip is not None:
            y = self._node("Add", y, self._to_compute(skip))
        return y if shuffle == 1 else self._node("DepthToSpace", y, blocksize=shuffle, mode="CRD")

    def bicubic(self, x: str, scale: int) -> str:
        weight = bicubic_weight(scale, torch.float32, torch.device("cpu")).repeat(3, 1, 1, 1)
        pads = self._constant(np.array([0, 0, 2, 2, 0, 0, 2, 2], np.int64))
        y = self._wide_node("Pad", x, pads, mode="edge")
        y = self._wide_node("Conv", y, self._constant(weight.numpy()), group=3)
        return self._wide_node("DepthToSpace", y, blocksize=scale, mode="CRD")

    def luma(self, x: str) -> str:
        weight = np.array(LUMA, np.float32).reshape(1, 3, 1, 1)
        return self._wide_node("Conv", x, self._constant(weight), self._values([LUMA_BLACK]))

    def chroma(self, x: str) -> str:
        weight = np.eye(3, dtype=np.float32) - np.float32(LUMA_GAIN) * np.array(LUMA, np.float32)
        bias = self._values([-LUMA_GAIN * LUMA_BLACK] * 3)
        return self._wide_node("Conv", x, self._constant(weight.reshape(3, 3, 1, 1)), bias)

    def leave(
        self,
        x: str,
        mean: Sequence[float] = NO_MEAN,
        result: OutputSpec = RAW_OUTPUT,
        tanh: bool = False,
        image: str | None = None,
    ) -> Tensor:
        y = self._node("Cast", x, to=TensorProto.FLOAT) if self.half else x
        if tanh:
            y = self._node("Mul", self._node("Add", self._node("Tanh", y), self._values(1.0)), self._values(0.5))
        if image is not None:
            y = self._node("Add", self._node("Mul", y, self._values(LUMA_GAIN)), image)
        if any(mean):
            y = self._node("Add", y, self._values(mean, (3, 1, 1)))
        return cast(Any, y if self.span == 1 else self._node("Mul", y, self._values(self.span)))

    # --- parts of a graph

    def _to_compute(self, x: str) -> str:
        """A value in what convolutions compute in."""
        return self._node("Cast", x, to=TensorProto.FLOAT16) if self.half and x in self._wide else x

    def _own(self, values: Tensor) -> str:
        array = values.detach().float().numpy()
        return self._constant(as_half(array) if self.half else array)

    def _values(self, values: float | Sequence[float], shape: tuple[int, ...] | None = None) -> str:
        array = np.array(values, np.float32)
        return self._constant(array if shape is None else array.reshape(shape))

    def _constant(self, values: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def _wide_node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = self._node(kind, *inputs, **attributes)
        self._wide.add(name)
        return name

    def _node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name


def build_onnx(model: Network, half: bool, span: float, metadata: dict[str, str]) -> onnx.ModelProto:
    """The model: "input" [batch, 3, height, width] RGB float in 0..span, "output" [batch, 3, s·height, s·width].

    Args:
        model: In fp32 on the CPU. What `edsr.models.fold` gives of an EDSR has a collapsed tail.
        half: Whether weights are fp16, which is then computed in; both ends stay fp32.
        span: The value that is white.
        metadata: What the file says of itself.
    """
    recorder = _Recorder(half, span)
    last = cast(Any, model.forward(cast(Any, INPUT), cast(Any, recorder)))
    recorder.nodes.append(helper.make_node("Identity", [last], [OUTPUT], OUTPUT))
    scale = model.config.scale
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, axes)
        for name, axes in ((INPUT, AXES), (OUTPUT, ["batch", 3, f"{scale}*height", f"{scale}*width"]))
    ]
    constants = list(recorder.constants.values())
    graph = helper.make_graph(recorder.nodes, model.config.architecture, ends[:1], ends[1:], constants)
    opset = [helper.make_opsetid("", OPSET)]
    made = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="edsr-triton")
    helper.set_model_props(made, metadata)
    onnx.checker.check_model(made, full_check=True)
    return made
