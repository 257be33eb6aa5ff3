"""The training recipe: loss, learning rate, averaging of weights, and when a run is said to diverge.

The figures behind the choices are in docs/training.md.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MILESTONES = (0.5, 0.7, 0.8, 0.9, 0.95)  # fractions of the run after which "step" halves the learning rate
WARM_UP = 500  # steps; no more than 2 % of a run whose length is known
EMA_STEPS = 1000  # steps that averaged weights remember; no more than a twentieth of a run whose length is known
# Loss of a network that has learned nothing, its root for l2: it gives about gray, and no image is further from that.
# Not a run's own first losses: they are of few patches, of a network that may know all, and soon of one that diverges.
UNTRAINED = 0.5
LEVEL = 1 / 255  # below one level of 8 bits a loss is as good as none: flat patches would make means of little
CHARBONNIER = 1e-3  # where its square turns into a line, in 0..1 units (Lai et al. 2017, section 3.3)


def loss(kind: str, output: Tensor, target: Tensor) -> Tensor:
    """Mean over all values of |d| ("l1"), d² ("l2") or sqrt(d² + CHARBONNIER²), where d = output - target."""
    if kind == "l1":
        return F.l1_loss(output, target)
    if kind == "l2":
        return F.mse_loss(output, target)
    return torch.sqrt((output - target) ** 2 + CHARBONNIER**2).mean()


def learning_rate(step: int, steps: int, peak: float, schedule: str = "cosine") -> float:
    """The learning rate of a step, numbered from 0.

    It rises linearly to `peak`. Then it falls to 0 along half a cosine ("cosine"), is halved at each of MILESTONES
    ("step"), or stays: "wsd" (warm-up, stable, decay: Hu et al. 2024, section 4) is for runs of unknown length, from
    any step of which `linear_decay` makes the end of a run; `steps` means nothing there.
    """
    warm = WARM_UP if schedule == "wsd" else max(1, min(WARM_UP, steps // 50))
    if step < warm:
        return peak * (step + 1) / warm
    if schedule == "wsd":
        return peak
    if schedule == "step":
        return peak * 0.5 ** sum(step >= fraction * steps for fraction in MILESTONES)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def linear_decay(step: int, first: int, steps: int, rate: float) -> float:
    """Falls linearly from `rate` at step `first` to what would be 0 at step `steps`."""
    return rate * (steps - step) / (steps - first)


def ema_decay(steps: int, schedule: str = "cosine") -> float:
    """Share of the averaged weights that stays in each step.

    They remember EMA_STEPS steps, or a twentieth of a run of fewer than 20,000.
    """
    return 1 - 1 / (EMA_STEPS if schedule == "wsd" else max(1, min(EMA_STEPS, steps // 20)))


class DivergenceMonitor:
    """Detects a loss that is not finite, or whose mean over some 20 steps is 3 times the lowest mean before.

    The lowest is UNTRAINED to begin with, then the smallest mean over some 200 steps, fewer at the beginning, where it
    is taken for more than it is, as one of few patches says little. All is judged in values of pixels, for "l2" by its
    root. Means are of logarithms: one step's spike counts for little, however high.

    `state` is its whole state; losses may come in chunks of any size.

    Args:
        kind: One of LOSSES.
    """

    LAST, FAST, SLOW, JUMP = 5, 20, 200, 3.0

    def __init__(self, kind: str = "l1") -> None:
        self._power = 0.5 if kind == "l2" else 1.0
        self._last = self._fast = self._slow = 0.0
        self._lowest = math.log(UNTRAINED)
        self._count = 0

    def __call__(self, losses: list[float]) -> tuple[int, str] | None:
        """Takes the losses of the next steps; gives the index of the first that has diverged, and why."""
        for i, value in enumerate(losses):
            if not math.isfinite(value):
                return i, f"the loss became {value}"
            self._update(self._level(value))
            if self._count >= self.FAST and self._is_high(self._fast):
                return i, self._describe(self._fast)
        return None

    @property
    def suspicion(self) -> str | None:
        """Why the present state should neither be saved nor end a run: the mean over some 5 steps is too high."""
        return self._describe(self._last) if self._is_high(self._last) else None

    def state(self) -> list[float]:
        """All that `restore` needs."""
        return [self._fast, self._slow, self._count, self._last, self._lowest]

    def restore(self, state: list[float]) -> None:
        """Takes what `state` gave, or the three numbers of earlier versions, means of the losses themselves."""
        self._count = int(state[2])
        if len(state) > 3:
            self._fast, self._slow, _, self._last, self._lowest = state
            return
        self._fast, self._slow = self._level(state[0]), self._level(state[1])
        self._last, self._lowest = self._fast, math.log(UNTRAINED)
        self._lower()

    def _update(self, level: float) -> None:
        self._count += 1
        self._last += (level - self._last) / min(self._count, self.LAST)
        self._fast += (level - self._fast) / min(self._count, self.FAST)
        self._slow += (level - self._slow) / min(self._count, self.SLOW)
        self._lower()

    def _lower(self) -> None:
        if self._count >= self.FAST:
            self._lowest = min(self._lowest, self._slow + math.log1p(self.FAST / min(self._count, self.SLOW)))

    def _level(self, loss: float) -> float:
        return math.log(max(abs(loss) ** self._power, LEVEL))

    def _is_high(self, mean: float) -> bool:
        return mean > self._lowest + math.log(self.JUMP)

    def _describe(self, mean: float) -> str:
        lowest, now = (math.exp(level / self._power) for level in (self._lowest, mean))
        return f"the loss jumped from about {lowest:.4g} to {now:.4g}"
