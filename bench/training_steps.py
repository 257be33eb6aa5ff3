"""A step of training: what is trained, and the ways to do it. `bench.training` times them.

Every way goes from the same decoded images in memory to new weights of the same network:

triton         `edsr.training.step` on this project's kernels, in bf16, as one CUDA graph. On a GPU only.
winograd       The same on the kernels for CPUs, in fp32. On a CPU only.
torch          The same on PyTorch's operations.
plain          The loop of the well-known code (EDSR-PyTorch by S. Son: src/trainer.py, src/loss, src/data). Eager,
               NCHW, fp32 with TF32; DataLoader workers cut, flip and convert the patches; page-locked memory, copied
               when it is needed; L1, Adam as it comes, and the loss fetched by item() between forward and backward.
               Not copied, to its advantage: images unpickled anew for each patch, mean shifts as convolutions,
               timers and log.
channels_last  The plain loop with channels_last, fused Adam, and item() at the end alone. On a CPU only.
eager          Ours as `torch`, launched one by one. Not on a CPU, where there are no graphs.
compile        What PyTorch has to be fast: the model compiled, bf16 by autocast, channels_last, fused Adam, copies
               that do not wait, cudnn.benchmark, item() at the end alone. The same workers.

On a CPU fp32 takes the place of bf16. Ours clip gradients and average weights, too, which the peers do not.
"""

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from bench.workloads import SLACK, Unavailable, compiled, gflop_per_pixel, network
from edsr.data.patches import PatchLoader
from edsr.data.store import PairedImages
from edsr.devices import ProcessGroup
from edsr.images.resize import matlab_downscale
from edsr.kernels import load_training_ops
from edsr.kernels.winograd import ops as winograd_cpu
from edsr.models.collapsed import worth_collapsing
from edsr.models.edsr import EDSR, EDSRConfig
from edsr.training.recipe import ema_decay
from edsr.training.run_log import LOG_EVERY
from edsr.training.step import CHUNK_FLOPS, TrainStep

LEARNING_RATE = 1e-4
SEED = 0
IMAGES = 4


class Derivatives(NamedTuple):
    """Of a step: what the network gives, its loss, and the direction of its gradient, fp64, of length 1."""

    y: Tensor
    loss: float
    direction: Tensor


@dataclass(frozen=True)
class Training:
    """Training a network from random weights, `batch` patches of `patch` LR pixels a side at a time.

    name: of the network. dtype: what all but the plain loop compute in. workers: DataLoader's, in peers. size: of the
    images, HR rows and columns.
    """

    name: str
    config: EDSRConfig
    batch: int = 16
    patch: int = 48
    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    workers: int = 4
    size: tuple[int, int] = (1000, 1500)

    def __str__(self) -> str:
        return f"training-{self.name}-x{self.config.scale}-{self.batch}x{self.patch}"

    @property
    def gflop(self) -> float:
        """10⁹ operations of a step: 3 times those of the forward pass, see `gflop_per_pixel`.

        Each convolution's gradients, by its input and by its weight, are as much work as itself. (That by the image,
        a thousandth of all, is counted but not computed.)
        """
        return 3 * gflop_per_pixel(self.config, collapsed=False) * self.batch * self.patch**2

    @cached_property
    def images(self) -> PairedImages:
        return drawn(self.size, self.config.scale)

    @cached_property
    def patches(self) -> tuple[Tensor, Tensor]:
        """(LR, HR) of our first step."""
        loader = PatchLoader(self.images, self.patch, self.batch, SEED, self.device, 1)
        loader.load(0, 1)
        return loader.batch(torch.zeros(1, dtype=torch.int64, device=self.device))

    def start(self, memory_format: torch.memory_format, dtype: torch.dtype = torch.float32) -> EDSR:
        """The network before the first step."""
        model = copy.deepcopy(network(self.config)).requires_grad_(True)
        # torch's types leave memory_format out.
        return model.to(self.device, dtype, memory_format=memory_format)  # pyright: ignore[reportCallIssue]

    def derivatives(self, dtype: torch.dtype) -> Derivatives:
        """By eager PyTorch, on `patches`."""
        model, (low, high) = self.start(torch.channels_last, dtype), self.patches
        # No autotuning for what is computed but once.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False):
            y = model(low)
            loss = F.l1_loss(y, high.to(y))
            loss.backward()
        gradient = direction([p.grad for p in model.parameters() if p.grad is not None])
        return Derivatives(y.detach(), loss.item(), gradient)

    @cached_property
    def target(self) -> Derivatives:
        return self.derivatives(torch.float64)

    def loss_of(self, model: EDSR) -> float:
        low, high = self.patches
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, benchmark=False):
            return F.l1_loss(model(low), high).item()


