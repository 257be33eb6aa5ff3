"""Standard input kept in a file: no more of it than there is reason and room for."""

import io
from collections import namedtuple

import pytest

from edsr.batch import stdio
from edsr.errors import ImageError
from tests.support.image_files import encoded


class Endless(io.RawIOBase):
    """A stream that repeats a byte after its beginning. given: how many bytes it has given."""

    def __init__(self, beginning=b""):
        self.beginning, self.given = beginning, 0

    def read(self, size=-1):
        assert size > 0, "all of it is asked for"
        data, self.beginning = self.beginning[:size], self.beginning[size:]
        self.given += size
        return data.ljust(size, b"\0")


def test_what_does_not_begin_like_an_image_is_not_read():
    stream = Endless()
    with stdio.stdin_file(stream) as path:
        assert path.suffix == "" and path.stat().st_size == stream.given == 16


def test_an_image_without_an_end_does_not_fill_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    usage, left = namedtuple("usage", "free"), 2**27 + 2**25

    def disk_usage(_):
        return usage(left - sum(path.stat().st_size for path in tmp_path.rglob("stdin*")))

    monkeypatch.setattr(stdio.shutil, "disk_usage", disk_usage)
    message = r"^standard input: does not end before .* is full, [0-9]+ MB came"
    with pytest.raises(ImageError, match=message), stdio.stdin_file(Endless(encoded("png"))):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff"])
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 2**20 + 16, 2**24 + 17])
def test_an_image_is_kept_whole(kind, size):
    data = encoded(kind)
    data = data[:size].ljust(size, b"\1")
    with stdio.stdin_file(io.BytesIO(data)) as path:
        kept = path.read_bytes()
        assert kept == (data if path.suffix else data[:16])
        assert path.suffix or size < 16
