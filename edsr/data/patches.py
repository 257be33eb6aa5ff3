"""Training patches: which ones belong to a step, and how they are cropped, a whole batch in one gather on the device.

LR patches that are degraded are cropped and degraded on the host instead, by threads, ahead of the steps.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from edsr.resources import available_cores

from .degradation import Degradation, crop_padded
from .detail import DetailMap
from .recoloring import draw_recolorings, orders_on, recolor
from .store import HEIGHT, HR_START, LR_START, WIDTH, PairedImages

THREADS = 8  # that degrade patches, at most: much of the work holds Python's lock


class PatchSampler:
    """Draws the patches of each step from (seed, step) alone, so that a resumed run needs no state.

    Every position in every image is as likely as any other, so images are drawn in proportion to how many they have;
    each of the eight flips and rotations is as likely as any other. With `candidates`, so many are drawn for each
    patch, and the one with the most detail is taken.

    Args:
        index: `PairedImages.index`.
        patch: LR pixels a side.
        batch: Patches a step.
        seed: Any whole number.
        candidates: Positions that are drawn for a patch.
        detail: Of the images of `index`; not needed where there is no choice.

    Raises:
        ValueError: No image is as large as a patch.
    """

    def __init__(
        self, index: np.ndarray, patch: int, batch: int, seed: int, candidates: int = 1, detail: DetailMap | None = None
    ):
        self.batch, self._seed = batch, seed % 2**64
        self._patch, self._candidates, self._detail = patch, candidates, detail
        down, self._across = (np.maximum(index[:, column] - patch + 1, 0) for column in (HEIGHT, WIDTH))
        self._ends = np.cumsum(down * self._across)
        if len(index) == 0 or self._ends[-1] == 0:
            raise ValueError(f"no image has {patch} LR pixels a side")

    def draw(self, first: int, count: int) -> np.ndarray:
        """int64 [count, batch, 4] for steps first, first + 1, ...: row of index, LR row, LR column, dihedral 0..7."""
        # A counter-based generator: the words of any step are had without those before. It gives four words a count.
        wanted = self.batch * self._candidates
        counts = -(-wanted // 4)
        words = np.random.Philox(key=self._seed, counter=first * counts).random_raw(count * counts * 4)
        words = words.reshape(count, counts * 4)[:, :wanted]
        # The remainder favors some places, by less than 2^-64 times their number.
        place, dihedral = np.divmod((words % np.uint64(8 * self._ends[-1])).astype(np.int64), 8)
        row = np.searchsorted(self._ends, place, side="right")
        y, x = np.divmod(place - np.concatenate(([0], self._ends))[row], self._across[row])
        drawn = np.stack([row, y, x, dihedral], 2)
        if self._detail is None or self._candidates == 1:
            return drawn
        shape = (count, self.batch, self._candidates)
        best = self._detail.mean_over(row, y, x, self._patch).reshape(shape).argmax(2)
        return np.take_along_axis(drawn.reshape(*shape, 4), best[:, :, None, None], 2)[:, :, 0]


def patch_offsets(images: PairedImages, drawn: np.ndarray, patch: int) -> np.ndarray:
    """Where patches lie in the flat buffers.

    Args:
        images: The images that the patches were drawn from.
        drawn: int64 [count, batch, 4], as `PatchSampler.draw` gives it. Of dihedral, 1 flips rows, 2 flips columns,
            4 then swaps them; these are added up.
        patch: LR pixels a side.

    Returns:
        int64 [count, 2, 3, batch]: for LR and for HR corner, down and right, as `gather_patches` takes them.
    """
    row, y, x, dihedral = np.moveaxis(drawn, 2, 0)
    offsets = []
    for column, factor in (LR_START, 1), (HR_START, images.scale):
        pitch, last = images.index[row, WIDTH] * factor, patch * factor - 1
        flip_down, flip_right, swap = dihedral & 1, dihedral >> 1 & 1, dihedral >> 2
        down, right = pitch * (1 - 2 * flip_down), 1 - 2 * flip_right
        corner = images.index[row, column] + y * factor * pitch + x * factor
        corner = corner + last * (flip_down * pitch + flip_right)
        offsets.append(np.stack([corner, np.where(swap, right, down), np.where(swap, down, right)], 1))
    return np.stack(offsets, 1)


def gather_patches(pixels: Tensor, corner: Tensor, down: Tensor, right: Tensor, side: int) -> Tensor:
    """Crops patches as the network takes them.

    Args:
        pixels: [P, 3], uint8 or int16, as in PairedImages.
        corner: int64 [B]: where in `pixels` the first pixel of each patch lies.
        down: int64 [B]: how far it is from a pixel to the one below.
        right: int64 [B]: how far it is from a pixel to the one on its right.
        side: Pixels a side of a patch.

    Returns:
        float32 [B, 3, side, side] in 0..1, channels_last.
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


