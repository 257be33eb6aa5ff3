"""Single operations of the network on feature maps of one size: ours, cuDNN through PyTorch, torch.compile.

Every case gets the same operands, channels_last and of one dtype. cuDNN computes a convolution alone: bias, ReLU and
skip are kernels of their own (`edsr.kernels.reference`); torch.compile may fuse those. The gradients of a convolution
are computed on patches, as in training.
"""

import copy
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from bench.windows import Pair, cut, describe_faults, in_windows, largest, largest_difference, pairs, side_for
from bench.workloads import Case, Run, Unavailable, Workload, compiled, gflop_of_end, network
from edsr.kernels import reference
from edsr.kernels.interface import OutputSpec
from edsr.models.edsr import DIV2K_MEAN, EDSR, EDSRConfig
from edsr.models.folding import FoldedEDSR


@dataclass(frozen=True)
class SingleOp(Workload):
    """One operation on one map, or image, with random operands from fixed seeds.

    name: a key of KINDS. device "meta": operands have no values, for compiling without a GPU. scale: of the image,
    for tails. result: what a tail gives, see `OutputSpec`. wide: the same operands in fp64. images: how many at once.
    """

    name: str
    features: int
    height: int
    width: int
    device: str = "cuda"
    dtype: torch.dtype = torch.float16
    scale: int = 1
    result: torch.dtype | None = torch.uint8
    wide: bool = False
    images: int = 1

    base = "cudnn"

    def __str__(self) -> str:
        return f"{self.name}-{self.features}" + (f"-x{self.scale}" if self.scale > 1 else "")

    @property
    def kind(self) -> "Kind":
        return KINDS[self.name]

    @property
    def cases(self) -> "dict[str, Case]":
        return {name: CASES[name] for name in ("ours", *self.kind.ways, "cudnn", "compile")}

    @property
    def small(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.images > 1

    @property
    def rounding(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 0.5001 / 255 if self.name == "tail" else 0.0  # to whole levels

    def description(self) -> dict:
        title = self.kind.title + (f" x{self.scale}" if self.scale > 1 else "")
        title += f", {self.images} images" if self.images > 1 else ""
        precision = str(self.dtype).removeprefix("torch.")
        size = {"width": self.width, "height": self.height, "precision": precision}
        return {"op": self.name, "title": title, "features": self.features, "scale": self.scale} | size

    def gflop(self, collapsed: bool) -> float:
        c, pixels = self.features, self.images * self.height * self.width
        if self.name == "tail":
            return gflop_of_end(c, self.scale, collapsed) * pixels
        return self.kind.convolutions * 2 * 9 * (3 if self.name == "head" else c) * c * pixels / 1e9

    def draw(self, seed: int, *size: int, gain: float = 1.0) -> Tensor:
        """Random numbers of deviation `gain`; [N, C, H, W] is channels_last."""
        if self.device == "meta":
            values = torch.empty(size, device="meta", dtype=self.dtype)
        else:
            generator = torch.Generator(self.device).manual_seed(seed)
            values = torch.randn(size, device=self.device, generator=generator).mul_(gain).to(self.dtype)
        if len(size) == 4:
            values = values.contiguous(memory_format=torch.channels_last)
        return values.double() if self.wide else values

    def map(self, seed: int = 0) -> Tensor:
        """A feature map. At 1080p one of 64 channels is larger than any cache, so one is as good as several."""
        return self.draw(seed, self.images, self.features, self.height, self.width)

    def pixels(self) -> Tensor:
        """An image, uint8 [1, 3, H, W] in the memory of [H, W, 3]."""
        size = (1, self.height, self.width, 3)
        values = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return values.to(self.device).permute(0, 3, 1, 2)

    def weights(self, inputs: int, seed: int = 1) -> tuple[Tensor, Tensor]:
        """Weight and bias of a convolution that keeps deviations about as they are."""
        weight = self.draw(seed, self.features, inputs, 3, 3, gain=(9 * inputs) ** -0.5)
        return weight, self.draw(seed + 1, self.features, gain=0.1)

    def end(self) -> EDSR:
        """The end of a network, plain. Its weights are rounded from those that `collapsed_end` was composed of."""
        model, dtype = copy.deepcopy(_end(self.features, self.scale)), torch.float64 if self.wide else self.dtype
        # torch's types leave memory_format out.
        return model.to(self.device, dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def collapsed_end(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of a collapsed tail."""
        if self.device == "meta":
            outputs = 3 * self.scale**2
            weight = torch.empty((4, 4, outputs, 5, 5, self.features), device="meta", dtype=self.dtype)
            return weight.permute(0, 1, 2, 5, 3, 4), weight.new_empty(4, 4, outputs)
        model = _folded_end(self.features, self.scale)
        weight, bias = model.get_buffer("tail_weight"), model.get_buffer("tail_bias")
        return weight.to(self.device, self.dtype), bias.to(self.device, self.dtype)

    @property
    def windows(self) -> list[Pair] | None:
        """Where the result is judged; None for all of it. The maps of a tail in fp64 would not fit into memory."""
        if self.name != "tail":
            return None
        return pairs(
            self.height, self.width, _end(self.features, self.scale).config.receptive_radius, side_for(self.features)
        )

    def computed(self, wide: bool) -> tuple[Tensor, ...]:
        """What plain PyTorch makes of it, not rounded, in fp64 or in the operation's precision; in its windows."""
        op = replace(self, wide=wide, result=None)
        # No autotuning for what is computed but once.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=False):
            if self.windows is None:
                return _as_tuple(op.kind.plain(op)(reference))
            model, x = op.end(), replace(op, wide=False).map()
            kind = model.tail.weight.dtype
            parts = in_windows(lambda part: model.reconstruct(part.to(kind), reference), x, self.windows, self.scale)
            return tuple(parts)

    @cached_property
    def target(self) -> tuple[Tensor, ...]:
        """The result in fp64: its parts, or its windows."""
        return self.computed(wide=True)

    @cached_property
    def reference_error(self) -> float:
        found = self.computed(wide=False)
        return largest(largest_difference(y, target) for y, target in zip(found, self.target, strict=True))

    def error_of(self, y: Tensor | tuple[Tensor, ...]) -> float:
        found = _as_tuple(y)
        if not all(bool(part.isfinite().all()) for part in found if part.is_floating_point()):
            return math.nan  # wherever it is, also where there is no window
        return largest(largest_difference(*pair) for pair in self._judged(found))

    def describe_faults(self, y: Tensor | tuple[Tensor, ...], limit: float) -> str:
        pairs_of = enumerate(self._judged(_as_tuple(y)))
        faults = ((i, describe_faults(part, target, limit)) for i, (part, target) in pairs_of)
        return "".join(f"; in part {i}{words}" if i else words for i, words in faults if words)

    def _judged(self, found: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """What of a result is compared, with what."""
        targets = self.target
        if self.windows is not None:
            (whole,) = found
            size = [1, 3, self.scale * self.height, self.scale * self.width]
            if list(whole.shape) != size:
                raise AssertionError(f"the result is {list(whole.shape)}, not {size}")
            found = cut(whole, self.windows, self.scale)
        if len(found) != len(targets):
            raise AssertionError(f"the result is {len(found)} tensors, not {len(targets)}")
        if found[0].dtype == torch.uint8:
            found, targets = [part.double() / 255 for part in found], [target.clamp(0, 1) for target in targets]
        return [*zip(found, targets, strict=True)]


def _as_tuple(y: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return y if isinstance(y, tuple) else (y,)


@cache
def _end(features: int, scale: int) -> EDSR:
    return network(EDSRConfig(scale=scale, blocks=0, features=features))


@cache
def _folded_end(features: int, scale: int) -> FoldedEDSR:
    return FoldedEDSR(_end(features, scale))


# --- the operations: what they do with a namespace of ops

Call = Callable[[Any], Any]  # gives a tensor or, with more than one result, a tuple


def relu(op: SingleOp) -> Call:
    x, (weight, bias) = op.map(), op.weights(op.features)
    return lambda ops: ops.conv3x3(x, weight, bias, relu=True)


def skip(op: SingleOp) -> Call:
    x, (weight, bias), added = op.map(), op.weights(op.features), op.map(5)
    return lambda ops: ops.conv3x3(x, weight, bias, skip=added)


def resblock(op: SingleOp) -> Call:
    x, first, second = op.map(), op.weights(op.features, 1), op.weights(op.features, 3)
    return lambda ops: ops.resblock(x, *first, *second)


def head(op: SingleOp) -> Call:
    x, (weight, bias) = op.pixels(), op.weights(3)
    return lambda ops: ops.head(x, weight, bias, DIV2K_MEAN)


def plain_tail(op: SingleOp) -> Call:
    x, model, result = op.map(), op.end(), OutputSpec(op.result)
    return lambda ops: model.reconstruct(x, ops, result)


def tail(op: SingleOp) -> Call:
    x, (weight, bias), result = op.map(), op.collapsed_end(), OutputSpec(op.result)
    return lambda ops: ops.collapsed_tail(x, weight, bias, DIV2K_MEAN, op.scale, result)


def plain_dgrad(op: SingleOp) -> Call:
    """As autograd computes it: the convolution's gradient, then the ReLU's."""
    dy, (weight, _), hidden = op.map(), op.weights(op.features), op.map(5).relu()
    backward = torch.ops.aten.convolution_backward
    settings = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False])
    return lambda ops: torch.ops.aten.threshold_backward(backward(dy, hidden, weight, *settings)[0], hidden, 0)


def dgrad(op: SingleOp) -> Call:
    dy, (weight, _), hidden = op.map(), op.weights(op.features), op.map(5).relu()
    gradients = importlib.import_module("edsr.kernels.triton.conv3x3_backward")
    return lambda ops: gradients.dgrad(dy, weight, mask=hidden)


def plain_wgrad(op: SingleOp) -> Call:
    dy, (weight, bias), x = op.map(), op.weights(op.features), op.map(5)
    backward = torch.ops.aten.convolution_backward
    settings = (list(bias.shape), [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, True])
    return lambda ops: tuple(backward(dy, x, weight, *settings)[1:])


def wgrad(op: SingleOp) -> Call:
    dy, x = op.map(), op.map(5)
    gradients = importlib.import_module("edsr.kernels.triton.conv3x3_backward")
    return lambda ops: gradients.wgrad(x, dy, dtype=x.dtype)


@dataclass(frozen=True)
class Kind:
    """plain: as peers do it; ours: as `edsr.kernels.triton.ops` does; ways: cases besides ours and theirs."""

    title: str
    plain: Callable[[SingleOp], Call]
    ours: Callable[[SingleOp], Call]
    convolutions: int = 1
    ways: tuple[str, ...] = ()


KINDS = {
    "relu": Kind("conv3x3 + ReLU", relu, relu, ways=("portable", "hopper")),
    "skip": Kind("conv3x3 + skip", skip, skip, ways=("portable", "hopper")),
    "resblock": Kind("ResBlock", resblock, resblock, 2, ("portable", "hopper", "one_kernel")),
    "head": Kind("head", head, head),
    "tail": Kind("tail", plain_tail, tail, ways=("collapsed",)),
    "dgrad": Kind("gradient by input + ReLU", plain_dgrad, dgrad),
    "wgrad": Kind("gradients by weight and bias", plain_wgrad, wgrad),
}


# --- the ways to run them


class Portable:
    """The convolutions by the plain Triton kernel, whatever the GPU."""

    @staticmethod
    def conv3x3(x: Tensor, weight: Tensor, bias: Tensor, relu: bool = False, skip: Tensor | None = None) -> Tensor:
        out = torch.empty_like(x)
        importlib.import_module("edsr.kernels.triton.conv3x3").portable(x, weight, bias, relu, 1.0, skip, 1, 1, out)
        return out

    @classmethod
    def resblock(cls, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
        return cls.conv3x3(cls.conv3x3(x, weight1, bias1, relu=True), weight2, bias2, skip=x)


class Hopper(Portable):
    """The same by the kernels for Hopper GPUs, whether or not they are chosen otherwise."""

    @staticmethod
    def conv3x3(x: Tensor, weight: Tensor, bias: Tensor, relu: bool = False, skip: Tensor | None = None) -> Tensor:
        out = torch.empty_like(x)
        importlib.import_module("edsr.kernels.triton.hopper.dispatch").conv3x3(x, weight, bias, relu, 1.0, skip, 1, out)
        return out


def ours(op: SingleOp) -> Run:
    call, fused = op.kind.ours(op), importlib.import_module("edsr.kernels.triton.ops")
    return lambda: call(fused)


def portable(op: SingleOp) -> Run:
    call = op.kind.ours(op)
    return lambda: call(Portable)


def hopper(op: SingleOp) -> Run:
    weight, _ = op.weights(op.features)
    # It says so, too, where its own check of a kernel failed.
    if not importlib.import_module("edsr.kernels.triton.hopper.dispatch").supports(op.map(), weight, 1):
        raise Unavailable(
            "there is one for 64, or a multiple of 128, features on Hopper GPUs only, where it is found right"
        )
    call = op.kind.ours(op)
    return lambda: call(Hopper)


def one_kernel(op: SingleOp) -> Run:
    weight, _ = op.weights(op.features)
    if not importlib.import_module("edsr.kernels.triton.hopper.dispatch").supports_block(op.map(), weight):
        raise Unavailable("there is one for 64 features on Hopper GPUs only, where it is found right")
    call = op.kind.ours(op)
    return lambda: call(importlib.import_module("edsr.kernels.triton.hopper.resblock"))


def collapsed(op: SingleOp) -> Run:
    call = op.kind.ours(op)
    return lambda: call(reference)


def cudnn(op: SingleOp) -> Run:
    call = op.kind.plain(op)
    return lambda: call(reference)


def max_autotune(op: SingleOp) -> Run:
    call = op.kind.plain(op)
    # Without CUDA graphs, which would copy the operands first; one large operation gains nothing by them.
    run = compiled(lambda: call(reference), mode="max-autotune-no-cudagraphs", dynamic=False)
    with torch.inference_mode():
        run()
    return run


CASES = {
    "ours": Case("ours", ours, collapsed=True),
    "portable": Case("ours, portable kernel", portable),
    "hopper": Case("ours, Hopper kernel", hopper),
    "one_kernel": Case("ours, one kernel", one_kernel),
    "collapsed": Case("ours, collapsed, on cuDNN", collapsed, collapsed=True),
    "cudnn": Case("PyTorch, channels_last (cuDNN)", cudnn),
    "compile": Case("torch.compile, max-autotune", max_autotune, slow=True),
}


PATCHES = (16, 48, 48)  # images, rows, columns


def operations(
    height: int = 1080, width: int = 1920, patches: tuple[int, int, int] = PATCHES, **where: Any
) -> list[SingleOp]:
    """All that is compared, the dearest first; gradients are of `patches`."""
    ops = [
        SingleOp(name, c, height, width, **where) for c in (64, 256) for name in ("relu", "skip", "resblock", "head")
    ]
    ops += [SingleOp("tail", c, height, width, scale=s, **where) for c in (64, 256) for s in (2, 4)]
    n, rows, columns = patches
    for c in (64, 256):
        ops += [SingleOp(name, c, rows, columns, images=n, **where) for name in ("dgrad", "wgrad")]
    return ops
