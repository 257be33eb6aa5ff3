"""Which files in a folder are images, and how libvips is set up."""

import numpy as np
import pytest
import pyvips

from edsr.images import find_images, read_image
from tests.support.image_files import linux, make_image, refused, run, write

# ---- libvips

UNTOUCHED = """
import sys
import pyvips
before = pyvips.cache_get_max()
from edsr.images import *
from edsr.images import ImageReader, ImageWriter, compression, reorder
assert before == pyvips.cache_get_max() > 0
{}
print(before, pyvips.cache_get_max())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "use",
    [
        "ImageReader(sys.argv[1])",
        "ImageWriter(sys.argv[1] + '.png', 3, 3, 3)",
        "import numpy; pixels_to_srgb(numpy.zeros((3, 3, 1), numpy.uint8), b'none')",
    ],
)
def test_only_use_changes_the_cache_of_libvips(tmp_path, use):
    write(tmp_path / "a.png", make_image())
    (line,) = run(UNTOUCHED.format(use), tmp_path / "a.png")
    before, after = map(int, line.split())
    assert before > 0 and after == 0


def test_no_cache_is_left(tmp_path):
    write(tmp_path / "a.png", make_image())
    write(tmp_path / "a.png", make_image(seed=1), overwrite=True)
    assert np.array_equal(read_image(tmp_path / "a.png"), make_image(seed=1))
    assert pyvips.cache_get_size() == 0


# ---- folders


def test_find_images(tmp_path):
    refused("no images", find_images, tmp_path)
    refused("cannot be listed", find_images, tmp_path / "none")
    for name in ("b.PNG", "a.jpeg", "c.txt", ".hidden.png", "d.tif", "e.heic", "f.avif"):
        (tmp_path / name).write_bytes(b"")
    refused("cannot be listed", find_images, tmp_path / "c.txt")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "e.png").write_bytes(b"")
    assert [path.name for path in find_images(tmp_path)] == ["a.jpeg", "b.PNG", "d.tif", "e.heic", "f.avif"]


def test_find_images_in_folders(tmp_path):
    (tmp_path / "z" / "empty").mkdir(parents=True)
    refused("no images", find_images, tmp_path, recursive=True)
    refused("cannot be listed", find_images, tmp_path / "none", recursive=True)
    for name in ("m.png", "z/b.png", "z/a.txt", "a/deep/c.JPG", ".hidden/d.png", "a/.e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    found = [str(path.relative_to(tmp_path)) for path in find_images(tmp_path, recursive=True)]
    assert found == ["a/deep/c.JPG", "m.png", "z/b.png"]
    assert [path.name for path in find_images(tmp_path)] == ["m.png"]


@linux
def test_find_images_follows_links_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.png").write_bytes(b"")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"")
    (tmp_path / "images" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert [path.name for path in find_images(tmp_path / "images", recursive=True)] == ["a.png", "gone.png", "b.png"]
