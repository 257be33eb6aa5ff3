"""ncnn's files: read by the few lines of an interpreter, they are the network's function."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edsr.export import write_ncnn
from tests.conftest import network


def interpret(text: str, weights: io.BytesIO, x: torch.Tensor) -> torch.Tensor:
    """What the layers make of x, [3, H, W], in fp32."""
    magic, counts, *lines = text.splitlines()
    assert magic == "7767517"
    blobs: dict[str, torch.Tensor] = {}

    def parameters(count: int) -> torch.Tensor:
        return torch.from_numpy(np.frombuffer(weights.read(4 * count), np.float32).copy())

    for line in lines:
        kind, _, inputs, outputs, *words = line.split()
        names = words[: int(inputs) + int(outputs)]
        options = dict(map(int, word.split("=")) for word in words[len(names) :] if "=" in word)
        sources, targets = [blobs[name] for name in names[: int(inputs)]], names[int(inputs) :]
        if kind == "Input":
            results = [x]
        elif kind == "Split":
            results = sources * len(targets)
        elif kind == "Convolution":
            assert weights.read(4) == b"\0\0\0\0" and (options[1], options[4], options[5]) == (3, 1, 1)
            weight, bias = parameters(options[6]), parameters(options[0])
            y = F.conv2d(sources[0][None], weight.view(options[0], -1, 3, 3), bias, padding=1)[0]
            results = [y.relu() if options[9] else y]
        elif kind == "BinaryOp":
            assert options[0] == 0
            results = [sources[0] + sources[1]]
        else:
            assert kind == "PixelShuffle"
            results = [F.pixel_shuffle(sources[0][None], options[0])[0]]
        for name, result in zip(targets, results, strict=True):
            assert name not in blobs
            blobs[name] = result
    assert counts == f"{len(lines)} {len(blobs)}" and weights.read() == b""
    return blobs["y"]


@pytest.mark.parametrize("residual_scale", [1.0, 0.1])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_files_are_the_network(scale, residual_scale):
    model = network(scale, residual_scale=residual_scale).float()
    x, mean = torch.rand(3, 6, 5), torch.tensor(model.config.mean).view(3, 1, 1)
    file = io.BytesIO()
    text = write_ncnn(model, file)
    file.seek(0)
    with torch.no_grad():
        want = model(x[None])[0]
    torch.testing.assert_close(interpret(text, file, x - mean) + mean, want)
