"""One step of training: patches, forward, backward, clipping, Adam, averaging; on CUDA all of it one CUDA graph.

What a small network is short of on a GPU is not arithmetic but launches, some 600 a step. A graph makes them one,
and works from buffers of fixed addresses; so does everything here. Nothing in it waits for the device.
"""

import contextlib
import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn

from edsr.data import PatchLoader
from edsr.devices import ProcessGroup
from edsr.inference import CapturedGraph, capture_stream
from edsr.models import EDSR, CollapsedEDSR

from . import recipe
from .recipe import GRAD_CLIP_NORM

BLOCK_FLOPS = 1e14  # work handed to a GPU at once, half a second or less; then losses are read and signals heard
EAGER_STEPS = 3  # before a graph is recorded: they compile kernels, choose algorithms, and make gradients' buckets
EAGER_STEPS_OF_MANY = 11  # DistributedDataParallel's own number, from PyTorch's notes on CUDA graphs


class TrainStep:
    """Trains `model`, fp32 on its device, in place.

    feed: where patches come from. loss: one of recipe.LOSSES. decay: of the averaged weights. dtype: what the network
    computes in; other than fp32, it works on a copy of the weights in that dtype, made anew each step, while Adam,
    clipping and averaging keep to fp32. ops: `edsr.kernels.reference` or `edsr.kernels.triton.autograd`. graph: on
    CUDA, whether to record one; `say` is told if that fails, and steps are then launched one by one, with the same
    result. collapsed: whether steps compute upsampler and tail as one convolution, with the same result to rounding
    (`edsr.models.collapsed`).
    """

    def __init__(
        self,
        model: EDSR,
        feed: PatchLoader,
        ranks: ProcessGroup,
        loss: str,
        decay: float,
        dtype: torch.dtype,
        ops: Any,
        graph: bool,
        say: Callable[[str], None],
        collapsed: bool = False,
    ):
        device = ranks.device
        self.model, self.ema = model, copy.deepcopy(model).requires_grad_(False)
        self._feed, self._loss, self._say = feed, loss, say
        self._parameters: list[Tensor] = [*model.parameters()]
        self._averages: list[Tensor] = [*self.ema.parameters()]
        worker = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
        self._worker_parameters: list[Tensor] = [*worker.parameters()]
        self._mixed = worker is not model
        self._device = device
        with self._on_its_stream():
            net: nn.Module = _WithOps(CollapsedEDSR(worker) if collapsed else worker, ops)
            if ranks.world_size > 1:
                ids = [device.index] if device.type == "cuda" else None
                net = DistributedDataParallel(net, device_ids=ids, gradient_as_bucket_view=True)
        self._net = net
        self._update_average = get_ema_multi_avg_fn(decay)

        self._rate = torch.zeros((), device=device)
        capturable = device.type == "cuda"
        self._optimizer = torch.optim.Adam(
            self._parameters, self._rate, fused=device.type != "mps", capturable=capturable
        )
        for p in self._parameters:
            moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            self._optimizer.state[p] = {"step": torch.zeros((), device=device), **moments}
            if self._mixed:
                p.grad = torch.zeros_like(p)

        self._rates = torch.zeros(feed.steps, device=device)
        self._losses = torch.zeros(feed.steps, device=device)
        self._at = torch.zeros(1, dtype=torch.int64, device=device)
        self._wanted = graph and device.type == "cuda"
        self._graph: CapturedGraph[None] | None = None
        self._eager_left = (EAGER_STEPS_OF_MANY if ranks.world_size > 1 else EAGER_STEPS) if self._wanted else 1

    @property
    def most(self) -> int:
        """Steps that one `run` can take."""
        return self._feed.steps

    @property
    def slow(self) -> int:
        """How many of the next steps are to make ready for the others, which are faster."""
        return self._eager_left + self._wanted

    def finite(self) -> bool:
        """Whether all weights and what Adam remembers of them are finite numbers. Waits for the device once."""
        largest = torch._foreach_norm([*self.tensors().values()], math.inf)  # pyright: ignore[reportPrivateImportUsage]
        return bool(torch.stack(largest).isfinite().all())

    def close(self) -> None:
        """Ends what makes patches ready for later steps."""
        self._feed.close()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that steps change, by name: read it to save a run, copy into it to restore one."""
        state = {}
        for (name, p), average in zip(self.model.named_parameters(), self._averages, strict=True):
            state[f"model.{name}"], state[f"average.{name}"] = p.detach(), average.detach()
            state |= {f"adam.{name}.{key}": value for key, value in self._optimizer.state[p].items()}
        return state

    def run(self, first: int, rates: list[float]) -> list[float]:
        """Steps first, first + 1, ..., one for each learning rate; their losses, of this process's patches."""
        count = len(rates)
        self._feed.load(first, count)
        self._rates[:count].copy_(torch.tensor(rates))
        self._at.zero_()
        before = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        with self._on_its_stream() as stream:
            if stream is not None and before is not None:
                stream.wait_stream(before)
            # While the device works through these. A CPU does so at once; there, what threads do goes on meanwhile.
            if self._device.type == "cpu":
                self._feed.prepare(first + count, count)
            for _ in range(count):
                self._advance()
            self._feed.prepare(first + count, count)
            return self._losses[:count].tolist()

    def _advance(self) -> None:
        if self._graph is not None:
            self._graph.replay()
            return
        if self._wanted and self._eager_left == 0:
            self._record()
            self._advance()
            return
        self._eager_left -= self._eager_left > 0
        self._step()

    def _on_its_stream(self) -> contextlib.AbstractContextManager[torch.cuda.Stream | None]:
        """On CUDA steps and their recording share a stream: gradients that a graph writes were made on it."""
        return capture_stream(self._device) if self._device.type == "cuda" else contextlib.nullcontext()

    def _record(self) -> None:
        self._wanted = False
        try:
            self._graph = CapturedGraph(self._step)
        except RuntimeError as error:
            self._say(f"no CUDA graph of the step ({str(error).splitlines()[0]}); steps are launched one by one")

    def _step(self) -> None:
        self._rate.copy_(self._rates[self._at].view(()))
        low, high = self._feed.batch(self._at)
        if self._mixed:
            with torch.no_grad():
                _copy_all(self._worker_parameters, self._parameters)
        for p in self._worker_parameters:
            p.grad = None
        loss = recipe.loss(self._loss, self._net(low), high)
        loss.backward()
        if self._mixed:
            _copy_all(_gradients(self._parameters), _gradients(self._worker_parameters))
        clip_grad_norm_(self._parameters, GRAD_CLIP_NORM)
        self._optimizer.step()
        self._update_average(self._averages, self._parameters, None)
        self._losses.index_copy_(0, self._at, loss.detach().float().view(1))
        self._at.add_(1)


def _copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]: there is no public one


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


class _WithOps(nn.Module):
    """A network whose forward takes the image alone, as DistributedDataParallel wants it."""

    def __init__(self, net: EDSR, ops: Any):
        super().__init__()
        self.net, self._ops = net, ops

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x, self._ops)
