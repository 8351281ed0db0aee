"""Checks of image files that Pillow does not make, before it opens and decodes them.

Some files are small, claim a small size, and yet take minutes or gigabytes: a JPEG of ten thousand scans, a TIFF of 64
pixels in a tile of a billion, an icon of 16 pixels that contains a photo. Torch-free, and linear in the size of the file.
"""

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from detrkit.data.avif_structure import frame_sizes
from detrkit.errors import DatasetError

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs: 512 MiB of RGB
MAX_SCANS = 100  # of a JPEG: encoders write 1 to about 20, and libtiff has the same limit
_MAX_SCANNED = 2**32  # pixels in all scans of a JPEG: 24 scans of the largest image; CMYK has 18
_MAX_SEGMENTS = 10_000  # of a JPEG: profiles, thumbnails and depth maps take some hundred
_MAX_FILLERS = 2**16  # bytes between two segments of a JPEG, before its first scan
_MAX_CUT = 2**26  # bytes that the last chunk of a PNG may lack
_MAX_CHUNKS = 10_000  # of a PNG, and one more per `_MIN_CHUNK` bytes: usual are pieces of 8 kB
_MIN_CHUNK = 512
_MAX_ICON_SIDE = 4096  # pixels; usual are 256 to 1024
_MAX_BLOCK = 4096**2  # pixels of a tile of a TIFF, or of a frame of an AVIF, that is larger than its image
_MIN_TILE = 64**2  # mean pixels per tile of a JPEG 2000, whose decoder takes 10 kB for each
_MIN_CODE_BLOCK = 16**2  # pixels of a code block or precinct of a JPEG 2000, likewise 1 kB
_HEAD = 2**16  # bytes that are read first

# a marker of a JPEG; zero is no marker, 0xff is a filler, and RST0 to RST7 and TEM have no content
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = (0xC0, 0xC1, 0xC9)
_EOI, _SOS = 0xD9, 0xDA
_SOC_SIZ = b"\xff\x4f\xff\x51"  # the start of a JPEG 2000 code stream
_COD, _COC, _SOT = 0xFF52, 0xFF53, 0xFF90
_JP2 = b"\0\0\0\x0cjP  "


@runtime_checkable
class ImageFile(Protocol):
    """An open file, in memory or on disk."""

    def read(self, size: int = -1, /) -> bytes:
        """Read some bytes, or the rest."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Change the position."""

    def tell(self) -> int:
        """Return the position."""


def check_header(file: ImageFile, where: Path | str, max_pixels: int = MAX_PIXELS) -> None:
    """Check what Pillow decodes or allocates while it opens a file.

    Args:
        file: the file; its position becomes its start.
        where: its name.
        max_pixels: maximum number of pixels of an image.

    Raises:
        DatasetError: it contains more than its size says.
    """
    file.seek(0)
    head = file.read(_HEAD)
    if head.startswith(b"\0\0\1\0"):
        _check_icon(head + file.read(), where, max_pixels)
    elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        _check_webp(head, where, max_pixels)
    elif head.startswith((_JP2, _SOC_SIZ)):
        _check_jpeg_2000(head + file.read(), where, max_pixels)
    file.seek(0)


def check_structure(file: ImageFile, where: Path | str, max_pixels: int = MAX_PIXELS) -> int:
    """Check a file that is to be decoded; arguments as in `check_header`.

    Returns:
        How often the decoder visits each pixel: the number of scans of a JPEG, 1 for others.

    Raises:
        DatasetError: decoding would take much more time or memory than an image of its size does.
    """
    check_header(file, where, max_pixels)
    head = file.read(_HEAD)
    scans = None
    if head.startswith(b"\xff\xd8"):
        scans = _count_scans(head, where, is_complete=len(head) < _HEAD)
        if scans is None:
            scans = _count_scans(head + file.read(), where, is_complete=True)
    elif head.startswith(b"\x89PNG"):
        _check_chunks(file, where)
    file.seek(0)
    return scans or 1


