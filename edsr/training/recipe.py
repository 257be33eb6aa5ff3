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
GRAD_CLIP_NORM = (
    0.5  # largest norm of a gradient: some ten times a trained network's usual one, so that only outliers are cut
)
# Loss of a network that has learnt nothing, its root for l2: it gives about gray, and no image is further from that.
# Not a run's own first losses: they are of few patches, of a network that may know all, and soon of one that diverges.
UNTRAINED = 0.5
LEVEL = 1 / 255  # below one level of 8 bits a loss is as good as none: flat patches would make means of little
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


class DivergenceMonitor:
    """Sees a loss that is not finite, or whose mean over some 20 steps is 3 times the least that it had been before.

    That least is UNTRAINED to begin with, then the smallest mean over some 200 steps, fewer at the beginning, where it
    is taken for more than it is, as one of few patches says little. kind: one of LOSSES. All is judged in values of
    pixels, for "l2" by its root. Means are of logarithms: one step's spike counts for little, however high.

    Its numbers are its whole state; `losses` may come in portions of any size.
    """

    LAST, FAST, SLOW, JUMP = 5, 20, 200, 3.0

    def __init__(self, kind: str = "l1") -> None:
        self._power = 0.5 if kind == "l2" else 1.0
        self._last = self._fast = self._slow = 0.0
        self._least = math.log(UNTRAINED)
        self._count = 0

    def __call__(self, losses: list[float]) -> tuple[int, str] | None:
        """Takes the losses of the next steps; the first that is wrong, by its place in the list, and why."""
        for i, value in enumerate(losses):
            if not math.isfinite(value):
                return i, f"the loss became {value}"
            self._take(self._level(value))
            if self._count >= self.FAST and self._high(self._fast):
                return i, self._told(self._fast)
        return None

    @property
    def doubt(self) -> str | None:
        """Why what there is now should be neither saved nor called the end of a run: the mean over some 5 steps."""
        return self._told(self._last) if self._high(self._last) else None

    def state(self) -> list[float]:
        return [self._fast, self._slow, self._count, self._last, self._least]

    def restore(self, state: list[float]) -> None:
        """Takes what `state` gave, or the three numbers of earlier versions: means of the losses themselves."""
        self._count = int(state[2])
        if len(state) > 3:
            self._fast, self._slow, _, self._last, self._least = state
            return
        self._fast, self._slow = self._level(state[0]), self._level(state[1])
        self._last, self._least = self._fast, math.log(UNTRAINED)
        self._learn()

    def _take(self, level: float) -> None:
        self._count += 1
        self._last += (level - self._last) / min(self._count, self.LAST)
        self._fast += (level - self._fast) / min(self._count, self.FAST)
        self._slow += (level - self._slow) / min(self._count, self.SLOW)
        self._learn()

    def _learn(self) -> None:
        if self._count >= self.FAST:
            self._least = min(self._least, self._slow + math.log1p(self.FAST / min(self._count, self.SLOW)))

    def _level(self, loss: float) -> float:
        return math.log(max(abs(loss) ** self._power, LEVEL))

    def _high(self, mean: float) -> bool:
        return mean > self._least + math.log(self.JUMP)

    def _told(self, mean: float) -> str:
        least, now = (math.exp(level / self._power) for level in (self._least, mean))
        return f"the loss jumped from about {least:.4g} to {now:.4g}"