def direction(gradients: list[Tensor]) -> Tensor:
    flat = torch.cat([gradient.flatten().double() for gradient in gradients])
    return flat / flat.norm()


@cache
def budget(work: Training, dtype: torch.dtype) -> tuple[float, float]:
    """How far a loss and a direction may be off in a precision. A loss is a mean in fp32, rounded as such, too."""
    found, target = work.derivatives(dtype), work.target
    loss, gradient = (found.y - target.y).abs().mean(), (found.direction - target.direction).norm()
    return SLACK * loss.item() + torch.finfo(torch.float32).eps * target.loss, SLACK * gradient.item()


@cache
def drawn(size: tuple[int, int], scale: int) -> PairedImages:
    """Shapes, waves and noise, reduced as `edsr train` reduces. No files, for which an image library is needed."""
    generator = np.random.default_rng(SEED)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    height, width = (length // scale * scale for length in size)
    pairs = []
    for _ in range(IMAGES):
        layers = []
        for a, b, c in generator.uniform(5, 60, (3, 3)):
            layers.append(128 + 60 * np.sin(x / a + y / b) + 40 * ((x // (2 * c) + y // c) % 2))
        noisy = np.stack(layers, 2) + generator.normal(0, 4, (*size, 3))
        high = noisy.clip(0, 255).astype(np.uint8)[:height, :width]
        pairs.append((matlab_downscale(high, scale), high))
    return PairedImages.from_pairs(pairs, scale)


# --- the ways


class Patches(Dataset):
    """Random patches of the i-th image, LR [3, p, p] and HR [3, s·p, s·p], float32 in 0..1, in one of eight turns."""

    def __init__(self, images: PairedImages, patch: int):
        self._pairs = [images.pair(i) for i in range(len(images))]
        self._scale, self._patch = images.scale, patch

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        low, s, p = self._pairs[i][0], self._scale, self._patch
        y, x = (random.randrange(length - p + 1) for length in low.shape[:2])
        down, right, swap = (random.random() < 0.5 for _ in range(3))
        parts = []
        for image, r in zip(self._pairs[i], (1, s), strict=True):
            part = image[y * r : (y + p) * r, x * r : (x + p) * r]
            part = part[:: -1 if down else 1, :: -1 if right else 1].transpose((2, 1, 0) if swap else (2, 0, 1))
            parts.append(torch.from_numpy(np.ascontiguousarray(part)).float().mul_(1 / 255))
        return tuple(parts)


class Loop:
    """Training in plain PyTorch. fast: with what it has for that, compiled or not, or as in the well-known code."""

    portion = 1

    def __init__(self, work: Training, fast: bool, compile_: bool = True):
        self._work, self._fast, self._half = work, fast, fast and work.dtype == torch.bfloat16
        self.dtype = work.dtype if fast else torch.float32
        self._layout = torch.channels_last if fast else torch.contiguous_format
        self.model = work.start(self._layout)
        self._net = compiled(self.model, dynamic=False) if fast and compile_ else self.model
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE, fused=fast or None)
        patches = Patches(work.images, work.patch)
        endless = RandomSampler(patches, replacement=True, num_samples=1 << 40)
        options = {"num_workers": work.workers, "pin_memory": work.device == "cuda"}
        self._batches = iter(DataLoader(patches, work.batch, sampler=endless, **options))
        self.lead = 2 * work.workers + 1  # the workers have so many batches waiting

    def run(self, steps: int) -> None:
        """Returns when they are done, as `Ours.run` does."""
        losses = [self._step(*next(self._batches)) for _ in range(steps)]
        losses[-1].item()

    def first(self) -> tuple[float, Tensor]:
        """Loss and direction of the first step, on the work's patches."""
        self.model.load_state_dict(network(self._work.config).state_dict())
        self._optimizer.state.clear()
        loss = self._step(*(part.contiguous() for part in self._work.patches)).item()
        return loss, direction([self._optimizer.state[p]["exp_avg"] for p in self.model.parameters()])

    def _step(self, low: Tensor, high: Tensor) -> Tensor:
        torch.backends.cudnn.benchmark = self._fast
        low, high = (part.to(self._work.device, non_blocking=self._fast) for part in (low, high))
        low, high = (part.contiguous(memory_format=self._layout) for part in (low, high))
        self._optimizer.zero_grad()
        with torch.autocast(self._work.device, torch.bfloat16, enabled=self._half):
            y = self._net(low)
        loss = F.l1_loss(y, high)
        if not self._fast:
            loss.item()
        loss.backward()
        self._optimizer.step()
        return loss.detach()


class Ours:
    """`edsr.training.step` as `edsr.training.trainer` runs it, in portions. backend: see `load_training_ops`."""

    def __init__(self, work: Training, backend: str, graph: bool):
        on_gpu = work.device == "cuda"
        self.portion = max(1, min(LOG_EVERY, int(CHUNK_FLOPS / 1e9 / work.gflop))) if on_gpu else 1
        self.lead, self.dtype, self._at = self.portion, work.dtype, 0
        self.model = work.start(torch.channels_last)
        loader = PatchLoader(work.images, work.patch, work.batch, SEED, work.device, self.portion)
        module, decay = load_training_ops(backend), ema_decay(300_000)
        ranks = ProcessGroup(work.device)
        collapsed = worth_collapsing(ranks.device, work.batch * work.patch**2)
        self._step = TrainStep(self.model, loader, ranks, "l1", decay, work.dtype, module, graph, collapsed)
        self._start: dict[str, Tensor] | None = None  # kept where it is asked for: it is memory that no run needs

    def run(self, steps: int) -> None:
        """Raises AssertionError if there is no graph where there should be one."""
        torch.backends.cudnn.benchmark = True
        end = self._at + steps
        while self._at < end:
            count = min(self.portion, end - self._at)
            self._step.run(self._at, [LEARNING_RATE] * count)
            self._at += count
        if self._step.graph_error is not None:
            raise AssertionError(f"no CUDA graph of the step: {self._step.graph_error}")

    def first(self) -> tuple[float, Tensor]:
        """Loss and direction of the first step, which is on the work's patches."""
        torch.backends.cudnn.benchmark = True
        if self._start is None:
            assert self._at == 0
            self._start = {name: tensor.clone() for name, tensor in self._step.tensors().items()}
        for name, tensor in self._step.tensors().items():
            tensor.copy_(self._start[name])
        (loss,) = self._step.run(0, [LEARNING_RATE])
        state = self._step.tensors()
        return loss, direction([state[f"optimizer.{name}.exp_avg"] for name, _ in self.model.named_parameters()])


def ours(work: Training, backend: str, graph: bool) -> Ours:
    on_gpu = work.device == "cuda"
    if backend == "triton" and not on_gpu:
        raise Unavailable("needs a CUDA device")
    if backend == "winograd" and (
        reason := winograd_cpu.unavailable_reason(work.device, work.dtype, work.config.features)
    ):
        raise Unavailable(reason)
    if not graph and not on_gpu:
        raise Unavailable("a CPU has no graphs to go without")
    return Ours(work, backend, graph)


def channels_last(work: Training) -> Loop:
    if work.device == "cuda":
        raise Unavailable("is for CPUs")
    return Loop(work, fast=True, compile_=False)


class Implementation(NamedTuple):
    """limit: seconds on a GPU to make it ready. slow: more than all others together."""

    title: str
    build: Callable[[Training], Loop | Ours]
    limit: float = 25.0
    slow: bool = False


IMPLEMENTATIONS = {
    "triton": Implementation("ours, on Triton", lambda work: ours(work, "triton", graph=True)),
    "winograd": Implementation("ours, by Winograd", lambda work: ours(work, "winograd", graph=True)),
    "torch": Implementation("ours, on PyTorch", lambda work: ours(work, "torch", graph=True)),
    "plain": Implementation("PyTorch, plain loop", lambda work: Loop(work, fast=False)),
    "channels_last": Implementation("PyTorch, channels_last", channels_last),
    "eager": Implementation("ours, on PyTorch, no graph", lambda work: ours(work, "torch", graph=False)),
    "compile": Implementation("PyTorch, compiled", lambda work: Loop(work, fast=True), limit=90.0, slow=True),
}
BASELINE = "plain"
