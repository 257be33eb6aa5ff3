"""What a run reports after each chunk of steps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Args:
        step: Steps done.
        steps: Steps in all.
        folder: The run's.
        loss: Its mean over the steps just taken; after a rollback, the loss that was the reason.
        lr: Learning rate of the last of them.
        speed: Patches a second, over all processes; 0 after a rollback.
        psnr: In dB on luma over the validation images, where it was just measured.
        psnr_degraded: The same over degraded images, of a run that trains on such.
        psnr_sets: Of each set of validation images by its name, if there are several; psnr is their mean.
        rolled_back: Whether the run has just gone back to a checkpoint, at `step`.
        mean_loss: Over the steps since the last line of metrics.jsonl, that line's own steps where `logged`.
        logged: Whether a line has just been written there, with `mean_loss`.
    """

    step: int
    steps: int
    folder: Path
    loss: float
    lr: float
    speed: float
    psnr: float | None = None
    psnr_degraded: float | None = None
    psnr_sets: Mapping[str, float] = field(default_factory=dict)
    rolled_back: bool = False
    mean_loss: float = math.nan
    logged: bool = False

    @property
    def validated(self) -> str:
        """What was just measured, for a person; "" where nothing was."""
        more = "" if self.psnr_degraded is None else f", degraded {self.psnr_degraded:.3f} dB"
        sets = ", ".join(f"{name} {psnr:.3f}" for name, psnr in self.psnr_sets.items())
        return "" if self.psnr is None else f"{self.psnr:.3f} dB{more}{f' ({sets})' if sets else ''}"

    @property
    def finished(self) -> bool:
        """Whether the run is at its end."""
        return self.step == self.steps
