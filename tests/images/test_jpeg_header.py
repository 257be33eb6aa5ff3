"""Oddities in a JPEG's header hide no damage behind them, and intact files with them are read. Pillow witnesses."""

import io

import numpy as np
import pytest
from PIL import Image

from edsr.errors import ImageError
from edsr.images.jpeg_header import EXTRA_BYTES, UNMARKED_CMYK
from edsr.images.reader import ImageReader
from tests.support.image_files import encoded, make_image, pillow, with_pillow

PIXELS = make_image(160, 192)
PLAIN = encoded("jpeg", pillow(PIXELS), quality=90)


def read(path):
    with ImageReader(path, full=True) as reader:
        return np.concatenate(list(reader.rows(16))), reader.warnings


def adobe(transform):
    return b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])


def before(marker, more):
    at = PLAIN.find(marker)
    return PLAIN[:at] + more + PLAIN[at:]


ODD = {
    "scan parameters": PLAIN.replace(b"\0\x3f\0", b"\1\2\3", 1),
    "JFIF 9": PLAIN.replace(b"JFIF\0\1", b"JFIF\0\x09", 1),
    "Adobe transform 2": PLAIN[:2] + adobe(2) + PLAIN[20:],
    "bytes before tables": before(b"\xff\xdb", b"\0\1\2"),
    "bytes before the frame": before(b"\xff\xc0", bytes(500)),
}


@pytest.mark.parametrize("name", ODD)
def test_oddities_hide_no_damage(tmp_path, name):
    path, odd = tmp_path / "a.jpg", ODD[name]
    assert odd != PLAIN
    path.write_bytes(odd)
    pixels, warnings = read(path)
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(PLAIN))))
    assert list(warnings) == [EXTRA_BYTES] * name.startswith("bytes")
    at = odd.rfind(b"\xff\xda") + 2000
    for damaged in (odd[:at] + bytes(600) + odd[at + 600 :], odd[:at] + b"\xff\xd9"):
        path.write_bytes(damaged)
        with pytest.raises(ImageError, match="damaged"):
            read(path)


@pytest.mark.parametrize("marked", [True, False])
def test_cmyk_without_adobe_s_mark_is_told(tmp_path, marked):
    path = tmp_path / "a.jpg"
    data = encoded("jpeg", Image.fromarray(np.dstack([PIXELS, PIXELS[..., 0]]), "CMYK"))
    at = data.find(b"\xff\xee")
    path.write_bytes(data if marked else data[:at] + data[at + 16 :])
    assert (UNMARKED_CMYK in read(path)[1]) is not marked


@pytest.mark.parametrize("length", [*range(2, 30), 150, 300, 600])
def test_headers_that_end_early(tmp_path, length):
    path = tmp_path / "a.jpg"
    path.write_bytes(PLAIN[:length] if length > 2 else PLAIN[:3])
    with pytest.raises(ImageError):
        read(path)


def test_no_false_alarm(tmp_path):
    path = tmp_path / "a.jpg"
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 2}, {"keep_rgb": True}, {"subsampling": 2}):
        path.write_bytes(encoded("jpeg", pillow(PIXELS), **options))
        assert not read(path)[1]
    path.write_bytes(before(b"\xff\xdb", b"\xff\xff\xff"))
    assert np.array_equal(read(path)[0], with_pillow(path)) and not read(path)[1]
