"""Narrow range and premultiplied colors, against Pillow's decoder of the same files."""

import io

import numpy as np
import pytest
from PIL import Image

from edsr.images.av1 import SequenceHeader, read_sequence_header
from edsr.images.number_range import NumberRange, read_heif_range
from edsr.images.reader import read_image
from tests.support.image_files import chunk, make_image, png

WIDE = np.arange(256, dtype=np.uint8)[None].repeat(16, 0)
IMAGES = {
    "L": WIDE,
    "LA": np.stack([WIDE, WIDE[:, ::-1]], -1),
    "RGB": np.stack([WIDE, WIDE[:, ::-1], WIDE // 2], -1),
    "RGBA": np.stack([WIDE, WIDE // 2, WIDE[::-1], WIDE[:, ::-1]], -1),
}


def avif(mode: str, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(IMAGES[mode]).save(out, "AVIF", quality=100, **options)
    return out.getvalue()


@pytest.mark.parametrize("colr", [True, False])
@pytest.mark.parametrize("subsampling", ["4:0:0", "4:4:4"])
@pytest.mark.parametrize("numbers", ["limited", "full"])
@pytest.mark.parametrize(
    ("mode", "premultiplied"),
    [("L", False), ("LA", False), ("LA", True), ("RGB", False), ("RGBA", False), ("RGBA", True)],
)
def test_avif_is_what_pillow_reads(tmp_path, mode, premultiplied, numbers, subsampling, colr):
    data = avif(mode, subsampling=subsampling, range=numbers, alpha_premultiplied=premultiplied)
    assert b"colrnclx" in data and (b"prem" in data) == premultiplied
    if not colr:  # then AV1 itself says it
        data = data.replace(b"colrnclx", b"freenclx")
    (tmp_path / "a.avif").write_bytes(data)
    with Image.open(io.BytesIO(data)) as image:
        want = np.asarray(image.convert("RGBA")).astype(float)
    got = to_rgba(read_image(tmp_path / "a.avif", full=True).astype(float))
    assert np.abs((got - want) * want[..., 3:] / 255).max() <= 2  # the decoders' own matrices are 2 apart
    np.testing.assert_array_equal(got[..., 3], want[..., 3])


def to_rgba(pixels: np.ndarray) -> np.ndarray:
    channels = pixels.shape[2]
    colors = pixels[..., :3] if channels >= 3 else pixels[..., :1].repeat(3, 2)
    alpha = pixels[..., -1:] if channels in (2, 4) else np.full_like(pixels[..., :1], 255)
    return np.concatenate([colors, alpha], 2)


@pytest.mark.parametrize("bits", [10, 12])
def test_more_bits(bits):
    """No encoder here makes gray of narrow range and more than 8 bits: the formula of H.273."""
    top = 2**bits - 1
    stored = np.arange(top + 1, dtype=np.uint32)[None, :, None]
    rows = ((stored * 65535 + top // 2) // top).astype(np.uint16)
    got = NumberRange(narrow=True).restore(rows, bits)
    want = np.clip((stored / 2 ** (bits - 8) - 16) / 219, 0, 1) * 65535
    assert np.abs(got - want).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_narrow_range(tmp_path, dtype, channels):
    bits = 8 * np.dtype(dtype).itemsize
    full = np.iinfo(dtype).max
    image = make_image(channels=channels, dtype=np.dtype(dtype).name)
    stored = np.rint(image / full * (219 << bits - 8) + (16 << bits - 8))
    if channels in (2, 4):
        stored[..., -1] = image[..., -1]  # whose range is always full
    for flag, want, most in (0, image, 1), (1, stored, 0):
        data = png(stored.astype(dtype), bits, extra=chunk(b"cICP", bytes([1, 13, 0, flag])))
        (tmp_path / "a.png").write_bytes(data)
        assert np.abs(read_image(tmp_path / "a.png", full=True).astype(int) - want).max() <= most


def test_what_lies_beyond_narrow_range_is_cut():
    rows = np.array([[[0], [16], [126], [235], [255]]], np.uint8)
    assert NumberRange(narrow=True).restore(rows, 8).ravel().tolist() == [0, 0, 128, 255, 255]


def test_no_color_is_more_than_its_alpha():
    rows = np.array([[[50, 0, 100, 100], [9, 9, 9, 0], [200, 1, 0, 100]]], np.uint8)
    got = NumberRange(premultiplied=True).restore(rows, 8)
    assert got.tolist() == [[[128, 0, 255, 100], [0, 0, 0, 0], [255, 3, 0, 100]]]


class Bits:
    """A string of bits, as fields of (value, bits)."""

    def __init__(self, *fields: tuple[int, int]):
        text = "".join(f"{value:0{size}b}" for value, size in fields)
        self.bytes = int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")


def obu(payload: bytes) -> bytes:
    return b"\x12\0" + bytes([0x0A, len(payload)]) + payload  # after a temporal delimiter


START = [(0, 3), (1, 1), (0, 1)]  # profile 0, a still picture, no reduced header
SIZE = [(7, 4), (7, 4), (63, 8), (63, 8)]
TOOLS = [(0, 3), (0, 4), (1, 1), (0, 2), (1, 1), (1, 1), (3, 3), (0, 3)]


REDUCED = [(0, 3), (1, 1), (1, 1), (5, 5), *SIZE, (0, 3), (0, 3)]
PLAIN = [*START, (0, 1), (0, 1), (0, 5), (0, 12), (8, 5), (0, 1), *SIZE, (0, 1), *TOOLS]
CLOCK = [(1, 1), (1, 32), (25, 32), (1, 1), (5, 5), (1, 1), (9, 5), (1, 32), (9, 5), (9, 5)]
POINT = [(0, 12), (3, 5), (1, 1), (5, 10), (5, 10), (0, 1), (1, 1), (2, 4)]
EVERYTHING = [*START, *CLOCK, (1, 1), (0, 5), *POINT, *SIZE, (1, 1), (0, 7), *TOOLS]


@pytest.mark.parametrize("full", [0, 1])
@pytest.mark.parametrize("mono", [0, 1])
@pytest.mark.parametrize("fields", [REDUCED, PLAIN, EVERYTHING])
def test_sequence_headers(fields, mono, full):
    data = obu(Bits(*fields, (0, 1), (mono, 1), (1, 1), (1, 8), (1, 8), (1, 8), (full, 1)).bytes)
    assert read_sequence_header(data) == SequenceHeader(bool(mono), bool(full))
    for size in range(len(data) - 1):
        read_sequence_header(data[:size])  # no exception
    assert read_sequence_header(data[:8]) is None


def test_damaged_boxes_are_left_to_the_decoder():
    data = avif("LA", subsampling="4:0:0", range="limited")
    assert read_heif_range(io.BytesIO(data)) == NumberRange(narrow=True)
    random = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(data[: random.integers(20, 600)])
        for _ in range(3):
            broken[random.integers(16, len(broken))] = random.integers(256)
        read_heif_range(io.BytesIO(bytes(broken)))  # no exception, no endless loop
