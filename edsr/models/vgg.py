"""VGG19 (Simonyan & Zisserman, ICLR 2015) up to its last convolution, whose features SRGAN compares.

Layers and state are torchvision's `vgg19().features`; the weights are the user's.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # channels, and how many convolutions
# What torchvision's weights were trained with: RGB in 0..1.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VGG19Features(nn.Module):
    """The output of the ReLU after the sixteenth convolution, "conv5_4": phi 5,4 of the SRGAN paper."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for channels, count in BLOCKS:
            for _ in range(count):
                layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU()]
                inputs = channels
            layers.append(nn.MaxPool2d(2, ceil_mode=True))  # a patch may be smaller than 16 pixels
        self.features = nn.Sequential(*layers[:-1])
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(3, 1, 1), persistent=False)

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the weights of a whole vgg19, or of its `features`.

        Raises:
            ValueError: They are of another network; says which tensor is missing, or of another shape.
        """
        own = self.state_dict()
        for name, tensor in own.items():
            other = tensors.get(name)
            if not isinstance(other, Tensor) or not other.is_floating_point() or other.layout != torch.strided:
                raise ValueError(f"has no tensor {name}")
            if other.shape != tensor.shape:
                raise ValueError(f"its {name} has the shape {[*other.shape]}, not {[*tensor.shape]}")
        self.load_state_dict({name: tensors[name] for name in own})
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 512, ., .]. x: [N, 3, H, W] RGB in 0..1."""
        return self.features((x - self.mean) / self.deviation)
