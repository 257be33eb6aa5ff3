"""What `bench.tune` tunes: kernels, the sizes they are tuned on, and the configurations that are worth trying."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from bench.ops import PATCHES, SingleOp
from edsr.kernels.triton.launch import Config


class Sizes(NamedTuple):
    """What a kernel is tuned on: (images, rows, columns) each.

    small: no multiple of any block, but the same kernel as for full: rows odd, columns a multiple of 16. Which
    configuration is found is told by full alone.
    """

    small: tuple[int, int, int]
    odd: tuple[int, int, int]
    full: tuple[int, int, int]


IMAGE = Sizes((1, 13, 144), (1, 13, 131), (1, 1080, 1920))
NARROW = Sizes((2, 13, 48), (2, 13, 35), PATCHES)  # in training
FEW = Sizes((1, 13, 48), (1, 13, 35), (1, 64, 64))  # small images
SHORT = NARROW, FEW  # sizes on which a kernel takes less time than launching it
SHARED = 227 << 10  # bytes of shared memory of one block on sm_90
ACCUMULATORS = 128  # fp32 sums a thread may have; more leave no registers for operands
WGRAD_ACCUMULATORS = 144  # the same where operands need none


@dataclass(frozen=True)
class Target:
    """A kernel to tune, by the op name its launcher asks `launch.config` for.

    works: (operation, scale) that use one configuration, judged by their times together. case: of `bench.ops`.
    """

    op: str
    features: int
    case: str
    works: tuple[tuple[str, int], ...]
    archs: tuple[int, ...] = ()  # those that have it; none: all
    sizes: Sizes = IMAGE

    def __str__(self) -> str:
        scale = f"-x{self.works[0][1]}" if self.op == "collapsed_tail" else ""
        sizes = {NARROW: "-narrow", FEW: "-few"}.get(self.sizes, "") if self.op == "conv3x3" else ""
        return f"{self.op}-{self.features}{scale}{sizes}"

    @property
    def hopper(self) -> str | None:
        """Which of Hopper's own kernels it is, by its name in `edsr.kernels.triton.hopper.dispatch`."""
        return {"hopper_conv64": "c64", "hopper_conv256": "wide", "resblock": "block"}.get(self.op)

    def operations(self, size: tuple[int, int, int], device: str = "cuda") -> list[SingleOp]:
        n, *area = size
        return [
            SingleOp(name, self.features, *area, device=device, scale=scale, images=n) for name, scale in self.works
        ]

    def candidates(self, shared: int = SHARED) -> list[Config]:
        """All worth trying, in a fixed order."""
        c = self.features
        if self.hopper:
            return self._rings()
        if self.op == "head":
            space = product(BLOCK_W=(64, 128, 256), BLOCK_CO=(64, 128), num_warps=(4, 8), num_stages=(1,))
        elif self.op == "collapsed_tail":
            blocks = (64,) if self.works[0][1] == 2 else (64, 128)  # of 60, 135 and 240 columns
            space = product(BLOCK_W=(64, 128, 256), BLOCK_J=blocks, BLOCK_CI=(64,), num_warps=(4, 8), num_stages=(2, 3))
        elif self.op == "wgrad":
            space = (
                {"BLOCK_H": h, "BLOCK_W": w} | rest
                for h, w in ((1, 16), (2, 16), (4, 16), (1, 32), (2, 32))
                for rest in product(BLOCK_CO=(64,), BLOCK_CI=(32, 64), num_warps=(4, 8), num_stages=(3, 4))
            )
        elif self.sizes == FEW:
            space = (
                {"BLOCK_H": h, "BLOCK_W": w} | rest
                for h, w in ((1, 32), (2, 16), (1, 64), (4, 16), (2, 32), (8, 16))
                for rest in product(BLOCK_CO=(64,), BLOCK_CI=(64,), num_warps=(4,), num_stages=(3, 4))
            )
        else:
            narrow = ((4, 16), (8, 16), (16, 16), (8, 32))
            rectangles = narrow if self.sizes == NARROW else ((4, 32), (8, 16), (2, 128), (4, 64), (8, 32))
            blocks = (64,) if c == 64 else (128, 256)
            space = (
                {"BLOCK_H": h, "BLOCK_W": w} | rest
                for h, w in rectangles
                for depth in ({"BLOCK_CI": (64,), "num_stages": (2, 3)}, {"BLOCK_CI": (32,), "num_stages": (3,)})
                for rest in product(BLOCK_CO=blocks, num_warps=(4, 8), **depth)
            )
        return [config for config in space if legal(self.op, config, c, shared)]

    def _rings(self) -> list[Config]:
        """Depths of the rings in shared memory, and what the kernels can do in either way; they fix the rest."""
        fixed = {"num_warps": 4, "maxnreg": 168}
        if self.op == "hopper_conv64":
            turns = [{"SLOTS": slots, "TURNS": 1} | fixed for slots in (8, 10)]
            return [{"SLOTS": slots} | fixed for slots in (6, 8, 10)] + turns
        if self.op == "hopper_conv256":
            held = [{"X_SLOTS": x, "W_SLOTS": w, "HELD": 1} | fixed for x, w in ((6, 3), (7, 2))]
            return [{"X_SLOTS": x, "W_SLOTS": w} | fixed for x, w in ((6, 3), (7, 2), (6, 2), (5, 3))] + held
        return [{"X_SLOTS": x, "T_SLOTS": t} | fixed for x, t in ((7, 4), (6, 5), (6, 4), (5, 5))]


