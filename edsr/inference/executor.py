"""A network on its device, as an ExecutionPlan says: what every image is computed with."""

import contextlib
import copy
import itertools
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from edsr.devices import PRECISIONS, in_precision
from edsr.kernels import OutputSpec, TensorOps, load_ops
from edsr.models import Network, dihedral, fold

from .cuda import GraphCache
from .plan import ExecutionPlan


class Executor:
    """A network folded, on the plan's device, in the precisions that are asked for. Safe to use from several threads.

    Args:
        model: Left untouched.
        plan: How it is executed.
        compute_lock: Held while a band is computed; by default the executor's own.

    Attributes:
        plan: As given.
        scale: The network's.
        ops: The operations of the plan's backend.
        model: The folded network in the plan's precision.
        compute_lock: Of several images one band is computed at a time: together they need no more memory than one.
    """

    def __init__(self, model: Network, plan: ExecutionPlan, compute_lock: AbstractContextManager[Any] | None = None):
        self.plan, self.scale = plan, model.config.scale
        self.ops = load_ops(plan.backend)
        self.compute_lock = threading.Lock() if compute_lock is None else compute_lock
        self._folded = fold(copy.deepcopy(model).float().cpu())
        self._networks: dict[tuple[str, bool], list[Network]] = {}
        self._networks_lock = threading.Lock()
        self.model = self.networks(plan.precision)[0]
        # Of no method of this object: a cycle would keep its memory on the device after its last use.
        forward = partial(_forward, self.model, self.ops)
        self._forward = GraphCache(forward) if plan.uses_graphs else forward

    def networks(self, precision: str, self_ensemble: bool = False) -> list[Network]:
        """The network on the device in a precision; for a self-ensemble all eight, flipped and turned."""
        with self._networks_lock:
            key = precision, self_ensemble
            if key not in self._networks:
                if self_ensemble:
                    networks = [dihedral(self._folded, *flips) for flips in itertools.product((False, True), repeat=3)]
                else:
                    in_place = self.plan.device.type == "cpu" and precision == "fp32"
                    networks = [self._folded if in_place else dihedral(self._folded)]
                # torch's stub leaves memory_format out.
                self._networks[key] = [
                    network.to(  # pyright: ignore[reportCallIssue]
                        self.plan.device, PRECISIONS[precision], memory_format=torch.channels_last
                    )
                    for network in networks
                ]
            return self._networks[key]

    def compute_whole(self, x: Tensor, result: OutputSpec, precision: str | None = None) -> Tensor:
        """The network on whole images; in the plan's precision by CUDA graphs, where it has them.

        Args:
            x: [N, 3, H, W], as `Network.forward` takes them.
            result: See `OutputSpec`.
            precision: The plan's by default.
        """
        if precision is None or precision == self.plan.precision:
            return self._forward(x, result)
        return self.networks(precision)[0](x, self.ops, result)

    @contextlib.contextmanager
    def computing(self, precision: str) -> Iterator[None]:
        """A context to compute in: the device is the current one, as CUDA graphs require, and fp32 is not TF32.

        Autocast of the caller does not reach in.
        """
        device = self.plan.device
        current = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
        plain = torch.autocast(device.type, enabled=False)
        with current, plain, in_precision(PRECISIONS[precision], device):
            yield


def _forward(model: Network, ops: TensorOps, x: Tensor, result: OutputSpec) -> Tensor:
    return model(x, ops, result)
