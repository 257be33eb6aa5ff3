"""XMP packets: the orientation in them, and what announces images that are not passed on. All else stays as it is.

Only these bytes are changed, by patterns: writing a packet anew from its parsed form would change all of it.
"""

import re
from html import unescape
from xml.parsers import expat

_TIFF = "http://ns.adobe.com/tiff/1.0/"
_GAIN_MAPS = (
    "http://ns.adobe.com/hdr-gain-map/1.0/",
    "http://ns.apple.com/HDRGainMap/1.0/",
    "http://ns.google.com/photos/1.0/container/",
    "http://ns.google.com/photos/1.0/container/item/",
)
_CAMERA = "http://ns.google.com/photos/1.0/camera/"
_NOTE = "http://ns.adobe.com/xmp/note/"


def _decode(packet: bytes) -> tuple[str, str]:
    """(the packet as text, its encoding); latin-1 keeps whatever is no UTF-8 byte for byte."""
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"), (b"<\0", "utf-16-le")):
        if packet.startswith(mark):
            return packet.decode(encoding, "surrogatepass"), encoding
    if packet.startswith(b"\0<"):
        return packet.decode("utf-16-be", "surrogatepass"), "utf-16-be"
    return packet.decode("latin-1"), "latin-1"


def _prefixes(text: str, address: str) -> list[str]:
    names = re.findall(rf"xmlns:([\w.-]+)\s*=\s*[\"']{re.escape(address)}[\"']", text)
    return [re.escape(name) for name in dict.fromkeys(names)]


def _orientation_pattern(text: str) -> re.Pattern[str] | None:
    names = "|".join(_prefixes(text, _TIFF))
    if not names:
        return None
    name = rf"(?:{names}):Orientation"
    return re.compile(rf"({name}\s*=\s*[\"']\s*|<{name}(?:\s[^<>]*)?>\s*)((?:\d|&#x?[\da-fA-F]{{1,8}};)+)(?=\s*[\"'<])")


def orientation(packet: bytes) -> int:
    """What it says of the orientation, 1 to 8; 0 if nothing."""
    try:
        text, _ = _decode(packet)
    except UnicodeError:
        return 0
    pattern = _orientation_pattern(text)
    found = pattern.search(text) if pattern else None
    value = unescape(found[2][:40]).lstrip("0") if found else ""
    return int(value) if value in tuple("12345678") else 0


def upright(packet: bytes) -> bytes:
    """The packet with every orientation in it set to 1."""
    try:
        text, encoding = _decode(packet)
    except UnicodeError:
        return packet
    pattern = _orientation_pattern(text)
    if pattern is None or not pattern.search(text):
        return packet
    return pattern.sub(r"\g<1>1", text).encode(encoding, "surrogatepass")


def announces_gain_map(packet: bytes) -> bool:
    """Whether it says that there is a gain map."""
    return b"hdr-gain-map" in packet or b"HDRGainMap" in packet or b"GainMap" in packet


def without_further_images(packet: bytes) -> bytes:
    """The packet without what it says of gain maps, and of images and films behind the image.

    Empty if it could not be taken out cleanly.
    """
    try:
        text, encoding = _decode(packet)
    except UnicodeError:
        return packet
    before = text
    for address in _GAIN_MAPS:
        if names := "|".join(_prefixes(text, address)):
            text = _without(text, rf"(?:{names}):[\w.-]+")
            text = re.sub(rf"(?<!\s)\s+xmlns:(?:{names})\s*=\s*([\"']){re.escape(address)}\1", "", text)
    if names := "|".join(_prefixes(text, _CAMERA)):
        text = _without(text, rf"(?:{names}):(?:MotionPhoto|MicroVideo)[\w.-]*")
    if text == before:
        return packet
    changed = text.encode(encoding, "surrogatepass")
    return changed if _is_xml(changed) or not _is_xml(packet) else b""


def without_extension(packet: bytes) -> bytes:
    """The packet without its pointer to extended XMP."""
    try:
        text, encoding = _decode(packet)
    except UnicodeError:
        return packet
    before = text
    if names := "|".join(_prefixes(text, _NOTE)):
        text = _without(text, rf"(?:{names}):HasExtendedXMP")
    return text.encode(encoding, "surrogatepass") if text != before else packet


def _without(text: str, name: str) -> str:
    """The text without attributes and elements of a name (a pattern), in time proportional to its length."""
    kept, at, unclosed = [], 0, set[str]()
    for found in re.finditer(rf"<({name})(?=[\s/>])[^<>]*>", text):
        if found.start() < at or found[1] in unclosed or len(unclosed) > 100:
            continue
        if found[0].endswith("/>"):
            end = found.end()
        elif close := re.compile(rf"</{re.escape(found[1])}\s*>").search(text, found.end()):
            end = close.end()
        else:
            unclosed.add(found[1])
            continue
        kept.append(text[at : found.start()])
        at = end
    return re.sub(rf"(?<!\s)\s+{name}\s*=\s*(?:\"[^\"]*\"|'[^']*')", "", "".join(kept) + text[at:])


def _is_xml(packet: bytes) -> bool:
    try:
        expat.ParserCreate().Parse(packet.strip(b"\0"), True)
    except (expat.ExpatError, ValueError):
        return False
    return True
