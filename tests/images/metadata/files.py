"""Files with all in them that formats can hold, made by hand, and readers of the results."""

import struct
import zlib

import numpy as np
from PIL import Image

from edsr.images.reader import ImageReader
from tests.support.image_files import ICC, chunk, encoded, make_image, pillow, png, write

PIXELS = make_image(20, 24)
OUTPUTS = [".png", ".jpg", ".webp", ".tif", ".avif"]
IIM = b"\x1c\x02\x05\0\x07Harbour" + b"\x1c\x02\x19\0\x05boats"
RESOURCE = b"8BIM\x04\x0a\0\0" + struct.pack(">I", 5) + b"\1\2\3\4\5\0"  # 0x040A: copyright flag, say
RESOURCES = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IIM)) + IIM + RESOURCE
NIKON = b"Nikon\0\x02\x10\0\0MM\0*\0\0\0\x08\0\1\0\1\0\7\0\0\0\4\x30\x32\x31\x30\0\0\0\0 and a tail of its own"


def xmp(orientation=None, more="", attributes=""):
    turn = f' tiff:Orientation="{orientation}"' if orientation else ""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"'
        f"{turn}{attributes}>{more}</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end='w'?>"
    ).encode()


CODES = {2: "s", 3: "H", 4: "I", 5: "I", 7: "s", 12: "d"}


def directory(tags, at, following=0):
    """An IFD and its values as they stand from `at` on. tags: number -> (type, value or values)."""
    table, values, after = b"", b"", at + 2 + 12 * len(tags) + 4
    for tag, (kind, value) in sorted(tags.items()):
        numbers = value if isinstance(value, tuple) else (value,)
        data = value if isinstance(value, bytes) else struct.pack(f"<{len(numbers)}{CODES[kind]}", *numbers)
        count = len(value) if isinstance(value, bytes) else len(numbers) // (2 if kind == 5 else 1)
        place = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", after + len(values))
        if len(data) > 4:
            values += data + bytes(len(data) % 2)
        table += struct.pack("<HHI", tag, kind, count) + place
    return struct.pack("<H", len(tags)) + table + struct.pack("<I", following) + values


def exif(orientation=None, first=None, below=None, thumbnail=b""):
    tags = dict(first or {}) | ({274: (3, orientation)} if orientation else {})
    if below:
        tags[34665] = 4, 0
    size = len(directory(tags, 8))
    second = directory(below, 8 + size) if below else b""
    if below:
        tags[34665] = 4, 8 + size
    last = 8 + size + len(second)
    thumb = directory({513: (4, last + 30), 514: (4, len(thumbnail))}, last) if thumbnail else b""
    return b"II*\0\x08\0\0\0" + directory(tags, 8, last if thumb else 0) + second + thumb + thumbnail


def tiff(tags=None, pixels=PIXELS):
    height, width = pixels.shape[:2]
    data = pixels.tobytes()
    own = {256: (4, width), 257: (4, height), 258: (3, (8, 8, 8)), 259: (3, 1), 262: (3, 2), 273: (4, 8)}
    own |= {277: (3, 3), 278: (4, height), 279: (4, len(data)), 284: (3, 1)} | (tags or {})
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory(own, 8 + len(data))


def raw_profile(kind, data):
    """ImageMagick's way of keeping a profile in PNG."""
    digits = data.hex()
    lines = "\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    text = f"\n{kind}\n{len(data):8}\n{lines}\n".encode()
    return chunk(b"zTXt", f"Raw profile type {kind}".encode() + b"\0\0" + zlib.compress(text))


def png_with(*chunks, after=(), pixels=PIXELS):
    data = png(pixels, extra=b"".join(chunks))
    return data[:-12] + b"".join(after) + data[-12:]


def xmp_chunk(packet):
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)


def icc_chunk(profile):
    return chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))


def segment(marker, data):
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def jpeg_with(*segments, after=b"", pixels=PIXELS, **options):
    data = encoded("jpeg", pillow(pixels), quality=95, **options)
    at = 4 + int.from_bytes(data[4:6], "big")  # after JFIF
    return data[:at] + b"".join(segments) + data[at:] + after


def webp_with(*more, **options):
    """A WebP with further chunks at its end: (name, data)."""
    data = encoded("webp", pillow(PIXELS), lossless=True, exif=exif(first={271: (2, b"Maker\0")}), **options)
    for name, content in more:
        data += name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def convert(source, target, gray=False):
    """Every pixel repeated; all lines that are said."""
    with ImageReader(source, full=True) as reader:
        rows = np.concatenate(list(reader.rows(64)))
        writer = write(target, rows.repeat(2, 0).repeat(2, 1), like=reader)
    return (*reader.warnings, *writer.warnings)


# ---- readers of results


def chunks(path):
    """(name, data) of each chunk of a PNG; each checksum is right."""
    data, at, found = path.read_bytes(), 8, []
    while at < len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + 8 + size]
        assert zlib.crc32(name + content) == int.from_bytes(data[at + 8 + size : at + 12 + size], "big")
        found.append((name.decode(), content))
        at += 12 + size
    return found


def segments(path):
    """(marker, data) of each segment of a JPEG before its pixels."""
    data, at, found = path.read_bytes(), 2, []
    while data[at + 1] != 0xDA:
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        found.append((data[at + 1], data[at + 4 : at + 2 + size]))
        at += 2 + size
    return found


def found_in(path):
    """What Pillow sees: kind -> bytes or numbers."""
    with Image.open(path) as image:
        image.load()
        tags = image.getexif()
        packet = tags.get(700) if path.suffix == ".tif" else image.info.get("xmp")
        packet = packet.encode() if isinstance(packet, str) else packet
        below = tags.get_ifd(34665)
        return {
            "size": image.size,
            "icc": image.info.get("icc_profile"),
            "xmp": packet,
            "orientation": tags.get(274, 1),
            "maker": tags.get(271),
            "note": below.get(37500),
            "thumbnail": dict(tags.get_ifd(0x10001)),
            "dpi": image.info.get("dpi"),
            "exif dpi": tags.get(282),
            "info": dict(image.info),
            "pixels": np.asarray(image),
        }


__all__ = ["ICC", "chunk"]
