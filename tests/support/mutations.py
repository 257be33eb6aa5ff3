"""Injuries to files: of bytes, and of the structures that the formats are made of.

Surgery leaves a file whose lengths, checksums and offsets are right, so that what is wrong with it (a chunk twice,
boxes in another order, a tag of another type, a directory that points to itself) gets past a decoder's first look.
"""

import random
import struct
import zlib

NUMBERS = (0, 1, 2, 7, 8, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
PNG_KINDS = (
    b"PLTE tRNS gAMA cHRM sRGB iCCP cICP sBIT bKGD hIST pHYs tIME tEXt zTXt iTXt eXIf acTL fcTL sPLT IDAT IEND".split()
)
RIFF_KINDS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ICCP", b"EXIF", b"XMP ", b"ANIM", b"ANMF")
JPEG_MARKERS = (0xC0, 0xC1, 0xC2, 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE)
TIFF_TAGS = (
    254,
    256,
    257,
    258,
    259,
    262,
    266,
    273,
    274,
    277,
    278,
    279,
    282,
    283,
    284,
    296,
    317,
    320,
    322,
    323,
    324,
    325,
)
TIFF_TAGS += (330, 332, 338, 339, 347, 530, 531, 532, 700, 33432, 33723, 34377, 34665, 34675, 34853, 42113, 65000)
BOX_KINDS = (b"free", b"ispe", b"irot", b"imir", b"clap", b"pixi", b"colr", b"auxC", b"av1C", b"iloc", b"pitm")
BOXES_OF_BOXES = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"iinf": 6, b"iref": 4, b"dinf": 0}  # and what stands before them


def mutate(data: bytes, kind: str, number: int) -> bytes:
    """The mutant of that number of a file; `kind` begins with its extension. The same for the same arguments.

    One of two has one to four injured bytes or runs of them, the other one to four operations on its structure, and a
    few have both. For most PNGs the checksums are put right, so that injuries are noticed elsewhere.
    """
    chance = random.Random(f"{kind} {number}")
    structural = number % 2 == 1
    if structural:
        data = operate(data, kind.split()[0], chance)
    if not structural or chance.random() < 0.1:
        injured = injure(bytearray(data), chance)
        if kind.startswith("png") and chance.random() < 0.8:
            _correct_checksums(injured)
        data = bytes(injured)
    return data


