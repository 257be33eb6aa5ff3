"""Steps of SRGAN (Ledig et al., CVPR 2017): a network against a discriminator, and features in place of pixels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edsr.errors import WeightsError
from edsr.models import Discriminator, VGG19Features
from edsr.weights import read_file
from edsr.wording import named

from . import recipe
from .step import TrainStep, make_adam

ADVERSARIAL_WEIGHT = 1e-3  # equation 3 of the paper
FEATURE_WEIGHT = 0.006  # features are divided by 12.75 there, their squared difference by its square


def load_vgg(path: str) -> VGG19Features:
    """The network of a file of torchvision's vgg19.

    Raises:
        WeightsError: It is none.
    """
    found = VGG19Features()
    try:
        content, _ = read_file(Path(path))
        found.take(content if isinstance(content, Mapping) else {})
    except (WeightsError, ValueError) as error:
        advice = f"give torchvision's vgg19 with {named('vgg')}, or leave it out to compare pixels"
        raise WeightsError(f"{Path(path)}: {error}; {advice}") from None
    return found


class AdversarialStep(TrainStep):
    """A step of the discriminator, then one of the network; both with the same learning rate, launched one by one.

    The loss that is reported, and that a run is judged by, leaves the discriminator out: no loss against an opponent
    says how good a network is.

    Args:
        discriminator: In fp32, on its device; trained in place.
        vgg: What makes the features that are compared; None: pixels are.
        arguments, more: As of TrainStep.
    """

    def __init__(self, discriminator: Discriminator, vgg: VGG19Features | None, *arguments: Any, **more: Any):
        super().__init__(*arguments, **more)
        self._discriminator, self._vgg = discriminator, vgg
        self._judge_parameters = [*discriminator.parameters()]
        self._judge_optimizer = make_adam(self._judge_parameters, self._rate)
        self._other_losses: list[Tensor] = []  # of each step, the discriminator's and the network's against it

    def other_losses(self) -> dict[str, float]:
        steps, self._other_losses = self._other_losses, []
        if not steps:
            return {}
        discriminator, adversarial = torch.stack(steps).mean(0).tolist()
        return {"loss/discriminator": discriminator, "loss/adversarial": adversarial}

    def tensors(self) -> dict[str, Tensor]:
        state = super().tensors()
        for name, p in self._discriminator.named_parameters():
            state[f"discriminator.{name}"] = p.detach()
            moments = self._judge_optimizer.state[p].items()
            state |= {f"optimizer.discriminator.{name}.{key}": value for key, value in moments}
        return state

    def _backward(self, output: Tensor, target: Tensor) -> Tensor:
        for p in self._judge_parameters:
            p.grad = None
        real, made = self._discriminator(target), self._discriminator(output.detach())
        judged = _log_loss(real, True) + _log_loss(made, False)
        judged.backward()
        self._judge_optimizer.step()
        if self._vgg is None:
            content = recipe.loss(self._loss, output, target)
        else:
            with torch.no_grad():
                wanted = self._vgg(target)
            content = FEATURE_WEIGHT * F.mse_loss(self._vgg(output), wanted)
        against = _log_loss(self._discriminator(output), True)
        self._other_losses.append(torch.stack([judged, against]).detach())
        loss = content + ADVERSARIAL_WEIGHT * against
        loss.backward(inputs=[p for p in self._compute_parameters if p.requires_grad])
        return content


def _log_loss(odds: Tensor, is_image: bool) -> Tensor:
    """-log of the probability that the discriminator gives to what is right."""
    return F.binary_cross_entropy_with_logits(odds, torch.full_like(odds, float(is_image)))
