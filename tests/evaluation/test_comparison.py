"""Comparisons: the images and scores are those that other commands give; every kind of file; figures as drawn."""

import contextlib
import io
import math

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms

from edsr.errors import CompareError, ImageError
from edsr.evaluation import comparison as comparison_module
from edsr.evaluation import metrics
from edsr.evaluation.comparison import (
    MAX_DETAIL,
    Comparison,
    choose_detail,
    compare,
    comparison_path,
    save_comparison,
    upscale_bicubic,
)
from edsr.evaluation.figure import MARGIN, MARK, render_figure
from edsr.evaluation.scoring import evaluate
from edsr.images.resize import matlab_bicubic, matlab_downscale
from edsr.images.writer import ImageWriter
from edsr.inference.upscaler import Upscaler
from edsr.progress import Silent
from tests.conftest import make_image, network


@pytest.fixture
def upscaler():
    return Upscaler(network(), device="cpu")


def written(path, pixels, profile=None):
    """A file of ours, whatever the pixels are."""
    height, width, channels = pixels.shape
    with ImageWriter(path, width, height, channels, dtype=pixels.dtype) as writer:
        writer.write(pixels)
    if profile is not None:
        image = pyvips.Image.new_from_file(str(path)).copy_memory()
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
        image.write_to_file(str(path))
    return path


def smooth(low, s):
    """Bicubic as `evaluate` has it."""
    large = matlab_bicubic(low.astype(np.float64), s * low.shape[0], s * low.shape[1])
    return np.clip(np.floor(large + 0.5), 0, 255).astype(np.uint8)


