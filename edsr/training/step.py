"""One step of training: patches, forward, backward, clipping, Adam, averaging; on CUDA all of it is one CUDA graph.

What limits a small network on a GPU is not arithmetic but launches, some 600 a step. A graph makes them one, and works
on buffers at fixed addresses; so does everything here. Nothing in it waits for the device.
"""

import contextlib
import copy
import logging
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn

from edsr.data import PatchLoader
from edsr.devices import ProcessGroup, in_precision
from edsr.inference import CapturedGraph, capture_stream
from edsr.kernels import Ops
from edsr.models import EDSR, CollapsedEDSR, Network

from . import recipe
from .config import GRAD_CLIP_NORM

logger = logging.getLogger(__name__)

CHUNK_FLOPS = 1e14  # work handed to a GPU at once, half a second or less; then losses are read and signals heard
EAGER_STEPS = 3  # before a graph is captured: they compile kernels, choose algorithms, and make gradients' buckets
EAGER_STEPS_DISTRIBUTED = 11  # DistributedDataParallel's own number, from PyTorch's notes on CUDA graphs


class TrainStep:
    """Trains a network in place.

    Args:
        model: In fp32, on its device.
        loader: Where patches come from. Of several, for as many scales, steps take one after the other.
        group: The processes that share each batch.
        loss: One of `edsr.training.config.LOSSES`.
        ema_decay: Share of the averaged weights that stays in each step.
        dtype: What the network computes in. Other than fp32, it works on a copy of the weights in that dtype, made anew
            each step, while Adam, clipping and averaging keep to fp32.
        ops: What `edsr.kernels.load_training_ops` gives.
        graph: Whether to capture a CUDA graph, on CUDA. If that fails, a line is logged, and steps are launched one by
            one, with the same result.
        collapsed: Whether steps compute upsampler and tail as one convolution, with the same result to rounding
            (`edsr.models.CollapsedEDSR`).
        clip: Largest norm of the gradient; a larger one is scaled down to it.
        clip_peak: Set for adjustable clipping (Kim et al. 2016, section 3.2): the largest norm is then `clip` where the
            learning rate is `clip_peak`, and grows as that falls, so that the longest step stays as long.

    Attributes:
        model: The network.
        ema: Its averaged weights.
        graph_error: Why there is no CUDA graph, where that failed; None otherwise.
    """

    def __init__(
        self,
        model: Network,
        loader: PatchLoader | Sequence[PatchLoader],
        group: ProcessGroup,
        loss: str,
        ema_decay: float,
        dtype: torch.dtype,
        ops: Ops[Tensor],
        graph: bool,
        collapsed: bool = False,
        clip: float = GRAD_CLIP_NORM,
        clip_peak: float | None = None,
    ):
        device = group.device
        self.model, self.ema = model.train(), copy.deepcopy(model).requires_grad_(False).eval()
        self.graph_error: str | None = None
        self._loaders = [loader] if isinstance(loader, PatchLoader) else [*loader]
        self._group, self._loss, self._clip, self._clip_peak = group, loss, clip, clip_peak
        self._parameters: list[Tensor] = [*model.parameters()]
        self._ema_parameters: list[Tensor] = [*self.ema.parameters()]
        self._buffers, self._ema_buffers = [*model.buffers()], [*self.ema.buffers()]  # of batch normalizations
        compute = model if dtype == torch.float32 else _rounded(model, dtype)
        self._compute_parameters: list[Tensor] = [*compute.parameters()]
        self._mixed = compute is not model
        self._device, self._dtype = device, dtype
        branches = [compute.at(one.scale) for one in self._loaders]
        if collapsed:
            branches = [CollapsedEDSR(one) if isinstance(one, EDSR) else one for one in branches]
        with self._stream():
            net: nn.Module = _WithOps(branches, ops)
            if group.world_size > 1:
                ids, several = [device.index] if device.type == "cuda" else None, len(branches) > 1
                net = DistributedDataParallel(
                    net, device_ids=ids, gradient_as_bucket_view=True, find_unused_parameters=several
                )
        self._net = net
        self._update_ema = get_ema_multi_avg_fn(ema_decay)

        self._rate = torch.zeros((), device=device)
        self._optimizer = make_adam(self._parameters, self._rate)
        self._wide_gradients = [torch.zeros_like(p) for p in self._parameters] if self._mixed else []

        self._rates = torch.zeros(self.max_steps, device=device)
        self._losses = torch.zeros(self.max_steps, device=device)
        self._index = torch.zeros(1, dtype=torch.int64, device=device)
        self._positions = [torch.zeros_like(self._index) for _ in self._loaders]  # the same, in what each has loaded
        # What DistributedDataParallel does to find gradients that there are none of is not for graphs.
        capture = graph and device.type == "cuda" and (group.world_size == 1 or len(self._loaders) == 1)
        eager = (EAGER_STEPS_DISTRIBUTED if group.world_size > 1 else EAGER_STEPS) if capture else 1
        self._graphs: list[CapturedGraph[None] | None] = [None] * len(self._loaders)
        self._to_capture, self._eager_left = [capture] * len(self._loaders), [eager] * len(self._loaders)

    @property
    def max_steps(self) -> int:
        """Steps that one `run` can take."""
        return self._loaders[0].steps

    @property
    def warm_up_steps(self) -> int:
        """How many of the next steps are slower, as they prepare the others."""
        return sum(self._eager_left) + sum(self._to_capture)

    def is_finite(self) -> bool:
        """Whether all weights and moments of Adam are finite. Waits for the device once."""
        largest = torch._foreach_norm([*self.tensors().values()], math.inf)  # pyright: ignore[reportPrivateImportUsage]
        return bool(torch.stack(largest).isfinite().all())

    def close(self) -> None:
        """Ends the preparing of patches."""
        for loader in self._loaders:
            loader.close()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that steps change, by name: read to save a run, copied into to restore one."""
        state = {}
        for (name, p), ema in zip(self.model.named_parameters(), self._ema_parameters, strict=True):
            state[f"model.{name}"], state[f"ema.{name}"] = p.detach(), ema.detach()
            state |= {f"optimizer.{name}.{key}": value for key, value in self._optimizer.state[p].items()}
        for (name, buffer), ema in zip(self.model.named_buffers(), self._ema_buffers, strict=True):
            state[f"model.{name}"], state[f"ema.{name}"] = buffer, ema
        return state

    def other_losses(self) -> dict[str, float]:
        """Means since the last call of losses that a run is not judged by, by name."""
        return {}

    def run(self, first: int, rates: list[float]) -> list[float]:
        """Takes steps first, first + 1, ..., one for each learning rate; gives the losses of this process's patches."""
        count = len(rates)
        for loader, *steps in self._shares(first, count):
            loader.load(*steps)
        self._rates[:count].copy_(torch.tensor(rates))
        for index in (self._index, *self._positions):
            index.zero_()
        before = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        with self._stream() as stream, in_precision(self._dtype, self._device):
            if stream is not None and before is not None:
                stream.wait_stream(before)
            # While the device works through these. A CPU does so at once; there, what threads do goes on meanwhile.
            if self._device.type == "cpu":
                self._prepare(first + count, count)
            for step in range(first, first + count):
                self._advance(step % len(self._loaders))
            self._prepare(first + count, count)
            return self._losses[:count].tolist()

    def _shares(self, first: int, count: int) -> Iterator[tuple[PatchLoader, int, int]]:
        """(loader, its first step, how many of its steps) of steps first, first + 1, ...: of n loaders, step t is step
        t // n of loader t % n."""
        n = len(self._loaders)
        for k, loader in enumerate(self._loaders):
            start, end = (-((k - step) // n) for step in (first, first + count))
            if end > start:
                yield loader, start, end - start

    def _prepare(self, first: int, count: int) -> None:
        for loader, *steps in self._shares(first, count):
            loader.prepare(*steps)

    def _advance(self, k: int) -> None:
        graph = self._graphs[k]
        if graph is not None:
            graph.replay()
        elif self._to_capture[k] and self._eager_left[k] == 0:
            self._capture(k)
            self._advance(k)
        else:
            self._eager_left[k] -= self._eager_left[k] > 0
            self._step(k)

    def _stream(self) -> contextlib.AbstractContextManager[torch.cuda.Stream | None]:
        """On CUDA steps and their capture share a stream: gradients that a graph writes were made on it."""
        return capture_stream(self._device) if self._device.type == "cuda" else contextlib.nullcontext()

    def _capture(self, k: int) -> None:
        self._to_capture[k] = False
        try:
            self._graphs[k] = CapturedGraph(lambda: self._step(k))
        except RuntimeError as error:
            self._to_capture = [False] * len(self._loaders)
            self.graph_error = str(error).splitlines()[0]
            if self._group.is_main:
                logger.warning(f"no CUDA graph of the step ({self.graph_error}); steps are launched one by one")

    def _step(self, k: int) -> None:
        """A step on the patches of loader k."""
        self._rate.copy_(self._rates[self._index].view(()))
        low, high = self._loaders[k].batch(self._positions[k])
        if self._mixed:
            with torch.no_grad():
                _copy_all(self._compute_parameters, self._parameters)
        for p in self._compute_parameters:
            p.grad = None
        loss = self._backward(self._net(low, k), high)
        if self._mixed:  # parts of other scales have no gradient, and stay as they are
            for p, wide, narrow in zip(self._parameters, self._wide_gradients, self._compute_parameters, strict=True):
                p.grad = None if narrow.grad is None else wide
            _copy_all(_gradients(self._parameters), _gradients(self._compute_parameters))
        self._clip_gradients()
        self._optimizer.step()
        self._update_ema(self._ema_parameters, self._parameters, None)
        if self._buffers:
            _copy_all(self._ema_buffers, self._buffers)
        self._losses.index_copy_(0, self._index, loss.detach().float().view(1))
        for index in (self._index, self._positions[k]):
            index.add_(1)

    def _backward(self, output: Tensor, target: Tensor) -> Tensor:
        """Makes gradients; gives the loss that is reported."""
        loss = recipe.loss(self._loss, output, target)
        loss.backward()
        return loss

    def _clip_gradients(self) -> None:
        if self._clip_peak is None:
            clip_grad_norm_(self._parameters, self._clip)
            return
        norm = clip_grad_norm_(self._parameters, math.inf)
        factor = (self._clip * self._clip_peak / self._rate / (norm + 1e-6)).clamp(max=1)
        torch._foreach_mul_(_gradients(self._parameters), factor)  # pyright: ignore[reportPrivateImportUsage]


def _copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]: there is no public one


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def make_adam(parameters: Sequence[Tensor], rate: Tensor) -> torch.optim.Adam:
    """Adam with moments that are there before the first step, so that they can be restored."""
    device = rate.device
    optimizer = torch.optim.Adam(parameters, rate, fused=device.type != "mps", capturable=device.type == "cuda")
    for p in parameters:
        moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        optimizer.state[p] = {"step": torch.zeros((), device=device), **moments}
    return optimizer


def _rounded(model: Network, dtype: torch.dtype) -> Network:
    """A copy in `dtype`, but for batch normalizations, which keep to fp32 and share their statistics with `model`."""
    result = copy.deepcopy(model).to(dtype)
    for own, copied in zip(model.modules(), result.modules(), strict=True):
        for name, buffer in own.named_buffers(recurse=False):
            copied.float()
            setattr(copied, name, buffer)
    return result


class _WithOps(nn.Module):
    """Networks that share parameters, one for each scale; all that is given is tensors and numbers, as
    DistributedDataParallel wants it."""

    def __init__(self, nets: Sequence[Network], ops: Ops[Tensor]):
        super().__init__()
        self.nets, self._ops = nn.ModuleList(nets), ops

    def forward(self, x: Tensor, k: int) -> Tensor:
        """What network k makes of the image."""
        return self.nets[k](x, self._ops)
