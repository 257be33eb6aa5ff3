"""A loop of training as short as it can be, which never takes a run for diverged: for what is meant to go wrong.

`edsr.training` refuses to go on with a network that is far off, as one whose mean is in another range of values is.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from edsr.data import PatchLoader, load_dataset
from edsr.models import Network, build_network

from .budgets import CROP, Budget, Run


def train_plainly(run: Run, files: list[Path], budget: Budget, cache: Path, done: Callable[[int], bool]) -> Network:
    """Trains by Adam and a cosine from random weights on a CPU; ends early where `done`, told of each step, is true."""
    images, _ = load_dataset(tuple(map(str, files)), run.scales[0], budget.patch, crop=CROP, cache=str(cache))
    torch.manual_seed(run.seed)
    model = build_network(run.network)
    loader = PatchLoader(images, budget.patch, budget.batch, run.seed, "cpu", 1)
    optimizer = torch.optim.Adam(model.parameters(), run.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, run.steps)
    try:
        for step in range(run.steps):
            loader.load(step, 1)
            low, high = loader.batch(torch.zeros(1, dtype=torch.int64))
            optimizer.zero_grad()
            F.l1_loss(model(low), high).backward()
            optimizer.step()
            schedule.step()
            if done(step + 1):
                break
    finally:
        loader.close()
    return model
