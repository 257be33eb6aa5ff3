"""The table of docs/images.md, found out by converting files and looking at the results with other readers.

`python -m tests.images.metadata.test_table` writes it anew.
"""

import re
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from edsr.images.reader import ImageReader
from tests.conftest import ROOT
from tests.images.metadata.files import (
    IIM,
    NIKON,
    OUTPUTS,
    PIXELS,
    RESOURCE,
    RESOURCES,
    chunks,
    convert,
    exif,
    found_in,
    icc_chunk,
    jpeg_with,
    png_with,
    segment,
    segments,
    tiff,
    webp_with,
    xmp,
    xmp_chunk,
)
from tests.support.image_files import ICC, chunk, encoded, pillow

PAGE = ROOT / "docs" / "images.md"
START, END = "<!-- what becomes of what, by tests/images/metadata/test_table.py -->", "<!-- end -->"
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WebP", ".tif": "TIFF", ".avif": "AVIF"}


class Block(NamedTuple):
    """Things of a kind.

    sources: name -> file that holds one. kind: of the entry that is listed. seen: what has become of it, from the
    result's path and what Pillow found in it. line: what is said if nothing is left of it.
    """

    sources: dict[str, bytes]
    kind: str
    seen: Callable[[Path, dict], str] = lambda path, found: ""
    line: str = ""


def each(exif_data=None, packet=None, profile=None):
    """The same metadata in every format that is read."""
    options = {"exif": exif_data and b"Exif\0\0" + exif_data, "xmp": packet, "icc_profile": profile}
    options = {key: value for key, value in options.items() if value}
    made = [chunk(b"eXIf", exif_data)] if exif_data else []
    made += [xmp_chunk(packet)] if packet else []
    made += [icc_chunk(profile)] if profile else []
    tags = ({271: (2, b"Maker\0")} if exif_data else {}) | ({700: (7, packet)} if packet else {})
    return {
        "a.png": png_with(*made),
        "behind.png": png_with(*made) if profile else png_with(after=made),
        "a.jpg": encoded("jpeg", pillow(PIXELS), **options),
        "a.webp": encoded("webp", pillow(PIXELS), **options),
        "a.avif": encoded("avif", pillow(PIXELS), **options),
        "a.tif": tiff(tags | ({34675: (7, profile)} if profile else {})),
    }


def equal(key, value):
    return lambda path, found: "kept" if found[key] == value else ""


def iptc(path, found):
    data = path.read_bytes()
    if path.suffix == ".tif":
        with Image.open(path) as image:
            return "kept" if image.tag_v2.get(33723) == IIM else ""
    if path.suffix == ".png":
        return "converted" if IIM.hex() in found["info"].get("Raw profile type iptc", "").replace("\n", "") else ""
    return "kept" if IIM in data else ""


def resources(path, found):
    if path.suffix == ".png":
        return "converted" if RESOURCE.hex() in found["info"].get("Raw profile type iptc", "").replace("\n", "") else ""
    return "kept" if RESOURCE in path.read_bytes() else ""


def extended(path, found):
    return "kept" if path.suffix == ".jpg" and EXTENSION in [data for _, data in segments(path)] else ""


def colors(path, found):
    if path.suffix == ".png":
        return "kept" if set(chunks(path)) >= GAMMA else ""
    return "converted" if found["icc"] and found["icc"][36:40] == b"acsp" else ""


def texts(path, found):
    return "kept" if found["info"].get("parameters") == "steps: 20" else ""


def comment(path, found):
    if path.suffix == ".png":
        return "converted" if found["info"].get("Comment") == "box 12" else ""
    return "kept" if found["info"].get("comment") == b"box 12" else ""


def resolution(path, found):
    if found["dpi"] and np.allclose(found["dpi"], 300, atol=0.01):
        return "kept"
    return "converted" if found["exif dpi"] and abs(found["exif dpi"] - 300) < 0.01 else ""


