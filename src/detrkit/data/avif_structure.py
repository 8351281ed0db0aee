"""Sizes of the frames inside an AVIF file, which its decoder decodes whatever size the file claims.

The file is a tree of boxes (ISO/IEC 14496-12). Two of them have the offsets of coded images: `iloc` of items, `stco` and
`co64` of tracks. There, a sequence header (AV1 specification, 5.5.1) has the size of the frames.
"""

import struct
from collections.abc import Iterator

_PARENTS = {b"meta": 4, b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0}  # bytes before their first child
_MAX_IMAGES = 10_000  # of a file, that are looked at
_MAX_BOXES = 10_000  # of one box, likewise
_MAX_UNITS = 16  # before the sequence header
_SEQUENCE_HEADER = 1


class _Bits:
    """Reads numbers of any width, most significant bit first; zeros follow the end."""

    def __init__(self, content: bytes) -> None:
        self._value = int.from_bytes(content.ljust(64, b"\0"), "big")
        self._left = 8 * max(64, len(content))

    def read(self, width: int) -> int:
        self._left = max(0, self._left - width)
        return self._value >> self._left & ((1 << width) - 1)

    def skip_uvlc(self) -> None:
        zeros = 0
        while zeros < 32 and not self.read(1):
            zeros += 1
        self.read(zeros)


def frame_sizes(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield (width, height) of the coded frames of an AVIF file; parts that are malformed have none.

    Args:
        content: of the file.
    """
    idat = content.find(b"idat") + 4  # data of items inside of the box meta
    for number, offset in enumerate(_offsets(content, 0, len(content), idat)):
        if number >= _MAX_IMAGES:
            return
        header = _sequence_header(content, offset)
        if header is not None:
            yield _frame_size(header)


def _offsets(content: bytes, start: int, end: int, idat: int) -> Iterator[int]:
    """Yield the offsets of coded images in the boxes of a part of the file."""
    for _ in range(_MAX_BOXES):
        if start + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", content, start)
        head = 8
        if size == 1 and start + 16 <= end:
            (size,) = struct.unpack_from(">Q", content, start + 8)
            head = 16
        stop = end if size == 0 else min(end, start + size)
        if stop < start + head:
            return
        body = start + head
        try:
            if kind in _PARENTS:
                yield from _offsets(content, body + _PARENTS[kind], stop, idat)
            elif kind == b"iloc":
                yield from _item_offsets(content, body, idat)
            elif kind in (b"stco", b"co64"):
                width, code = (4, "I") if kind == b"stco" else (8, "Q")
                count = min(struct.unpack_from(">I", content, body + 4)[0], (stop - body - 8) // width)
                yield from struct.unpack_from(f">{count}{code}", content, body + 8)
        except struct.error:
            return
        start = stop


def _item_offsets(content: bytes, position: int, idat: int) -> Iterator[int]:
    """Yield the offsets of all extents in an `iloc` box."""
    version = content[position]
    sizes = content[position + 4 : position + 6]
    offset_width, length_width, base_width, index_width = sizes[0] >> 4, sizes[0] & 15, sizes[1] >> 4, sizes[1] & 15
    id_width = 4 if version == 2 else 2
    position += 6

    def number(width: int) -> int:
        nonlocal position
        position += width
        if position > len(content):
            raise struct.error
        return int.from_bytes(content[position - width : position], "big")

    for _ in range(number(id_width)):
        number(id_width)
        is_in_idat = version in (1, 2) and number(2) & 15 == 1
        number(2)
        base = number(base_width) + (idat if is_in_idat else 0)
        for _ in range(number(2)):
            if version in (1, 2):
                number(index_width)
            yield base + number(offset_width)
            number(length_width)


def _sequence_header(content: bytes, position: int) -> bytes | None:
    """Return the first sequence header of a series of units, at a position."""
    for _ in range(_MAX_UNITS):
        if position + 2 > len(content):
            return None
        head = content[position]
        position += 2 if head & 4 else 1
        size = len(content)
        if head & 2:
            size, shift = 0, 0
            while position < len(content) and shift < 56:
                byte = content[position]
                position, size, shift = position + 1, size | (byte & 127) << shift, shift + 7
                if byte < 128:
                    break
        if head >> 3 & 15 == _SEQUENCE_HEADER:
            return content[position : position + min(size, 256)]
        position += size
    return None


def _frame_size(header: bytes) -> tuple[int, int]:
    """Return the maximum (width, height) of the frames of a sequence."""
    bits = _Bits(header)
    bits.read(4)
    if bits.read(1):  # a single image
        bits.read(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    return bits.read(width_bits) + 1, bits.read(height_bits) + 1


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.read(1):  # timing
        bits.read(64)
        if bits.read(1):
            bits.skip_uvlc()
        if bits.read(1):  # decoder model
            delay_bits = bits.read(5) + 1
            bits.read(42)
    has_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:
            bits.read(1)
        if delay_bits and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if has_delay and bits.read(1):
            bits.read(4)
