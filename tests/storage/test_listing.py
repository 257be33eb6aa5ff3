"""Which objects a prefix or a pattern stands for, in S3 and in memory alike, and how many are held."""

import pytest

from edsr.errors import ImageError
from edsr.storage import Url, list_objects, listing, listing_of

KEYS = ["a.png", "in/", "in/a.png", "in/b?.png", "in/[c].png", "in/sub/", "in/sub/d.jpg", "in/sub/e/f.png", "inn/g.png"]
KEYS += ["in/h#%20ü.png"]


@pytest.fixture(params=["s3", "memory"])
def bucket(request, monkeypatch):
    """A bucket with KEYS, which gives three names at a time."""
    monkeypatch.setattr(listing, "PAGE", 3)
    if request.param == "s3":
        client = request.getfixturevalue("s3")
        for key in KEYS:
            client.put_object(Bucket="photos", Key=key, Body=b"1")
    else:
        files = request.getfixturevalue("memory")
        for key in KEYS:
            if not key.endswith("/"):
                files.pipe_file(f"memory://photos/{key}", b"1")
    return f"{request.param}://photos"


def found(text: str, recursive: bool = False, **options) -> list[str] | None:
    meant = listing_of(Url.parse(text), **options)
    return None if meant is None else sorted(url.path for url in list_objects(meant, recursive))


IN = ["in/[c].png", "in/a.png", "in/b?.png", "in/h#%20ü.png"]


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("", ["a.png", "in/", "inn/"]),
        ("/", ["a.png", "in/", "inn/"]),
        ("/in", [*IN, "in/sub/"]),
        ("/in/", [*IN, "in/sub/"]),
        ("/in/sub/e/", ["in/sub/e/f.png"]),
        ("/none/", []),
        ("/none", None),
        ("/in/a.png", None),
        ("/in/b?.png", None),  # an object of this very name
        ("/in/[c].png", None),
        ("/in/*.png", IN),
        ("/in/?.png", ["in/a.png"]),
        ("/in/[!a-b]*.png", ["in/[c].png", "in/h#%20ü.png"]),
        ("/in/b*", ["in/b?.png"]),
        ("/*/a.png", ["in/a.png"]),
        ("/**/*.jpg", ["in/sub/d.jpg"]),
        ("/in/**", [*IN, "in/sub/d.jpg", "in/sub/e/f.png"]),
        ("/in/x*", []),
    ],
)
def test_what_is_meant(bucket, name, paths):
    assert found(bucket + name) == paths


def test_prefixes_are_entered(bucket):
    assert found(f"{bucket}/in/", True) == [*IN, "in/sub/d.jpg", "in/sub/e/f.png"]
    assert found(bucket, True) == sorted(key for key in KEYS if not key.endswith("/"))


def test_an_ending_spares_a_look(bucket):
    assert found(f"{bucket}/none.png", is_object=True) is None
    assert found(f"{bucket}/in/*.png", is_object=True) == IN


@pytest.mark.parametrize("text", ["https://host/in/", "http://host/in", "https://host/*.png"])
def test_over_http_nothing_is_listed(text):
    assert found(text) is None


def test_a_bucket_that_is_not_there(s3):
    with pytest.raises(ImageError, match=r"^s3://none/in/: there is no bucket none"):
        found("s3://none/in/")


def test_pages_are_asked_for_when_they_are_needed(s3, monkeypatch):
    from s3fs import S3FileSystem

    monkeypatch.setattr(listing, "PAGE", 4)
    for i in range(10):
        s3.put_object(Bucket="photos", Key=f"in/{i}.png", Body=b"")
    call, pages = S3FileSystem.call_s3, []

    def count(self, method, *arguments, **named):
        pages.append(method)
        return call(self, method, *arguments, **named)

    monkeypatch.setattr(S3FileSystem, "call_s3", count)
    urls = list_objects(listing.Listing(Url.parse("s3://photos/in/")))
    held = []
    for _ in urls:
        held.append(len(pages))
    assert held == [1] * 4 + [2] * 4 + [3] * 2