def ratio(path, found):
    if path.suffix == ".tif":
        with Image.open(path) as image:
            return "kept" if [image.tag_v2[tag] for tag in (282, 283, 296)] == [2, 1, 1] else ""
    info = found["info"]
    in_jpeg = info.get("jfif_density"), info.get("jfif_unit")
    return "kept" if info.get("aspect") == (2, 1) or in_jpeg == ((2, 1), 0) else ""


def turned(path, found):
    text = found["xmp"] or b""
    upright = found["size"] == (40, 48) and found["orientation"] == 1 and b'Orientation="6"' not in text
    return "applied" if upright else ""


def nodata(path, found):
    if path.suffix != ".tif":
        return ""
    with Image.open(path) as image:
        return "kept" if image.tag_v2.get(42113) == "-9999" else ""


def copied(path, found):
    return "kept" if path.suffix == ".png" and ("abCd", b"safe") in chunks(path) else ""


MAIN = exif(None, {271: (2, b"Maker\0")}, {37500: (7, NIKON)})
EXTENSION = b"http://ns.adobe.com/xmp/extension/\0" + b"0123456789ABCDEF" * 2 + struct.pack(">II", 4, 0) + b"<a/>"
P3 = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
GAMMA = {("gAMA", struct.pack(">I", 62500)), ("cHRM", P3)}
TEXT = chunk(b"tEXt", b"parameters\0steps: 20")
JFIF = jpeg_with()
GAIN = xmp(attributes=' xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0"')
BLOCKS = {
    "orientation": Block(each(exif(6), xmp(6)) | {"a.tif": tiff({274: (3, 6)})}, "", turned),
    "EXIF": Block(each(MAIN), "exif", equal("maker", "Maker")),
    "MakerNote": Block({k: v for k, v in each(MAIN).items() if k != "a.tif"}, "exif", equal("note", NIKON)),
    "XMP": Block(each(packet=xmp()), "xmp", equal("xmp", xmp())),
    "extended XMP": Block(
        {"a.jpg": jpeg_with(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp()), segment(0xE1, EXTENSION))},
        "extended xmp", extended, "extended XMP is left out",
    ),
    "ICC profile": Block(each(profile=ICC), "icc", equal("icc", ICC)),
    "gAMA, cHRM": Block({"a.png": png_with(*(chunk(n.encode(), d) for n, d in GAMMA))}, "color", colors),
    "IPTC": Block(
        {"a.jpg": jpeg_with(segment(0xED, b"Photoshop 3.0\0" + RESOURCES)), "a.tif": tiff({34377: (7, RESOURCES)})},
        "photoshop", iptc, "IPTC data is left out",
    ),
    "Photoshop's other resources": Block(
        {"a.jpg": jpeg_with(segment(0xED, b"Photoshop 3.0\0" + RESOURCES)), "a.tif": tiff({34377: (7, RESOURCES)})},
        "photoshop", resources, "Photoshop's image resources are left out",
    ),
    "texts of PNG": Block(
        {"a.png": png_with(TEXT), "b.png": png_with(after=[TEXT])},
        "text", texts, "PNG texts are left out: parameters",
    ),
    "comment of JPEG": Block(
        {"a.jpg": jpeg_with(segment(0xFE, b"box 12"))}, "comment", comment, "the JPEG comment is left out"
    ),
    "resolution": Block(
        {
            "a.png": png_with(chunk(b"pHYs", struct.pack(">IIB", 11811, 11811, 1))),
            "a.jpg": encoded("jpeg", pillow(PIXELS), dpi=(300, 300)),
            "a.tif": tiff({282: (5, (300, 1)), 283: (5, (300, 1)), 296: (3, 2)}),
        },
        "", resolution,
    ),
    "ratio of the pixels' sides, no unit": Block(
        {
            "a.png": png_with(chunk(b"pHYs", struct.pack(">IIB", 2, 1, 0))),
            "a.jpg": JFIF[:13] + b"\0" + struct.pack(">HH", 2, 1) + JFIF[18:],
            "a.tif": tiff({282: (5, (2, 1)), 283: (5, (1, 1)), 296: (3, 1)}),
        },
        "", ratio, "2:1 without a unit of length, is left out",
    ),
    "nodata (GDAL)": Block({"a.tif": tiff({42113: (2, b"-9999\0")})}, "nodata", nodata, "the nodata value (GDAL)"),
    "GeoTIFF": Block({"a.tif": tiff({33550: (12, (1.0, 1.0, 0.0))})}, "geo", line="georeference (GeoTIFF) is left out"),
    "other tags of TIFF": Block({"a.tif": tiff({65001: (7, b"private")})}, "other", line="65001"),
    "chunks of PNG that may be copied": Block({"a.png": png_with(chunk(b"abCd", b"safe"))}, "other", copied, "abCd"),
    "other chunks of PNG": Block({"a.png": png_with(chunk(b"tIME", bytes(7)))}, "other", line="tIME"),
    "other segments of JPEG": Block({"a.jpg": jpeg_with(segment(0xEC, b"Ducky\0\1"))}, "other", line="APP12 (Ducky)"),
    "other chunks of WebP": Block({"a.webp": webp_with((b"ABCD", b"something"))}, "other", line="ABCD"),
    "thumbnails": Block(
        {
            "a.jpg": jpeg_with(segment(0xE1, b"Exif\0\0" + exif(None, {271: (2, b"M\0")}, None, b"\xff\xd8 an image"))),
            "b.jpg": jpeg_with(segment(0xE0, b"JFXX\0\x10" + encoded("jpeg", pillow(PIXELS)))),
        },
        "thumbnail", line="the thumbnail is left out",
    ),
    "gain maps": Block(
        {"a.jpg": encoded("jpeg", pillow(PIXELS), xmp=GAIN) + JFIF}, "gain map", line="the gain map is left out"
    ),
    "further images, other bytes behind": Block({"a.jpg": JFIF + JFIF}, "images", line="further images behind"),
}  # fmt: skip


