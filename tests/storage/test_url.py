"""URLs as names: what is taken apart and joined, what is shown, what is refused."""

import pickle
from pathlib import Path

import pytest

from edsr.errors import ImageError
from edsr.storage import Url, as_path, identity, is_url, place_of, why_not_a_path


@pytest.mark.parametrize(
    ("text", "shown", "name", "stem", "suffix"),
    [
        ("s3://photos/in/a.jpg", "s3://photos/in/a.jpg", "a.jpg", "a", ".jpg"),
        ("S3A://photos/in/a.jpg", "s3://photos/in/a.jpg", "a.jpg", "a", ".jpg"),
        ("gcs://photos/a", "gs://photos/a", "a", "a", ""),
        ("s3://p/a b#c?d%20é::f..PNG", "s3://p/a b#c?d%20é::f..PNG", "a b#c?d%20é::f..PNG", "a b#c?d%20é::f.", ".PNG"),
        ("s3://photos", "s3://photos/", "", "", ""),
        ("s3://photos/in/", "s3://photos/in/", "", "", ""),
        ("s3://p/.png", "s3://p/.png", ".png", ".png", ""),
        ("s3://p/a.", "s3://p/a.", "a.", "a.", ""),
        ("memory://a.png", "memory://a.png/", "", "", ""),
        ("memory://in/a.png", "memory://in/a.png", "a.png", "a", ".png"),
        ("https://me:secret@h:80/a%20b.png?sig=secret#part", "https://h:80/a%20b.png?...", "a b.png", "a b", ".png"),
        ("https://host/..%2f..%2Fe%5cx.png", "https://host/..%2f..%2Fe%5cx.png", ".._.._e_x.png", ".._.._e_x", ".png"),
        ("http://host?id=secret", "http://host/?...", "", "", ""),
        ("https://host/ä ö.jpg", "https://host/%C3%A4%20%C3%B6.jpg", "ä ö.jpg", "ä ö", ".jpg"),
    ],
)  # fmt: skip
def test_a_url_is_taken_apart(text, shown, name, stem, suffix):
    url = place_of(text)
    assert isinstance(url, Url) and is_url(text)
    assert (str(url), url.name, url.stem, url.suffix) == (shown, name, stem, suffix)
    assert place_of(url.address) == url == pickle.loads(pickle.dumps(url))
    assert "secret" not in str(url)


def test_the_address_is_whole():
    text = "https://me:secret@host/a.png?sig=%2Bx%2F"
    assert Url.parse(text).address == identity(Url.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("s4://photos/a.png", "s4://: an unknown scheme; use one of s3://, gs://, https://, http://, file://"),
        ("zip://a.png::s3://photos/a.zip", "zip://: an unknown scheme"),
        ("s3:///a.png", "s3:///: names no bucket; write s3://BUCKET/NAME"),
        ("https://", "https:///: names no server; write https://SERVER/NAME"),
        ("file://host/a.png", "names another machine; a path follows file:// after a third slash"),
    ],
)
def test_what_is_no_place_is_refused(text, problem):
    with pytest.raises(ImageError) as caught:
        place_of(text)
    assert problem in str(caught.value) and caught.value.misuse


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("file:///in/a%20b.png", "/in/a b.png"),
        ("FILE://localhost/in/", "/in/"),
        ("file:///%ff.png", "/\udcff.png"),
        ("C:\\in\\a.png", "C:\\in\\a.png"),
        ("in/a.png", "in/a.png"),
        ("a://b", "a://b"),  # a scheme has two letters or more
    ],
)
def test_other_names_are_paths(text, path):
    assert as_path(text) == path and place_of(text) == Path(path) and not is_url(text)


def test_where_only_paths_are_taken_a_url_is_refused_without_its_secrets():
    assert why_not_a_path("https://me:secret@host/a.pth?key=secret").startswith("https://host/a.pth: is a URL")
    assert why_not_a_path("file:///a.pth").startswith("file:///a.pth: is a URL")
    assert (
        why_not_a_path("s3:/a")
        is why_not_a_path(Path("C:/a"))
        is why_not_a_path("hf-hub:me/edsr")
        is why_not_a_path("a:0.5+b:0.5")
        is None
    )


def test_urls_are_joined():
    url = Url.parse("s3://photos/in/a.png")
    assert str(url.parent) == "s3://photos/in/" and url.parent.is_folder and not url.is_folder
    assert str(url.parent.parent) == "s3://photos/" == str(url.parent.parent.parent)
    assert url.parent / "a.png" == url == url.with_name("a.png")
    assert str(Url.parse("s3://photos/in") / "b") == "s3://photos/in/b"
    assert str(Url.parse("https://host/a.png?x=1").with_name("b.png")) == "https://host/b.png"


def test_equal_names_are_one_file(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    assert identity(tmp_path / "link" / "a") == identity(tmp_path / "a")
    assert identity(Url.parse("s3://p/a")) != identity(Url.parse("s3://p/A"))
