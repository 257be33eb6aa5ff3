"""The ops as the network calls them, on tensors of the device "meta", for `edsr.kernels.aot` to compile, with their
FLOPs and memory traffic."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .interface import OutputSpec
from .triton import conv3x3, conv3x3_backward, launch, ops
from .triton.hopper import dispatch, resblock

KINDS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "tf32": torch.float32}  # of operands
FULL = (1080, 1920)  # rows and columns of the image that is upscaled
ODD = (1081, 1919)  # Triton compiles anew for sizes that are no multiples of 16
PATCHES = (16, 48, 48)  # images, rows and columns that are trained on at once
LARGE = (8, 96, 96)  # wide, and enough pixels, for Hopper's own kernels
SMALL = (64, 64)  # rows and columns of an image with few pixels
MEAN = (0.4488, 0.4371, 0.4040)


FLAGS = {"turns": ("c64", "hopper_conv64", "TURNS"), "held": ("wide", "hopper_conv256", "HELD")}
"""Ways of Hopper's kernels that only the tuner chooses: kernel, op of its configuration, and the flag in that."""


class Peaks(NamedTuple):
    """What one GPU does at best."""

    flops: dict[str, float]  # per second, by kind of operands
    bandwidth: float  # of device memory, bytes per second


PEAKS = {
    # A100 SXM 80 GB: NVIDIA's datasheet, without sparsity.
    80: Peaks({"fp16": 312e12, "bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12}, 2.04e12),
    # RTX 3090, 4090 and 5090: NVIDIA's white papers, without sparsity and with sums in fp32.
    86: Peaks({"fp16": 71e12, "bf16": 71e12, "tf32": 35.6e12, "fp32": 35.6e12}, 0.936e12),
    89: Peaks({"fp16": 165.2e12, "bf16": 165.2e12, "tf32": 82.6e12, "fp32": 82.6e12}, 1.008e12),
    # H200 SXM: a dense bf16 product and a copy as measured; tf32 and fp32 from NVIDIA's datasheet, without sparsity.
    90: Peaks({"fp16": 790e12, "bf16": 790e12, "tf32": 494.7e12, "fp32": 66.9e12}, 4.3e12),
    # B200: NVIDIA's datasheet, without sparsity.
    100: Peaks({"fp16": 2250e12, "bf16": 2250e12, "tf32": 1125e12, "fp32": 75e12}, 8e12),
    120: Peaks({"fp16": 209.5e12, "bf16": 209.5e12, "tf32": 104.8e12, "fp32": 104.8e12}, 1.792e12),
}


@dataclass(frozen=True)
class Case:
    """One op as the network calls it."""

    name: str
    kind: str  # a key of KINDS
    call: Callable[[], object]  # launches it on meta tensors
    flops: int  # 2 for a multiply-add
    traffic: int  # bytes to and from device memory: each operand and the result once
    archs: tuple[int, ...] = tuple(PEAKS)

    @property
    def matrix(self) -> bool:
        """Whether its products belong on the matrix units."""
        return self.kind in ("fp16", "bf16")

    def roofline(self, arch: int) -> tuple[float, str]:
        """(the least milliseconds it can take, "FLOPs" or "bytes", whichever costs that)."""
        peaks = PEAKS[arch]
        return max(
            (1e3 * self.flops / peaks.flops[self.kind], "FLOPs"), (1e3 * self.traffic / peaks.bandwidth, "bytes")
        )


# The ops as the network calls them: whole images, and bands that carry the rows around themselves.


def _map(channels: int, kind: str, height: int, width: int, images: int = 1) -> Tensor:
    size = (images, channels, height, width)
    return torch.empty(size, dtype=KINDS[kind], device="meta", memory_format=torch.channels_last)


def _weight(co: int, ci: int, kind: str) -> tuple[Tensor, Tensor]:
    weight = torch.empty((co, ci, 3, 3), dtype=KINDS[kind], device="meta", memory_format=torch.channels_last)
    return weight, weight.new_empty(co)


def _conv3x3(
    label: str,
    kind: str,
    ci: int,
    co: int,
    *,
    relu: bool = False,
    scale: float = 1.0,
    skip: bool = False,
    shuffle: int = 1,
    padding: int = 1,
    size: tuple[int, int] = FULL,
    implementation: str = "conv3x3",
) -> Case:
    height, width = size
    pixels = height * width

    def call():
        x = _map(ci, kind, height + 2 - 2 * padding, width)
        y = _map(co, kind, height, width) if skip else None
        out = _map(co // shuffle**2, kind, height * shuffle, width * shuffle)
        operands = (x, *_weight(co, ci, kind), relu, scale, y)
        if implementation == "copies":
            dispatch.KERNELS["copies"](*operands, padding, out)
        elif implementation in FLAGS:
            kernel, op, flag = FLAGS[implementation]
            with launch.override_configs(lambda asked, key, default: default | ({flag: 1} if asked == op else {})):
                dispatch.KERNELS[kernel](*operands, padding, out)
        else:
            (ops.conv3x3 if implementation == "conv3x3" else conv3x3.portable)(*operands, shuffle, padding, out)

    return Case(
        f"{implementation} {kind} {ci}-{co} {label}",
        kind,
        call,
        flops=2 * 9 * ci * co * pixels,
        traffic=KINDS[kind].itemsize * (pixels * (ci + co + skip * co) + 9 * ci * co),
        archs=tuple(PEAKS) if implementation == "conv3x3" else (90,),  # elsewhere there is nothing else
    )


def _head(kind: str, co: int, image: torch.dtype, padding: tuple[int, int] = (1, 1), size=FULL, label="") -> Case:
    height, width = size

    def call():
        rows = height + 2 - sum(padding)
        x = torch.empty((1, 3, rows, width), dtype=image, device="meta", memory_format=torch.channels_last)
        ops.head(x, *_weight(co, 3, kind), MEAN, padding)

    return Case(
        f"head {kind} {_short(image)}-{co}{label}",
        kind,
        call,
        flops=2 * 9 * 3 * co * height * width,
        traffic=height * width * (3 * image.itemsize + co * KINDS[kind].itemsize),
    )


def _collapsed_tail(
    kind: str, ci: int, shuffle: int, image: torch.dtype | None, padding=2, ends=(True, True), size=FULL, label=""
) -> Case:
    height, width = size
    outputs = 3 * shuffle**2

    def call():
        x = _map(ci, kind, height + 4 - 2 * padding, width)
        weight = x.new_empty((4, 4, outputs, 5, 5, ci)).permute(0, 1, 2, 5, 3, 4)
        overflow = x.new_zeros(1, dtype=torch.int32)
        ops.collapsed_tail(
            x, weight, x.new_empty((4, 4, outputs)), MEAN, shuffle, OutputSpec(image, overflow), padding, ends
        )

    return Case(
        f"collapsed_tail {kind} {ci} x{shuffle} {_short(image)}{label}",
        kind,
        call,
        flops=2 * 25 * ci * outputs * height * width,
        traffic=height * width * (ci * KINDS[kind].itemsize + outputs * (image or torch.float32).itemsize),
    )


def _tail(kind: str, ci: int) -> Case:
    height, width = FULL
    return Case(
        f"tail {kind} {ci}",
        kind,
        lambda: ops.tail(_map(ci, kind, height, width), *_weight(3, ci, kind), MEAN),
        flops=2 * 9 * 3 * ci * height * width,
        traffic=height * width * (ci * KINDS[kind].itemsize + 3 * 4),
    )


def _resblock(kind: str, size=FULL, label="") -> Case:
    height, width = size
    c, pixels = 64, height * width

    def call():
        x = _map(c, kind, height, width)
        resblock.resblock(x, *_weight(c, c, kind), *_weight(c, c, kind), 0.1)

    return Case(
        f"resblock {kind} {c}{label}",
        kind,
        call,
        flops=2 * 2 * 9 * c * c * pixels,
        traffic=KINDS[kind].itemsize * (2 * pixels * c + 2 * 9 * c * c),
        archs=(90,),
    )


def _patches(kind: str, ci: int, co: int, shuffle: int = 1) -> Case:
    n, height, width = PATCHES
    pixels = n * height * width

    def call():
        ops.conv3x3(_map(ci, kind, height, width, n), *_weight(co, ci, kind), shuffle=shuffle)

    return Case(
        f"patches {kind} {ci}-{co}" + (f" shuffle {shuffle}" if shuffle > 1 else ""),
        kind,
        call,
        flops=2 * 9 * ci * co * pixels,
        traffic=KINDS[kind].itemsize * (pixels * (ci + co) + 9 * ci * co),
    )


def _dgrad(kind: str, ci: int, co: int, *, mask=False, skip=False, size=PATCHES, label="") -> Case:
    """Of a convolution from ci to co channels."""
    n, height, width = size
    pixels = n * height * width

    def call():
        weight, _ = _weight(co, ci, kind)
        maps = [_map(ci, kind, height, width, n) if wanted else None for wanted in (mask, skip)]
        conv3x3_backward.dgrad(_map(co, kind, height, width, n), weight, 0.1 if mask else 1.0, *maps)

    return Case(
        f"dgrad {kind} {ci}-{co}{' mask' * mask}{' skip' * skip}{label}",
        kind,
        call,
        flops=2 * 9 * ci * co * pixels,
        traffic=KINDS[kind].itemsize * (pixels * (ci * (1 + mask + skip) + co) + 9 * ci * co),
    )


def _wgrad(kind: str, ci: int, co: int, *, size=PATCHES, label="") -> Case:
    n, height, width = size
    pixels, dtype = n * height * width, KINDS[kind]

    def call():
        conv3x3_backward.wgrad(_map(ci, kind, height, width, n), _map(co, kind, height, width, n), dtype=dtype)

    return Case(
        f"wgrad {kind} {ci}-{co}{label}",
        kind,
        call,
        flops=2 * 9 * ci * co * pixels,
        traffic=dtype.itemsize * (pixels * (ci + co) + 9 * ci * co),
    )


def _short(image: torch.dtype | None) -> str:
    return str(image or torch.float32).removeprefix("torch.")


def cases() -> list[Case]:
    """Every op, kind of operands, number of channels and shape that the network knows."""
    found = []
    for kind in KINDS:
        for c in (64, 256):
            ways = (
                ("conv3x3", "portable", *(["copies"] if c == 64 else [])) if kind in ("fp16", "bf16") else ("conv3x3",)
            )
            for implementation in ways:
                found += [
                    _conv3x3("relu", kind, c, c, relu=True, implementation=implementation),
                    _conv3x3("relu, band", kind, c, c, relu=True, padding=0, implementation=implementation),
                    _conv3x3("relu, odd", kind, c, c, relu=True, size=ODD, implementation=implementation),
                    _conv3x3("scale+skip", kind, c, c, scale=0.1, skip=True, implementation=implementation),
                    _conv3x3("skip, band", kind, c, c, skip=True, padding=0, implementation=implementation),
                    _conv3x3("plain", kind, c, c, implementation=implementation),
                ]
            found.append(_conv3x3("skip, small", kind, c, c, skip=True, size=SMALL))
            found += [_conv3x3(f"shuffle {r}", kind, c, c * r * r, shuffle=r) for r in (2, 3)]
            found += [_head(kind, c, image) for image in (torch.uint8, torch.uint16, torch.float32)]
            found += [
                _head(kind, c, torch.uint8, padding=(0, 0), label=", band"),
                _head(kind, c, torch.uint8, size=ODD, label=", odd"),
            ]
            found += [
                _collapsed_tail(kind, c, r, image) for r in (2, 3, 4) for image in (torch.uint8, torch.uint16, None)
            ]
            found += [
                _collapsed_tail(kind, c, 2, torch.uint8, padding=0, ends=(False, False), label=", band"),
                _collapsed_tail(kind, c, 2, torch.uint8, size=ODD, label=", odd"),
            ]
            found.append(_tail(kind, c))
            shuffles = (2, 3) if c == 64 else (2,)
            found += [_patches(kind, c, c), *(_patches(kind, c, c * r * r, r) for r in shuffles)]
            found += [_dgrad(kind, c, c, mask=True), _dgrad(kind, c, c, skip=True), _wgrad(kind, c, c)]
            found += [gradient(kind, c, c * r * r) for gradient in (_dgrad, _wgrad) for r in shuffles]
            found += [
                _dgrad(kind, c, c, skip=True, size=LARGE, label=", wide"),
                _dgrad(kind, c, c, mask=True, skip=True, size=(3, *ODD), label=", odd"),
                _wgrad(kind, c, c, size=(3, *ODD), label=", odd"),
            ]
    for kind in ("fp16", "bf16"):
        found += [_resblock(kind), _resblock(kind, ODD, ", odd")]
        for flagged, c in ("turns", 64), ("held", 256):
            found += [
                _conv3x3("relu", kind, c, c, relu=True, implementation=flagged),
                _conv3x3("scale+skip", kind, c, c, scale=0.1, skip=True, implementation=flagged),
            ]
    return found


QUICK = {  # one case of each kernel
    "conv3x3 fp16 64-64 relu",
    "conv3x3 fp16 64-64 scale+skip",
    "conv3x3 fp16 256-256 scale+skip",
    "conv3x3 fp16 64-256 shuffle 2",
    "conv3x3 fp32 64-64 relu",
    "portable fp16 64-64 scale+skip",
    "turns fp16 64-64 relu",
    "held fp16 256-256 scale+skip",
    "head fp16 uint8-64",
    "collapsed_tail fp16 64 x2 uint8",
    "dgrad bf16 64-64 mask",
    "wgrad bf16 64-64",
}
