"""SRGAN's discriminator (Ledig et al., CVPR 2017, figure 4), for training alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2  # of leaky ReLUs
POOLED = 6  # side of the last maps in the paper, whose patches have 96 pixels a side
WIDTHS = (1, 1, 2, 2, 4, 4, 8, 8)  # of the eight convolutions, times `features`; every second has a stride of 2


class Discriminator(nn.Module):
    """Tells images from what a network makes: eight convolutions, of which all but the first have batch
    normalization, and two dense layers.

    Patches of a size other than the paper's are averaged to maps of the paper's size before the dense layers.

    Args:
        side: Pixels a side of the patches.
        features: Channels of the first convolution, 64 in the paper.
    """

    pooling: Tensor

    def __init__(self, side: int, features: int = 64):
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for i, width in enumerate(WIDTHS):
            layers.append(nn.Conv2d(inputs, width * features, 3, 1 + i % 2, 1, bias=i == 0))
            if i > 0:
                layers.append(nn.BatchNorm2d(width * features, track_running_stats=False))
            layers.append(nn.LeakyReLU(SLOPE))
            inputs, side = width * features, -(-side // (1 + i % 2))
        self.convolutions = nn.Sequential(*layers)
        # A matrix: the gradient of PyTorch's own pooling has no fixed order of sums on CUDA.
        self.register_buffer("pooling", F.adaptive_avg_pool1d(torch.eye(side)[None], POOLED)[0].T, persistent=False)
        self.dense = nn.Sequential(
            nn.Linear(inputs * POOLED * POOLED, 16 * features), nn.LeakyReLU(SLOPE), nn.Linear(16 * features, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1]: the log odds that each is an image. x: [N, 3, side, side] RGB in 0..1."""
        y = self.convolutions(2 * x - 1)
        y = self.pooling @ y @ self.pooling.T
        return self.dense(y.flatten(1))
