"""`bench.photo`: what it makes of originals, the curve's top, tables, and the file that auto reads."""

import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from bench import drawings, photo
from edsr.images.resize import matlab_bicubic, matlab_downscale
from edsr.weights import files as weights
from edsr.weights import save_model, selection
from tests.conftest import make_image, network


def test_compressing_and_noise():
    for channels in 1, 3:
        low = make_image(20, 30, channels)
        got, data = photo.compressed(low, 60)
        assert got.shape == low.shape and got.dtype == np.uint8 and (got != low).any()
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(np.asarray(image).reshape(low.shape), got)
    gray = np.full((200, 200, 3), 128, np.uint8)
    found = photo.noisy(gray, 10, 3).astype(float) - 128
    assert abs(found.std() - 10) < 0.2 and abs(found.mean()) < 0.2
    np.testing.assert_array_equal(photo.noisy(gray, 10, 3), photo.noisy(gray, 10, 3))


@pytest.mark.parametrize("top", [-0.3, 0.0, 0.12, 0.5, 0.93, 1.0, 1.2])
def test_the_top_of_a_curve_is_found(top):
    values = [30 - (share - top) ** 2 for share in photo.FIT_SHARES]
    assert photo.best(photo.FIT_SHARES, values) == pytest.approx(min(max(top, 0), 1))
    assert photo.best((0.0, 0.5, 1.0), [1.0, 0.0, 0.5]) == 0  # no top inside


def test_scores_fit_and_table():
    """Networks that are bicubic, better with a share near one half."""
    original = make_image(41, 50)

    def network(share):
        def upscale_once(low):
            height, width = 2 * low.shape[0], 2 * low.shape[1]
            smooth = np.clip(np.floor(matlab_bicubic(low.astype(float), height, width) + 0.5), 0, 255)
            part = 0.5 - abs(share - 0.5) ** 2
            return np.round(smooth + part * (original[:height, :width] - smooth)).astype(np.uint8)

        return upscale_once

    table = {"2": [[30, 1.0], [100, 0.0]]}
    shares = (0.0, 0.4, 0.5, 0.6, 1.0)
    found = photo.scores([original, original], network, 2, [None, 90, 65], shares, noise=0, table=table)
    smooth = np.clip(
        np.floor(matlab_bicubic(matlab_downscale(original, 2).astype(float), 40, 50) + 0.5), 0, 255
    ).astype(np.uint8)
    assert found[None]["bicubic"] == photo.psnr(smooth, original[:40], 2)
    assert found[None]["auto"] == found[None][0.0] and found[65]["auto"] == found[65][0.5]
    assert found[90]["auto"] < found[90][0.5] and found[90]["bicubic"] > found[65]["bicubic"]
    assert photo.fit(found, shares) == [[65, 0.5], [90, 0.5]]
    lines = photo.markdown(found, shares).splitlines()
    assert lines[0] == "|  | PNG | 90 | 65 |" and lines[1] == "|---|---:|---:|---:|" and len(lines) == 3 + 5 + 1
    assert (
        lines[3].startswith("| edsr-baseline | +") and lines[5].count("**") == 6 and lines[7].startswith("| edsr-photo")
    )
    assert lines[8].startswith("| auto |") and len(photo.markdown(found, shares, auto=False).splitlines()) == 8
    worse = photo.scores([original], network, 2, [None], shares, noise=10)
    assert worse[None]["bicubic"] < found[None]["bicubic"]


def test_the_whole_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    monkeypatch.setattr(selection, "TABLE", tmp_path / "photo.json")
    for name in selection.FAITHFUL, selection.CLEAN:
        save_model(network(2), tmp_path / f"{name}-x2.safetensors", dtype=torch.float32)
    (tmp_path / "hr").mkdir()
    for i in range(2):
        Image.fromarray(make_image(30, 40, seed=i)).save(tmp_path / "hr" / f"{i}.png")
    hr = str(tmp_path / "hr")
    command = ["photo", "--hr", hr, "--fit", hr, "--write", "--qualities", "80", "40", "--noise", "0", "5"]
    monkeypatch.setattr(sys, "argv", [*command, "--shares", "0", "0.5", "1", "--json", str(tmp_path / "out.json")])
    (tmp_path / "photo.json").write_text('{"4": [[50, 1.0]]}')
    photo.main()
    out = capsys.readouterr().out
    assert out.count("| bicubic, dB |") == 3 and "noise of 5 levels" in out and out.count("| auto |") == 2
    table = json.loads((tmp_path / "photo.json").read_text())
    assert [quality for quality, _ in table["2"]] == [40, 80, 98, 100] and table["4"] == [[50, 1.0]]
    assert {row["quality"] for row in json.loads((tmp_path / "out.json").read_text())["noise 5"]} == {None, 80, 40}
    for wrong in ["photo"], ["photo", "--hr", hr, "--write"]:
        monkeypatch.setattr(sys, "argv", wrong)
        with pytest.raises(SystemExit):
            photo.main()


def test_flat_areas_are_found():
    original = np.full((60, 80, 3), 200, np.uint8)
    original[:, 40] = 0  # a line: 8 pixels on each side of it are not flat
    assert photo.flat(original, original, 2) == 0
    result = original.copy()
    result[:, 30:51] = 90  # damage near the line alone: columns 30 and 31, 49 and 50 are seen
    step = (photo.metrics.luma(original)[0, 0] - photo.metrics.luma(result)[0, 30]) ** 2
    assert photo.flat(result, original, 2) == pytest.approx((step * 4 / (76 - 17)) ** 0.5)
    assert np.isnan(photo.flat(result, make_image(60, 80), 2))
    gray = original[..., :1]
    assert photo.flat(gray + np.uint8(3), gray, 2) == 3


@pytest.mark.slow
def test_drawings_have_lines_and_flat_areas():
    made = drawings.drawings()
    assert list(made) == ["lines", "text", "screenshot", "chart", "harbour"]
    for name, one in made.items():
        assert one.dtype == np.uint8 and one.ndim == 3 and one.shape[2] == 3, name
        edges = np.abs(np.diff(photo.metrics.luma(one), axis=1))
        assert (edges > 60).mean() > 0.005, name
        if name != "harbour":
            assert not np.isnan(photo.flat(one, one, 2)), name


def test_drawings_are_scored_one_by_one(tmp_path, monkeypatch, capsys):
    line = np.full((48, 60, 3), 255, np.uint8)
    line[:, 30] = 0
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    monkeypatch.setattr(selection, "TABLE", tmp_path / "photo.json")
    (tmp_path / "photo.json").write_text('{"2": [[50, 1.0]]}')
    for name in selection.FAITHFUL, selection.CLEAN:
        save_model(network(2), tmp_path / f"{name}-x2.safetensors", dtype=torch.float32)
    monkeypatch.setattr(drawings, "drawings", lambda: {"line": line, "noise": make_image(48, 60)})
    out = str(tmp_path / "out.json")
    monkeypatch.setattr(sys, "argv", ["photo", "--drawings", "--qualities", "50", "--json", out])
    photo.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed[4] == "|  |  | PNG | 50 |" and sum("flat areas |" in row for row in printed) == 1
    assert sum(row.startswith("|  | auto |") for row in printed) == 3
    rows = json.loads((tmp_path / "out.json").read_text())["drawings"]
    assert [(row["drawing"], row["measure"], row["quality"]) for row in rows[:3]] == [
        ("line", "psnr", None),
        ("line", "psnr", 50),
        ("noise", "psnr", None),
    ]
    assert len(rows) == 8 and rows[0]["auto"] == rows[0]["0.0"] and rows[1]["auto"] == rows[1]["1.0"]