# --- images and scores


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_scores_are_those_of_evaluate(tmp_path, scale, channels):
    upscaler = Upscaler(network(scale), device="cpu")
    original = make_image(61, 50, channels)
    for name in "hr", "lr":
        (tmp_path / name).mkdir()
    hr = written(tmp_path / "hr" / "a.png", original)
    lr = written(tmp_path / "lr" / "a.png", matlab_downscale(original, scale))
    want = next(evaluate(upscaler, tmp_path / "hr"))
    for image in None, lr:
        found = compare(upscaler, image, hr)
        assert list(found.images) == ["bicubic", f"EDSR x{scale}", "original"]
        assert found.scores["bicubic"] == (want["bicubic_psnr"], want["bicubic_ssim"])
        assert found.scores[f"EDSR x{scale}"] == (want["psnr"], want["ssim"])
        assert (found.name, found.size, found.scale) == ("a.png", (50 // scale, 61 // scale), scale)
        cropped = original[: 61 // scale * scale, : 50 // scale * scale]
        np.testing.assert_array_equal(found.images["original"], np.broadcast_to(cropped, (*cropped.shape[:2], 3)))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_an_image_alone_has_the_results_and_no_scores(tmp_path, scale):
    upscaler, low = Upscaler(network(scale), device="cpu"), make_image(23, 31)
    found = compare(upscaler, written(tmp_path / "a.png", low))
    assert list(found.images) == ["bicubic", f"EDSR x{scale}"] and found.scores == {}
    np.testing.assert_array_equal(found.images["bicubic"], smooth(low, scale))
    np.testing.assert_array_equal(found.images[f"EDSR x{scale}"], upscaler(low))


@pytest.mark.parametrize("block", [1, 2000, 2**21])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_does_not_depend_on_bands(scale, block):
    low = make_image(23, 31)
    np.testing.assert_array_equal(upscale_bicubic(low, scale, block), smooth(low, scale))


def test_self_ensemble_and_rows_done(tmp_path, upscaler):
    class Told(Silent):
        rows = 0

        @contextlib.contextmanager
        def file(self, name, width, height):
            assert (name, width, height) == ("a.png", 31, 200)
            yield self

        def advance(self, rows):
            self.rows += rows

    progress, low = Told(), make_image(200, 31)
    found = compare(upscaler, written(tmp_path / "a.png", low), self_ensemble=True, progress=progress)
    np.testing.assert_array_equal(found.images["EDSR+ x2"], upscaler(low, self_ensemble=True))
    assert progress.rows == 200


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_every_kind_of_image(tmp_path, upscaler, dtype, channels):
    """Transparent in one half, where all is white; elsewhere the same as the opaque 8-bit image, to rounding."""
    white = {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]
    low = make_image(40, 30, channels)
    if channels in (2, 4):
        low[..., -1] = 255
        low[:, :12, -1] = 0
    opaque = compare(upscaler, written(tmp_path / "8.png", low[..., : (channels - 1) // 2 * 2 + 1]))
    path = tmp_path / f"a.{'tif' if dtype == 'float32' else 'png'}"
    written(path, (low * np.float64(white / 255)).astype(dtype))
    found = compare(upscaler, path)
    reduced = compare(upscaler, None, path)
    assert all(image.dtype == np.uint8 for image in (*found.images.values(), *reduced.images.values()))
    for title, result in found.images.items():
        # Right of the edge of what is transparent, as far as bicubic and the network reach.
        difference = np.abs(result[:, 44:].astype(int) - opaque.images[title][:, 44:])
        assert difference.max() <= (1 if channels in (1, 3) or title == "bicubic" else 8)
        assert channels in (1, 3) or (result[:, :16] == 255).all()
    assert reduced.images["original"].shape == (40, 30, 3) and reduced.scores["bicubic"][0] > 15
    assert channels in (1, 3) or (reduced.images["original"][:, :12] == 255).all()


def test_gray_against_color_is_scored_in_color(tmp_path, upscaler):
    gray = make_image(40, 40, 1)
    hr = written(tmp_path / "hr.png", gray)
    low = written(tmp_path / "low.png", matlab_downscale(gray, 2).repeat(3, 2))
    found = compare(upscaler, low, hr)
    want = metrics.score(found.images["bicubic"], gray.repeat(3, 2), 2)
    assert found.scores["bicubic"] == want


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (9, 1), (2, 3)])
def test_a_few_pixels(tmp_path, upscaler, height, width):
    small = written(tmp_path / "a.png", make_image(height, width))
    large = written(tmp_path / "b.png", make_image(2 * height, 2 * width))
    for image, hr in (small, None), (small, large), (None, large):
        found = compare(upscaler, image, hr)
        assert found.scores == {} and found.detail[2] == 2 * min(height, width)
        assert len(found.warnings) == (hr is not None)
        assert all("leave none inside a border of 2" in line for line in found.warnings)
        assert max(render_figure(found).size) < 2000


def test_scores_of_small_images_lack_ssim(tmp_path, upscaler):
    found = compare(upscaler, None, written(tmp_path / "a.png", make_image(6, 30)))
    psnr, ssim = found.scores["bicubic"]
    assert psnr > 0 and math.isnan(ssim)
    why = "no SSIM, which needs 11 pixels a side: inside the border of 2 are 26 x 2"
    assert found.warnings == (f"{tmp_path / 'a.png'}: {why}",)
    render_figure(found)


def test_an_exact_result_is_said(tmp_path, upscaler):
    found = compare(upscaler, None, written(tmp_path / "a.png", np.full((40, 40, 3), 99, np.uint8)))
    assert found.scores["bicubic"][0] == math.inf
    assert f"{tmp_path / 'a.png'}: bicubic: exact, so PSNR is infinite" in found.warnings


# --- several networks


def test_several_networks_have_the_images_and_scores_that_each_has_alone(tmp_path):
    networks = {f"{name} x2": Upscaler(network(), device="cpu") for name in ("b", "a", "bicubic")}
    hr = written(tmp_path / "a.png", make_image(300, 260))
    found = compare(networks, None, hr)
    assert list(found.images) == ["bicubic", *networks, "original"]
    assert list(found.scores) == ["bicubic", *networks]
    for title, upscaler in networks.items():
        alone = compare(upscaler, None, hr)
        np.testing.assert_array_equal(found.images[title], alone.images["EDSR x2"])
        assert found.scores[title] == alone.scores["EDSR x2"] and found.scores["bicubic"] == alone.scores["bicubic"]
    assert found.detail == choose_detail(*(found.images[title] for title in networks))
    for wrong in {"x": networks["a x2"], "y": Upscaler(network(3), device="cpu")}, {"original": networks["a x2"]}:
        with pytest.raises(ValueError, match="of one scale"):
            compare(wrong, None, hr)


def test_the_detail_of_several_counts_all_that_differ_from_the_first():
    base = np.full((300, 300, 3), 128, np.uint8)
    one, two = base.copy(), base.copy()
    one[:40, :40] = 138  # less than half of what both of the others differ elsewhere
    one[240:280, 240:280] = two[240:280, 240:280] = 136
    left, top, side = choose_detail(base, one, two)
    assert left <= 240 and top <= 240 and min(left, top) + side >= 280
    assert choose_detail(base, one)[:2] == (0, 0)


# --- color profiles


def test_profiles_lead_to_srgb_but_scores_are_of_the_file(tmp_path, upscaler):
    p3 = pyvips.Image.profile_load("p3")
    original = make_image(40, 40)
    plain = compare(upscaler, None, written(tmp_path / "plain.png", original))
    found = compare(upscaler, None, written(tmp_path / "wide.png", original, p3))
    assert found.scores == plain.scores
    for title, result in found.images.items():
        plainly = Image.fromarray(plain.images[title])
        want = ImageCms.profileToProfile(plainly, io.BytesIO(p3), ImageCms.createProfile("sRGB"))
        assert np.abs(result.astype(int) - np.asarray(want)).max() <= 2
        assert np.abs(result.astype(int) - plain.images[title]).max() > 10
    low = written(tmp_path / "low.png", matlab_downscale(original, 2))
    mixed = compare(upscaler, low, tmp_path / "wide.png")  # each through its own
    np.testing.assert_array_equal(mixed.images["EDSR x2"], plain.images["EDSR x2"])
    np.testing.assert_array_equal(mixed.images["original"], found.images["original"])


@pytest.mark.parametrize("kind", [b"RGB ", b"GRAY", b"CMYK"])
def test_profiles_of_no_use_are_left_out(tmp_path, upscaler, kind, capfd):
    broken = b"\0" * 16 + kind + b"\0" * 200
    low = make_image(9, 9)
    found = compare(upscaler, written(tmp_path / "a.png", low, broken))
    np.testing.assert_array_equal(found.images["bicubic"], smooth(low, 2))
    assert capfd.readouterr() == ("", "")


# --- details


def different(height, width, x, y, side):
    """Two gray images that differ in one square."""
    before = np.full((height, width, 3), 128, np.uint8)
    after = before.copy()
    after[y : y + side, x : x + side, 1] += 90
    return before, after


@pytest.mark.parametrize("height, width", [(300, 500), (500, 97), (101, 20_000), (40, 30), (96, 96)])
@pytest.mark.parametrize("corner", [0, 0.3, 1])
def test_the_detail_lies_where_results_differ(height, width, corner):
    spot = 10
    x, y = int(corner * (width - spot)), int(corner * (height - spot))
    left, top, side = choose_detail(*different(height, width, x, y, spot))
    assert side == min(96, height, width)
    assert left >= 0 and top >= 0 and left + side <= width and top + side <= height
    # The last pixels, fewer than a cell, do not count.
    assert left <= x and top <= y and x + spot <= left + side + 11 and y + spot <= top + side + 11


@pytest.mark.parametrize("seed", range(5))
def test_the_detail_is_the_square_that_differs_most(seed):
    random = np.random.default_rng(seed)
    before, after = random.integers(0, 256, (2, 200, 180, 3), dtype=np.uint8)
    squares = (after.astype(int) - before) ** 2
    places = [(y, x) for y in range(0, 105, 12) for x in range(0, 85, 12)]
    y, x = max(places, key=lambda at: squares[at[0] : at[0] + 96, at[1] : at[1] + 96].sum())
    assert choose_detail(before, after) == (x, y, 96)


def test_a_detail_that_is_given(tmp_path, upscaler):
    path = written(tmp_path / "a.png", make_image(40, 60))
    assert compare(upscaler, path, detail=(100, 60, 20)).detail == (100, 60, 20)
    for detail in (101, 60, 20), (100, 61, 20), (-1, 0, 5), (0, -1, 5):
        with pytest.raises(CompareError, match="not inside the result of 120 x 80 pixels"):
            compare(upscaler, path, detail=detail)
    for side in 0, -3, MAX_DETAIL + 1:
        with pytest.raises(CompareError, match=f"1 to {MAX_DETAIL}"):
            compare(upscaler, path, detail=(0, 0, side))


# --- what cannot be compared


def test_sizes_that_do_not_fit(tmp_path, upscaler):
    low = written(tmp_path / "low.png", make_image(20, 30))
    for height, width in (39, 60), (40, 62), (20, 30), (60, 40):
        hr = written(tmp_path / f"{width}x{height}.png", make_image(height, width))
        with pytest.raises(CompareError) as caught:
            compare(upscaler, low, hr)
        message = str(caught.value)
        assert (
            f"{width} x {height}" in message and "30 x 20" in message and "60 x 40" in message and "hr alone" in message
        )
        assert "\n" not in message
    found = compare(upscaler, low, written(tmp_path / "odd.png", make_image(41, 61)))
    assert found.images["original"].shape == (40, 60, 3)


def test_nothing_too_small_too_large_or_no_image(tmp_path, upscaler, monkeypatch):
    with pytest.raises(CompareError, match="hr"):
        compare(upscaler)
    path = written(tmp_path / "a.png", make_image(1, 30))
    with pytest.raises(CompareError, match="30 x 1, too small"):
        compare(upscaler, None, path)
    with pytest.raises(ImageError, match="no such file"):
        compare(upscaler, tmp_path / "missing.png", path)
    with pytest.raises(CompareError, match=r"60 x 2 are more than .*crop it"):
        compare(upscaler, path, max_pixels=119)
    compare(upscaler, path, max_pixels=120)
    monkeypatch.setattr(comparison_module, "available_memory", lambda: 1000)
    with pytest.raises(CompareError, match=r"memory.*crop it"):
        compare(upscaler, path)


# --- files


def test_where_outcomes_go(tmp_path):
    image, hr = tmp_path / "a.b.jpg", tmp_path / "hr.png"
    assert comparison_path(image, hr, None, ".png", False) == tmp_path / "a.b_compare.png"
    assert comparison_path(None, hr, None, ".html", False) == tmp_path / "hr_compare.html"
    assert comparison_path(image, None, str(tmp_path), ".png", False) == tmp_path / "a.b_compare.png"
    assert comparison_path(image, None, str(tmp_path / "x.PNG"), ".png", False) == tmp_path / "x.PNG"
    hr.touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "a.b_compare.png").mkdir()
    for output, overwrite, says in (
        ("x.jpg", False, "as .png"),
        ("x", False, "as .png"),
        ("x.html", False, "as .png, give such a name, or ask for the suffix .html"),
        ("no/x.png", False, "create it first"),
        ("hr.png", True, "input itself"),
        ("folder.png", False, "is a folder"),
    ):
        with pytest.raises(CompareError, match=says):
            comparison_path(image, hr, str(tmp_path / output), ".png", overwrite)
    with pytest.raises(CompareError, match="overwrite=True"):
        comparison_path(image, None, str(hr), ".png", False)
    with pytest.raises(CompareError, match="hr"):
        comparison_path(None, None, None, ".png", False)


def test_files_are_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "a.html"
    (tmp_path / ".edsr-0123456789ab.part").write_bytes(b"what a killed process has left")
    save_comparison(target, b"one", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]
    with pytest.raises(CompareError, match="overwrite=True"):
        save_comparison(target, b"two", overwrite=False)
    assert target.read_bytes() == b"one"
    save_comparison(target, b"three", overwrite=True)
    assert target.read_bytes() == b"three"
    with pytest.raises(CompareError, match="cannot be written"):
        save_comparison(tmp_path / "missing" / "a.html", b"four", overwrite=False)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CompareError, match="No space left"):
        save_comparison(target, b"five", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"] and target.read_bytes() == b"three"


# --- the figure


def comparison(height, width, titles=("bicubic", "EDSR x2", "original"), detail=None, scores=True):
    images = {title: make_image(height, width, seed=i) // 2 for i, title in enumerate(titles)}
    detail = detail or (0, 0, min(96, height, width))
    marks = {title: (30.0 + i, 0.9) for i, title in enumerate(titles[:2])} if scores else {}
    return Comparison("a.png", (width // 2, height // 2), 2, images, marks, detail)


@pytest.mark.parametrize("titles", [("bicubic", "EDSR x2"), ("bicubic", "EDSR x2", "original")])
@pytest.mark.parametrize(
    ("height", "width", "detail", "factor"),
    [
        (400, 300, (120, 200, 96), 5),
        (300, 400, (304, 204, 96), 5),
        (100, 900, (500, 0, 100), 4),
        (2, 2, (0, 0, 2), 240),
        (1, 5000, (4999, 0, 1), 480),
        (5000, 1, (0, 77, 1), 480),
        (600, 700, (80, 70, 512), 1),
        (900, 1300, (1000, 600, 241), 1),
    ],
)
def test_details_are_magnified_pixel_by_pixel_and_marked(titles, height, width, detail, factor):
    found = comparison(height, width, titles, detail)
    figure = render_figure(found)
    assert figure.mode == "RGB" and max(figure.size) <= 2000
    pixels = np.asarray(figure)
    x, y, side = detail
    panel = factor * side
    wide = width > 2.4 * height
    top = figure.height - MARGIN - panel - 74 if wide else MARGIN
    for i, title in enumerate(reversed(titles)):
        left = figure.width - MARGIN - panel - i * (panel + 20)
        want = found.images[title][y : y + side, x : x + side].repeat(factor, 0).repeat(factor, 1)
        np.testing.assert_array_equal(pixels[top : top + panel, left : left + panel], want)
    overview = pixels[: top - 4] if wide else pixels[:, : left - 4]
    rows, columns = np.nonzero((overview == MARK).all(2))
    assert len(rows) > 0
    # In the overview the mark surrounds the detail's place, to a few pixels.
    scale = min((len(titles) * (panel + 20) - 20 if wide else 300) / width, (panel if not wide else 1e9) / height)
    if wide:
        scale = min(scale, panel / height)
    scale = int(scale) if scale >= 4 else scale
    for found_at, at in (columns, x), (rows, y):
        assert abs(found_at.min() - MARGIN - at * scale) <= 4
        assert abs(found_at.max() + 1 - MARGIN - (at + side) * scale) <= 4


@pytest.mark.parametrize(("count", "factor"), [(4, 3), (5, 3), (6, 3)])
def test_columns_of_several_networks(count, factor):
    """All details side by side, narrower; a name too long for its column is shortened, and covers no other."""
    titles = ("bicubic", *(f"{i} {'network ' * 9}x2" for i in range(count - 2)), "original")
    found = comparison(400, 300, titles, (120, 200, 96))
    figure = render_figure(found)
    assert max(figure.size) <= 2200
    pixels, panel = np.asarray(figure), 96 * factor
    for i, title in enumerate(reversed(titles)):
        left = figure.width - MARGIN - panel - i * (panel + 20)
        want = found.images[title][200:296, 120:216].repeat(factor, 0).repeat(factor, 1)
        np.testing.assert_array_equal(pixels[MARGIN : MARGIN + panel, left : left + panel], want)
        if i:
            assert (pixels[MARGIN + panel + 6 :, left + panel + 1 : left + panel + 19] == 255).all()


def test_the_better_score_is_darker():
    better, worse = comparison(60, 60), comparison(60, 60)
    worse.scores["bicubic"] = (40.0, 0.9)
    for found, dark, faint in (better, "EDSR x2", "bicubic"), (worse, "bicubic", "EDSR x2"):
        pixels = np.asarray(render_figure(found))
        below = MARGIN + 480 + 14 + 32
        at = {title: pixels.shape[1] - MARGIN - 480 - i * 500 for title, i in (("EDSR x2", 1), ("bicubic", 2))}
        text = {title: pixels[below:, left : left + 480] for title, left in at.items()}
        assert text[dark].min() < 40 < 100 < text[faint].min()