class PatchDegrader:
    """Degrades the LR patches of coming steps in threads, one step a task.

    Args:
        images: Images with LR pixels on the host.
        patch: LR pixels a side.
        seed: Of what is drawn, with step and index.
        degradation: What is drawn from.
        first: Index in the whole batch of the first patch of a step.
        ahead: How many steps may be under way at once.
    """

    def __init__(self, images: PairedImages, patch: int, seed: int, degradation: Degradation, first: int, ahead: int):
        pixels = images.lr.numpy()
        self._pixels = pixels.view(np.uint16) if pixels.dtype == np.int16 else pixels
        self._index, self._patch, self._seed, self._degradation = images.index, patch, seed, degradation
        self._first, self._ahead = first, ahead
        self._pool = ThreadPoolExecutor(min(THREADS, available_cores()), "degrade")
        self.pending: dict[int, Future[np.ndarray]] = {}

    def submit(self, first: int, drawn: np.ndarray) -> None:
        """Starts steps first, first + 1, ... from patches drawn, but for those under way; drops steps out of reach."""
        for step in [step for step in self.pending if not first <= step < first + self._ahead]:
            self.pending.pop(step).cancel()
        for step, places in enumerate(drawn, first):
            if step not in self.pending:
                self.pending[step] = self._pool.submit(self._degrade_batch, step, places)

    def take(self, first: int, count: int) -> np.ndarray:
        """[count, b, p, p, 3] of steps submitted, in PairedImages' dtype; waits for those not yet done."""
        made = np.stack([self.pending.pop(step).result() for step in range(first, first + count)])
        return made.view(np.int16) if made.dtype == np.uint16 else made

    def close(self) -> None:
        """Cancels what is pending."""
        self._pool.shutdown(cancel_futures=True)

    def _degrade_batch(self, step: int, places: np.ndarray) -> np.ndarray:
        return np.stack([self._degrade_patch(step, k, *place) for k, place in enumerate(places.tolist(), self._first)])

    def _degrade_patch(self, step: int, index: int, row: int, y: int, x: int, dihedral: int) -> np.ndarray:
        _, start, height, width, _ = self._index[row].tolist()
        image = self._pixels[start : start + height * width].reshape(height, width, 3)
        params = self._degradation.draw(self._seed, step, index)
        crop = crop_padded(image, y, x, self._patch, dihedral, params)
        return crop if params is None else params.apply(crop, self._patch, self._patch)


