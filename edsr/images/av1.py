"""What the sequence header of AV1 says of an image's numbers (AV1 specification 5.3 to 5.5)."""

from typing import NamedTuple

_SEQUENCE_HEADER = 1
_SRGB = 1, 13, 0  # color primaries, transfer, matrix of ITU-T H.273


class SequenceHeader(NamedTuple):
    """monochrome: whether there is a single plane. full_range: whether black is 0 and white the largest number."""

    monochrome: bool
    full_range: bool


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        """The next bits as a number. Raises EOFError where there are fewer."""
        if count > self._left:
            raise EOFError
        self._left -= count
        return self._value >> self._left & (1 << count) - 1

    def skip_uvlc(self) -> None:
        zeros = 0
        while not self.read(1):
            zeros += 1
        self.read(min(zeros, 32))


def read_sequence_header(data: bytes) -> SequenceHeader | None:
    """The first sequence header in successive OBUs; None if there is none, or it is cut off."""
    at = 0
    while at < len(data):
        head, at = data[at], at + 1
        at += head >> 2 & 1  # extension
        size = len(data) - at
        if head >> 1 & 1:
            size = 0
            for i in range(8):  # leb128
                if at >= len(data):
                    return None
                size |= (data[at] & 0x7F) << 7 * i
                at += 1
                if not data[at - 1] & 0x80:
                    break
        if head >> 3 & 15 == _SEQUENCE_HEADER:
            try:
                return _parse(_Bits(data[at : at + size]))
            except EOFError:
                return None
        at += size
    return None


def _parse(bits: _Bits) -> SequenceHeader:
    profile, _, reduced = bits.read(3), bits.read(1), bits.read(1)
    if reduced:
        bits.read(5)
    else:
        _skip_operating_points(bits)
    width, height = bits.read(4) + 1, bits.read(4) + 1
    bits.read(width + height)
    if not reduced and bits.read(1):  # frame numbers
        bits.read(7)
    bits.read(3)
    if not reduced:
        bits.read(4)
        order = bits.read(1)
        if order:
            bits.read(2)
        screen = 2 if bits.read(1) else bits.read(1)
        if screen and not bits.read(1):
            bits.read(1)
        if order:
            bits.read(3)
    bits.read(3)
    return _parse_colors(bits, profile)


def _skip_operating_points(bits: _Bits) -> None:
    delay = 0
    if bits.read(1):  # timing
        bits.read(64)
        if bits.read(1):
            bits.skip_uvlc()
        if bits.read(1):  # decoder model
            delay = bits.read(5) + 1
            bits.read(42)
    display = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:
            bits.read(1)
        if delay and bits.read(1):
            bits.read(2 * delay + 1)
        if display and bits.read(1):
            bits.read(4)


def _parse_colors(bits: _Bits, profile: int) -> SequenceHeader:
    deep = bits.read(1)
    if profile == 2 and deep:
        bits.read(1)
    monochrome = profile != 1 and bool(bits.read(1))
    described = (bits.read(8), bits.read(8), bits.read(8)) if bits.read(1) else None
    full = (not monochrome and described == _SRGB) or bool(bits.read(1))
    return SequenceHeader(monochrome, full)
