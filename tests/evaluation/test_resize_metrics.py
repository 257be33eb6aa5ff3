import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edsr.evaluation.metrics import luma, psnr, score, ssim
from edsr.images import find_images, read_image
from edsr.images.resize import matlab_bicubic, matlab_downscale
from tests.conftest import make_image


def bicubic_by_definition(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """imresize's definition written out tap by tap, in fp64, with the border replicated; [H, W] only."""

    def cubic(x):
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0

    for size in (height, width):  # rows first
        length = image.shape[0]
        k = min(1.0, size / length)
        out = np.zeros((size, image.shape[1]))
        for i in range(size):
            center = (i + 0.5) * length / size - 0.5
            taps = range(int(np.floor(center - 2 / k)), int(np.ceil(center + 2 / k)) + 1)
            weights = np.array([cubic((center - t) * k) for t in taps])
            weights /= weights.sum()
            for t, w in zip(taps, weights, strict=True):
                out[i] += w * image[min(max(t, 0), length - 1)]
        image = out.T
    return image


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 30), st.integers(1, 30))
def test_bicubic_is_the_definition(height, width, to_height, to_width):
    image = make_image(height, width, 1)[:, :, 0].astype(np.float64)
    want = bicubic_by_definition(image, to_height, to_width)
    np.testing.assert_allclose(matlab_bicubic(image, to_height, to_width), want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("folder", ["Set5", "Set14"])
def test_published_reductions_bit_for_bit(shared, folder, scale):
    for path in find_images(shared / "data/eval" / folder / "HR"):
        published = read_image(path.parent.parent / f"LRx{scale}" / path.name)
        np.testing.assert_array_equal(matlab_downscale(read_image(path), scale), published)


def test_bicubic_keeps_kind_and_shape():
    assert matlab_bicubic(make_image(6, 8), 3, 4).dtype == np.uint8
    assert matlab_bicubic(make_image(6, 8)[:, :, 0], 12, 4).shape == (12, 4)
    np.testing.assert_array_equal(matlab_bicubic(make_image(6, 8), 6, 8), make_image(6, 8))
    with pytest.raises(TypeError, match="uint16"):
        matlab_bicubic(np.zeros((4, 4), np.uint16), 2, 2)
    with pytest.raises(ValueError, match="too small"):
        matlab_downscale(make_image(1, 9), 2)


def test_bicubic_takes_views():
    image = make_image(12, 10)
    np.testing.assert_array_equal(matlab_bicubic(image[::-1, ::2], 6, 3), matlab_bicubic(image[::-1, ::2].copy(), 6, 3))


def test_psnr():
    a = np.zeros((4, 4))
    assert psnr(a, a) == float("inf")
    assert psnr(a, a + 1) == pytest.approx(20 * np.log10(255))
    with pytest.raises(ValueError, match="shape"):
        psnr(a, a[1:])


def naive_ssim(a, b):
    """Equation 13 of Wang et al. 2004, window by window."""
    g = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    w = np.outer(g, g) / g.sum() ** 2
    total = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            x, y = a[i : i + 11, j : j + 11].astype(float), b[i : i + 11, j : j + 11].astype(float)
            mx, my = (w * x).sum(), (w * y).sum()
            vx, vy, vxy = (
                (w * (x - mx) ** 2).sum(),
                (w * (y - my) ** 2).sum(),
                (w * (x - mx) * (y - my)).sum(),
            )
            c1, c2 = 6.5025, 58.5225
            total.append((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return np.mean(total)


def test_ssim_is_the_definition():
    a, b = make_image(17, 14, 1)[:, :, 0], make_image(17, 14, 1, seed=1)[:, :, 0]
    assert ssim(a, b) == pytest.approx(naive_ssim(a, b), abs=1e-12)
    assert ssim(a, a) == pytest.approx(1)
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(a[:10], b[:10])


def test_ssim_does_not_depend_on_bands():
    a, b = make_image(150, 13), make_image(150, 13, seed=1)
    whole = ssim(a, b)
    assert ssim(a, b, band_pixels=1) == pytest.approx(whole, abs=1e-14)
    assert np.mean([ssim(a[..., c], b[..., c]) for c in range(3)]) == pytest.approx(whole, abs=1e-14)


def test_luma_is_bt601_studio_swing():
    ends = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_array_equal(luma(ends), [[16, 235, 81, 145, 41]])
    np.testing.assert_array_equal(luma(ends[:, :, :1]), ends[:, :, 0])  # gray stays


@pytest.mark.parametrize("channels", [1, 3])
def test_edsr_pytorch_scores_unrounded_luma_and_gray_images_as_rgb(channels):
    """As its `calc_psnr` is defined: luma of the difference of RGB values in 0..1."""
    a, b = (make_image(30, 40, channels, seed=i).reshape(30, 40, channels) for i in range(2))
    as_rgb = [np.broadcast_to(image, (30, 40, 3)) / 255 for image in (a, b)]
    difference = (as_rgb[0] - as_rgb[1]) @ np.array([65.738, 129.057, 25.064]) / 256
    found, similar = score(a, b, 3, "edsr")
    assert found == pytest.approx(-10 * np.log10(np.mean(difference[3:-3, 3:-3] ** 2)), abs=1e-4)
    lumas = [16 + image @ np.array([65.481, 128.553, 24.966]) for image in as_rgb]
    assert similar == pytest.approx(ssim(*(one[3:-3, 3:-3] for one in lumas)), abs=1e-9)
    rounded = score(np.round(as_rgb[0] * 255).astype(np.uint8), np.round(as_rgb[1] * 255).astype(np.uint8), 3)[0]
    assert rounded == pytest.approx(found, abs=0.1) and rounded != found


def test_protocols_leave_their_borders_out():
    a = make_image(40, 40)
    for protocol, border in ("y", 2), ("edsr", 2), ("rgb", 2), ("div2k", 8):
        b = a.copy()
        b[:border], b[-border:], b[:, :border], b[:, -border:] = 0, 0, 0, 0
        assert score(a, b, 2, protocol)[0] == float("inf")
        b[border, border] ^= 64
        assert score(a, b, 2, protocol)[0] < 60
    assert np.isnan(score(a[:12, :12], a[:12, :12], 2)[1])
    with pytest.raises(ValueError, match="protocol"):
        score(a, a, 2, "lab")
    with pytest.raises(ValueError, match="none inside"):
        score(a[:4], a[:4], 2)