class PatchLoader:
    """Batches for the training step, from buffers of fixed addresses, so that a CUDA graph may hold them.

    Args:
        images: The images to crop patches from.
        patch: LR pixels a side.
        batch: Patches a step, of all processes together.
        seed: Of what is drawn.
        device: Where batches are wanted.
        steps: The most steps that are loaded at once.
        share: (rank, world): only this rank's part of each batch is loaded.
        degradation: What is done to LR patches, which are then always uploaded; HR patches stay as they are.
        resident: Whether images lie on the device, and only offsets are uploaded for each step; if not, patches are
            gathered on the host and uploaded. By default they do if they take less than half of its free memory.
        candidates: See `PatchSampler`.
        recolored: Whether patches get other colors; see `edsr.data.recoloring`. Not with a degradation, which treats
            colors differently.

    Raises:
        ValueError: `batch` cannot be divided by world, no image is as large as a patch, or patches are both degraded
            and recolored.
    """

    def __init__(
        self,
        images: PairedImages,
        patch: int,
        batch: int,
        seed: int,
        device: torch.device | str,
        steps: int,
        share: tuple[int, int] = (0, 1),
        degradation: Degradation | None = None,
        resident: bool | None = None,
        candidates: int = 1,
        recolored: bool = False,
    ):
        rank, world = share
        if batch % world:
            raise ValueError(f"a batch of {batch} cannot be shared by {world} processes")
        if recolored and degradation is not None:
            raise ValueError("patches are degraded or recolored, not both")
        self.steps, self.scale, self._device = steps, images.scale, torch.device(device)
        detail = DetailMap(images) if candidates > 1 else None
        self._sampler = PatchSampler(images.index, patch, batch, seed, candidates, detail)
        self._whole_batch, size = batch, batch // world
        self._share = slice(rank * size, (rank + 1) * size)
        self._sizes = patch, patch * images.scale
        self._degrader = None
        if degradation is not None:
            self._degrader = PatchDegrader(images, patch, seed, degradation, self._share.start, 2 * steps)
        self._resident = _fits_on_device(images.nbytes, self._device) if resident is None else resident
        if self._resident and degradation is None:
            images = images.to(self._device)
        elif self._resident:  # LR pixels stay where they are degraded
            images = replace(images, hr=images.hr.to(self._device))
        self._images = images
        uploaded = self._sizes if not self._resident else self._sizes[:1] if degradation is not None else ()
        kinds = [((size, side, side, 3), images.hr.dtype) for side in uploaded]
        kinds += [((2, 3, size), torch.int64)] if self._resident else []
        self._recolorings = seed % 2**64 if recolored else None
        self._orders = orders_on(self._device) if recolored else None
        kinds += [((size,), torch.int64)] if recolored else []
        self.buffers = [torch.zeros(steps, *shape, dtype=dtype, device=self._device) for shape, dtype in kinds]
        self._prepared: tuple[int, int, list[Tensor]] | None = None

    def prepare(self, first: int, count: int) -> None:
        """Does the part of `load` that can be done while the device still works through the steps loaded before."""
        if self._prepared is None or self._prepared[:2] != (first, count):
            drawn = self._sampler.draw(first, count)[:, self._share]
            if self._degrader is not None:
                self._degrader.submit(first, drawn)
            uploads = self._uploads(drawn)
            if self._recolorings is not None:
                drawn = draw_recolorings(self._recolorings, first, count, self._whole_batch)[:, self._share]
                uploads.append(self._pinned(torch.from_numpy(np.ascontiguousarray(drawn))))
            self._prepared = (first, count, uploads)

    def load(self, first: int, count: int) -> None:
        """Loads steps first, first + 1, ..., first + count - 1 for `batch`; waits for nothing on the device.

        The upload goes to the current stream, where `batch` must follow it. Raises ValueError if count > steps.
        """
        if count > self.steps:
            raise ValueError(f"{count} steps asked for, {self.steps} at most")
        self.prepare(first, count)
        assert self._prepared is not None
        uploads = self._prepared[2]
        if self._degrader is not None:
            uploads = [self._pinned(torch.from_numpy(self._degrader.take(first, count))), *uploads]
        for buffer, values in zip(self.buffers, uploads, strict=True):
            buffer[:count].copy_(values, non_blocking=True)
        self._prepared = None

    def batch(self, i: Tensor) -> tuple[Tensor, Tensor]:
        """(LR [b, 3, p, p], HR [b, 3, s·p, s·p]) float32 in 0..1, channels_last, of the i-th of the steps loaded.

        i: int64 [1] or [] on the device. Works on the device alone, so that it can be recorded in a CUDA graph.
        """
        values = [buffer.index_select(0, i.view(1))[0] for buffer in self.buffers]
        if self._orders is not None:
            *values, recolorings = values
            lr, hr = self._crops(values)
            return recolor(lr, recolorings, self._orders), recolor(hr, recolorings, self._orders)
        return self._crops(values)

    def _crops(self, values: list[Tensor]) -> tuple[Tensor, Tensor]:
        """(LR, HR) of one step, from its part of the buffers."""
        if not self._resident:
            return _to_unit(values[0]), _to_unit(values[1])
        lr_offsets, hr_offsets = values[-1]
        lr_side, hr_side = self._sizes
        hr = gather_patches(self._images.hr, *hr_offsets, side=hr_side)
        if self._degrader is not None:
            return _to_unit(values[0]), hr
        return gather_patches(self._images.lr, *lr_offsets, side=lr_side), hr

    def close(self) -> None:
        """Stops degrading patches; nothing can be loaded after that."""
        if self._degrader is not None:
            self._degrader.close()

    def _uploads(self, drawn: np.ndarray) -> list[Tensor]:
        """What is uploaded for these patches, except degraded ones."""
        places = torch.from_numpy(patch_offsets(self._images, drawn, self._sizes[0]))
        if self._resident:
            return [self._pinned(places)]
        pin, gathered = self._device.type == "cuda", []
        pixels = [(self._images.lr, 0), (self._images.hr, 1)][self._degrader is not None :]
        for flat, k in pixels:
            shape = (*drawn.shape[:2], self._sizes[k], self._sizes[k], 3)
            gathered.append(torch.empty(shape, dtype=flat.dtype, pin_memory=pin))
            for step in range(len(drawn)):
                gathered[-1][step] = _gather(flat, *places[step, k], side=self._sizes[k])
        return gathered

    def _pinned(self, values: Tensor) -> Tensor:
        """Page-locked memory comes from torch's pool, which keeps it until the upload is over."""
        return values.pin_memory() if self._device.type == "cuda" else values


def _fits_on_device(size: int, device: torch.device) -> bool:
    """Whether so many bytes are less than half of what a GPU has free; on the CPU they always fit."""
    return device.type != "cuda" or size < torch.cuda.mem_get_info(device)[0] // 2
