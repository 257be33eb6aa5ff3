"""Recovery, alpha and the self-ensemble of streamed images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from edsr.errors import BackendError
from edsr.inference.streaming import Stream
from edsr.inference.upscaler import Upscaler
from edsr.models.edsr import EDSR
from edsr.weights import load_model
from tests.conftest import make_image, network


def by_bands(up: Upscaler, image: np.ndarray, step: int, **options) -> np.ndarray:
    rows = (image[i : i + step] for i in range(0, len(image), step))
    return np.concatenate(list(up.bands(rows, image.shape[1], **options)))


def close(x: np.ndarray, y: np.ndarray) -> bool:
    """Equal to rounding: a level, and that seldom."""
    difference = np.abs(x.astype(int) - y.astype(int))
    return x.shape == y.shape and difference.max() <= 1 and (difference > 0).mean() < 0.01


@given(st.sets(st.integers(1, 40), max_size=3), st.integers(64, 90))
@settings(deadline=None, max_examples=15)
def test_running_out_of_memory_halves_the_bands_and_goes_on(caplog, when, step):
    """At any moments: the image is the same, no row twice, none missing. The next image has the whole budget again."""
    caplog.clear()
    up = Upscaler(network(), device="cpu", tile=256)
    image = make_image(2 * step, 140, seed=step)
    want = up(image)
    honest, calls = Stream.__call__, 0

    def call(self, x, last=False):
        nonlocal calls
        calls += 1
        if calls in when:
            raise torch.OutOfMemoryError("no memory")
        return honest(self, x, last)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stream, "__call__", call)
        got = by_bands(up, image, step)
    assert close(got, want)
    assert len(caplog.messages) == len([w for w in when if w <= calls])
    assert all("ran out of memory: going on with tile=" in line for line in caplog.messages)
    assert up.tile == 256 and up.band_rows(256, 256) == 256


def test_a_whole_image_without_memory_goes_on_in_bands(monkeypatch, caplog):
    up, image = Upscaler(network(), device="cpu", tile=128), make_image(90, 70)
    want, honest = up(image), EDSR.forward

    def forward(self, x, *rest):
        if x.shape[2] * x.shape[3] > 3500:
            raise torch.OutOfMemoryError("no memory")
        return honest(self, x, *rest)

    monkeypatch.setattr(EDSR, "forward", forward)
    for _ in range(2):
        caplog.clear()
        assert close(up(image), want)
        assert caplog.messages == ["cpu ran out of memory: going on with tile=55"]


@pytest.mark.parametrize(("blocks", "smallest", "tried"), [(2, 32, [45]), (32, 44, [45])])
def test_memory_that_never_suffices_is_an_error(blocks, smallest, tried, caplog):
    up = Upscaler(network(blocks=blocks), device="cpu", tile=64)

    def call(self, x, last=False):
        raise torch.OutOfMemoryError("no memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stream, "__call__", call)
        message = rf"too little free memory even for bands of {smallest} x {smallest}; .*device='cpu'"
        with pytest.raises(BackendError, match=message):
            by_bands(up, make_image(90, 200), 60)
    assert [int(line.rpartition("=")[2]) for line in caplog.messages] == tried


@pytest.mark.parametrize("error", [MemoryError("of the decoder"), torch.OutOfMemoryError("of another device")])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_who_makes_the_rows_may_run_out_of_memory(error, after, caplog):
    """That is theirs to tell, and no reason to go on without their rows."""
    image = make_image(200, 60)

    def rows():
        for i in range(after):
            yield image[50 * i : 50 * i + 50]
        raise error

    with pytest.raises(type(error), match=r"^of "):
        list(Upscaler(network(), device="cpu", tile=64).bands(rows(), 60))
    assert not caplog.messages


@pytest.mark.parametrize("where", [0, 1, 57, 99])
@pytest.mark.parametrize("step", [7, 40, 100])
def test_an_overflow_is_repeated_in_fp32(monkeypatch, caplog, where, step):
    """A network that overflows in fp16 where the image is bright: in one row."""
    monkeypatch.setattr("edsr.inference.plan.cpu_has", lambda precision: True)
    m = network(features=8)
    with torch.no_grad():
        m.head.weight[0] = 4e4  # 10,000 where it is gray, 200,000 beside the bright row
        for layer in (m.body[0].conv1, m.body[1].conv1, m.body_end, m.upsampler[0]):
            layer.weight[:, 0] *= 1e-5
    image = np.full((100, 30, 3), 112, np.uint8)
    image[where] = 255
    exact = Upscaler(m, device="cpu", precision="fp32")
    up = Upscaler(m, device="cpu", precision="fp16")
    got = by_bands(up, image, step)
    assert caplog.messages == ["the network overflows in fp16: going on in fp32"]
    # Above the row, and out of its sight, fp16 was good enough.
    start = max(0, where - m.config.receptive_radius) * 2
    assert np.abs(got[start:].astype(int) - exact(image)[start:].astype(int)).max() <= 1
    assert got.shape == (200, 60, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("step", [6, 200])
def test_alpha_has_no_fringes(dtype, channels, step):
    """A disc of one color on nothing, whose hidden color is the opposite one: no trace of that may show."""
    y, x = np.mgrid[:60, :50]
    inside = (y - 28) ** 2 + (x - 25) ** 2 < 18**2
    white = 1.0 if dtype == np.float32 else np.iinfo(dtype).max
    image = np.zeros((60, 50, channels), dtype)
    image[..., 0] = np.where(inside, 0.8 * white, 0)
    image[..., 1:-1] = np.where(inside, 0, white)[..., None]
    image[..., -1] = np.where(inside, white, 0)
    up = Upscaler(load_model("edsr-baseline", scale=2), device="cpu")
    result = by_bands(up, image, step).astype(np.float64) / white
    alpha = result[..., -1]
    assert result.shape == (120, 100, channels)
    far = np.kron((y - 28) ** 2 + (x - 25) ** 2, np.ones((2, 2)))
    assert (alpha[far < 13**2] == 1).all() and (alpha[far > 23**2] == 0).all()
    # As it looks before anything: what there is of a color is as much as there is of the disc.
    there = alpha > 0
    assert np.abs(result[..., 0] - 0.8)[there].max() < 0.004
    if channels == 4:
        assert result[..., 1:-1][there].max() < 0.004
    # Colors and alpha, each by itself, would show it.
    apart = up(image[..., 1:2]).astype(np.float64)[..., 0] / white if channels == 4 else None
    assert apart is None or (apart * alpha).max() > 0.2


def make_alpha(name: str) -> np.ndarray:
    """Alpha 0..1 [64, 64]: hard edges, soft ones, letters."""
    y, x = np.mgrid[:64, :64]
    far = np.hypot(y - 32, x - 32)
    if name == "letters":
        image = Image.new("L", (64, 64))
        ImageDraw.Draw(image).text((4, 8), "Alpha", fill=255, font=ImageFont.load_default(20))
        return np.asarray(image) / 255
    forms = {
        "squares": (x // 8 + y // 8) % 2,
        "soft": np.clip((24 - far) / 6 + 0.5, 0, 1),
        "shadow": np.clip(1 - far / 30, 0, 1) ** 2,
        "points": (x % 16 == 7) & (y % 16 == 7),
    }
    return np.rint(forms[name] * 255) / 255


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("name", ["squares", "soft", "shadow", "letters", "points"])
def test_one_color_stays_one_color_under_any_alpha(name, dtype):
    """Over any background: alpha x color. Hidden is noise, which must not show."""
    alpha, color = make_alpha(name), np.array([200, 60, 30]) / 255
    white = 1 if dtype == np.float32 else np.iinfo(dtype).max
    pixels = np.where(alpha[..., None] > 0, color, np.random.default_rng(0).random((64, 64, 3)))
    image = np.concatenate([pixels, alpha[..., None]], 2) * white
    up = Upscaler(load_model("edsr-baseline", scale=2), device="cpu")
    result = up((np.rint(image) if white > 1 else image).astype(dtype)).astype(np.float64) / white
    there = result[..., 3] > 0
    there[[0, 1, -2, -1]] = there[:, [0, 1, -2, -1]] = False  # where the network pads, one color varies by itself
    assert there.any() and np.abs(result[there][:, :3] - color).max() < 0.004  # a level of 255


def test_colors_of_premultiplied_images_are_not_torn():
    """8-bit colors that were multiplied by alpha and divided again are coarse where alpha is small."""
    alpha, color = np.rint(make_alpha("letters") * 255), np.array([200, 60, 30])
    coarse = np.rint(color * alpha[..., None] / 255) * 255 / np.maximum(alpha, 1)[..., None]
    image = np.concatenate([np.rint(coarse), alpha[..., None]], 2).astype(np.uint8)
    up = Upscaler(load_model("edsr-baseline", scale=2), device="cpu")
    result = up(image).astype(np.float64)
    assert (np.abs(result[..., :3] - color) * result[..., 3:] / 255).max() < 5


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_full_alpha_changes_nothing(dtype):
    up = Upscaler(network(), device="cpu")
    colors = make_image(40, 30).astype(dtype) * (257 if dtype == np.uint16 else 1)
    opaque = np.concatenate([colors, np.full((40, 30, 1), np.iinfo(dtype).max, dtype)], 2)
    result = by_bands(up, opaque, 9)
    assert (result[..., 3] == np.iinfo(dtype).max).all()
    np.testing.assert_allclose(result[..., :3].astype(int), up(colors).astype(int), rtol=0, atol=1)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_self_ensemble_streams(channels):
    up = Upscaler(network(), device="cpu")
    image = make_image(70, 31, channels)
    want = up(image, self_ensemble=True)
    pulled = 0

    def rows():
        nonlocal pulled
        for i in range(0, 70, 5):
            pulled += 1
            yield image[i : i + 5]

    bands = up.bands(rows(), 31, self_ensemble=True)
    first = next(bands)
    assert pulled <= 5
    assert close(np.concatenate([first, *bands]), want)
