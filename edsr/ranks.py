"""The processes of one run, as `torchrun` starts them: one per GPU, on one machine or several; one without it."""

import gc
import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from edsr.engine import pick_device


class Ranks:
    """This process among all of a run. rank, world: its number and how many there are. device: what it computes on.

    device: as for `edsr.Upscaler`; with several processes and CUDA each takes the GPU of its number on its machine.
    Joins the process group (nccl on CUDA, gloo elsewhere) if torchrun's environment is there; `leave` ends it.
    Raises EngineError where the device cannot be had.
    """

    def __init__(self, device: str):
        self.rank = int(os.environ.get("RANK", 0))
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        self.local = int(os.environ.get("LOCAL_RANK", 0))
        self.device = pick_device(device)
        if self.world == 1:
            return
        if self.device.type == "cuda":
            self.device = pick_device(f"cuda:{self.local}")
            torch.cuda.set_device(self.device)
        dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    @property
    def first(self) -> bool:
        """Whether this is the one process that writes and speaks."""
        return self.rank == 0

    def leave(self) -> None:
        """Ends the group. Whoever holds a DistributedDataParallel has let go of it: what is left of a group when Python
        ends takes the process down with it."""
        if self.world > 1 and dist.is_initialized():
            gc.collect()  # it lies in cycles
            dist.destroy_process_group()

    def mean(self, values: list[float]) -> list[float]:
        """The mean of each value over all processes, which all get the same numbers."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return (tensor / self.world).tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        return self.mean([float(flag)])[0] > 0

    def wait(self) -> None:
        """Until all have come here."""
        if self.world > 1:
            dist.barrier()

    def spread(self, tensors: Iterable[Tensor], record: dict | None) -> dict | None:
        """Fills `tensors` with the first process's values, and gives its `record` to all."""
        if self.world == 1:
            return record
        for tensor in tensors:
            # Element for element, whatever the layout in memory.
            values = tensor.contiguous()
            dist.broadcast(values, 0)
            tensor.copy_(values)
        box = [record]
        dist.broadcast_object_list(box, 0, device=self.device)
        return box[0]
