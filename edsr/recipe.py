"""What a run is made of: loss, learning rate, averaging of weights, and when to call a run astray.

The figures behind the choices are in docs/training-log.md.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOSSES = ("l1", "l2", "charbonnier")
SCHEDULES = ("cosine", "step", "wsd")
MILESTONES = (0.5, 0.7, 0.8, 0.9, 0.95)  # fractions of the run after which "step" halves the learning rate
WARM_UP = 500  # steps; no more than 2 % of a run whose length is known
MEMORY = 1000  # steps that averaged weights remember; no more than a twentieth of a run whose length is known
CLIP = 0.5  # largest norm of a gradient: some ten times a trained network's usual one, so that only outliers are cut
CHARBONNIER = 1e-3  # where its square turns into a line, in 0..1 units (Lai et al. 2017, section 3.3)


def loss(kind: str, y: Tensor, truth: Tensor) -> Tensor:
    """Mean over all values of |d| ("l1"), d² ("l2") or sqrt(d² + CHARBONNIER²), d = y - truth. Any equal shapes."""
    if kind == "l1":
        return F.l1_loss(y, truth)
    if kind == "l2":
        return F.mse_loss(y, truth)
    return torch.sqrt((y - truth) ** 2 + CHARBONNIER**2).mean()


def learning_rate(step: int, steps: int, peak: float, schedule: str = "cosine") -> float:
    """Rises in a line to `peak`, then falls to 0 along half a cosine, is halved at every one of MILESTONES, or stays.

    The last is "wsd" (warm-up, stable, decay: Hu et al. 2024, section 4), for which `steps` means nothing: a run of
    unknown length, from any step of which `decayed` makes the end of a run.
    """
    warm = WARM_UP if schedule == "wsd" else max(1, min(WARM_UP, steps // 50))
    if step < warm:
        return peak * (step + 1) / warm
    if schedule == "wsd":
        return peak
    if schedule == "step":
        return peak * 0.5 ** sum(step >= fraction * steps for fraction in MILESTONES)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def decayed(step: int, first: int, steps: int, rate: float) -> float:
    """Falls in a line from `rate` at step `first` to what would be 0 at step `steps`."""
    return rate * (steps - step) / (steps - first)


def ema_decay(steps: int, schedule: str = "cosine") -> float:
    """Of the averaged weights, which remember MEMORY steps, or a twentieth of a run of fewer than 20,000."""
    return 1 - 1 / (MEMORY if schedule == "wsd" else max(1, min(MEMORY, steps // 20)))


class Watch:
    """Sees a loss that is not finite, or whose mean over some 20 steps is 3 times that over some 200.

    Its three numbers are its whole state; `losses` may come in portions of any size.
    """

    FAST, SLOW, JUMP = 20, 200, 3.0

    def __init__(self) -> None:
        self.fast = self.slow = 0.0
        self.count = 0

    def __call__(self, losses: list[float]) -> tuple[int, str] | None:
        """Takes the losses of the next steps; the first that is wrong, by its place in the list, and why."""
        for i, value in enumerate(losses):
            if not math.isfinite(value):
                return i, f"the loss became {value}"
            self.count += 1
            self.fast += (value - self.fast) / min(self.count, self.FAST)
            self.slow += (value - self.slow) / min(self.count, self.SLOW)
            if self.count > self.SLOW and self.fast > self.JUMP * self.slow:
                return i, f"the loss jumped from about {self.slow:.4g} to {self.fast:.4g}"
        return None

    def state(self) -> list[float]:
        return [self.fast, self.slow, self.count]

    def restore(self, state: list[float]) -> None:
        self.fast, self.slow, self.count = state[0], state[1], int(state[2])
