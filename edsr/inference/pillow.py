"""Images of Pillow: their pixels, and results as images of theirs. Imported when the first one comes."""

from typing import Any

import numpy as np
from PIL import Image

_SAME = ("L", "LA", "RGB", "RGBA", "F", "I;16", "I;16L", "I;16B", "I;16N")  # modes that mean what ours do
_WITH_ALPHA = {"1": "LA", "L": "LA", "P": "RGBA", "RGB": "RGBA"}  # where one color stands for transparency
_CONVERTED = {"1": "L", "P": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA"}  # modes that lose nothing
_ADVICE = {
    "I": "np.asarray(image).astype(np.uint16) if it has 16 bits",
    "I;16": "it after del image.info['transparency'], which makes it opaque",
}


def pixels_of(image: Any) -> np.ndarray:
    """[H, W] or [H, W, 2 to 4] of an image, as it is: orientation is not applied. Raises TypeError for other modes."""
    image.load()  # until then some formats state another mode
    mode = image.mode
    clear = "transparency" in image.info or (mode == "P" and image.palette.mode.endswith("A"))
    if clear and mode[:4] in (*_WITH_ALPHA, "I;16"):
        target = _WITH_ALPHA.get(mode)
    else:
        target = mode if mode in _SAME else _CONVERTED.get(mode)
    if target is None:
        advice = _ADVICE.get(mode[:4], "image.convert('RGB')")
        raise TypeError(f"Pillow's images of mode {mode} are not supported; use {advice}")
    return np.asarray(image if mode == target else image.convert(target))


def image_like(original: Any, pixels: np.ndarray) -> Image.Image:
    """The pixels as an image that goes on with all of `info`, as Pillow's own `resize` does: profile, EXIF, resolution.

    Without its transparency, which the pixels have by now.
    """
    image = Image.fromarray(pixels)
    image.info = {key: value for key, value in original.info.items() if key != "transparency"}
    return image