def find_out(folder, name, target):
    """What becomes of a block in a format, whatever file it comes from; "lost" if nothing is found and nothing said."""
    block, fates = BLOCKS[name], set()
    for source, data in block.sources.items():
        path, result = folder / f"in_{source}", folder / f"out_{source}{target}"
        path.write_bytes(data)
        with ImageReader(path) as reader:
            assert not block.kind or block.kind in {entry.kind for entry in reader.metadata}, "not listed"
        said = convert(path, result)
        fate = block.seen(result, found_in(result))
        named = bool(block.line) and any(block.line in line for line in said)
        assert not (fate == "kept" and said), said
        fates.add(fate or ("named" if named else "lost"))
    return " or ".join(sorted(fates))


def draw(rows):
    lines = [f"| | {' | '.join(FORMATS.values())} |", "|---" * (1 + len(FORMATS)) + "|"]
    lines += [f"| {name} | {' | '.join(fates)} |" for name, fates in rows.items()]
    return "\n".join(lines)


def stated():
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w.*?) \|$", text[text.index(START) : text.index(END)], re.M)
    return {name: fates for name, *fates in (row.split(" | ") for row in rows)}


@pytest.mark.parametrize("target", OUTPUTS)
@pytest.mark.parametrize("name", BLOCKS)
def test_the_table_says_what_happens(tmp_path, name, target):
    fate = find_out(tmp_path, name, target)
    assert fate in ("kept", "converted", "named", "applied")
    assert stated()[name][OUTPUTS.index(target)] == fate


def test_the_table_has_no_other_rows():
    assert list(stated()) == list(BLOCKS)


def main():
    rows: dict[str, list[str]] = {}
    for name in BLOCKS:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = [find_out(Path(folder), name, target) for target in OUTPUTS]
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(START)[0], text.partition(END)[2]
    PAGE.write_text(f"{before}{START}\n{draw(rows)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
