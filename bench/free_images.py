"""Free images of two Debian packages, to train on: `python -m bench.free_images UNPACKED --out DIR` links them.

UNPACKED is where `apt-get download endless-sky-data supertuxkart-data` and `dpkg-deb -x FILE UNPACKED` have put them.
Their copyright files give the license of every file, which few collections of images do. endless-sky-data has
photographs of landscapes and towns, supertuxkart-data those of walls, ground and wood, and drawn ones, of which files
under the GPL are left out, as are small ones and normal maps, which are no images to look at.
"""

import argparse
import re
from collections import Counter
from dataclasses import dataclass
from fnmatch import translate
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Package:
    """Which images of a package are taken."""

    root: str  # of its files, in usr/share
    source: str  # of its files, in its source, as the copyright file names them
    inside: str  # folder of the images, in `source`
    side: int  # pixels at least
    maps: str | None  # regular expression of names of what is no image to look at, where there are such


PACKAGES = {
    "endless-sky-data": Package("games/endless-sky", "", "images/land", 1, None),
    "supertuxkart-data": Package(
        "games/supertuxkart/data", "data/", "data", 512, "norm|_nm|bump|spec|gloss|sky|mask|lightmap|cubemap"
    ),
}
COARSEST = 30
"""Mean quantization step of luma up to which a JPEG file is taken: quality 75 has 29."""


def read_licenses(text: str) -> list[tuple[re.Pattern[str], str]]:
    """Reads a copyright file in Debian's machine-readable format.

    Returns:
        Patterns of paths, and the license of each; of those that match a path, the last one holds.
    """
    found = []
    for stanza in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.*(?:\n[ \t].*)*)", stanza, re.MULTILINE))
        if "Files" in fields and fields.get("License", "").strip():
            license_name = fields["License"].strip().splitlines()[0]
            found += [(re.compile(translate(pattern)), license_name) for pattern in fields["Files"].split()]
    return found


def find_license(licenses: list[tuple[re.Pattern[str], str]], path: str) -> str | None:
    """Returns the license of a path of the source, or None."""
    return next((name for pattern, name in reversed(licenses) if pattern.fullmatch(path)), None)


def is_normal_map(image: Image.Image) -> bool:
    """Whether an image is light blue on the whole, as maps of directions are."""
    red, green, blue = np.asarray(image.convert("RGB").reduce(4), np.float64).mean((0, 1))
    return bool(blue > 180 and abs(red - 128) < 25 and abs(green - 128) < 25)


def find_images(unpacked: Path, name: str) -> dict[Path, str]:
    """Returns a package's images that are taken, each with its license.

    Raises:
        FileNotFoundError: the package is not unpacked there.
    """
    package = PACKAGES[name]
    licenses = read_licenses((unpacked / f"usr/share/doc/{name}/copyright").read_text("utf-8", errors="replace"))
    root, found = unpacked / "usr/share" / package.root, {}
    for path in sorted(root.rglob("*.jpg")):
        inside = package.source + path.relative_to(root).as_posix()
        license_name = find_license(licenses, inside)
        if license_name is None or "GPL" in license_name or not inside.startswith(f"{package.inside}/"):
            continue
        if package.maps and re.search(package.maps, path.name.lower()):
            continue
        with Image.open(path) as image:
            steps = getattr(image, "quantization", {}).get(0, [64 * COARSEST])
            if min(image.size) < package.side or sum(steps) > 64 * COARSEST or (package.maps and is_normal_map(image)):
                continue
        found[path] = license_name
    return found


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.free_images", description=__doc__)
    parser.add_argument("unpacked", type=Path, metavar="UNPACKED", help="folder that the packages are unpacked into")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    for name in PACKAGES:
        if not (args.unpacked / f"usr/share/doc/{name}/copyright").is_file():
            parser.error(
                f"{args.unpacked} has no {name}: apt-get download {name}; dpkg-deb -x {name}_*.deb {args.unpacked}"
            )
    for name in PACKAGES:
        found = find_images(args.unpacked, name)
        folder = args.out / name.removesuffix("-data")
        folder.mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(found):
            link = folder / f"{number:03}_{path.name}"
            if not link.is_symlink():
                link.symlink_to(path.resolve())
        counts = ", ".join(f"{count} {license_name}" for license_name, count in Counter(found.values()).most_common())
        print(f"{len(found)} images of {name} are in {folder}: {counts}")


if __name__ == "__main__":
    main()
