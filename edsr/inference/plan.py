"""What is settled before anything is computed: device, precision, backend and memory budget.

A memory budget is a number N: no feature map has more than N x N pixels. `band_shape` says in which bands that is kept,
`split_columns` how columns are shared where an image is too wide.
"""

import itertools
import logging
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from edsr.devices import PRECISIONS, cpu_has, pick_device
from edsr.errors import BackendError
from edsr.kernels import BACKENDS, compile_ahead, unavailable_reason
from edsr.models import NetworkConfig
from edsr.wording import option

logger = logging.getLogger(__name__)

AUTO_TILE = {
    "cpu": 256,
    "mps": 512,
    "cuda": 2048,
}  # pixels a side; only "cpu" has been measured (docs/log.md)
WHOLE = 512, 2**24  # "winograd" takes an image whole up to so many pixels a side and values of a map: a fifth faster
HEADROOM, FOOTROOM = (
    4,
    2,
)  # rows before and after a band, for what a convolution of radius 1 or 2 carries and pads
MIN_ROWS = 8  # thinner bands than this split columns instead
MIN_TILE = 32  # whatever the network


@dataclass(frozen=True)
class ExecutionPlan:
    """How a network is executed. Made by `make_plan`, which says what the choices are.

    Attributes:
        device: Where it is executed.
        precision: "fp32", "fp16" or "bf16".
        backend: "torch", "triton" or "winograd".
        tile: The memory budget N: no feature map has more than N x N pixels.
        receptive_radius: The network's.
        map_scale: The network's: how many times wider than the image its widest map is.
    """

    device: torch.device
    precision: str
    backend: str
    tile: int
    receptive_radius: int
    map_scale: int = 1

    @property
    def uses_graphs(self) -> bool:
        """Whether small images and bands become CUDA graphs."""
        return self.backend == "triton" and self.device.type == "cuda"

    def band_shape(self, width: int, height: int | None = None) -> tuple[int, int]:
        """(rows, columns) of an image that are computed at once within the budget. height: None if it is large."""
        if height is not None and width * height * self.map_scale**2 <= self.tile**2:
            return height, width
        # On a CPU larger maps take memory and little less time.
        most = max(AUTO_TILE["cpu"], self.smallest_tile)
        tile = min(self.tile, most) if self.device.type == "cpu" else self.tile
        return band_shape(width, tile // self.map_scale, self.receptive_radius)

    @property
    def smallest_tile(self) -> int:
        """The smallest memory budget that the network can be executed with."""
        return smallest_tile(self.receptive_radius, self.map_scale)


def make_plan(
    config: NetworkConfig, device: str | torch.device, precision: str, backend: str, tile: int | str
) -> ExecutionPlan:
    """The plan for a network of that shape; see `edsr.Upscaler` for the arguments.

    Raises:
        BackendError: One of them cannot be had.
    """
    place = pick_device(device)
    chosen_precision = choose_precision(precision, place)
    chosen_backend = choose_backend(backend, place, chosen_precision, config.features)
    budget = choose_tile(tile, config, place, chosen_precision, chosen_backend)
    radius, map_scale = config.receptive_radius, config.map_scale
    return ExecutionPlan(place, chosen_precision, chosen_backend, budget, radius, map_scale)


def choose_precision(name: str, device: torch.device) -> str:
    """The precision of that name; for "auto" fp16 on CUDA and fp32 elsewhere. Raises BackendError."""
    if name == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if name not in PRECISIONS:
        raise BackendError(f"unknown precision {name!r}: use auto, fp32, fp16 or bf16")
    if device.type == "cpu" and name != "fp32" and not cpu_has(name):
        raise BackendError(
            f"{option('precision', name)}: this CPU has no fast {name}; use {option('precision', 'fp32')}"
        )
    return name


def choose_backend(name: str, device: torch.device, precision: str, features: int) -> str:
    """The backend of that name; for "auto" the kernels for the device where they can be had, else "torch".

    The kernels for CPUs are compiled here, if that has not been done on this machine: only then is it known that they
    can be had.

    Raises:
        BackendError: There is none such, or not here.
    """
    if name not in ("auto", *BACKENDS):
        raise BackendError(f"unknown backend {name!r}: use auto, {', '.join(BACKENDS)}")
    best = {"cuda": "triton", "cpu": "winograd"}.get(device.type, "torch")
    chosen = best if name == "auto" else name
    reason = unavailable_reason(chosen, device, PRECISIONS[precision], features)
    if not reason and chosen == "winograd":
        reason = compile_ahead(chosen, device)
        if reason and name == "auto":
            logger.warning("%s: PyTorch computes", reason)
    if reason and name != "auto":
        raise BackendError(f"{option('backend', name)}: {reason}; use {option('backend', 'torch')}")
    return "torch" if reason else chosen


def choose_tile(tile: int | str, config: NetworkConfig, device: torch.device, precision: str, backend: str) -> int:
    """The memory budget `tile`, at most what is of use on a CPU; for "auto" what is best for device and backend.

    Raises:
        BackendError: The network needs more.
    """
    smallest = smallest_tile(config.receptive_radius, config.map_scale)
    best = max(smallest, AUTO_TILE[device.type])
    if backend == "winograd":
        side, values = WHOLE
        best = max(best, min(side, math.isqrt(values // config.features)))
    if tile == "auto":
        if device.type == "cuda":
            # Half of what is free, for the five maps alive at once: one late for the long skip, four of a block.
            pixel = 5 * config.features * PRECISIONS[precision].itemsize
            best = min(best, max(smallest, math.isqrt(torch.cuda.mem_get_info(device)[0] // 2 // pixel)))
        return best
    if not isinstance(tile, int) or isinstance(tile, bool):
        raise BackendError(f"{option('tile', tile)}: give auto or a whole number of {smallest} or more")
    if tile < smallest:
        raise BackendError(f"{option('tile', tile)}: this network needs {smallest} or more")
    return min(tile, best) if device.type == "cpu" else tile


def smallest_tile(radius: int, map_scale: int = 1) -> int:
    """The smallest memory budget of a network with that receptive radius, whose maps are so much wider than the image.

    A piece of columns is no narrower than four radii, so that its overlap at most doubles the work, and a band of one
    row takes HEADROOM and FOOTROOM besides.
    """
    return map_scale * max(MIN_TILE, math.isqrt((1 + HEADROOM + FOOTROOM) * 4 * radius - 1) + 1)


def band_shape(width: int, tile: int, radius: int) -> tuple[int, int]:
    """(rows of a band, columns of a piece) so that no feature map has more than tile x tile pixels.

    Bands are as wide as the image unless they would be thinner than MIN_ROWS; then columns are split. Rows come in
    fours, because the kernels for CPUs compute four at a time.

    Args:
        width: The image's.
        tile: The memory budget.
        radius: The network's receptive radius.

    Raises:
        ValueError: The budget is smaller than `smallest_tile`.
    """
    if tile < smallest_tile(radius):
        raise ValueError(f"a tile of {tile} is too small; give {smallest_tile(radius)} or more")
    room = HEADROOM + FOOTROOM
    budget = tile * tile
    columns = width
    if budget // width - room < MIN_ROWS:
        columns = min(width, max(budget // (MIN_ROWS + room), 4 * radius))
    rows = budget // columns - room
    return (rows - rows % 4 if rows > 4 else rows), columns


class ColumnSlice(NamedTuple):
    """Columns of an image that are computed by themselves: from `start` to `stop`, of which a part is kept."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int

    @property
    def width(self) -> int:
        return self.stop - self.start

    def kept(self, scale: int) -> slice:
        """The columns of the result that are kept, counted from where it begins."""
        return slice((self.keep_start - self.start) * scale, (self.keep_stop - self.start) * scale)


def split_columns(width: int, count: int, radius: int) -> list[ColumnSlice]:
    """`count` slices about equally wide that keep all columns once, overlapping by `radius` beyond what they keep."""
    cuts = [width * i // count for i in range(count + 1)]
    return [ColumnSlice(max(0, a - radius), min(width, b + radius), a, b) for a, b in itertools.pairwise(cuts)]
