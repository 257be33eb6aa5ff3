"""Arrays as people have them: the right result, or one line that says what to do; never a warning."""

import numpy as np
import pytest
import torch
from PIL import Image

from edsr import EDSR, EDSRConfig, Upscaler
from tests.conftest import make_image

PIXELS = make_image(12, 14)


@pytest.fixture(scope="module")
def upscaler():
    torch.manual_seed(0)
    return Upscaler(EDSR(EDSRConfig(blocks=1, features=8)), "cpu", backend="torch")


def read_only(pixels):
    pixels = pixels.copy()
    pixels.flags.writeable = False
    return pixels


class Gives:
    """Something else that gives its pixels to NumPy."""

    def __array__(self, dtype=None, copy=None):
        return PIXELS


gray, deep = PIXELS[:, :, 0], PIXELS.astype(np.uint16) * 257
unit = (PIXELS / 255).astype(np.float32)
SAME = {  # what is given -> the plain array it must be as good as
    "read-only": (read_only(PIXELS), PIXELS),
    "reversed": (PIXELS[::-1, ::-1], PIXELS[::-1, ::-1].copy()),
    "BGR": (PIXELS[:, :, ::-1], PIXELS[:, :, ::-1].copy()),
    "every other": (PIXELS[::2, ::3], PIXELS[::2, ::3].copy()),
    "Fortran": (np.asfortranarray(PIXELS), PIXELS),
    "transposed": (PIXELS.transpose(1, 0, 2), PIXELS.transpose(1, 0, 2).copy()),
    "broadcast": (np.broadcast_to(gray[:, :, None], (12, 14, 3)), np.dstack([gray] * 3)),
    "big-endian": (deep.astype(">u2"), deep),
    "big-endian floats": (unit.astype(">f4"), unit),
    "read-only floats": (read_only(unit), unit),
    "array-like": (Gives(), PIXELS),
    "list": (unit.tolist(), unit),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", SAME)
def test_right_result(upscaler, name):
    given, plain = SAME[name]
    result = upscaler(given)
    expected = upscaler(plain)
    assert result.dtype.isnative and result.dtype == plain.dtype and np.array_equal(result, expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f8"])
def test_other_floats(upscaler, dtype):
    given = unit.astype(dtype)
    result = upscaler(given)
    assert result.dtype == np.dtype(dtype).newbyteorder("=")
    assert np.array_equal(result, upscaler(given.astype(np.float32)).astype(result.dtype))


@pytest.mark.filterwarnings("error")
def test_floats_beyond(upscaler):
    given = np.dstack([unit[:, :, 0] * 4 - np.float32(0.5)] * 3)
    model = EDSR(EDSRConfig(blocks=1, features=8))
    with torch.no_grad():
        model.tail.weight.mul_(4)
    result = Upscaler(model, "cpu", backend="torch")(given)
    with torch.no_grad():
        expected = model(torch.from_numpy(given).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    assert np.allclose(result, expected, atol=1e-4) and (result.max() > 1 or result.min() < 0)


def with_value(value):
    pixels = unit.copy()
    pixels[5, 5, 0] = value
    return pixels


REFUSED = {
    "NaN": (with_value(np.nan), ValueError, "NaN"),
    "infinite": (with_value(-np.inf), ValueError, "NaN"),
    "too large for fp32": (with_value(0.5).astype(np.float64) * 1e300, ValueError, "NaN"),
    "0..255": (PIXELS.astype(np.float32), ValueError, "divide them by 255"),
    "0..255 in 64 bits": (PIXELS.astype(np.float64), ValueError, "divide them by 255"),
    "-1..1": (unit * 2 - 1, ValueError, "0..1"),
    "alpha of 0..255": (np.dstack([unit, gray.astype(np.float32) / 100]), ValueError, "alpha"),
    "int64": (PIXELS.astype(np.int64), TypeError, ".astype(np.uint8)"),
    "list of ints": (PIXELS.tolist(), TypeError, "give np.array(image, np.uint8)"),
    "list of images": ([PIXELS, PIXELS], TypeError, "one at a time"),
    "list of Pillow's": ([Image.fromarray(gray)], TypeError, "one at a time"),
    "list of nothing": ([None], TypeError, "not list"),
    "dict": ({}, TypeError, "not dict"),
    "int8": (PIXELS.astype(np.int8), TypeError, "int8"),
    "bool": (PIXELS > 99, TypeError, "bool"),
    "complex": (unit.astype(np.complex64), TypeError, "complex64"),
    "objects": (PIXELS.astype(object), TypeError, "object"),
    "record": (np.zeros((4, 4), [("r", "u1"), ("g", "u1")]), TypeError, "images are"),
    "longdouble": (unit.astype(np.longdouble), TypeError, "images are"),
    "masked": (np.ma.masked_array(PIXELS), TypeError, "masked"),
    "tensor": (torch.zeros(3, 9, 9), TypeError, "call .tensor(x)"),
    "name": ("photo.png", TypeError, "read_image"),
    "nothing": (None, TypeError, "images are arrays [H, W, C], not None"),
    "uneven": ([[0.1], [0.2, 0.3]], TypeError, "uneven"),
    "channels first": (np.zeros((3, 20, 30), np.uint8), ValueError, "channels come last"),
    "five channels": (np.zeros((9, 9, 5), np.uint8), ValueError, "1 to 4"),
    "batch": (np.zeros((1, 9, 9, 3), np.uint8), ValueError, "one at a time"),
    "a number": (np.uint8(3), TypeError, "not uint8"),
    "empty": (np.zeros((0, 9, 3), np.uint8), ValueError, "not empty"),
    "no channels": (np.zeros((9, 9, 0), np.uint8), ValueError, "not empty"),
}


RANGES = {  # value_range, black and white
    "0..255": (0, 255),
    "-1..1": (-1, 1),
    "white is dark": (255, 0),
    "far from 0": (1000.0, 3000.0),
}


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("name", RANGES)
def test_value_range(upscaler, name, alpha):
    """As --range does with files: mapped there and, in the result, back; alpha is 0..1."""
    low, high = RANGES[name]
    colors, more = unit * 1.2 - 0.1, [unit[:, :, :1]] * alpha
    given = np.dstack([(colors * np.float64(high - low) + low).astype(np.float32), *more])
    result = upscaler(given, value_range=(low, high))
    expected = upscaler(np.dstack([colors.astype(np.float32), *more]))
    expected[..., :3] = expected[..., :3] * (high - low) + low
    assert result.dtype == np.float32 and np.abs(result - expected).max() <= 2e-5 * max(abs(low), abs(high))
    assert np.array_equal(result[..., 3:], expected[..., 3:])
    grays = upscaler(given[:, :, 0].astype(np.float64), value_range=(low, high))
    assert grays.shape == (24, 28) and grays.dtype == np.float64


@pytest.mark.parametrize(
    ("given", "value_range", "text"),
    [
        (PIXELS, (0, 255), "these are uint8; leave it out"),
        (PIXELS.astype(np.float32), (0, 10), "far beyond value_range=(0.0, 10.0)"),
        (unit, (1, 1), "two different numbers"),
        (unit, (0, np.nan), "two different numbers"),
        (unit, 255, "two different numbers"),
        (unit, None, "two different numbers"),
    ],
)
def test_value_ranges_refused(upscaler, given, value_range, text):
    with pytest.raises(ValueError) as error:
        upscaler(given, value_range=value_range)
    assert text in str(error.value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", REFUSED)
def test_refused(upscaler, name):
    given, kind, text = REFUSED[name]
    with pytest.raises(kind) as error:
        upscaler(given)
    assert text in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["NaN", "0..255", "int64", "bool", "tensor"])
def test_rows_are_refused_as_well(upscaler, name):
    given, kind, text = REFUSED[name]
    with pytest.raises(kind) as error:
        list(upscaler.bands(iter([given]), 14))
    assert text in str(error.value)


def test_rows_that_do_not_belong_together(upscaler):
    for rows in [PIXELS, PIXELS[:, 1:]], [PIXELS, deep], [PIXELS, PIXELS[:, :, :1]], [gray]:
        with pytest.raises(ValueError, match="rows"):
            list(upscaler.bands(iter(rows), 14))
