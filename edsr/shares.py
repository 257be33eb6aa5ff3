"""A batch over several machines: the processes that torchrun starts, each with its share of the files."""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")


class Shares:
    """This process among those of a batch, `rank` of `world`; the only one without torchrun."""

    def __init__(self):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.world > 1:
            import torch.distributed as dist

            # The first to be done waits for the last, however long that takes.
            dist.init_process_group("gloo", timeout=timedelta(days=30))

    def device(self, name: str) -> str:
        """The device for `--device NAME`: for "auto" the GPU of this process's number on its machine, if any."""
        import torch

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
        import torch.distributed as dist

        values = [None] * self.world if self.rank == 0 else None
        dist.gather_object(value, values)
        dist.barrier()
        dist.destroy_process_group()
        return values
