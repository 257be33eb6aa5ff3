"""A sheet of training patches to look at before a run: what `--degrade` makes of them, beside what is to come out."""

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from edsr.data import PairedImages, PatchLoader
from edsr.devices import ProcessGroup
from edsr.errors import TrainError
from edsr.system import rename_into_place, temporary

from . import setup
from .config import TrainConfig, check

PATCHES, COLUMNS = 20, 4
GAP, LINE, LINES = 8, 13, 3  # pixels between pairs; height of a line of text below a pair, and how many there may be
LETTERS = 6  # pixels that a letter takes across
NARROWEST = 240  # what a pair has across, so that its text fits


def write_preview(options: TrainConfig, folder: str, say: Callable[[str], None] = lambda line: None) -> None:
    """Writes `folder`/degrade.png, in place of one that is there: `sheet` of the run that `options` would begin.
    Nothing is trained, and `options.out` not looked at. Raises DataError, BackendError, TrainError or WeightsError."""
    ranks = ProcessGroup(options.device)
    say = say if ranks.is_main else lambda line: None
    try:
        check(replace(options, out=folder, resume=False), ranks.world_size, False, "--preview")
        images, _ = setup.images(options, ranks, say)
        if ranks.is_main:
            path = Path(folder) / "degrade.png"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                part = temporary(path)
                sheet(images, options).save(part, "PNG")
                rename_into_place(part, path, overwrite=True)
            except OSError as error:
                why = f"cannot be written ({error.strerror})"
                raise TrainError(f"{path}: {why}; choose another folder with --preview") from None
            say(f"{path} shows {PATCHES} patches of {options.degradation or 'images as they are'}")
    finally:
        ranks.leave()


def sheet(images: PairedImages, options: TrainConfig) -> Image.Image:
    """The run's first PATCHES patches, in the order of its steps: LR | HR, LR enlarged by repeating its pixels, and
    below what was done to it."""
    side = options.patch * options.scale
    across, down = max(2 * side, NARROWEST) + GAP, side + LINE * LINES + GAP
    image = Image.new("RGB", (COLUMNS * across + GAP, -(-PATCHES // COLUMNS) * down + GAP), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(LINE - 3)
    for k, (low, high, told) in zip(range(PATCHES), _patches(images, options), strict=False):
        x, y = GAP + k % COLUMNS * across, GAP + k // COLUMNS * down
        image.paste(Image.fromarray(low).resize((side, side), Image.Resampling.NEAREST), (x, y))
        image.paste(Image.fromarray(high), (x + side, y))
        lines = textwrap.wrap(told, (across - GAP) // LETTERS)[:LINES]
        draw.multiline_text((x, y + side), "\n".join(lines), "black", font, spacing=1)
    return image


def _patches(images: PairedImages, options: TrainConfig) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    """(LR [p, p, 3], HR [s·p, s·p, 3], what was done), uint8, from step 0 on, without an end."""
    degradation = options.degradation
    feed = PatchLoader(images, options.patch, options.batch, options.seed, "cpu", 1, degradation=degradation)
    try:
        step = 0
        while True:
            feed.load(step, 1)
            low, high = (_eight_bits(values) for values in feed.batch(torch.tensor(0)))
            for index in range(options.batch):
                plan = degradation.draw(options.seed, step, index) if degradation else None
                yield low[index], high[index], "clean" if plan is None else str(plan)
            step += 1
    finally:
        feed.close()


def _eight_bits(values: torch.Tensor) -> np.ndarray:
    return values.permute(0, 2, 3, 1).mul(255).round().byte().contiguous().numpy()
