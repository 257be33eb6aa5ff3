"""`bench.sizes`: which sizes of an image are written, and where."""

import sys

import numpy as np
from PIL import Image

from bench import sizes
from tests.conftest import make_image


def test_large_images_are_reduced_and_small_ones_also_kept(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "photographs"
    (folder / "deeper").mkdir(parents=True)
    small, gray = make_image(40, 60), make_image(33, 21, 1)[..., 0]
    Image.fromarray(small).save(folder / "small.one.png")
    Image.fromarray(gray).save(folder / "deeper" / "gray.png")
    Image.new("RGB", (1200, 1000), (90, 30, 200)).save(folder / "large.jpg", quality=95)
    (folder / "notes.txt").write_text("none")
    monkeypatch.setattr(sys, "argv", ["sizes", str(folder), "--out", str(tmp_path / "out")])
    sizes.main()
    found = {str(path.relative_to(tmp_path / "out")): Image.open(path) for path in tmp_path.rglob("out/**/*.png")}
    assert {name: image.size for name, image in found.items()} == {
        "100/photographs/small.one.png.png": (60, 40),
        "75/photographs/small.one.png.png": (45, 30),
        "100/photographs/deeper/gray.png.png": (21, 33),
        "75/photographs/deeper/gray.png.png": (16, 25),
        "75/photographs/large.jpg.png": (900, 750),
        "50/photographs/large.jpg.png": (600, 500),
        "36/photographs/large.jpg.png": (432, 360),
    }
    assert all(image.mode == "RGB" for image in found.values())
    np.testing.assert_array_equal(np.asarray(found["100/photographs/small.one.png.png"]), small)
    assert "3 images, in all sizes 1 megapixels" in capsys.readouterr().out
