"""A sheet of training patches to look at before a run: LR patches as `--degrade` makes them, beside their targets."""

import logging
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from edsr.data import PairedImages, PatchLoader
from edsr.devices import ProcessGroup
from edsr.errors import TrainError
from edsr.images import to_depth
from edsr.system import atomic_file, why_unwritable, why_unwritable_file
from edsr.wording import either

from . import setup
from .config import TrainConfig
from .consistency import check

logger = logging.getLogger(__name__)

PATCHES, COLUMNS = 20, 4
GAP, LINE_HEIGHT, LINES = 8, 13, 3  # pixels between pairs; of a line of text below a pair; lines there at most
LETTER_WIDTH = 6  # pixels
MIN_WIDTH = 240  # pixels of a pair, so that its text fits


def write_preview(config: TrainConfig, folder: str) -> None:
    """Writes `folder`/degrade.png, in place of one that is there: patches of the run that `config` would begin.

    Nothing is trained, and `config.out` is not looked at.

    Raises:
        DataError, BackendError, TrainError, WeightsError: The run could not be begun, or the file not written.
    """
    group = ProcessGroup(config.device)
    try:
        check(replace(config, out=folder, resume=False), group.world_size, False, either("folder", "--preview"))
        path = Path(folder) / "degrade.png"
        why = why_unwritable_file(path) if path.parent.is_dir() else why_unwritable(folder)
        if group.is_main and why:
            raise TrainError(f"{path}: {why}; choose another folder with {either('folder', '--preview')}")
        images, _ = setup.load_images(config, group)
        if group.is_main:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_file(path) as file:
                    render_sheet(images[0], config).save(file, "PNG")
            except OSError as error:
                why = f"cannot be written ({error.strerror})"
                raise TrainError(f"{path}: {why}; choose another folder with {either('folder', '--preview')}") from None
            logger.info(f"{path} shows {PATCHES} patches of {config.degradation or 'images as they are'}")
    finally:
        group.leave()


def render_sheet(images: PairedImages, config: TrainConfig) -> Image.Image:
    """Draws the run's first PATCHES patches, in the order of its steps: LR | HR, LR upscaled by repeating its pixels,
    and below it what was done to it."""
    side = config.patch * images.scale
    across, down = max(2 * side, MIN_WIDTH) + GAP, side + LINE_HEIGHT * LINES + GAP
    image = Image.new("RGB", (COLUMNS * across + GAP, -(-PATCHES // COLUMNS) * down + GAP), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(LINE_HEIGHT - 3)
    for k, (low, high, done) in zip(range(PATCHES), _patches(images, config), strict=False):
        x, y = GAP + k % COLUMNS * across, GAP + k // COLUMNS * down
        image.paste(Image.fromarray(low).resize((side, side), Image.Resampling.NEAREST), (x, y))
        image.paste(Image.fromarray(high), (x + side, y))
        lines = textwrap.wrap(done, (across - GAP) // LETTER_WIDTH)[:LINES]
        draw.multiline_text((x, y + side), "\n".join(lines), "black", font, spacing=1)
    return image


def _patches(images: PairedImages, config: TrainConfig) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    """(LR [p, p, 3], HR [s·p, s·p, 3], what was done), uint8, from step 0 on, without an end."""
    degradation = config.degradation
    more = {"degradation": degradation, "candidates": config.candidates}
    loader = PatchLoader(images, config.patch, config.batch, config.seed, "cpu", 1, **more)
    try:
        step = 0
        while True:
            loader.load(step, 1)
            batch = (values.permute(0, 2, 3, 1).contiguous().numpy() for values in loader.batch(torch.tensor(0)))
            low, high = (to_depth(values, np.uint8) for values in batch)
            for index in range(config.batch):
                plan = degradation.draw(config.seed, step, index) if degradation else None
                yield low[index], high[index], "clean" if plan is None else str(plan)
            step += 1
    finally:
        loader.close()
