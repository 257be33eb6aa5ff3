"""`upscale --dry-run`: it says what the real run does, and does nothing."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from edsr.weights import save_model
from tests.conftest import make_image, network


def tree(folder) -> dict[str, tuple[int, bytes]]:
    """All that lies in a folder, with times and contents."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, b"" if path.is_dir() else path.read_bytes())
        for path in sorted(folder.rglob("*"))
    }


def records(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def images(home):
    (home / "in" / "deep").mkdir(parents=True)
    for name, size in (("a.png", (30, 20)), ("b.jpg", (21, 33)), ("deep/c.webp", (40, 9))):
        Image.fromarray(make_image(size[1], size[0])).save(home / "in" / name)
    Image.fromarray(make_image(20, 20, 4)).save(home / "in" / "alpha.png")
    tifffile.imwrite(home / "in" / "f.tiff", make_image(9, 12).astype(np.float32) / 255, photometric="rgb")
    return home


@pytest.mark.parametrize(
    "wish",
    [
        (),
        ("--width", "24"),
        ("--height", "17", "--format", "jpg"),
        ("--width", "24", "--height", "18", "--fit"),
        ("--outscale", "1.5", "--linear-light", "--format", "webp"),
        ("--format", "keep", "--self-ensemble"),
    ],
)
def test_what_is_said_is_what_the_real_run_does(images, upscale, wish):
    arguments = ("in", "-o", "new/tree/", "--recursive", "--json", *wish)
    before = tree(images)
    code, out, err = upscale(*arguments, "--dry-run")
    assert code == 0 and tree(images) == before and not os.path.exists("new")
    assert err.endswith("dry run: nothing was upscaled, and nothing written\n")
    foreseen, done = records(out), records(upscale(*arguments)[1])
    measured = ("seconds", "megapixels_per_second")
    assert all(record[name] > 0 for record in foreseen for name in (*measured, "memory_bytes"))
    more = {"dry_run": True, "replaces": False}
    for record, real in zip(foreseen, done, strict=True):
        if real["output"].endswith(".tiff"):
            form = "TIFF"
            height, width = tifffile.imread(real["output"]).shape[:2]
        else:
            with Image.open(real["output"]) as result:
                form, (width, height) = {"WEBP": "WebP"}.get(result.format, result.format), result.size
        assert record["output_size"] == [width, height]
        unknown = {name: record[name] for name in (*measured, "memory_bytes")}
        assert record == real | more | unknown | {"format": form}


def test_lines_for_people(images, upscale):
    code, out, err = upscale("in", "-o", "new", "--dry-run")
    assert code == 0 and out.count("\n") == 4 and "in/a.png -> new/a_x2.png  30 x 20 -> 60 x 40 PNG, m.sa" in out
    assert "4 of 4 images to do: " in err and "megapixels, at most" in err and "of memory" in err
    assert upscale("in", "-o", "new", "--dry-run", "--quiet") == (0, "", "")
    code, out, err = upscale("photo.png", "--dry-run")
    assert (code, out.count("\n"), err) == (0, 1, "dry run: nothing was upscaled, and nothing written\n")


def test_what_fails_fails_alike(images, upscale):
    """Outputs that exist, inputs that are no images, sizes that cannot be: the same lines, the same codes."""
    Path("in/broken.png").write_bytes(b"no image")
    Path("in/a_x2.png").write_bytes(b"there")
    for arguments in (
        ("in/a.png",),
        ("in/broken.png", "in/missing.png"),
        ("in/a.png", "--width", "100", "-o", "wide.png"),
        ("in/a.png", "-o", "none/b.png"),
        ("in/a.png", "-o", "in/deep"),
        ("in/a.png", "-o", "in/a.png"),
        ("nothing*.png",),
        ("in/alpha.png", "-o", "b.jpg", "--outscale", "9"),
    ):
        before = tree(images)
        code, _, err = upscale(*arguments, "--dry-run")
        assert tree(images) == before
        real = upscale(*arguments)
        errors = [[line for line in text.splitlines() if "error: " in line] for text in (err, real[2])]
        assert code == real[0] and errors[0] == errors[1]
        for name in set(tree(images)) - set(before):
            os.unlink(name)
    assert "a_x2.png: exists; add --overwrite" in upscale("in/a.png", "--dry-run")[2]


def test_what_is_there_is_skipped_or_replaced(images, upscale):
    upscale("in/a.png")
    before = tree(images)
    code, out, err = upscale("in", "--skip-existing", "--dry-run")
    assert code == 0 and "in/a_x2.png" not in out and "3 of 4 images to do: " in err and ", 1 skipped" in err
    code, out, _ = upscale("in/a.png", "--overwrite", "--dry-run")
    assert code == 0 and "in/a_x2.png (replaced)  30 x 20" in out and tree(images) == before
    assert records(upscale("in/a.png", "--overwrite", "--dry-run", "--json")[1])[0]["replaces"] is True


def test_a_huge_image_is_not_decoded(home, upscale):
    """A gigapixel, most of which is a hole in the file."""
    tifffile.memmap("huge.tif", shape=(30_000, 35_000), dtype=np.uint8).flush()
    code, out, _ = upscale("huge.tif", "--dry-run", "--json")
    (record,) = records(out)
    assert code == 0 and record["input_size"] == [35_000, 30_000] and record["output_size"] == [70_000, 60_000]
    assert record["seconds"] > 10 and not os.path.exists("huge_x2.png")
    assert upscale("huge.tif", "--dry-run", "--format", "webp")[0] == 1  # 16,383 pixels are its most


def test_time_and_memory_grow_with_the_image(home, upscale):
    for name, side in (("small", 100), ("large", 1000)):
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(f"{name}.png")
    small, large = records(upscale("small.png", "large.png", "--dry-run", "--json")[1])
    assert large["seconds"] == pytest.approx(100 * small["seconds"], rel=2e-5)  # both are rounded to six digits
    assert large["memory_bytes"] > small["memory_bytes"]


def test_each_image_is_told_its_network_and_none_is_loaded_for_it(home, run, monkeypatch):
    from edsr.batch import pool

    loaded = []
    original = pool.load_with_notes
    monkeypatch.setattr(pool, "load_with_notes", lambda *a: loaded.append(a[0]) or original(*a))
    Image.fromarray(make_image(16, 16)).save("a.jpg", quality=40)
    code, out, _ = run("upscale", "a.jpg", "photo.png", "--dry-run")
    assert code == 0 and "JPEG quality 40: edsr-photo" in out and "PNG, edsr-baseline" in out
    assert set(loaded) == {"edsr-baseline"}


def test_nothing_goes_to_standard_output_as_an_image(home, upscale):
    save_model(network(2), "m.safetensors")
    code, out, err = upscale("photo.png", "-o", "-", "--dry-run", "--format", "jpg")
    assert code == 0 and out == "" and "photo.png -> standard output  40 x 30 -> 80 x 60 JPEG" in err
