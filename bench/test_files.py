"""From file to file through the command line, model load included, beside pure computing."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.machine import stopwatch
from bench.rounds import Group, Implementation, Turns, in_rows, measured
from bench.workloads import CpuNetwork
from edsr import cli, save_model
from edsr.images import read_image

pytestmark = in_rows
WIDTH, HEIGHT = 320, 240


def drawn() -> Image.Image:
    """A smooth image with edges and a little noise, which compresses about as photographs do."""
    y, x, c = np.mgrid[:HEIGHT, :WIDTH, :3]
    smooth = 128 + 80 * np.sin(y / 31 + c) * np.cos(x / 23) + 30 * ((x // 60 + y // 40) % 2)
    noise = np.random.default_rng(0).normal(0, 3, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).round().astype(np.uint8))


def figures(folder: Path, device: str, names: tuple[str, ...], turns: Turns) -> Group:
    work = CpuNetwork.baseline(2, HEIGHT, WIDTH, device)
    weights, upscaler = folder / "net.safetensors", work.upscaler
    save_model(work.model, weights)

    def make(name: str) -> Implementation:
        source, target = folder / f"in.{name}", folder / f"out-{name}.png"
        if name == "computing":
            pixels = np.asarray(drawn())
            upscaler(pixels)  # warms up
            return Implementation("computing alone", lambda: stopwatch(lambda: upscaler(pixels), device))
        drawn().save(source, quality=95)
        command = ["upscale", str(source), "-o", str(target), "--overwrite", "--quiet"]
        command += ["--model", str(weights), "--device", device]

        def run() -> None:
            assert cli.main(command) == 0

        run()
        assert np.array_equal(read_image(target), upscaler(read_image(source))), "the file is not the network's"
        return Implementation(f"{name} to png", lambda: stopwatch(run, device))

    group = measured(f"files {WIDTH}x{HEIGHT} {device}", "computing", names, make, turns)
    for name, info in group.info.items():
        info["megapixels_per_second"] = WIDTH * HEIGHT / 1e3 / info["ms"]
        if name != "computing" and "ratio" in info:
            info["compute_percent"] = 100 * info["ratio"]
    return group


@pytest.mark.parametrize("name", ["computing", "png", "jpg"])
def test_file_to_file(row, device, name):
    def measure(names: tuple[str, ...], turns: Turns) -> Group:
        with tempfile.TemporaryDirectory() as folder:
            return figures(Path(folder), device, names, turns)

    row(measure)
