"""Checkpoints as other projects write them, each with that project's forward, written out once more; in fp64."""

import os
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from edsr.errors import WeightsError
from edsr.models import DIV2K_MEAN, EDSR
from edsr.weights import load_model, read_info

BLOCKS, FEATURES = 2, 5
MEAN = torch.tensor(DIV2K_MEAN, dtype=torch.float64).view(1, 3, 1, 1)


def make_image(seed=0, height=7, width=6):
    return torch.rand(1, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def filled(shapes: dict[str, tuple[int, ...]], seed=0) -> dict[str, torch.Tensor]:
    """Random fp32 tensors. Biases are 255 times a number of few bits: dividing them by 255 loses nothing."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, shape in shapes.items():
        if key.endswith("bias"):
            tensors[key] = 255 * torch.randint(-99, 100, shape, generator=generator) / 1024
        else:
            tensors[key] = torch.randn(shape, generator=generator) / (shape[1] * 9) ** 0.5
    return tensors


def convs(table: dict[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """Name -> (channels in, out), as the shapes of its weight and bias."""
    both = (((f"{k}.weight", (o, i, 3, 3)), (f"{k}.bias", (o,))) for k, (i, o) in table.items())
    return dict(pair for pairs in both for pair in pairs)


def upsampler_shapes(names: tuple[str, str], scale: int) -> dict[str, tuple[int, int]]:
    c = FEATURES
    return {names[0]: (c, 4 * c), names[1]: (c, 4 * c)} if scale == 4 else {names[0]: (c, scale * scale * c)}


def chain(t, x, head, body, end, upsampler, tail, scale, residual_scale=1.0):
    """What every project has between its edges, written out here once more, in fp64, over its own keys."""

    def conv(name, x):
        return F.conv2d(x, t[f"{name}.weight"].double(), t[f"{name}.bias"].double(), padding=1)

    x = conv(head, x)
    y = x
    for first, second in body:
        y = y + residual_scale * conv(second, conv(first, y).clamp(min=0))
    y = conv(end, y) + x
    for name, r in zip(upsampler, (2, 2) if scale == 4 else (scale,), strict=False):
        y = F.pixel_shuffle(conv(name, y), r)
    return conv(tail, y)


def official(span: float, scale: int, seed=0):
    c, n = FEATURES, BLOCKS
    body = [(f"body.{i}.body.0", f"body.{i}.body.2") for i in range(n)]
    table = {"head.0": (3, c)} | {name: (c, c) for pair in body for name in pair} | {f"body.{n}": (c, c)}
    ups = ("tail.0.0", "tail.0.2")
    t = filled(convs(table | upsampler_shapes(ups, scale) | {"tail.1": (c, 3)}), seed)
    eye, shift = torch.eye(3).view(3, 3, 1, 1), span * torch.tensor(DIV2K_MEAN)
    t |= {
        "sub_mean.weight": eye,
        "sub_mean.bias": -shift,
        "add_mean.weight": eye.clone(),
        "add_mean.bias": shift,
    }
    return t, ("head.0", body, f"body.{n}", ups, "tail.1", scale)


def edsr_pytorch(scale, span=255):
    t, names = official(span, scale)

    def forward(x):  # x in 0..span
        x = F.conv2d(x, t["sub_mean.weight"].double(), t["sub_mean.bias"].double())
        x = chain(t, x, *names)
        return F.conv2d(x, t["add_mean.weight"].double(), t["add_mean.bias"].double())

    return t, lambda x: forward(x * span) / span


def torchsr(scale):
    t, forward = edsr_pytorch(scale)  # the same tensors; it multiplies and divides by 255 itself
    return t, forward


def edsr_pytorch_of_range_1(scale):
    return edsr_pytorch(scale, span=1)


def super_image(scale):
    t, names = official(255, scale)
    return t, lambda x: chain(t, x, *names)


def basicsr(scale):
    c = FEATURES
    body = [(f"body.{i}.conv1", f"body.{i}.conv2") for i in range(BLOCKS)]
    table = {"conv_first": (3, c)} | {name: (c, c) for pair in body for name in pair} | {"conv_after_body": (c, c)}
    ups = ("upsample.0", "upsample.2")
    t = filled(convs(table | upsampler_shapes(ups, scale) | {"conv_last": (c, 3)}))
    names = ("conv_first", body, "conv_after_body", ups, "conv_last", scale)
    return t, lambda x: chain(t, (x - MEAN) * 255, *names) / 255 + MEAN


def mmagic(scale):
    c = FEATURES
    body = [(f"body.{i}.conv1", f"body.{i}.conv2") for i in range(BLOCKS)]
    table = {"conv_first": (3, c)} | {name: (c, c) for pair in body for name in pair} | {"conv_after_body": (c, c)}
    ups = ("upsample.0.upsample_conv", "upsample.1.upsample_conv")
    t = filled(convs(table | upsampler_shapes(ups, scale) | {"conv_last": (c, 3)}))
    names = ("conv_first", body, "conv_after_body", ups, "conv_last", scale)
    return t, lambda x: chain(t, x - MEAN, *names) + MEAN


def mlcommons(scale):
    c = FEATURES
    body = [(f"body.{i}.conv1", f"body.{i}.conv2") for i in range(BLOCKS)]
    table = {"head": (3, c)} | {name: (c, c) for pair in body for name in pair} | {"body_tail": (c, c)}
    ups = ("upsample.0", "upsample.1")
    t = filled(convs(table | upsampler_shapes(ups, scale) | {"tail": (c, 3)}))
    return t, lambda x: chain(t, x * 255, "head", body, "body_tail", ups, "tail", scale) / 255


def mlcommons_collapsed(scale):
    t, _ = mlcommons(scale)
    t = {k: v for k, v in t.items() if not k.startswith(("upsample.", "tail."))}
    t |= filled(convs({"upsample_out": (FEATURES, 3 * scale * scale)}), seed=1)

    def forward(x):
        def conv(name, x):
            return F.conv2d(x, t[f"{name}.weight"].double(), t[f"{name}.bias"].double(), padding=1)

        x = y = conv("head", 255 * x)
        for i in range(BLOCKS):
            y = y + conv(f"body.{i}.conv2", conv(f"body.{i}.conv1", y).relu())
        return F.pixel_shuffle(conv("upsample_out", conv("body_tail", y) + x), scale) / 255

    return t, forward


def assert_same_image(model: EDSR, forward: Callable, tolerance: float):
    """Relative to the largest value, in fp64, on two images, the second one pixel high."""
    for x in (make_image(1), make_image(2, 1, 9)):
        with torch.no_grad():
            ours, theirs = model.double()(x), forward(x)
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def assert_same_state(a: EDSR, b: EDSR):
    assert a.state_dict().keys() == b.state_dict().keys()
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def refusal(path, **options) -> str:
    """The message of the WeightsError that loading gives: one line that names the file."""
    with pytest.raises(WeightsError) as error:
        load_model(path, **options)
    message = str(error.value)
    assert message.isprintable()
    assert os.fspath(path) in message
    with pytest.raises(WeightsError):
        read_info(path, **options)
    return message
