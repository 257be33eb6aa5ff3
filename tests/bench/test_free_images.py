"""`bench.free_images`: which images of unpacked packages are taken."""

import sys

import numpy as np
import pytest
from PIL import Image

from bench import free_images
from tests.conftest import make_image

LICENSES = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: Everybody
License: GPL-3+

Files: data/tracks/a/*
 data/tracks/b/fine.jpg
Copyright: Somebody
License: CC-BY-SA-3.0

Files: data/tracks/a/given.jpg
Copyright: none
License: CC0
 Given to all.

License: CC0
 The whole text.
"""


def save(path, height, width, quality=95):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(make_image(height, width)).save(path, quality=quality)


@pytest.fixture
def unpacked(tmp_path):
    """Both packages, with images that are taken and such that are not."""
    share = tmp_path / "unpacked/usr/share"
    for name, text in {
        "supertuxkart-data": LICENSES,
        "endless-sky-data": "Files: *\nLicense: CC-BY-4.0\n\nFiles: images/land/*\nLicense: public-domain\n",
    }.items():
        (share / f"doc/{name}").mkdir(parents=True)
        (share / f"doc/{name}/copyright").write_text(text)
    tracks = share / "games/supertuxkart/data/tracks"
    save(tracks / "a/wall.jpg", 512, 520)
    save(tracks / "a/given.jpg", 512, 512)
    save(tracks / "b/fine.jpg", 512, 512)
    save(tracks / "b/gpl.jpg", 512, 512)
    save(tracks / "a/small.jpg", 511, 600)
    save(tracks / "a/coarse.jpg", 512, 512, quality=50)
    save(tracks / "a/Wall_Normal.jpg", 512, 512)
    Image.fromarray(np.full((512, 512, 3), (128, 128, 255), np.uint8)).save(tracks / "a/hidden.jpg", quality=95)
    save(share / "games/endless-sky/images/land/sky0.jpg", 20, 30)
    save(share / "games/endless-sky/images/ship/hull.jpg", 20, 30)
    return tmp_path / "unpacked"


def test_free_photographs_are_linked(unpacked, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    for _ in range(2):  # a second time changes nothing
        monkeypatch.setattr(sys, "argv", ["free_images", str(unpacked), "--out", str(out)])
        free_images.main()
        found = {str(path.relative_to(out)): path.resolve().name for path in out.rglob("*.jpg")}
        assert found == {
            "endless-sky/000_sky0.jpg": "sky0.jpg",
            "supertuxkart/000_given.jpg": "given.jpg",
            "supertuxkart/001_wall.jpg": "wall.jpg",
            "supertuxkart/002_fine.jpg": "fine.jpg",
        }
    said = capsys.readouterr().out
    for part in (
        "3 images of supertuxkart-data",
        "2 CC-BY-SA-3.0, 1 CC0",
        "1 images of endless-sky",
        "1 public-domain",
    ):
        assert part in said


def test_the_last_pattern_that_matches_holds():
    licenses = free_images.read_licenses(LICENSES)
    assert free_images.find_license(licenses, "data/tracks/a/given.jpg") == "CC0"
    assert free_images.find_license(licenses, "data/tracks/a/deep/wall.jpg") == "CC-BY-SA-3.0"
    assert free_images.find_license(licenses, "data/tracks/b/fine.jpg") == "CC-BY-SA-3.0"
    assert free_images.find_license(licenses, "data/tracks/b/other.jpg") == "GPL-3+"
    assert free_images.find_license(free_images.read_licenses("Files: a\nLicense: MIT\n"), "b") is None


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["free_images", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        free_images.main()
    assert "has no endless-sky-data: apt-get download endless-sky-data" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
