"""How samples change their depth, are laid over white and are reduced, against exact arithmetic."""

import numpy as np
import pytest
import pyvips
import torch

from edsr.images import matlab_round, over_white, to_depth, to_float
from edsr.images.samples import quantize
from edsr.kernels import reference
from tests.support.image_files import WHITE


def rounded(samples, levels):
    """The nearest of 0..levels, in exact arithmetic; no ties among what it is given."""
    white = WHITE[samples.dtype.name]
    return np.floor(samples.clip(0, white).astype(np.longdouble) * levels / white + np.longdouble(0.5)).astype(int)


@pytest.mark.parametrize("levels, bits, dtype", [(255, 8, "uint8"), (4095, 12, "uint16"), (65535, 16, "uint16")])
@pytest.mark.parametrize("source", WHITE)
def test_samples_are_rounded_to_nearest(source, levels, bits, dtype):
    samples = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    if source == "uint8":
        samples = samples[:1]
    if source == "float32":
        samples = (samples / np.float32(65535)) * 1.2 - 0.1
    samples = samples.astype(source)
    before = samples.copy()
    got = to_depth(samples, dtype, bits)
    assert got.dtype == dtype
    assert np.array_equal(got >> (16 - bits if bits == 12 else 0), rounded(samples, levels))
    assert np.array_equal(samples, before)


def test_every_level_of_8_bits_survives_16():
    every = np.arange(256, dtype=np.uint8).reshape(1, 256, 1)
    assert np.array_equal(to_depth(every, np.uint16), every.astype(np.uint16) * 257)
    assert np.array_equal(to_depth(to_depth(every, np.uint16), np.uint8), every)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_every_level_survives_floats(dtype):
    every = np.arange(WHITE[dtype] + 1).astype(dtype)
    floats = to_float(every)
    assert floats.dtype == np.float32 and floats.max() == 1
    assert np.array_equal(to_depth(every, np.float32), floats)
    assert np.array_equal(to_depth(floats, dtype), every)
    assert to_float(floats) is floats and to_depth(floats, np.float32) is floats and to_depth(every, dtype) is every


def test_floats_stay_as_they_are_in_float32():
    floats = np.float32([-0.5, 0.25, 2])
    assert np.array_equal(to_depth(floats, np.float32), floats)
    assert np.array_equal(to_depth(floats.astype(np.float64) * 255, np.float32, white=255), floats)


def test_another_white():
    levels = np.arange(256, dtype=np.float32)
    assert np.array_equal(to_depth(levels, np.uint8, white=255), levels)
    assert np.array_equal(to_depth(levels.astype(np.float16), np.uint8, white=255), levels)
    got = to_depth(np.float32([-3, 0.5, 1.5, 2.5, 2.51, 300]), np.uint8, white=255)
    assert got.tolist() == [0, 0, 2, 2, 3, 255]


def test_ties_go_to_even():
    """In memory, on the way through libvips, and in the network's last layer; but not in MATLAB."""
    ties = np.arange(255, dtype=np.float64) + 0.5
    even = np.array([n + n % 2 for n in range(255)])
    assert np.array_equal(to_depth(ties, np.uint8, white=255), even)
    assert np.array_equal(matlab_round(ties), np.arange(1, 256))
    assert matlab_round(np.float64([-0.6, -0.4, 255.4, 256])).tolist() == [0, 0, 255, 255]

    values = (ties / 255).astype(np.float32)
    exact = values * np.float32(255) == ties
    assert exact.mean() > 0.5
    network = reference.quantize(torch.from_numpy(values.copy()), torch.uint8).numpy()
    assert np.array_equal(network[exact], even[exact])
    libvips = quantize(pyvips.Image.new_from_array(values.reshape(1, -1)), np.dtype(np.uint8), 8).numpy().ravel()
    assert np.array_equal(libvips[exact], even[exact])


@pytest.mark.parametrize("source", WHITE)
def test_alpha_is_laid_over_white(source):
    white = WHITE[source]
    color, alpha = np.meshgrid(np.linspace(0, white, 256), np.linspace(0, white, 256))
    rows = np.stack([color, color[::-1], alpha], 2).astype(source)[..., [0, 1, 0, 2]]
    part = rows[..., 3:].astype(np.longdouble) / white
    exact = 255 * (part * rows[..., :3] / white + 1 - part)
    for full in (1, 255):
        got = over_white(rows, full)
        assert got.dtype == np.float64 and np.abs(got - exact * full / 255).max() < 1e-12 * full
    expected, got = np.floor(exact + np.longdouble(0.5)), to_depth(over_white(rows), np.uint8)
    differ = got != expected
    assert differ.mean() < (1e-4 if source == "float32" else 0) + 1e-9  # a tie may fall either way
    assert np.abs(got - expected).max() <= 1
    assert (got[0] == 255).all() and np.array_equal(got[-1, :, 0], rounded(rows[-1, :, 0], 255))


@pytest.mark.parametrize("source", WHITE)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_opaque_keeps_its_bits_over_white(source, channels):
    samples = np.linspace(0, WHITE[source], 3 * 4096).astype(source).reshape(-1, channels)
    opaque = np.concatenate([samples, np.full_like(samples[:, :1], WHITE[source])], 1)
    assert np.array_equal(over_white(opaque, WHITE[source]), samples)
    assert np.array_equal(over_white(samples, WHITE[source]), samples)


def test_floats_beyond_black_and_white_are_cut_off_before_they_are_laid_over_white():
    pixels = np.float32([[-0.2, 0.5], [1.2, 0.5], [0.5, -1], [0.5, 2]])
    assert over_white(pixels)[:, 0].tolist() == [0.5, 1, 1, 0.5]


@pytest.mark.parametrize("dtype, bits", [("uint8", 8), ("uint16", 16), ("uint16", 12)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_libvips_rounds_alike(dtype, bits, channels):
    samples = np.random.default_rng(0).uniform(-0.1, 1.1, (40, 30, channels)).astype(np.float32)
    samples[0, :3] = np.float32([[0.5], [0], [1]])
    image = quantize(pyvips.Image.new_from_array(samples), np.dtype(dtype), bits)
    got = image.numpy().reshape(samples.shape)
    expected = to_depth(samples, dtype, bits)
    # libvips multiplies in single precision, so that what is nearly a tie may fall either way.
    steps = np.abs(got.astype(int) - expected) >> (16 - bits if dtype == "uint16" else 0)
    assert got.dtype == dtype and steps.max() <= 1 and steps.astype(bool).mean() < (1e-2 if bits == 16 else 1e-3)
    assert np.array_equal(got[0, :3], expected[0, :3])
    assert image.interpretation == {(8, 1): "b-w", (16, 1): "grey16"}.get(
        (8 * np.dtype(dtype).itemsize, channels), "srgb" if dtype == "uint8" else "rgb16"
    )
