"""Options of a cluster that make no sense are told before anything is begun."""

import pytest

from tests.support.image_files import names

RAY = ["--engine", "ray"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["photo.png", "--address", "auto"], "--address names a cluster; add --engine ray"),
        (["photo.png", *RAY], "--engine ray needs a folder for the results; add -o DIR/"),
        (["-", "-o", "out/", *RAY], "- is one image of this machine; leave out --engine ray"),
        (["photo.png", "-o", "-", *RAY], "- is one image of this machine; leave out --engine ray"),
        (["photo.png", "-o", "out/", "--dry-run", *RAY], "--dry-run looks at this machine alone"),
        (["photo.png", "-o", "out/", "--device", "cuda:1", *RAY], "the cluster gives each worker its own"),
        (["photo.png", "-o", "photo.png", *RAY], "-o photo.png: is no folder"),
        ([".", "-o", ".", *RAY], "which is listed meanwhile; choose another folder"),
        ([".", "-o", "out/", "--recursive", *RAY], "which is listed meanwhile; choose another folder"),
    ],
)
def test_misuse(home, upscale, arguments, why):
    before = names(home)
    code, out, err = upscale(*arguments)
    assert (code, out) == (2, "") and err.startswith("error: ") and why in err and err.count("\n") == 1
    assert names(home) == before


def test_no_images_start_no_cluster(home, upscale):
    (home / "empty").mkdir()
    code, _, err = upscale("empty", "-o", "out", *RAY)
    assert code == 1 and "empty: no images in this folder" in err and "worker" not in err
    code, _, err = upscale("gone.png", "-o", "out", *RAY)
    assert code == 1 and "gone.png: no such file" in err and "worker" not in err