def injure(data: bytearray, chance: random.Random) -> bytearray:
    """One to four injuries, most of them where lengths, sizes and kinds stand."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        if not data:
            break
        end = chance.choice((32, 64, 256, len(data)))
        at = chance.randrange(min(end, len(data)))
        injury = chance.randrange(8)
        if injury == 0:
            del data[chance.randrange(len(data)) :]
        elif injury == 1:
            del data[at : at + chance.choice((1, 2, 4, 40))]
        elif injury == 2:
            data[at:at] = chance.randbytes(chance.choice((1, 2, 4, 40)))
        elif injury == 3:
            other = chance.randrange(len(data))
            data[at : at + 16] = data[other : other + 16]
        elif injury in (4, 5):
            length = chance.choice((1, 2, 4, 8))
            value = chance.choice(NUMBERS) % 256**length
            data[at : at + length] = value.to_bytes(length, chance.choice(("little", "big")))
        else:
            data[at] ^= 1 << chance.randrange(8)
    return data


def operate(data: bytes, extension: str, chance: random.Random) -> bytes:
    """One to four operations on the parts that a file is made of."""
    count = chance.choice((1, 1, 2, 4))
    if extension == "tif":
        return _operate_on_tiff(data, count, chance)
    split, join, kinds = _CONTAINERS[extension]
    parts = split(data)
    for _ in range(count):
        parts = _operate_on_boxes(parts, chance) if extension == "avif" else _rearrange(parts, kinds, chance)
    return join(parts)


def rejoined(data: bytes, extension: str) -> bytes:
    """The file, taken apart and put together again without an operation."""
    split, join, _ = _CONTAINERS[extension]
    return join(split(data))


def _rearrange(parts: list, kinds, chance: random.Random) -> list:
    """One operation on a list of (kind, data)."""
    if not parts:
        return parts
    parts, i, j = list(parts), chance.randrange(len(parts)), chance.randrange(len(parts))
    kind, data = parts[i]
    operation = chance.randrange(9)
    if operation == 0:
        del parts[i]
    elif operation == 1:
        parts.insert(j, parts[i])
    elif operation == 2:
        parts[i], parts[j] = parts[j], parts[i]
    elif operation == 3:
        parts[i] = chance.choice(kinds), data
    elif operation == 4:
        parts.insert(j, (chance.choice(kinds), chance.randbytes(chance.choice((0, 1, 8, 13, 300)))))
    elif operation == 5:
        parts[i] = kind, data[: chance.randrange(len(data) + 1)]
    elif operation == 6:
        parts[i] = kind, data + chance.choice((bytes(1), bytes(1000), data))
    elif operation == 7:
        parts[i] = kind, bytes(injure(bytearray(data), chance))
    else:
        parts[i] = kind, parts[j][1]
    return parts


# --- PNG: chunks


def _split_png(data: bytes) -> list:
    parts, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        parts.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return parts


def _join_png(parts: list) -> bytes:
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _correct_checksums(data: bytearray) -> None:
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end])) if end + 4 <= len(data) else b""
        at = end + 4


# --- JPEG: segments; what follows a scan's header belongs to it


def _split_jpeg(data: bytes) -> list:
    parts, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xD9:
            break
        if marker == 0xDA:
            while end + 1 < len(data) and (data[end] != 0xFF or data[end + 1] in (0, *range(0xD0, 0xD8))):
                end += 1
        parts.append((marker, data[at + 4 : end]))
        at = end
    return parts


def _join_jpeg(parts: list) -> bytes:
    segments = []
    for marker, data in parts:
        # A scan's header is 8 bytes for one component and 12 for three: its first byte says of how many.
        header = min(len(data), 4 + 2 * data[0]) if marker == 0xDA and data else len(data)
        segments.append(bytes((0xFF, marker)) + struct.pack(">H", (header + 2) % 65536) + data)
    return b"\xff\xd8" + b"".join(segments) + b"\xff\xd9"


# --- WebP: chunks of RIFF


def _split_riff(data: bytes) -> list:
    parts, at = [], 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        parts.append((data[at : at + 4], data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return parts


def _join_riff(parts: list) -> bytes:
    body = b"".join(kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for kind, data in parts)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


# --- AVIF: boxes in boxes, (kind, what stands before the boxes in it, those or the data)


def _split_boxes(data: bytes) -> list:
    boxes, at = [], 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big") or len(data) - at
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + max(8, length)]
        start = BOXES_OF_BOXES.get(kind)
        boxes.append((kind, body if start is None else (body[:start], _split_boxes(body[start:]))))
        at += max(8, length)
    return boxes


def _join_boxes(boxes: list) -> bytes:
    joined = []
    for kind, body in boxes:
        if isinstance(body, tuple):
            body = body[0] + _join_boxes(body[1])
        joined.append(struct.pack(">I", 8 + len(body)) + kind + body)
    return b"".join(joined)


def _operate_on_boxes(boxes: list, chance: random.Random) -> list:
    """One operation, at any depth. Offsets to the data (in iloc) stay as they are, and are wrong if lengths change."""
    nested = [i for i, (_, body) in enumerate(boxes) if isinstance(body, tuple)]
    if nested and chance.random() < 0.8:
        i, boxes = chance.choice(nested), list(boxes)
        kind, (start, inner) = boxes[i]
        boxes[i] = kind, (start, _operate_on_boxes(inner, chance))
        return boxes
    plain = [(kind, body[0] + _join_boxes(body[1]) if isinstance(body, tuple) else body) for kind, body in boxes]
    return _rearrange(plain, (*BOX_KINDS, *(kind for kind, _ in plain)), chance)


# --- TIFF: the entries of directories, changed where they stand, so that offsets keep their meaning


def _operate_on_tiff(data: bytes, count: int, chance: random.Random) -> bytes:
    changed = bytearray(data)
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    count_form, entry, offset = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    first = struct.unpack_from(f"{order}{offset}", data, 8 if big else 4)[0]
    number = struct.unpack_from(f"{order}{count_form}", data, first)[0]
    start, size = first + struct.calcsize(f"{order}{count_form}"), struct.calcsize(f"{order}{entry}")
    entries = [list(struct.unpack_from(f"{order}{entry}", data, start + i * size)) for i in range(number)]
    following = start + number * size
    width = struct.calcsize(f"{order}{offset}")
    for _ in range(count):
        i, j = chance.randrange(number), chance.randrange(number)
        operation = chance.randrange(8)
        if operation == 0:
            entries[i][0] = chance.choice(TIFF_TAGS)
        elif operation == 1:
            entries[i][1] = chance.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 18, 255))
        elif operation == 2:
            entries[i][2] = chance.choice((*NUMBERS, number, len(data)))
        elif operation == 3:
            place = chance.choice((*NUMBERS, first, 0, len(data) - 1, len(data), chance.randrange(len(data))))
            entries[i][3] = struct.pack(f"{order}{offset}", place % 256**width)
        elif operation == 4:
            entries[i][3] = struct.pack(f"{order}H", chance.choice(NUMBERS) % 65536).ljust(width, b"\0")
        elif operation == 5:
            entries[i], entries[j] = entries[j], entries[i]
        elif operation == 6:
            entries[i] = list(entries[j])
        else:  # the next directory: this one, nowhere, or anywhere
            place = chance.choice((first, len(data) + 8, chance.randrange(len(data))))
            changed[following : following + width] = struct.pack(f"{order}{offset}", place)
    for i, values in enumerate(entries):
        struct.pack_into(f"{order}{entry}", changed, start + i * size, *values)
    return bytes(changed)


_CONTAINERS = {
    "png": (_split_png, _join_png, PNG_KINDS),
    "jpg": (_split_jpeg, _join_jpeg, JPEG_MARKERS),
    "webp": (_split_riff, _join_riff, RIFF_KINDS),
    "avif": (_split_boxes, _join_boxes, BOX_KINDS),
}
