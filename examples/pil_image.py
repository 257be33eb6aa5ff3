"""An image of Pillow in, one out, with a line of progress: `python -m examples.pil_image [IMAGE] [OUT]`.

Without arguments a part of the example image becomes harbour_x2.png in the current folder.
"""

import argparse
from pathlib import Path

from PIL import Image

from edsr import Upscaler, load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", nargs="?")
    parser.add_argument("out", nargs="?", default="harbour_x2.png")
    options = parser.parse_args()
    with Image.open(options.image or Path(__file__).with_name("harbour.png")) as image:
        small = image if options.image else image.crop((200, 180, 360, 300))
        large = Upscaler(load_model("edsr-baseline", scale=2))(small, progress=show)
    # Pillow writes what is in `info` only where it is asked to.
    large.save(options.out, icc_profile=large.info.get("icc_profile"), exif=large.getexif())
    print(f"\n{options.out}: {large.width} x {large.height}, {large.mode}")


def show(done: int, total: int) -> None:
    print(f"\r{done} of {total} rows", end="", flush=True)


if __name__ == "__main__":
    main()
