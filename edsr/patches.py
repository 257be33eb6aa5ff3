"""Training patches: which ones belong to a step, and how they are cut, all of a batch in one gather on the device."""

import numpy as np
import torch
from torch import Tensor

from edsr.pictures import Pictures


class Sampler:
    """Which patches belong to which step: (seed, step) alone decides, so that a resumed run needs no state.

    table: as in Pictures. patch: LR pixels a side. Every position in every picture is as likely as any other, so
    pictures are drawn in proportion to how many they have; each of the eight turns of a square is as likely as any.
    Raises ValueError if no picture is as large as a patch.
    """

    def __init__(self, table: np.ndarray, patch: int, batch: int, seed: int):
        self.batch, self._key = batch, seed % 2**64
        down, self._across = (np.maximum(table[:, column] - patch + 1, 0) for column in (2, 3))
        self._ends = np.cumsum(down * self._across)
        if len(table) == 0 or self._ends[-1] == 0:
            raise ValueError(f"no picture has {patch} LR pixels a side")

    def draw(self, first: int, count: int) -> np.ndarray:
        """int64 [count, batch, 4] for steps first, first + 1, ...: row of the table, LR row, LR column, turn 0..7."""
        # A counter-based generator: words of any step are had without those before. It gives four to a count.
        counts = -(-self.batch // 4)
        words = np.random.Philox(key=self._key, counter=first * counts).random_raw(count * counts * 4)
        words = words.reshape(count, counts * 4)[:, : self.batch]
        # The remainder favours some places, by less than 2^-64 times their number.
        place, turn = np.divmod((words % np.uint64(8 * self._ends[-1])).astype(np.int64), 8)
        row = np.searchsorted(self._ends, place, side="right")
        y, x = np.divmod(place - np.concatenate(([0], self._ends))[row], self._across[row])
        return np.stack([row, y, x, turn], 2)


def locate(pictures: Pictures, drawn: np.ndarray, patch: int) -> np.ndarray:
    """Where drawn patches lie in the flat buffers: int64 [count, 2, 3, batch], for LR and HR what `cut` takes.

    drawn: as Sampler.draw gives it. Turn: 1 flips rows, 2 flips columns, 4 then swaps them, and their sums.
    """
    row, y, x, turn = np.moveaxis(drawn, 2, 0)
    found = []
    for column, factor in (1, 1), (0, pictures.scale):
        pitch, last = pictures.table[row, 3] * factor, patch * factor - 1
        flip_down, flip_right, swap = turn & 1, turn >> 1 & 1, turn >> 2
        down, right = pitch * (1 - 2 * flip_down), 1 - 2 * flip_right
        corner = pictures.table[row, column] + y * factor * pitch + x * factor
        corner = corner + last * (flip_down * pitch + flip_right)
        found.append(np.stack([corner, np.where(swap, right, down), np.where(swap, down, right)], 1))
    return np.stack(found, 1)


def cut(pixels: Tensor, corner: Tensor, down: Tensor, right: Tensor, side: int) -> Tensor:
    """Patches as the network takes them: float32 [B, 3, side, side] in 0..1, channels_last.

    pixels: [P, 3], uint8 or int16 as in Pictures. corner, down, right: int64 [B], where in `pixels` the first pixel
    of each patch lies, and how far it is from a pixel to the one below and to the one on its right.
    """
    return _to_unit(_gather(pixels, corner, down, right, side))


def _gather(pixels: Tensor, corner: Tensor, down: Tensor, right: Tensor, side: int) -> Tensor:
    """[B, side, side, 3], as they are stored."""
    steps = torch.arange(side, device=pixels.device)
    index = corner[:, None, None] + down[:, None, None] * steps[:, None] + right[:, None, None] * steps
    return pixels.index_select(0, index.view(-1)).view(-1, side, side, 3)


def _to_unit(pixels: Tensor) -> Tensor:
    """Float32 [B, 3, h, w] in 0..1 from [B, h, w, 3] as stored; int16 holds the bits of unsigned levels."""
    if pixels.dtype == torch.int16:
        values = pixels.int().bitwise_and_(0xFFFF).float().div_(65535)
    else:
        values = pixels.float().div_(255)
    return values.permute(0, 3, 1, 2)


class Feed:
    """Batches for the training step, from buffers of fixed addresses, so that a CUDA graph may hold them.

    steps: the most that are loaded at once. share: (rank, world): of each batch of `batch` patches only the rank's
    part; ValueError if `batch` cannot be divided so. Pictures that fit lie on the device and only places are uploaded
    for each step; else patches are gathered on the host and uploaded.
    """

    def __init__(
        self,
        pictures: Pictures,
        patch: int,
        batch: int,
        seed: int,
        device: torch.device | str,
        steps: int,
        share: tuple[int, int] = (0, 1),
    ):
        rank, world = share
        if batch % world:
            raise ValueError(f"a batch of {batch} cannot be shared by {world} processes")
        self.steps, self._device = steps, torch.device(device)
        self._sampler = Sampler(pictures.table, patch, batch, seed)
        size = batch // world
        self._mine = slice(rank * size, (rank + 1) * size)
        self._sides = patch, patch * pictures.scale
        self._resident = _fits(pictures.nbytes, self._device)
        self._pictures = pictures.to(self._device) if self._resident else pictures
        if self._resident:
            self._loaded = [torch.zeros(steps, 2, 3, size, dtype=torch.int64, device=self._device)]
        else:
            shapes = [(steps, size, side, side, 3) for side in self._sides]
            self._loaded = [torch.zeros(shape, dtype=pictures.hr.dtype, device=self._device) for shape in shapes]
        self._prepared: tuple[int, int, list[Tensor]] | None = None

    def prepare(self, first: int, count: int) -> None:
        """Does what of `load` can be done while the device still works through the steps loaded before."""
        if self._prepared is None or self._prepared[:2] != (first, count):
            self._prepared = (first, count, self._draw(first, count))

    def load(self, first: int, count: int) -> None:
        """Makes steps first, first + 1, ..., first + count - 1 what `batch` gives; waits for nothing on the device.

        The upload goes to the current stream, where `batch` must follow it. Raises ValueError if count > steps.
        """
        if count > self.steps:
            raise ValueError(f"{count} steps asked for, {self.steps} at most")
        self.prepare(first, count)
        assert self._prepared is not None
        for buffer, values in zip(self._loaded, self._prepared[2], strict=True):
            buffer[:count].copy_(values, non_blocking=True)
        self._prepared = None

    def batch(self, i: Tensor) -> tuple[Tensor, Tensor]:
        """(LR [b, 3, p, p], HR [b, 3, s·p, s·p]) float32 in 0..1, channels_last, of the i-th of the steps loaded.

        i: int64 [1] or [] on the device. Works on the device alone, so that it can be recorded in a CUDA graph.
        """
        values = [buffer.index_select(0, i.view(1))[0] for buffer in self._loaded]
        if not self._resident:
            return _to_unit(values[0]), _to_unit(values[1])
        low, high = values[0]
        small, large = self._sides
        return cut(self._pictures.lr, *low, side=small), cut(self._pictures.hr, *high, side=large)

    def _draw(self, first: int, count: int) -> list[Tensor]:
        """What is uploaded. Page-locked memory comes from torch's pool, which keeps it until the upload is over."""
        drawn = self._sampler.draw(first, count)[:, self._mine]
        places = torch.from_numpy(locate(self._pictures, drawn, self._sides[0]))
        pin = self._device.type == "cuda"
        if self._resident:
            return [places.pin_memory() if pin else places]
        gathered = [torch.empty((count, *b.shape[1:]), dtype=b.dtype, pin_memory=pin) for b in self._loaded]
        for step in range(count):
            for k, pixels in enumerate((self._pictures.lr, self._pictures.hr)):
                gathered[k][step] = _gather(pixels, *places[step, k], side=self._sides[k])
        return gathered


def _fits(size: int, device: torch.device) -> bool:
    """Whether pictures of so many bytes go onto the device: into less than half of what a GPU has free."""
    return device.type != "cuda" or size < torch.cuda.mem_get_info(device)[0] // 2
