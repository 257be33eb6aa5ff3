"""From file to file through the command line, model load included, and the share of pure computing in it."""

import statistics

import numpy as np
import pytest
from PIL import Image

from bench.machine import stopwatch
from bench.workloads import Workload
from edsr import cli
from edsr.images.reader import read_image
from edsr.weights import save_model

ROUNDS = 2
WIDTH, HEIGHT = 480, 320


def drawn() -> Image.Image:
    """A smooth image with edges and a little noise, which compresses about as photographs do."""
    y, x, c = np.mgrid[:HEIGHT, :WIDTH, :3]
    smooth = 128 + 80 * np.sin(y / 31 + c) * np.cos(x / 23) + 30 * ((x // 60 + y // 40) % 2)
    noise = np.random.default_rng(0).normal(0, 3, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).round().astype(np.uint8))


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_file_to_file(benchmark, device, tmp_path, ending):
    work = Workload.baseline(2, HEIGHT, WIDTH, device)
    weights, source, target = tmp_path / "net.safetensors", tmp_path / f"in.{ending}", tmp_path / "out.png"
    save_model(work.model, weights)
    drawn().save(source, quality=95)
    pixels, upscaler = read_image(source), work.upscaler
    command = ["upscale", str(source), "-o", str(target), "--overwrite", "--quiet"]
    command += ["--model", str(weights), "--device", device]

    def run() -> None:
        assert cli.main(command) == 0

    run()
    assert np.array_equal(read_image(target), upscaler(pixels))

    computing = []

    def compute() -> None:
        computing.append(stopwatch(lambda: upscaler(pixels), device))

    benchmark.group = f"files {WIDTH}x{HEIGHT} {device}"
    benchmark.pedantic(run, setup=compute, rounds=ROUNDS)
    seconds, share = benchmark.stats.stats.median, statistics.median(computing)
    speed = WIDTH * HEIGHT / 1e6 / seconds
    benchmark.extra_info.update(
        {
            "megapixels_per_second": speed,
            "compute_seconds": share,
            "compute_percent": 100 * share / seconds,
        }
    )
    print(f"{ending}: {seconds:.2f} s, {speed:.3f} Mpx/s, {share:.2f} s of it computing")
