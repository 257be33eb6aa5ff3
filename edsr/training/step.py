"""One step of training: patches, forward, backward, clipping, Adam, averaging; on CUDA all of it is one CUDA graph.

What limits a small network on a GPU is not arithmetic but launches, some 600 a step. A graph makes them one, and works
on buffers at fixed addresses; so does everything here. Nothing in it waits for the device.
"""

import contextlib
import copy
import logging
import math

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn

from edsr.data import PatchLoader
from edsr.devices import ProcessGroup, in_precision
from edsr.inference import CapturedGraph, capture_stream
from edsr.kernels import Ops
from edsr.models import EDSR, CollapsedEDSR

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
        loader: Where patches come from.
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

    Attributes:
        model: The network.
        ema: Its averaged weights.
        graph_error: Why there is no CUDA graph, where that failed; None otherwise.
    """

    def __init__(
        self,
        model: EDSR,
        loader: PatchLoader,
        group: ProcessGroup,
        loss: str,
        ema_decay: float,
        dtype: torch.dtype,
        ops: Ops[Tensor],
        graph: bool,
        collapsed: bool = False,
        clip: float = GRAD_CLIP_NORM,
    ):
        device = group.device
        self.model, self.ema = model, copy.deepcopy(model).requires_grad_(False)
        self.graph_error: str | None = None
        self._loader, self._group, self._loss, self._clip = loader, group, loss, clip
        self._parameters: list[Tensor] = [*model.parameters()]
        self._ema_parameters: list[Tensor] = [*self.ema.parameters()]
        compute = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
        self._compute_parameters: list[Tensor] = [*compute.parameters()]
        self._mixed = compute is not model
        self._device, self._dtype = device, dtype
        with self._stream():
            net: nn.Module = _WithOps(CollapsedEDSR(compute) if collapsed else compute, ops)
            if group.world_size > 1:
                ids = [device.index] if device.type == "cuda" else None
                net = DistributedDataParallel(net, device_ids=ids, gradient_as_bucket_view=True)
        self._net = net
        self._update_ema = get_ema_multi_avg_fn(ema_decay)

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

        self._rates = torch.zeros(loader.steps, device=device)
        self._losses = torch.zeros(loader.steps, device=device)
        self._index = torch.zeros(1, dtype=torch.int64, device=device)
        self._to_capture = graph and device.type == "cuda"
        self._graph: CapturedGraph[None] | None = None
        self._eager_left = (EAGER_STEPS_DISTRIBUTED if group.world_size > 1 else EAGER_STEPS) if self._to_capture else 1

    @property
    def max_steps(self) -> int:
        """Steps that one `run` can take."""
        return self._loader.steps

    @property
    def warm_up_steps(self) -> int:
        """How many of the next steps are slower, as they prepare the others."""
        return self._eager_left + self._to_capture

    def is_finite(self) -> bool:
        """Whether all weights and moments of Adam are finite. Waits for the device once."""
        largest = torch._foreach_norm([*self.tensors().values()], math.inf)  # pyright: ignore[reportPrivateImportUsage]
        return bool(torch.stack(largest).isfinite().all())

    def close(self) -> None:
        """Ends the preparing of patches."""
        self._loader.close()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that steps change, by name: read to save a run, copied into to restore one."""
        state = {}
        for (name, p), ema in zip(self.model.named_parameters(), self._ema_parameters, strict=True):
            state[f"model.{name}"], state[f"ema.{name}"] = p.detach(), ema.detach()
            state |= {f"optimizer.{name}.{key}": value for key, value in self._optimizer.state[p].items()}
        return state

    def run(self, first: int, rates: list[float]) -> list[float]:
        """Takes steps first, first + 1, ..., one for each learning rate; gives the losses of this process's patches."""
        count = len(rates)
        self._loader.load(first, count)
        self._rates[:count].copy_(torch.tensor(rates))
        self._index.zero_()
        before = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        with self._stream() as stream, in_precision(self._dtype, self._device):
            if stream is not None and before is not None:
                stream.wait_stream(before)
            # While the device works through these. A CPU does so at once; there, what threads do goes on meanwhile.
            if self._device.type == "cpu":
                self._loader.prepare(first + count, count)
            for _ in range(count):
                self._advance()
            self._loader.prepare(first + count, count)
            return self._losses[:count].tolist()

    def _advance(self) -> None:
        if self._graph is not None:
            self._graph.replay()
            return
        if self._to_capture and self._eager_left == 0:
            self._capture()
            self._advance()
            return
        self._eager_left -= self._eager_left > 0
        self._step()

    def _stream(self) -> contextlib.AbstractContextManager[torch.cuda.Stream | None]:
        """On CUDA steps and their capture share a stream: gradients that a graph writes were made on it."""
        return capture_stream(self._device) if self._device.type == "cuda" else contextlib.nullcontext()

    def _capture(self) -> None:
        self._to_capture = False
        try:
            self._graph = CapturedGraph(self._step)
        except RuntimeError as error:
            self.graph_error = str(error).splitlines()[0]
            if self._group.is_main:
                logger.warning(f"no CUDA graph of the step ({self.graph_error}); steps are launched one by one")

    def _step(self) -> None:
        self._rate.copy_(self._rates[self._index].view(()))
        low, high = self._loader.batch(self._index)
        if self._mixed:
            with torch.no_grad():
                _copy_all(self._compute_parameters, self._parameters)
        for p in self._compute_parameters:
            p.grad = None
        loss = recipe.loss(self._loss, self._net(low), high)
        loss.backward()
        if self._mixed:
            _copy_all(_gradients(self._parameters), _gradients(self._compute_parameters))
        clip_grad_norm_(self._parameters, self._clip)
        self._optimizer.step()
        self._update_ema(self._ema_parameters, self._parameters, None)
        self._losses.index_copy_(0, self._index, loss.detach().float().view(1))
        self._index.add_(1)


def _copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]: there is no public one


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


class _WithOps(nn.Module):
    """A network whose forward takes the image alone, as DistributedDataParallel wants it."""

    def __init__(self, net: EDSR, ops: Ops[Tensor]):
        super().__init__()
        self.net, self._ops = net, ops

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x, self._ops)
