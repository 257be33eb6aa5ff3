"""What computes: devices, precisions, and the processes that torchrun starts."""

import gc
import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from edsr.errors import BackendError

T = TypeVar("T")
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def pick_device(name: str) -> torch.device:
    """The device of that name, or the fastest here for "auto". Raises BackendError where there is none such."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BackendError(f"unknown device {name!r}: use auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"--device {name}: no CUDA device here; use --device cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(f"--device {name}: the last CUDA device is cuda:{torch.cuda.device_count() - 1}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BackendError("--device mps: no Apple GPU here; use --device cpu or auto")
    if device.type not in ("cpu", "cuda", "mps"):
        raise BackendError(f"unknown device {name!r}: use auto, cpu, cuda, cuda:N or mps")
    return device


def cpu_has(precision: str) -> bool:
    """Whether the CPU's convolutions compute in fp16 or bf16 themselves."""
    if not torch.backends.mkldnn.is_available():
        return False
    ops = torch.ops.mkldnn
    return ops._is_mkldnn_fp16_supported() if precision == "fp16" else ops._is_mkldnn_bf16_supported()


def list_devices(text: str) -> list[str]:
    """The devices that `--device` names: "cuda:0,cuda:1"; "all" is every CUDA device, where there is none the fastest.

    One may stand there more than once. Raises BackendError for an empty name.
    """
    if text == "all":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["auto"]
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise BackendError(f"--device {text}: a name is missing between the commas")
    return names


class ProcessGroup:
    """This process among all of a run. rank, world: its number and how many there are. device: what it computes on.

    device: as for `edsr.Upscaler`; with several processes and CUDA each takes the GPU of its number on its machine.
    Joins the process group (nccl on CUDA, gloo elsewhere) if torchrun's environment is there; `leave` ends it.
    Raises BackendError where the device cannot be had.
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
    def is_main(self) -> bool:
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

    def barrier(self) -> None:
        """Until all have come here."""
        if self.world > 1:
            dist.barrier()

    def broadcast(self, tensors: Iterable[Tensor], record: dict | None) -> dict | None:
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


class Shares:
    """This process among those of a batch, `rank` of `world`; the only one without torchrun."""

    def __init__(self):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.world > 1:
            # The first to be done waits for the last, however long that takes.
            dist.init_process_group("gloo", timeout=timedelta(days=30))

    def device(self, name: str) -> str:
        """The device for `--device NAME`: for "auto" the GPU of this process's number on its machine, if any."""
        if self.world == 1 or name != "auto" or not torch.cuda.is_available():
            return name
        return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"

    def mine(self, items: Sequence[T]) -> list[T]:
        """Of items that are the same in all processes those of this one; each has one owner."""
        return list(items[self.rank :: self.world])

    def gather(self, value: Any) -> list[Any] | None:
        """Every process's value, in the first one; None in the others. Waits until all have come here.

        torchrun ends all when one ends with an error, so nobody may end before this.
        """
        if self.world == 1:
            return [value]
        values = [None] * self.world if self.rank == 0 else None
        dist.gather_object(value, values)
        dist.barrier()
        dist.destroy_process_group()
        return values
