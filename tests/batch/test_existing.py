"""`--skip-existing`: what counts as done, what is done again, and what is left to its owner."""

import json
import os
import sys

import pytest
from PIL import Image

from tests.support.image_files import encoded, names, pillow
from tests.support.image_files import make_image as smooth


@pytest.mark.parametrize("form", ["png", "jpg", "webp", "tiff", "avif"])
def test_finished_results_are_skipped_and_beginnings_done_again(home, upscale, form):
    output = home / f"photo_x2.{form}"
    arguments = ["photo.png", "--format", form, "--skip-existing"]
    assert upscale(*arguments)[0] == 0
    whole = output.read_bytes()
    code, out, _ = upscale(*arguments, "--json")
    assert code == 0 and json.loads(out)["skipped"] and output.read_bytes() == whole
    cuts = [b"", whole[:8], whole[: len(whole) // 2], whole[:-9], bytes(len(whole))]
    for cut in cuts:
        output.write_bytes(cut)
        code, out, err = upscale(*arguments)
        assert code == 0 and out and err == f"note: photo.png: done again, as photo_x2.{form} was no finished image\n"
        assert output.read_bytes() == whole


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WebP", "TIFF"])
def test_results_that_other_programs_have_saved_are_skipped(home, upscale, form):
    data = encoded(form, pillow(smooth(60, 80)))
    (home / "photo_x2.png").write_bytes(encoded("png", pillow(smooth(60, 80))) + b"appended")
    assert upscale("photo.png", "--skip-existing", "--json")[1].count('"skipped": true') == 1
    suffix = {"JPEG": "jpg", "WebP": "webp", "TIFF": "tiff", "PNG": "png"}[form]
    (home / f"photo_x2.{suffix}").write_bytes(data)
    assert upscale("photo.png", "--skip-existing", "--json", "--format", suffix)[1].count('"skipped": true') == 1
    assert (home / f"photo_x2.{suffix}").read_bytes() == data


def test_what_is_no_result_is_left_to_its_owner(home, upscale):
    kinds = {"size": encoded("png", pillow(smooth(9, 9))), "text": b"not an image, but somebody's own text"}
    for name in "size", "text", "folder", "good":
        Image.open("photo.png").save(f"{name}.png")
    for name, data in kinds.items():
        (home / f"{name}_x2.png").write_bytes(data)
    (home / "folder_x2.png").mkdir()
    inputs = ["size.png", "text.png", "folder.png", "good.png"]
    code, out, err = upscale(*inputs, "--skip-existing")
    assert code == 1 and out.count("\n") == 1 and "good_x2.png" in out
    assert "size_x2.png: is there, but 9 x 9 instead of 80 x 60; add --overwrite" in err
    assert "text_x2.png: is there, and is no image; add --overwrite" in err and "folder_x2.png: is a folder" in err
    assert "1 of 4 images done, 3 failed" in err and names("folder_x2.png") == []
    assert all((home / f"{name}_x2.png").read_bytes() == data for name, data in kinds.items())
    code, _, err = upscale(*inputs, "--skip-existing", "--overwrite")
    assert code == 1 and "2 of 4 images done, 1 skipped, 1 failed" in err
    assert all(Image.open(f"{name}_x2.png").size == (80, 60) for name in kinds)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a FIFO")
def test_a_fifo_is_no_result(home, upscale):
    os.mkfifo("photo_x2.png")
    code, _, err = upscale("photo.png", "--skip-existing")
    assert code == 1 and "not a regular file" in err and err.count("\n") == 1


def test_of_a_source_that_is_gone_the_result_remains(home, upscale):
    assert upscale("photo.png")[0] == 0
    os.unlink("photo.png")
    assert upscale("photo.png", "--skip-existing", "--quiet") == (0, "", "")


@pytest.mark.parametrize("more", [(), ("--overwrite",), ("--dry-run",)])
def test_a_single_image_that_is_skipped_is_told(home, upscale, more):
    assert upscale("photo.png", "-o", "out/")[0] == 0
    code, out, err = upscale("photo.png", "-o", "out/", "--skip-existing", *more)
    assert code == 0 and out == "" and err.splitlines()[0] == "out/photo_x2.png is there already: skipped"