TARGETS = [
    Target("hopper_conv64", 64, "hopper", (("relu", 1), ("skip", 1)), (90,)),
    Target("conv3x3", 64, "portable", (("relu", 1), ("skip", 1))),
    Target("collapsed_tail", 64, "ours", (("tail", 2),)),
    Target("head", 64, "ours", (("head", 1),)),
    Target("conv3x3", 64, "portable", (("relu", 1), ("skip", 1)), sizes=FEW),
    Target("hopper_conv256", 256, "hopper", (("relu", 1), ("skip", 1)), (90,)),
    Target("conv3x3", 256, "portable", (("relu", 1), ("skip", 1))),
    Target("resblock", 64, "one_kernel", (("resblock", 1),), (90,)),
    *(Target("collapsed_tail", c, "ours", (("tail", s),)) for c, s in ((64, 4), (256, 2), (64, 3), (256, 4), (256, 3))),
    Target("head", 256, "ours", (("head", 1),)),
    *(
        target
        for c in (64, 256)
        for target in (
            Target("conv3x3", c, "portable", (("relu", 1), ("skip", 1)), sizes=NARROW),
            Target("dgrad", c, "ours", (("dgrad", 1),), sizes=NARROW),
            Target("wgrad", c, "ours", (("wgrad", 1),), sizes=NARROW),
        )
    ),
]
# Once the kernels are tuned: which of several cases of an operation is the fastest. (operation, features, cases)
CHOICES = [
    ("relu", 64, ("portable", "hopper")),
    ("skip", 64, ("portable", "hopper")),
    ("relu", 256, ("portable", "hopper")),
    ("skip", 256, ("portable", "hopper")),
    ("resblock", 64, ("portable", "hopper", "one_kernel")),
]


def product(**space: tuple[int, ...]) -> Iterator[Config]:
    return (dict(zip(space, values, strict=True)) for values in itertools.product(*space.values()))


def legal(op: str, config: Config, features: int, shared: int = SHARED) -> bool:
    """Whether a plain kernel can be launched so on 16-bit operands: whole blocks, and room for them."""
    blocks = {name: size for name, size in config.items() if name.startswith("BLOCK")}
    if any((size < 16 and name != "BLOCK_H") or size & (size - 1) for name, size in blocks.items()):
        return False
    rows = blocks.get("BLOCK_H", 1) * blocks["BLOCK_W"]
    columns = blocks.get("BLOCK_CO", 0) or blocks["BLOCK_J"]
    threads = 32 * config["num_warps"]
    if op == "wgrad":
        sums, read = 9 * columns * blocks["BLOCK_CI"], 3 * rows * (columns + blocks["BLOCK_CI"])
        whole = features % blocks["BLOCK_CI"] == 0 and rows >= 16
        return whole and sums <= WGRAD_ACCUMULATORS * threads and 2 * config["num_stages"] * read <= shared
    if rows * columns > ACCUMULATORS * threads:
        return False
    if op == "head":
        return columns <= features
    if features % blocks["BLOCK_CI"]:
        return False
    return 2 * config["num_stages"] * blocks["BLOCK_CI"] * (rows + columns) <= shared