def check_tiff_blocks(image: Any, where: Path | str) -> None:
    """Check the tiles and strips of the current page of a TIFF, which are decoded as a whole.

    Args:
        image: an opened Pillow image; other formats pass.
        where: its name.

    Raises:
        DatasetError: they are much larger than the page.
    """
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None:
        return
    samples = int(tags.get(277, 1)) if int(tags.get(284, 1)) == 1 else 1
    bits = max(tags.get(258, (1,)))
    width, height = int(tags.get(322, 0)), int(tags.get(323, 0))
    if not width or not height:
        width, height = image.width, min(int(tags.get(278, image.height)), image.height)
    area = max(image.width * image.height * 4, _MAX_BLOCK)
    if width * height > area or width * height * samples * bits // 8 > area * 16:
        raise DatasetError(
            f"{where}: the TIFF of {image.width} x {image.height} pixels has tiles of {width} x {height} pixels and "
            f"{samples} channels of {bits} bits, expected tiles no larger than the image; save it again"
        )


def check_avif_frames(file: ImageFile, size: tuple[int, int], where: Path | str) -> None:
    """Check the frames inside an AVIF, which are decoded as a whole.

    Args:
        file: the file.
        size: (width, height) that it claims.
        where: its name.

    Raises:
        DatasetError: they are much larger.
    """
    file.seek(0)
    limit = max(size[0] * size[1] * 4, _MAX_BLOCK)
    for width, height in frame_sizes(file.read()):
        if width * height > limit:
            raise DatasetError(
                f"{where}: the AVIF of {size[0]} x {size[1]} pixels contains a frame of {width} x {height} pixels, "
                "expected frames no larger than the image; save it again"
            )


def _count_scans(content: bytes, where: Path | str, *, is_complete: bool) -> int | None:
    """Count the scans of a JPEG up to its end; None if its beginning is not enough to tell."""
    scans, pixels, components, is_sequential = 0, 0, 0, False
    for number, (marker, segment) in enumerate(_segments(content, where, is_complete=is_complete), 1):
        if marker == _EOI:
            return scans
        if marker in _SOF:
            height, width, components = struct.unpack(">3xHHB", segment[:8])
            pixels, is_sequential = width * height, marker in _SEQUENTIAL
        if marker == _SOS:
            scans += 1
            if scans == 1 and is_sequential and segment[2] == components:
                return 1  # the decoder stops after it
            if not is_complete:
                return None
        if scans > MAX_SCANS or scans * pixels > _MAX_SCANNED or number > _MAX_SEGMENTS:
            raise DatasetError(
                f"{where}: the JPEG has {scans} or more scans of {pixels} pixels and {number} or more segments, "
                f"expected at most {MAX_SCANS} scans of {_MAX_SCANNED} pixels in all, and {_MAX_SEGMENTS} segments; "
                "save it again"
            )
    return scans if is_complete else None


def _segments(content: bytes, where: Path | str, *, is_complete: bool) -> Iterator[tuple[int, bytes]]:
    """Yield the markers of a JPEG, each with the first ten bytes of its segment.

    Raises:
        DatasetError: there is much else before the first scan.
    """
    position, has_scan = 2, False
    while match := _MARKER.search(content, position):
        if not has_scan and match.start() - position > _MAX_FILLERS:
            break
        marker, position = match[1][0], match.end()
        segment = content[position : position + 10]
        if len(segment) < 10 and marker != _EOI:
            return
        yield marker, segment
        has_scan = has_scan or marker == _SOS
        position += max(2, int.from_bytes(segment[:2], "big"))
    if is_complete and not has_scan and len(content) - position > _MAX_FILLERS:
        raise DatasetError(f"{where}: the JPEG has more than {_MAX_FILLERS} bytes between two segments; save it again")


def _check_chunks(file: ImageFile, where: Path | str) -> None:
    """Check the number of chunks of a PNG, each of which takes Pillow some microseconds, and that they fit into the file.

    Pillow allocates what the length of a chunk claims. Files that were cut off are left to it.
    """
    end, position, count = file.seek(0, os.SEEK_END), 8, 0
    while True:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return
        position += 12 + int.from_bytes(head[:4], "big")
        count += 1
        if position > end + _MAX_CUT:
            raise DatasetError(f"{where}: the PNG has {end} bytes, expected {position} or more; get it again")
        if count > _MAX_CHUNKS + position // _MIN_CHUNK:
            raise DatasetError(
                f"{where}: the PNG has {count} or more chunks in its first {position} bytes, expected fewer and larger "
                "ones; save it again"
            )


