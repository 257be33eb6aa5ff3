"""Batches of what lies under a prefix: which images, what they are called, what is told, how little is held."""

import itertools
import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest

from edsr.batch import FailedInput, ListedJobs, prefixes
from edsr.cli.listed import Found
from edsr.errors import ImageError
from edsr.storage import Listing, Url
from tests.conftest import make_image
from tests.support.image_files import write

BESIDE = ["a.jpg", "a.JPG", "a.png", "a_jpg.png", "a_png.jpg", "a.b.png", ".png.png", "ä #?%20.png"]


def jobs(monkeypatch, names, output="s3://b/out/", **options):
    """What becomes of objects of these names under s3://b/in/."""
    listing = Listing(Url.parse("s3://b/in/"))
    monkeypatch.setattr(prefixes, "list_objects", lambda *_: (listing.folder / name for name in names))
    place = None if output is None else Url.parse(output) if "://" in output else Path(output)
    listed = ListedJobs(listing, place, "x2", **options)
    return listed, list(listed)


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("a.png", "a_png_x2.png"),
        ("a.JPG", "a_JPG_x2.png"),
        ("sub/a.b.png", "sub/a.b_png_x2.png"),
        ("sub//x?/a#%20 .png", "sub//x?/a#%20 _png_x2.png"),
    ],
)
def test_a_result_has_its_kind_in_its_name(monkeypatch, name, result):
    for output, path in ("s3://b/out", "out/"), ("s3://b/out/", "out/"), ("s3://b", ""), (None, "in/"):
        assert str(jobs(monkeypatch, [name], output)[1][0].output) == f"s3://b/{path}{result}"


@pytest.mark.parametrize("form", [None, "png", "jpg", "keep"])
def test_no_two_results_have_one_name(monkeypatch, form):
    _, found = jobs(monkeypatch, BESIDE[:6] + BESIDE[7:], form=form)
    outputs = [job.output for job in found]
    assert len({*outputs}) == len(outputs) == len(BESIDE) - 1
    endings = {".png", ".jpg"} if form == "keep" else {f".{form or 'png'}"}
    assert {job.output.suffix.lower() for job in found} == endings


def test_what_is_left_out(monkeypatch):
    names = ["a.png", "a_x2.png", "a_jpg_20x30.png", "a_20x30.png", "a_png_w30.png", "a.txt", "a", ".a.png", ".h/a.png"]
    listed, found = jobs(monkeypatch, [*names, "sub/"])
    assert [job.source.name for job in found] == ["a.png", "a_20x30.png"]
    assert (listed.earlier, dict(listed.others), listed.closed, listed.found) == (3, {".txt": 1, "": 1}, 1, 2)
    assert len(jobs(monkeypatch, names, again=True)[1]) == 5


def test_results_are_never_listed_as_images(monkeypatch):
    for output in None, "s3://b/in/", "s3://b/in/out/":
        with pytest.raises(ImageError, match="name an output outside of it") as caught:
            jobs(monkeypatch, ["a.png"], output, again=True)
        assert caught.value.misuse
    assert jobs(monkeypatch, ["a.png"], "s3://b/in2/", again=True)[1]


@pytest.mark.parametrize("name", ["../a.png", "sub/../../a.png", "/a.png", "./a.png", "a//b.png"])
def test_no_path_leads_out_of_a_folder(monkeypatch, tmp_path, name):
    _, (failed,) = jobs(monkeypatch, [name], str(tmp_path))
    assert isinstance(failed, FailedInput)
    assert str(failed.error) == (
        f"s3://b/in/{name}: no path below {tmp_path} has such a name; choose an output at a URL"
    )


def test_where_case_does_not_count(monkeypatch, tmp_path):
    monkeypatch.setattr(prefixes, "ignores_case", lambda _: True)
    _, found = jobs(monkeypatch, ["a.png", "A.png", "ä.png", "a\u0308.png", "b.png"], str(tmp_path))
    assert [isinstance(item, FailedInput) for item in found] == [False, True, False, True, False]
    assert "another one would become the same file" in str(found[1].error)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], {}, "no images under this prefix (.png"),
        (["sub/"], {}, "; add recursive=True to enter the 1 prefixes in it"),
        (["a_x2.png"], {}, "holds only results of earlier runs; add again=True to upscale them"),
    ],
)
def test_nothing_is_told(monkeypatch, names, options, message):
    _, (failed,) = jobs(monkeypatch, names, **options)
    assert str(failed.error).startswith("s3://b/in/: ") and message in str(failed.error)


