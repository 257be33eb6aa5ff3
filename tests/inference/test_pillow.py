"""Images of Pillow: one comes back, as one would expect it of Pillow's own `resize`."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from edsr import EDSR, EDSRConfig, Upscaler
from tests.conftest import ROOT, make_image, repeating_network

PIXELS = make_image(12, 14)
gray, deep = PIXELS[:, :, 0], PIXELS[:, :, 0].astype(np.uint16) * 257
unit = (gray / 255).astype(np.float32)
colors = Image.fromarray(PIXELS)


@pytest.fixture(scope="module")
def upscaler():
    torch.manual_seed(0)
    return Upscaler(EDSR(EDSRConfig(blocks=1, features=8)), "cpu", backend="torch")


def with_key(image, key):
    image = image.copy()
    image.info["transparency"] = key
    return image


def full(mask):
    return np.where(mask, np.uint8(255), np.uint8(0))


def big_endian(pixels):
    return Image.frombytes("I;16B", pixels.shape[::-1], pixels.astype(">u2").tobytes())


alpha = full(gray > 120)
palette = colors.quantize(16)
see_through = Image.fromarray(np.dstack([PIXELS, alpha])).quantize(16)
assert see_through.palette is not None and see_through.palette.mode == "RGBA" and not see_through.info
KINDS = {  # what is given -> mode of the result, the array it must be as good as
    "L": (Image.fromarray(gray), "L", gray),
    "LA": (Image.fromarray(np.dstack([gray, gray])), "LA", np.dstack([gray, gray])),
    "RGB": (colors, "RGB", PIXELS),
    "RGBA": (Image.fromarray(np.dstack([PIXELS, alpha])), "RGBA", np.dstack([PIXELS, alpha])),
    "F": (Image.fromarray(unit), "F", unit),
    "I;16": (Image.fromarray(deep), "I;16", deep),
    "I;16B": (big_endian(deep), "I;16", deep),
    "1": (Image.fromarray(gray > 99), "L", full(gray > 99)),
    "P": (palette, "RGB", np.asarray(palette.convert("RGB"))),
    "P with a clear color": (with_key(palette, 3), "RGBA", np.asarray(with_key(palette, 3).convert("RGBA"))),
    "P with alpha": (with_key(palette, bytes(range(0, 256, 16))), "RGBA", None),
    "P of RGBA": (see_through, "RGBA", np.asarray(see_through.convert("RGBA"))),
    "1 with a clear value": (with_key(Image.fromarray(gray > 99), 0), "LA", np.dstack([full(gray > 99)] * 2)),
    "L with a clear value": (with_key(Image.fromarray(gray), 99), "LA", np.dstack([gray, full(gray != 99)])),
    "RGB with a clear color": (
        with_key(colors, tuple(map(int, PIXELS[3, 3]))),
        "RGBA",
        np.dstack([PIXELS, full((PIXELS[3, 3] != PIXELS).any(2))]),
    ),
    "PA": (palette.convert("PA"), "RGBA", np.asarray(palette.convert("RGBA"))),
    "La": (Image.fromarray(np.dstack([gray, alpha])).convert("La"), "LA", None),
    "RGBa": (Image.fromarray(np.dstack([PIXELS, alpha])).convert("RGBa"), "RGBA", None),
    "RGBA with a useless key": (with_key(colors.convert("RGBA"), 3), "RGBA", np.asarray(colors.convert("RGBA"))),
    "part of one": (colors.crop((2, 3, 9, 12)), "RGB", PIXELS[3:12, 2:9]),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", KINDS)
def test_one_of_pillow_comes_back(upscaler, name):
    given, mode, plain = KINDS[name]
    before = given.tobytes(), given.mode, dict(given.info)
    result = upscaler(given)
    assert isinstance(result, Image.Image) and result.mode == mode
    assert result.size == (2 * given.width, 2 * given.height) and "transparency" not in result.info
    expected = upscaler(np.asarray(given.convert(mode)) if plain is None else plain)
    assert np.asarray(result).dtype == expected.dtype and np.array_equal(np.asarray(result), expected)
    assert (given.tobytes(), given.mode, given.info) == before


def test_a_file_that_is_opened_but_not_read_yet(upscaler):
    """Its mode is a guess: icons of macOS are RGBA until their PNG is decoded."""
    png, pixels = io.BytesIO(), make_image(16, 16)
    Image.fromarray(pixels).save(png, "PNG")
    entry = b"icp4" + struct.pack(">I", 8 + len(png.getvalue())) + png.getvalue()
    with Image.open(io.BytesIO(b"icns" + struct.pack(">I", 8 + len(entry)) + entry)) as image:
        assert image.mode == "RGBA"
        result = upscaler(image)
    assert result.mode == "RGB" and np.array_equal(np.asarray(result), upscaler(pixels))


REFUSED = {
    "CMYK": (Image.new("CMYK", (9, 9)), TypeError, "convert('RGB')"),
    "YCbCr": (Image.new("YCbCr", (9, 9)), TypeError, "convert('RGB')"),
    "LAB": (Image.new("LAB", (9, 9)), TypeError, "convert('RGB')"),
    "HSV": (Image.new("HSV", (9, 9)), TypeError, "convert('RGB')"),
    "RGBX": (Image.new("RGBX", (9, 9)), TypeError, "convert('RGB')"),
    "I": (Image.new("I", (9, 9)), TypeError, "uint16"),
    "I;16 with a clear value": (with_key(Image.new("I;16", (9, 9)), 3), TypeError, "del image.info['transparency']"),
    "F of 0..255": (Image.fromarray(gray.astype(np.float32)), ValueError, "divide them by 255"),
    "no columns": (Image.new("RGB", (0, 9)), ValueError, "not empty"),
    "no rows": (Image.new("L", (9, 0)), ValueError, "not empty"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(upscaler, name):
    given, kind, text = REFUSED[name]
    with pytest.raises(kind) as error:
        upscaler(given)
    assert text in str(error.value) and "\n" not in str(error.value)


def test_floats_of_another_range(upscaler):
    result = upscaler(Image.fromarray(unit * 255), value_range=(0, 255))
    assert result.mode == "F" and np.abs(np.asarray(result) - 255 * upscaler(unit)).max() < 1e-2


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_what_a_file_said_goes_on(form):
    """As with `resize`: profile, EXIF with its orientation, which is not applied, and resolution."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a harbor"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = io.BytesIO()
    colors.save(file, form, exif=exif, icc_profile=profile, dpi=(300, 300))
    with Image.open(file) as image:
        image.load()
        result = Upscaler(repeating_network(), "cpu")(image)
        same = image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST)
    assert result.tobytes() == same.tobytes() and result.info == same.info and result.info is not image.info
    assert result.info["icc_profile"] == profile
    assert form == "WEBP" or result.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    assert result.getexif() == same.getexif() and (form == "TIFF" or result.getexif()[0x0112] == 6)
    again = io.BytesIO()
    result.save(again, "PNG", exif=result.getexif())
    with Image.open(again) as image:
        assert image.info["icc_profile"] == profile and image.tobytes() == result.tobytes()


def test_pillow_is_not_imported_for_arrays():
    code = (
        "import sys, numpy as np\nfrom edsr import EDSR, EDSRConfig, Upscaler\n"
        "Upscaler(EDSR(EDSRConfig(blocks=1, features=8)), 'cpu', backend='torch')(np.zeros((4, 4, 3), np.uint8))\n"
        "assert 'PIL' not in sys.modules, 'imported'"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