def _check_icon(content: bytes, where: Path | str, max_pixels: int) -> None:
    """Check the images inside an icon, one of which Pillow decodes while it opens the file."""
    count = int.from_bytes(content[4:6], "little")
    for start in range(6, min(6 + 16 * count, len(content) - 15), 16):
        (offset,) = struct.unpack_from("<I", content, start + 12)
        header = content[offset : offset + 24]
        if len(header) < 24:
            continue
        if header.startswith(b"\x89PNG"):
            width, height = struct.unpack(">II", header[16:24])
        elif header[:4] == b"\x0c\0\0\0":  # the oldest kind of bitmap
            width, height = struct.unpack("<HH", header[4:8])
        else:
            width, height = (abs(side) for side in struct.unpack("<ii", header[4:12]))
            height //= 2  # above its mask
        if max(width, height) > _MAX_ICON_SIDE or width * height > max_pixels:
            raise DatasetError(
                f"{where}: the icon contains an image of {width} x {height} pixels, more than the maximum of "
                f"{_MAX_ICON_SIDE} on each side; save that image as PNG"
            )


def _check_webp(head: bytes, where: Path | str, max_pixels: int) -> None:
    """Check the canvas of a WebP, for which Pillow allocates memory while it opens the file."""
    kind, data = head[12:16], head[20:30]
    if len(data) < 10:
        return
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[start : start + 3], "little") for start in (4, 7))
    elif kind == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", data[6:10]))
    check_size(height, width, where, max_pixels)


def _check_jpeg_2000(content: bytes, where: Path | str, max_pixels: int) -> None:
    """Check what the code stream of a JPEG 2000 says, whatever the boxes around it say."""
    start = content.find(_SOC_SIZ)
    if start < 0 or len(content) < start + 42:
        return
    fields = struct.unpack_from(">8I", content, start + 8)
    x1, y1, x0, y0, tile_width, tile_height, _, _ = fields
    width, height = max(0, x1 - x0), max(0, y1 - y0)
    check_size(height, width, where, max_pixels)
    tiles = -(-width // max(1, tile_width)) * -(-height // max(1, tile_height))
    if tiles > 64 + width * height // _MIN_TILE:
        raise DatasetError(
            f"{where}: the JPEG 2000 of {width} x {height} pixels has {tiles} tiles, of fewer than {_MIN_TILE} pixels "
            "each; save it again with larger ones"
        )
    smallest = min(_block_sizes(content, start + 2), default=_MIN_CODE_BLOCK)
    if width * height > 2**20 and smallest < _MIN_CODE_BLOCK:
        raise DatasetError(
            f"{where}: the JPEG 2000 of {width} x {height} pixels has code blocks or precincts of {smallest} pixels, "
            f"expected {_MIN_CODE_BLOCK} or more in an image of this size; save it again with larger ones"
        )


def _block_sizes(content: bytes, position: int) -> list[int]:
    """Return the pixels of the code blocks and precincts in all headers of a JPEG 2000 code stream."""
    sizes: list[int] = []
    channel = 2 if len(content) > position + 41 and content[position + 38 : position + 40] > b"\x01\x00" else 1
    tile_part = 0
    for _ in range(2**18):
        if len(content) < position + 4:
            break
        marker, length = struct.unpack_from(">HH", content, position)
        if marker == _SOT and len(content) >= position + 12:
            tile_part = position
        if marker == 0xFF93:  # the data of a tile part, up to the next one
            (size,) = struct.unpack_from(">I", content, tile_part + 6)
            if not tile_part or size < 14:
                break
            position, tile_part = tile_part + size, 0
            continue
        if marker in (_COD, _COC):
            style = position + 4 + (channel if marker == _COC else 0)
            at = style + (5 if marker == _COD else 1)
            parameters = content[at : position + 2 + length]
            if len(parameters) >= 5:
                sizes.append(1 << ((parameters[1] & 15) + (parameters[2] & 15) + 4))
                # the lowest resolution may have small precincts
                sizes += [1 << ((one & 15) + (one >> 4)) for one in parameters[6:]]
        position += 2 + length
    return sizes


def check_size(height: int, width: int, where: Path | str, max_pixels: int = MAX_PIXELS, channels: int = 3) -> None:
    """Check the size of an image before it is decoded.

    Raises:
        DatasetError: it is too large.
    """
    if width * height * channels > max_pixels * 3:
        of_channels = "" if channels == 3 else f" of {channels} channels"
        raise DatasetError(
            f"{where}: the image has {width} x {height} pixels{of_channels}, more than the maximum of "
            f"{max_pixels * 3 // channels}; make it smaller or split it into tiles"
        )