def test_none_is_held(monkeypatch):
    folder = Url.parse("s3://b/in/")
    monkeypatch.setattr(prefixes, "list_objects", lambda *_: (folder / f"{i:09}.jpg" for i in itertools.count()))
    listed = iter(ListedJobs(Listing(folder), Url.parse("s3://b/out/"), "x2"))
    list(itertools.islice(listed, 1000))
    tracemalloc.start()
    try:
        for _ in itertools.islice(listed, 20_000):
            pass
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.fixture
def photos(home, s3):
    """A bucket with four images, of which one is cut off, and what is no image."""
    (home / "in").mkdir()
    for i, name in enumerate(["a", "b", "c"]):
        write(home / "in" / f"{name}.png", make_image(20 + i, 30, seed=i))
    data = {name: (home / "in" / f"{name}.png").read_bytes() for name in "abc"}
    bodies = {"in/a.png": data["a"], "in/b.png": data["b"], "in/bad.png": data["a"][:300], "in/sub/c.png": data["c"]}
    for name, body in {**bodies, "in/": b"", "in/readme.txt": b"text"}.items():
        s3.put_object(Bucket="photos", Key=name, Body=body)
    return s3


def names(s3, prefix) -> list[str]:
    return [one["Key"] for one in s3.list_objects_v2(Bucket="photos", Prefix=prefix).get("Contents", [])]


RESULTS = ["out/a_png_x2.png", "out/b_png_x2.png", "out/sub/c_png_x2.png"]


def test_a_whole_prefix(photos, upscale):
    code, out, err = upscale("s3://photos/in/", "-o", "s3://photos/out/", "--recursive")
    assert code == 1 and names(photos, "out/") == RESULTS
    assert sorted(line.split()[0] for line in out.splitlines()) == [f"s3://photos/{name}" for name in RESULTS]
    assert "3 of 4 images done, 1 files passed over, no images by their names (1 .txt), 1 failed:" in err
    assert "error: s3://photos/in/bad.png: damaged or cut off" in err
    photos.upload_file("in/a.png", "photos", "in/z.png")
    code, out, err = upscale("s3://photos/in", "-o", "s3://photos/out/", "--recursive", "--skip-existing")
    assert code == 1 and "1 of 5 images done, 3 skipped" in err and out.startswith("s3://photos/out/z_png_x2.png")
    upscale("in/", "-o", "right/")
    for name in "ab":
        body = photos.get_object(Bucket="photos", Key=f"out/{name}_png_x2.png")["Body"].read()
        assert body == Path(f"right/{name}_x2.png").read_bytes()


def test_beside_the_images_and_again(photos, upscale):
    photos.delete_object(Bucket="photos", Key="in/bad.png")
    code, _, err = upscale("s3://photos/in/")
    assert code == 0 and names(photos, "in/") == ["in/", *(f"in/{n}.png" for n in ["a", "a_png_x2", "b", "b_png_x2"]),
                                                  "in/readme.txt", "in/sub/c.png"]  # fmt: skip
    assert "note: 1 prefix was not entered; add --recursive to" in err
    code, _, err = upscale("s3://photos/in/", "--skip-existing")
    assert code == 0 and "0 of 2 images done, 2 skipped, 2 earlier results left out" in err


def test_a_pattern_into_a_folder_as_json(photos, upscale):
    code, out, _ = upscale("s3://photos/in/**/[ac]*.png", "-o", "out/", "--json", "--device", "cpu,cpu")
    assert code == 0 and sorted(json.loads(line)["output"] for line in out.splitlines()) == [
        str(Path("out/a_png_x2.png")), str(Path("out/sub/c_png_x2.png"))
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["s3://photos/in/", "s3://photos/in/a.png", "-o", "out/"], 2, "must be the only input; give it a command"),
        (["s3://photos/in/", "-o", "out.png"], 2, "several images need a folder after -o"),
        (["s3://photos/in/", "-o", "-"], 2, "standard output takes one image"),
        (["s3://photos/in/", "--again"], 2, "name an output outside of it"),
        (["s3://photos/none/", "-o", "out/"], 1, "s3://photos/none/: no images under this prefix"),
        (["s3://photos/none*", "-o", "out/"], 1, "s3://photos/none*: nothing matches this pattern"),
        (["s3://none/in/", "-o", "out/"], 1, "s3://none/in/: there is no bucket none"),
        (["s3://photos", "-o", "out/"], 1, "s3://photos/: no images under this prefix"),
    ],
)
def test_what_is_refused(photos, upscale, arguments, code, problem):
    found, _, err = upscale(*arguments)
    assert found == code and problem in err


def test_processes_share_what_is_listed(photos):
    folder = Url.parse("s3://photos/in/")
    found = []
    for rank in range(2):
        group = SimpleNamespace(rank=rank, world_size=2, is_main=not rank)
        found.append([job.source.name for job in Found(ListedJobs(Listing(folder), None, "x2"), group, None, None)])
    assert found == [["a.png", "bad.png"], ["b.png"]]
